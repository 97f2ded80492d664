"""The study of companions, on a tiny random model: costs are counted by others, and what cannot run says why."""

import pandas as pd
import pytest
import torch

from liftlab import grouped_positions, stacked, stacked_training
from liftlab.answering import answer
from liftlab.examples import known_pairs
from liftlab.lifting import lift
from liftlab.packing import pack
from liftlab.prompts import PLAIN
from liftlab.recipes import Recipe
from liftlab.register_tasks import with_tasks
from liftlab.scoring import f1
from liftlab.stacked import Job
from liftlab.studies import companions, registers
from liftlab.studies.companion_methods import METHODS
from liftlab.studies.companions import PREDICTED, drawn
from liftlab.studies.registers import register_of

TYPES = ["short_qa", "multiple_information_retrieval", "comprehension_and_reasoning"]
RECIPES = {"lift": "micro/lora", "raw_text": "micro/raw", "temp_lora": "micro/temp_lora",
           "cartridge": "micro/cartridge"}  # fmt: skip
CHANGES = {
    "lift": {"mixed_epochs": 1, "segment_tokens": 32, "offset_tokens": 12},
    "raw_text": {"segment_tokens": 32, "offset_tokens": 12},
    "temp_lora": {"segment_tokens": 32, "offset_tokens": 32},
    "cartridge": {"mixed_epochs": 1, "prefix_tokens": 8},
}
SETTINGS = dict(
    base="tiny", window_tokens=0, windows=[0.5], documents=1, seeds=1, questions=3, question_types=TYPES,
    methods=list(METHODS), recipes=RECIPES, changes=CHANGES, passage_tokens=24, group=8, neighbours=64, style="plain",
    filler=0.1, answer_tokens=2, score="f1", expected_questions=10, timed=False,
)  # fmt: skip


@pytest.fixture(autouse=True)
def on_tiny(tiny, monkeypatch):
    for study in (companions, registers):
        monkeypatch.setattr(study, "base_model", lambda name, window_tokens: tiny)


@pytest.fixture
def document(tiny):
    return with_tasks(register_of(tiny, 200, 0.5, 0.1), TYPES, 200)


def run(folder, **changes):
    return companions.run(**{**SETTINGS, **changes}, records=folder)


def value(frame, metric, condition):
    return frame[(frame["metric"] == metric) & (frame["condition"] == condition)]["value"].item()


def test_every_method_answers_every_question_and_tells_its_costs(tmp_path, tiny, document):
    frame = run(tmp_path)
    asked = [question.text for question in drawn(document, TYPES, 3, 200)]
    assert len(asked) == 9 and "cannot_run" not in set(frame["metric"])
    assert set(frame["condition"]) == set(METHODS) and set(frame["expected_questions"]) == {10}
    for condition, rows in frame.groupby("condition"):
        answers = rows[rows["metric"] == "f1"]
        assert list(answers["question"]) == asked and set(answers["kind"]) == set(TYPES), condition
        costs = rows[(rows["kind"] == "") & ~rows["metric"].str.contains("perplexity")]
        assert sorted(costs["metric"]) == ["prompt_tokens", "stored_bytes", "training_tokens"], condition
    predicted = frame[frame["metric"] == "perplexity"]
    assert set(predicted["condition"]) == {"closed_book", *PREDICTED} and set(predicted["context"]) == {"short", "long"}


def count_tokens(model, monkeypatch):
    """Real positions (no padding) that the model reads: in training, at the embedding; in prompts, at the whole model.

    In training a position counts as often as examples share it. A prompt is what generation reads first, more than one
    token at once; perplexities are read past the whole model.
    """
    seen, rows = {"training": 0, "prompt": 0}, []
    monkeypatch.setattr(stacked_training, "pack", lambda *given, **how: rows.append(pack(*given, **how)) or rows[-1])

    def embedded(_module, given):
        if torch.is_grad_enabled() and rows:  # none where memory is measured
            counts = rows.pop().counts
            assert torch.equal(given[0] != 0, counts > 0)
            seen["training"] += int(counts.sum())

    def read(_module, _given, named):
        if named["input_ids"].shape[1] > 1:
            seen["prompt"] += int((named["input_ids"] != 0).sum())

    hooks = [model.get_input_embeddings().register_forward_pre_hook(embedded),
             model.register_forward_pre_hook(read, with_kwargs=True)]  # fmt: skip
    monkeypatch.setattr(companions.Asked, "predicted", lambda *_: [])
    for answerer in ("answering", "stacked"):  # or what prompts share is read once
        monkeypatch.setattr(f"liftlab.{answerer}.can_share", lambda model: False)
    return seen, hooks


@pytest.mark.parametrize("method", METHODS)
def test_tokens_are_those_that_the_model_itself_reads(method, tmp_path, tiny, monkeypatch):
    seen, hooks = count_tokens(tiny.model, monkeypatch)
    frame = run(tmp_path, methods=[method])
    for hook in hooks:
        hook.remove()
    assert seen["training"] == value(frame, "training_tokens", method)
    assert (seen["training"] > 0) == bool(METHODS[method].recipe)
    questions = (frame["metric"] == "f1").sum()
    assert seen["prompt"] == pytest.approx(questions * value(frame, "prompt_tokens", method)) and seen["prompt"] > 0


def test_bytes_are_those_of_a_save_and_of_the_text(tmp_path, tiny, document):
    frame = run(tmp_path / "records")
    text = len((document.title + document.text).encode("utf-8"))
    for condition, method in METHODS.items():
        wanted = text * (method.context != "none")
        if method.recipe:
            plan = Recipe.preset(RECIPES[method.recipe], **CHANGES[method.recipe])
            pairs = known_pairs(document) if method.pairs else []
            folder = lift(tiny, document, plan, pairs, progress=False).save(tmp_path / condition)
            wanted += (folder / "adapter_model.safetensors").stat().st_size
        assert value(frame, "stored_bytes", condition) == wanted, condition


