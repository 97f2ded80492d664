"""The studies on depths and on segment offsets, on a tiny random model: they record what they promise."""

from contextlib import nullcontext
from dataclasses import replace

import pandas as pd
import pytest

from liftlab import stacked
from liftlab.answering import CONDITIONS, answer
from liftlab.examples import known_pairs, pair_examples, segment_spans
from liftlab.lifting import lift
from liftlab.probes.evidence_position import probe, truncated_place
from liftlab.prompts import PLAIN, put
from liftlab.recipes import Recipe
from liftlab.scoring import exact_match
from liftlab.stacked import Job
from liftlab.studies import evidence_position, registers, segment_offset
from liftlab.studies.registers import ask_facts, register_of, shuffled

CHANGES = {"mixed_epochs": 1, "segment_tokens": 32}
COMMON = dict(base="tiny", window_tokens=0, documents=2, seeds=1, questions=6, recipe="micro/lora", filler=0.1,
              answer_tokens=2, score="exact_match")  # fmt: skip
CONTROLS = ["other_document", "shuffled_answers", "chance"]
POSITION = {**COMMON, "windows": [0.5, 1.5], "conditions": list(CONDITIONS),
            "recipe_changes": {**CHANGES, "offset_tokens": 12}}  # fmt: skip
RATIOS = [1.0, 0.75, 0.5, 0.375, 0.25]
OFFSET = {**COMMON, "windows": 0.5, "ratios": RATIOS, "segment_epochs": 2, "cues": 2, "recipe_changes": CHANGES}
STUDIES = [(evidence_position, POSITION), (segment_offset, OFFSET)]


@pytest.fixture(autouse=True)
def on_tiny(tiny, monkeypatch):
    for study in (evidence_position, segment_offset, registers):
        monkeypatch.setattr(study, "base_model", lambda name, window_tokens: tiny)


def test_every_condition_asks_every_question_and_full_icl_where_the_document_fits(tmp_path, tiny):
    frame = evidence_position.run(**{**POSITION, "documents": 1, "seeds": 2}, records=tmp_path)
    lifted = {"lift", "lift_truncated_icl", "other_document", "shuffled_answers"}
    wanted = {(name, seed) for name in (*CONDITIONS, *CONTROLS) for seed in (range(2) if name in lifted else [0])}
    for (windows, _), told in frame.groupby(["windows", "document"]):
        counts = told.groupby(["condition", "seed"]).size()
        assert set(counts.index) == {key for key in wanted if windows == 0.5 or key[0] != "full_icl"}
        assert (counts == 6).all() and (told.groupby(["condition", "seed"])["question"].nunique() == 6).all()
    assert set(frame["wording"]) == {"held_out"} and set(frame["hops"]) == {1} and frame["value"].between(0, 1).all()
    assert len(frame.groupby(["windows", "document"])) == 2
    assert set(frame.loc[frame["condition"] == "chance", "metric"]) == {"chance"}
    assert set(frame.loc[frame["condition"] != "chance", "metric"]) == {"exact_match"}
    whole = frame[frame["condition"].isin(["truncated_icl", "lift_truncated_icl"])]
    assert (whole["place"] == whole["would_be"]).all()


def test_where_truncation_puts_the_evidence_is_the_question_s_not_the_condition_s(tmp_path, tiny):
    every = evidence_position.run(**{**POSITION, "questions": 20, "documents": 1}, records=tmp_path)
    frame = every[every["condition"] != "other_document"]
    same = frame.groupby(["windows", "document", "question"])[["would_be", "depth", "kind"]].nunique()
    assert (same == 1).all(axis=None)
    places = frame.groupby("windows")["would_be"].unique()
    assert set(places[0.5]) == {"whole"} and {"head", "middle", "tail"} <= set(places[1.5])
    for windows in (0.5, 1.5):  # of the control, in the other register
        other = register_of(tiny, 201, windows, 0.1)
        asked = [q for q in ask_facts(other, 20, 201) if q.wording == "held_out"]
        told = every[(every["condition"] == "other_document") & (every["windows"] == windows)]
        assert list(told["question"]) == [q.text for q in asked] and set(told["place"]) == {"absent"}
        assert list(told["depth"]) == pytest.approx([other.depth(q) for q in asked])
        assert list(told["would_be"]) == [truncated_place(tiny, other, q, answer_tokens=2) for q in asked]


