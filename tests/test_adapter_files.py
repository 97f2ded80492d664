# ruff: noqa: F811 (fixtures are imported)
"""An adapter's folder may be a stranger's: nothing there is run, fetched or followed; what does not fit is refused."""

import json
import struct

import pytest
import torch
from bad_inputs import adapters, check_refused, listing, place, says  # noqa: F401
from safetensors.torch import load_file, save_file

from liftlab import models
from liftlab.documents import Document
from liftlab.lifted import Lifted

WEIGHTS, CONFIG, FACTS = "adapter_model.safetensors", "adapter_config.json", "lift.json"
KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def changed(name, **fields):
    """Fields of a JSON file of the adapter, None removes one."""

    def damage(folder):
        content = json.loads((folder / name).read_text()) | fields
        (folder / name).write_text(json.dumps({key: value for key, value in content.items() if value != "absent"}))

    return damage


def reweighed(change, name=WEIGHTS):
    def damage(folder):
        state = load_file(folder / name)
        change(state)
        save_file(state, folder / name, metadata={"format": "pt"})

    return damage


def pickled(folder):
    (folder / WEIGHTS).unlink()
    torch.save({"harm": torch.zeros(1)}, folder / "adapter_model.bin")


def linked(name):
    def damage(folder):
        (folder / name).rename(folder.parent / "elsewhere")
        (folder / name).symlink_to(folder.parent / "elsewhere")

    return damage


def written(name, data):
    return lambda folder: (folder / name).write_bytes(data)


def headless(folder):
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", 2**60) + b"{}")


def in_recipe(**fields):
    def damage(folder):
        content = json.loads((folder / FACTS).read_text())
        content["recipe"] |= fields
        (folder / FACTS).write_text(json.dumps(content))

    return damage


ADAPTERS = {
    "a pickle": ("lora", pickled, [WEIGHTS, "missing", "adapter_model.bin", "can run code", "lift the document again"]),
    "no weights": ("lora", lambda folder: (folder / WEIGHTS).unlink(), [WEIGHTS, "missing"]),
    "half the weights": ("lora", written(WEIGHTS, b"half"), [WEIGHTS, "no whole safetensors file"]),
    "an endless header": ("lora", headless, [WEIGHTS, "no whole safetensors file"]),
    "a missing weight": ("lora", reweighed(lambda s: s.pop(KEY)), [KEY, "absent in the file", "(8, 128) there"]),
    "an extra weight": ("lora", reweighed(lambda s: s.update(x=torch.ones(1))), ["'x'", "(1,)", "absent there"]),
    "another shape": ("lora", reweighed(lambda s: s.update({KEY: torch.ones(8, 64)})), [KEY, "(8, 64)", "(8, 128)"]),
    "whole numbers": ("lora", reweighed(lambda s: s.update({KEY: torch.ones(8, 128).int()})), [KEY, "I32", "F32"]),
    "NaN": ("lora", reweighed(lambda s: s[KEY].fill_(torch.nan)), [KEY, "not finite", "lift the document again"]),
    "NaN in the whole model": (
        "full", reweighed(lambda s: s["model.norm.weight"].fill_(torch.inf), "model.safetensors"), ["not finite"]),
    "a part of the whole model": (
        "full", reweighed(lambda s: s.pop("model.norm.weight"), "model.safetensors"), ["model.norm.weight", "absent"]),
    "no configuration": ("lora", lambda folder: (folder / CONFIG).unlink(), [CONFIG, "is missing"]),
    "a configuration that is no JSON": ("lora", written(CONFIG, b"{"), [CONFIG, "is not JSON"]),
    "a configuration that is no object": ("lora", written(CONFIG, b"[]"), [CONFIG, "holds a list"]),
    "a configuration nested too deep": ("lora", written(CONFIG, b"[" * 100000), [CONFIG, "nested too deep"]),
    "another method": ("lora", changed(CONFIG, peft_type="IA3"), [CONFIG, "peft_type = 'IA3'", "LORA"]),
    "no method": ("lora", changed(CONFIG, peft_type="absent"), [CONFIG, "lacks peft_type"]),
    "code of its own": (
        "lora", changed(CONFIG, auto_mapping={"base_model_class": "Evil"}), [CONFIG, "auto_mapping", "Evil"]),
    "an unknown field": ("lora", changed(CONFIG, remote="code"), [CONFIG, "remote = 'code'"]),
    "a start that writes into the base model": (
        "lora", changed(CONFIG, init_lora_weights="pissa"), [CONFIG, "init_lora_weights = 'pissa'", "needs True"]),
    "another rank": ("lora", changed(CONFIG, r=10**12), [CONFIG, "r = 1000000000000", "needs 8"]),
    "a rank that no memory holds": (
        "lora", lambda f: (changed(CONFIG, r=10**12)(f), in_recipe(rank=10**12)(f)),
        ["r = 1000000000000", "no weight"]),
    "a pattern for the modules": ("lora", changed(CONFIG, target_modules="(a+)+$"), [CONFIG, "(a+)+$", "a list of"]),
    "modules that are not there": ("lora", changed(CONFIG, target_modules=["nope"]), ["nope", "not found"]),
    "a memory that no memory holds": (
        "gated", lambda f: (changed(CONFIG, memory_width=10**12)(f), in_recipe(memory_width=10**12)(f)),
        ["memory_width = 1000000000000", "no weight"]),
    "facts that are no JSON": ("lora", written(FACTS, b"{"), [FACTS, "is not JSON"]),
    "NaN in the facts": ("lora", written(FACTS, b'{"title": NaN}'), ["NaN is not JSON"]),
    "a fact too many": ("lora", changed(FACTS, code="x"), [FACTS, "code = 'x'", "not permitted"]),
    "a missing fact": ("lora", changed(FACTS, history="absent"), [FACTS, "history", "required"]),
    "a title that is no text": ("lora", changed(FACTS, title=3), [FACTS, "title = 3", "string"]),
    "history of another kind": ("lora", changed(FACTS, history=[{"step": "a"}]), [FACTS, "history.0.step = 'a'"]),
    "no base model": ("lora", changed(FACTS, provenance={}), [FACTS, "provenance.base_model", "required"]),
    "an unknown field of the recipe": ("lora", in_recipe(speed=3), ["speed", "lift the document again"]),
    "a recipe out of bounds": ("lora", in_recipe(rank=0), ["rank = 0", "at least 1"]),
    "a base model on the hub": (
        "lora", changed(FACTS, provenance={"base_model": {"name": "evil/model"}}), ["'evil/model'", "give --model"]),
    "another base model": (
        "lora", changed(FACTS, provenance={"base_model": {"name": "micro", "weights_sha256": "0"}}),
        ["weights_sha256 0", "ask it on the model it was lifted on"]),
    "a document that is no text": ("lora", written("document.txt", b"\xff\xfea\0"), ["document.txt", "UTF-16"]),
    "no document": ("lora", lambda folder: (folder / "document.txt").unlink(), ["document.txt is missing"]),
    "a document elsewhere": ("lora", linked("document.txt"), ["document.txt", "a link", "put the file itself there"]),
    "weights elsewhere": ("lora", linked(WEIGHTS), [WEIGHTS, "a link", "put the file itself there"]),
    "facts elsewhere": ("lora", linked(FACTS), [FACTS, "a link", "put the file itself there"]),
}  # fmt: skip


