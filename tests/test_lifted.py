import warnings

import peft
import pytest
import torch

from liftlab.examples import known_pairs
from liftlab.lifted import Lifted
from liftlab.lifting import lift
from liftlab.recipes import Recipe
from liftlab.worlds import register

DOCUMENT = register(0, 100)
IDS = torch.arange(6, 30)[None]


def lifted_with(tiny, adapter):
    own = {"prefix_tokens": 8} if adapter == "cartridge" else {"rank": 4}
    recipe = Recipe.preset("micro/lora", mixed_epochs=2, adapter=adapter, **own)
    return lift(tiny, DOCUMENT, recipe, known_pairs(DOCUMENT), progress=False)


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("adapter", ["lora", "pissa", "cartridge", "full"])
def test_what_was_saved_answers_bit_for_bit_as_before(tiny, tmp_path, adapter):
    lifted = lifted_with(tiny, adapter)
    with lifted.on(tiny) as on:
        said = logits(on.model)
    again = Lifted.load(lifted.save(tmp_path / "out"))
    assert (again.recipe, again.history, again.base) == (lifted.recipe, lifted.history, lifted.base)
    assert (again.document.text, again.document.title) == (DOCUMENT.text, DOCUMENT.title)
    with again.on(tiny) as on:
        assert torch.equal(logits(on.model), said)


@pytest.mark.parametrize("adapter", ["lora", "pissa"])
def test_peft_itself_reads_the_saved_adapter(tiny, tmp_path, adapter):
    lifted = lifted_with(tiny, adapter)
    with lifted.on(tiny) as on:
        said = logits(on.model)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        model = peft.PeftModel.from_pretrained(tiny.model, str(lifted.save(tmp_path / "out")))
    assert torch.equal(logits(model), said)


def test_an_existing_folder_is_not_overwritten(tiny, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="exists already"):
        lifted_with(tiny, "lora").save(tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_failed_save_leaves_nothing(tiny, tmp_path, monkeypatch):
    lifted = lifted_with(tiny, "lora")
    monkeypatch.setattr("liftlab.lifted.save_file", lambda *a, **k: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        lifted.save(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_missing_and_damaged_folders_say_so(tiny, tmp_path):
    with pytest.raises(FileNotFoundError, match="is no lifted document"):
        Lifted.load(tmp_path)
    folder = lifted_with(tiny, "lora").save(tmp_path / "out")
    (folder / "adapter_model.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match="is damaged"):
        Lifted.load(folder)