def test_the_rows_are_the_probe_s_in_every_context(tmp_path, tiny):
    frame = evidence_position.run(**{**POSITION, "documents": 1, "windows": [0.5]}, records=tmp_path)
    document = register_of(tiny, 200, 0.5, 0.1)
    asked = [q for q in ask_facts(document, 6, 200) if q.wording == "held_out"]
    plan = Recipe.preset("micro/lora", **POSITION["recipe_changes"])
    lifted = lift(tiny, document, plan, known_pairs(document), progress=False)
    for name, condition in CONDITIONS.items():
        with lifted.on(tiny) if condition.lifted else nullcontext(tiny) as on:
            wanted = probe(on, document, asked, context=condition.context, answer_tokens=2)
        rows = frame.loc[frame["condition"] == name, wanted.columns].reset_index(drop=True)
        pd.testing.assert_frame_equal(rows, wanted, check_dtype=False)


def test_a_question_that_leaves_no_room_for_the_document_has_no_full_icl(tmp_path, tiny, monkeypatch):
    """One document that fits beside some questions only: those alone are asked with all of it in the prompt."""
    document = register_of(tiny, 200, 1.0, 0.1)
    lengths = sorted(len(put(tiny.tokenizer, document, q, "full", 10_000, 2)) for q in document.asked())
    tiny = replace(tiny, window=lengths[len(lengths) // 2] + 2)
    monkeypatch.setattr(evidence_position, "base_model", lambda name, window_tokens: tiny)
    monkeypatch.setattr(evidence_position, "register_of", lambda *arguments: document)
    settings = {**POSITION, "windows": [1.0], "documents": 1, "questions": 40, "conditions": ["full_icl"]}
    frame = evidence_position.run(**settings, records=tmp_path)
    asked = [q for q in ask_facts(document, 40, 200) if q.wording == "held_out"]
    fitting = [q.text for q in asked if truncated_place(tiny, document, q, answer_tokens=2) == "whole"]
    assert list(frame.loc[frame["condition"] == "full_icl", "question"]) == fitting
    assert 0 < len(fitting) < len(asked) == (frame["condition"] == "chance").sum()


def test_controls_are_the_other_register_s_questions_and_the_answers_permuted(tmp_path, tiny):
    """Rebuilt by hand, one adapter: its answers, scored against those of other facts; and what it says of another."""
    changes = {**POSITION["recipe_changes"], "mixed_epochs": 6}
    settings = {**POSITION, "windows": [0.5], "documents": 1, "questions": 40, "recipe_changes": changes}
    frame = evidence_position.run(**settings, records=tmp_path)
    wanted = by_hand(tiny, Recipe.preset("micro/lora", **changes), 40, ["held_out"])
    for condition, (questions, scores) in wanted.items():
        told = frame[frame["condition"] == condition]
        assert list(told["question"]) == questions and list(told["value"]) == scores, condition
    assert frame.loc[frame["condition"] == "lift", "value"].sum() > 0  # so that the comparison can fail


def by_hand(tiny, plan, count, wordings):
    """Per condition, the questions and the scores of the adapter of register 200, closed book, in a plain loop.

    The adapter is the study's to the last bit: over dozens of epochs rounding alone would change an answer.
    """
    document, other = (register_of(tiny, seed, 0.5, 0.1) for seed in (200, 201))
    own, others = (
        [q for q in ask_facts(of, count, seed) if q.wording in wordings] for of, seed in ((document, 200), (other, 201))
    )
    wanted = {"lift": (document, own), "other_document": (other, others),
              "shuffled_answers": (document, shuffled(document, own))}  # fmt: skip
    found = {}
    (lifted,) = stacked.lift(tiny, [Job(document, plan, known_pairs(document))], progress=False)
    with lifted.on(tiny) as on:
        for condition, (source, asked) in wanted.items():
            said = answer(on, source, asked, "none", answer_tokens=2)
            scores = [exact_match(text, q.answer) for text, q in zip(said, asked, strict=True)]
            found[condition] = [q.text for q in asked], scores
    assert found["lift"][1] != found["shuffled_answers"][1] and found["lift"][0] == found["shuffled_answers"][0]
    return found


def test_controls_of_a_ratio_are_its_adapter_s_answers(tmp_path, tiny):
    changes = {**CHANGES, "mixed_epochs": 40}
    few = {"documents": 1, "questions": 20, "ratios": [0.375], "recipe_changes": changes}
    frame = segment_offset.run(**{**OFFSET, **few}, records=tmp_path)
    plan = Recipe.preset("micro/lora", **changes, offset_tokens=12, segment_epochs=2, segments_in_mixed=False)
    for condition, (questions, scores) in by_hand(tiny, plan, 20, ["trained", "held_out"]).items():
        told = frame[(frame["condition"] == condition) & (frame["metric"] == "exact_match")]
        assert list(told["question"]) == questions and list(told["value"]) == scores, condition
    lifted = frame[(frame["condition"] == "lift") & (frame["metric"] == "exact_match")]
    assert lifted["value"].sum() > 0  # so that the comparison can fail


def test_every_ratio_is_measured_and_so_are_its_controls(tmp_path, tiny):
    few = {"documents": 1, "seeds": 2, "questions": 3, "ratios": [1.0, 0.375]}
    frame = segment_offset.run(**{**OFFSET, **few}, records=tmp_path)
    measured = frame[frame["condition"] != "chance"]
    names = ["lift", "other_document", "shuffled_answers"]
    lifts = {(name, seed, ratio) for name in names for seed in range(2) for ratio in few["ratios"]}
    asked = {seed: {q.text for q in ask_facts(register_of(tiny, seed, 0.5, 0.1), 3, seed)} for seed in (200, 201)}
    assert len(measured.groupby("document")) == 1
    for document, told in measured.groupby("document"):
        base, trained = told[told["condition"] == "base"], told[told["condition"] != "base"]
        groups = {key: rows for key, rows in trained.groupby(["condition", "seed", "ratio"])}
        assert set(groups) == lifts, document
        for (condition, _, _), rows in groups.items():
            answers = rows[rows["metric"] == "exact_match"]
            assert set(answers["question"]) == asked[201 if condition == "other_document" else 200]
            assert condition == "lift" or len(answers) == len(rows) == 2 * 3
            assert (answers["wording"].value_counts() == 3).all() and set(answers["wording"]) == {"trained", "held_out"}
            assert answers["depth"].between(0, 1).all()
        for rows in (base, *(rows for (condition, _, _), rows in groups.items() if condition == "lift")):
            counts = rows.groupby("metric").size()
            assert counts["exact_match"] == 2 * 3 and counts["bits_per_token"] == 2 and counts["recited_tokens"] == 4
            assert set(rows["text"]) >= {"document", "paraphrase"}
            assert set(rows["place"]) >= {"segment_start", "segment_middle"}
            assert (rows.loc[rows["metric"] == "exact_match", "wording"].value_counts() == 3).all()
        assert set(trained["adapter"]) == {"lora"} and set(base["adapter"]) == {""} and base["ratio"].isna().all()
        assert "trained_tokens" not in set(base["metric"]) and base["trained_tokens"].isna().all()
    assert (frame[frame["condition"] == "chance"].groupby("document").size() == 2 * 3).all()


def test_recited_tokens_start_where_the_ratio_s_segments_do(tmp_path):
    frame = segment_offset.run(**{**OFFSET, "documents": 1, "ratios": [1.0, 0.25]}, records=tmp_path)
    recited = frame[frame["metric"] == "recited_tokens"]
    for (condition, ratio), rows in recited.groupby(["condition", recited["ratio"].fillna(0.375)]):
        offset = round(ratio * 32)
        starts = {start for start, _ in segment_spans(int(frame["document_tokens"].iloc[0]), 32, offset)}
        by = rows.groupby("place")["position"].apply(set)
        assert by["segment_start"] <= starts, condition
        assert {position - offset // 2 for position in by["segment_middle"]} <= starts, condition


def test_trained_segment_tokens_are_within_half_an_epoch_of_the_smallest_ratio_s(tmp_path, tiny):
    settings = {**OFFSET, "documents": 1, "questions": 1, "segment_epochs": 4}
    frame = segment_offset.run(**settings, records=tmp_path)
    told = frame[frame["metric"] == "trained_tokens"].groupby("condition")
    trained = told.get_group("lift").set_index("ratio")["value"]
    assert (frame["trained_tokens"].dropna() == frame["trained_tokens"].dropna().round()).all()
    document = register_of(tiny, 200, 0.5, 0.1)
    pairs = pair_examples(tiny.tokenizer, document, known_pairs(document), PLAIN, "none", 256)
    segments = trained - sum(len(pair.ids) for pair in pairs)  # one epoch of pairs
    length = int(frame["document_tokens"].iloc[0])
    for ratio in RATIOS:
        spans = segment_spans(length, 32, round(ratio * 32))
        epoch = sum(end - start for start, end in spans if end - start > 1)
        assert segments[ratio] % epoch == 0
        assert abs(segments[ratio] - segments[0.25]) <= epoch / 2
        assert abs(segments[ratio] / segments[0.25] - 1) <= 0.1 or segments[ratio] / epoch < 6
    assert segments[0.25] == 4 * epoch


@pytest.mark.parametrize(("study", "settings"), STUDIES)
def test_a_study_from_scratch_gives_the_same_bytes(study, settings, tmp_path):
    name = study.__name__.split(".")[-1]
    few = {"conditions": ["lift"]} if study is evidence_position else {"ratios": [1.0, 0.5]}
    for folder in ("a", "b"):
        study.run(**{**settings, **few, "documents": 1, "questions": 3}, records=tmp_path / folder)
    assert (tmp_path / f"a/{name}.csv").read_bytes() == (tmp_path / f"b/{name}.csv").read_bytes()


@pytest.mark.parametrize(
    ("study", "changes", "message"),
    [
        (evidence_position, {"questions": 0}, "questions = 0: must be at least 1"),
        (evidence_position, {"windows": [1.0, 0.0]}, "a document length of 0.0 windows"),
        (evidence_position, {"conditions": ["lift", "icl"]}, "condition 'icl' is unknown: choose among closed_book"),
        (evidence_position, {"recipe": "micro/qlora"}, "recipe 'micro/qlora' is unknown"),
        (segment_offset, {"cues": 0}, "cues = 0: must be at least 1"),
        (segment_offset, {"segment_epochs": 0}, "segment_epochs = 0: must be at least 1"),
        (segment_offset, {"windows": 0.0}, "windows = 0.0: a document's length"),
        (segment_offset, {"ratios": [1.0, 1.5]}, "ratios: 1.5: an offset lies above 0 and is at most 1 segment"),
        (segment_offset, {"ratios": []}, "give at least one ratio"),
        (segment_offset, {"ratios": [0.5, 0.51]}, r"offsets of \[16, 16\] tokens in segments of 32"),
        (segment_offset, {"ratios": [0.01]}, "offset_tokens = 0: must be a whole number, at least 1"),
        (segment_offset, {"recipe_changes": {"offset_tokens": 8}}, "recipe_changes sets offset_tokens, which this"),
    ],
)
def test_settings_are_checked_before_anything_is_computed(study, changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        study.run(**{**dict(STUDIES)[study], **changes}, records=tmp_path)
    assert list(tmp_path.iterdir()) == []