@pytest.mark.parametrize(("name", "damage", "fragments"), ADAPTERS.values(), ids=ADAPTERS)
def test_an_adapter_of_a_stranger_is_refused(place, says, name, damage, fragments):
    damage(place / "adapters" / name)
    check_refused(place, says, ["ask", f"adapters/{name}", "Where?"], fragments)


def test_nothing_that_an_adapter_names_is_fetched_or_run(place, monkeypatch, says):
    """Neither its own name for the base model nor a pickle beside the weights is touched; the adapter is asked."""
    changed(CONFIG, base_model_name_or_path="evil/model", revision="main")(place / "adapters/lora")
    (place / "adapters/lora/adapter_model.bin").write_bytes(b"\x80\x04harm")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("the hub was asked"))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: pytest.fail("the hub was asked"))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was read"))
    code, out, errors = says("ask", "adapters/lora", "Where?", "--answer-tokens", "2")
    assert code == 0 and out.strip(), errors


def test_a_refused_adapter_leaves_the_base_model_as_it_was(place):
    base = models.load("micro")
    before = {key: value.clone() for key, value in base.model.state_dict().items()}
    reweighed(lambda s: s.update({KEY: torch.ones(8, 64)}))(place / "adapters/lora")
    with pytest.raises(ValueError, match="does not fit"), Lifted.load(place / "adapters/lora").on(base):
        pass
    after = base.model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize("name", ["../../out", "/tmp/out", "a/b", "..", "a\nb", "\x1b[31m", "CON", "x" * 300])
def test_hostile_names_and_titles_never_lead_out_of_the_folder(place, adapters, name):
    """A document's name and title are kept as text; the files that are written have names of liftlab's own."""
    lifted = Lifted.load(adapters / "lora")
    hostile = Document(name, lifted.document.text, name)
    before = set(listing(place))
    folder = Lifted(hostile, lifted.recipe, lifted.adapter, lifted.state, lifted.history, lifted.base).save("out")
    made = set(listing(place)) - before
    assert {path.relative_to(place).parts[0] for path in made} == {"out"}
    assert {path.name for path in (place / folder).iterdir()} == {WEIGHTS, CONFIG, FACTS, "document.txt"}
    again = Lifted.load(folder).document
    assert (again.name, again.title) == (name, name)