def test_answers_are_those_of_a_plain_loop(tmp_path, tiny, document):
    frame = run(tmp_path, changes={**CHANGES, "lift": {**CHANGES["lift"], "mixed_epochs": 6}})
    asked = drawn(document, TYPES, 3, 200)
    plan = Recipe.preset("micro/lora", **{**CHANGES["lift"], "mixed_epochs": 6})
    (lifted,) = stacked.lift(tiny, [Job(document, plan, known_pairs(document))], progress=False)
    with lifted.on(tiny) as on:
        wanted = {"lift": answer(on, document, asked, "none", answer_tokens=2, style=PLAIN),
                  "lift_truncated_icl": answer(on, document, asked, "truncated", answer_tokens=2)}  # fmt: skip
    wanted |= {name: answer(tiny, document, asked, context, answer_tokens=2)
               for name, context in (("closed_book", "none"), ("full_icl", "full"))}  # fmt: skip
    for condition, said in wanted.items():
        rows = frame[(frame["metric"] == "f1") & (frame["condition"] == condition)]
        assert list(rows["answer"]) == said, condition
        assert list(rows["value"]) == [f1(text, q.answer) for text, q in zip(said, asked, strict=True)]
    assert wanted["lift"] != wanted["closed_book"]


def test_what_cannot_run_says_why(tmp_path, monkeypatch):
    """1.5 windows fit neither; a segment is longer than the document; an architecture is unknown."""
    long = {"windows": [1.5], "methods": ["full_icl", "self_extend", "truncated_icl"], "group": 1}
    reasons = run(tmp_path / "a", **long).query("metric == 'cannot_run'").set_index("condition")["reason"]
    assert reasons["full_icl"] == "a prompt with the whole document does not fit the window of 256 tokens"
    assert reasons["self_extend"].endswith("does not fit the 256 tokens that group 1 reaches")
    assert list(reasons.index) == ["full_icl", "self_extend"]
    short = {"methods": ["lift", "lift_truncated_icl", "closed_book"], "changes": {"lift": {"segment_tokens": 4096}}}
    frame = run(tmp_path / "b", **short)
    reasons = frame[frame["metric"] == "cannot_run"].set_index("condition")["reason"]
    assert list(reasons.index) == ["lift", "lift_truncated_icl"] and reasons.str.contains("a segment has 4096").all()
    assert set(frame.loc[frame["condition"] == "closed_book", "metric"]) > {"f1"}
    monkeypatch.setattr(grouped_positions, "cannot", lambda model: "its architecture is of stone")
    frame = run(tmp_path / "c", methods=["self_extend"])
    assert list(frame["reason"]) == ["its architecture is of stone"]


def test_the_text_alone_gets_the_tokens_of_lift_to_half_an_epoch(tmp_path, tiny, document):
    changes = {**CHANGES, "lift": {**CHANGES["lift"], "mixed_epochs": 3}}
    frame = run(tmp_path, methods=["raw_text", "lift"], changes=changes)
    ids = len(tiny.tokenizer(f"{document.title}\n{document.text}", add_special_tokens=False)["input_ids"])
    epoch = sum(min(32, ids - start) for start in range(0, ids, 12) if ids - start > 1)
    given = value(frame, "training_tokens", "raw_text")
    assert given % epoch == 0 and abs(given - value(frame, "training_tokens", "lift")) <= epoch / 2


def test_a_resumed_run_gives_the_bytes_of_an_unbroken_one_and_nothing_is_timed(tmp_path):
    few = {"documents": 2, "methods": ["closed_book", "retrieval", "lift"]}
    frame = run(tmp_path / "a", **few)
    run(tmp_path / "b", **few)
    next((tmp_path / "b/companions").glob("*.csv")).unlink()
    (tmp_path / "b/companions.csv").unlink()
    run(tmp_path / "b", **few)
    assert (tmp_path / "a/companions.csv").read_bytes() == (tmp_path / "b/companions.csv").read_bytes()
    assert not frame["metric"].str.contains("seconds").any()


def test_seconds_are_recorded_where_they_are_asked_for(tmp_path):
    plain, timed = (run(tmp_path / name, methods=["closed_book", "lift"], timed=name == "timed")
                    for name in ("plain", "timed"))  # fmt: skip
    seconds = timed["metric"].str.endswith("_seconds")
    found = timed[seconds].pivot(index="condition", columns="metric", values="value")
    assert (found["question_seconds"] > 0).all()
    assert found.loc["lift", "prepare_seconds"] > found.loc["closed_book", "prepare_seconds"] >= 0
    pd.testing.assert_frame_equal(timed[~seconds].reset_index(drop=True), plain)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"questions": 0}, "questions = 0: must be at least 1"),
        ({"passage_tokens": 0}, "passage_tokens = 0: must be at least 1"),
        ({"windows": [0.0]}, "a document length of 0.0 windows"),
        ({"methods": ["rag"]}, "method 'rag' is unknown: choose among closed_book"),
        ({"question_types": ["sums"]}, "question type 'sums' is unknown"),
        ({"score": "rouge"}, "score 'rouge' is unknown"),
        ({"recipes": {"lift": "micro/lora"}, "changes": {}}, "give the recipe of 'raw_text'"),
        ({"changes": {"lora": {}}}, "recipe of changes: 'lora' is unknown"),
        ({"methods": ["lift"], "recipes": {"lift": "micro/qlora"}, "changes": {}}, "recipe 'micro/qlora' is unknown"),
    ],
)
def test_settings_are_checked_before_anything_is_computed(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, **changes)
    assert list(tmp_path.iterdir()) == []
