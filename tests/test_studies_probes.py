"""The studies on memorization and conflict, on a tiny random model: every promised row, every control, same bytes."""

import itertools
from dataclasses import replace

import pytest

from liftlab.answering import answer
from liftlab.examples import known_pairs
from liftlab.lifting import lift
from liftlab.recipes import Recipe
from liftlab.scoring import exact_match
from liftlab.studies import conflict, memorization_vs_icl, registers
from liftlab.worlds import vocabulary

ADAPTERS = {"lora": "micro/lora", "gated_memory": "micro/gated_memory"}
CHANGES = {"mixed_epochs": 1, "segment_tokens": 48, "offset_tokens": 24, "segments_in_mixed": False}
COMMON = dict(base="tiny", window_tokens=0, documents=2, seeds=2, questions=2, every=3, recipes=ADAPTERS,
              recipe_changes=CHANGES, filler=0.1, answer_tokens=2, score="exact_match")  # fmt: skip
MEMORIZATION = {**COMMON, "seeds": 1, "windows": 1.2, "cues": 2}
CONFLICT = {**COMMON, "windows": 0.5, "every": 2}
STUDIES = [(memorization_vs_icl, MEMORIZATION), (conflict, CONFLICT)]


@pytest.fixture(autouse=True)
def on_tiny(tiny, monkeypatch):
    for study in (registers, memorization_vs_icl, conflict):
        monkeypatch.setattr(study, "base_model", lambda name, window_tokens: tiny)


@pytest.fixture
def small(tmp_path):
    """The records of a study on one document, with `changes`."""

    def records(study, settings, folder="small", **changes):
        return study.run(**{**settings, "documents": 1, "seeds": 1, **changes}, records=tmp_path / folder)

    return records


def counts(frame, *by):
    return frame.groupby(list(by)).size().to_dict()


@pytest.mark.parametrize(("study", "settings"), STUDIES)
def test_every_document_has_each_adapter_and_seed_probed_along_the_way_and_its_controls(study, settings, tmp_path):
    frame = study.run(**settings, records=tmp_path)
    lift = frame[frame["condition"] == "lift"]
    of = ["document", "adapter", "seed"]
    last = lift.groupby(of)["step"].max()
    documents, seeds = ("register-200", "register-201"), range(settings["seeds"])
    assert set(last.index) == set(itertools.product(documents, ADAPTERS, seeds))
    for who, steps in lift.groupby(of)["step"]:
        assert sorted(set(steps)) == [*range(0, last[who], settings["every"]), last[who]] and len(set(steps)) > 2
    rows = lift.groupby([*of, "step"]).size()
    assert (rows.groupby(["document", "adapter"]).nunique() == 1).all()
    for control in ("other_document", "shuffled_answers"):
        steps = frame[frame["condition"] == control].groupby(of)["step"]
        assert steps.min().equals(last) and steps.max().equals(last)
    once = frame[frame["adapter"] == ""]
    assert set(once["condition"]) == {"base", "chance"}
    assert (once["step"] == 0).all() and (once["seed"] == 0).all()


def test_memorization_measures_text_facts_and_what_the_lift_costs(small):
    both = small(memorization_vs_icl, MEMORIZATION, seeds=2)
    of_lifts = both[both["adapter"] != ""]
    assert counts(of_lifts[of_lifts["seed"] == 0], "condition") == counts(of_lifts[of_lifts["seed"] == 1], "condition")
    frame = both[both["seed"] == 0]
    asked = 2 * 2  # facts in two wordings; as many of one hop as of two
    for _, rows in frame[frame["condition"].isin(["lift", "base"])].groupby(["adapter", "step"]):
        assert counts(rows, "metric") == {"bits_per_token": 3, "recited_tokens": 4, "exact_match": 3 * asked}
        assert counts(rows[rows["metric"] == "bits_per_token"], "text") == {"document": 1, "paraphrase": 1, "unseen": 1}
        assert counts(rows[rows["metric"] == "recited_tokens"], "place") == {"segment_start": 2, "segment_middle": 2}
        answers = rows[rows["metric"] == "exact_match"]
        assert counts(answers, "context", "hops", "wording") == {
            **{("none", hops, wording): 2 for hops in (1, 2) for wording in ("trained", "held_out")},
            **{(context, 1, "held_out"): 2 for context in ("truncated", "unseen_document")},
        }
    lift = frame[frame["condition"] == "lift"]
    questions = set(frame.loc[frame["condition"] == "chance", "question"])
    for adapter in ADAPTERS:
        last = lift.loc[lift["adapter"] == adapter, "step"].max()
        for condition in ("other_document", "shuffled_answers"):
            rows = frame[(frame["condition"] == condition) & (frame["adapter"] == adapter)]
            assert set(rows["metric"]) == {"exact_match"} and set(rows["context"]) == {"none"}
            assert counts(rows, "hops", "wording") == {(h, w): 2 for h in (1, 2) for w in ("trained", "held_out")}
            assert set(rows["step"]) == {last}
            assert (set(rows["question"]) == questions) == (condition == "shuffled_answers")
    chance = frame[frame["condition"] == "chance"]
    assert set(chance["metric"]) == {"chance"} and len(chance) == 2 * asked and chance["value"].between(0, 0.1).all()
    unseen = frame[frame["context"] == "unseen_document"].groupby("question").size()
    assert (unseen == unseen.iloc[0]).all() and len(unseen) == 2


def test_conflict_says_where_answers_come_from_and_what_is_known(small):
    frame = small(conflict, CONFLICT)
    assert set(frame["condition"]) == {"base", "chance", "lift", "other_document", "shuffled_answers"}
    unscored = frame["condition"].isin(["chance", "shuffled_answers"])
    assert set(frame.loc[frame["condition"] == "chance", "metric"]) == {"chance"}
    assert set(frame.loc[frame["condition"] == "shuffled_answers", "metric"]) == {"exact_match"}
    assert (frame[unscored].groupby(["condition", "adapter"]).size() == 2).all()
    for (condition, adapter, _), rows in frame[~unscored].groupby(["condition", "adapter", "step"]):
        answered = rows[rows["metric"] == "answered_from"]
        left_out = rows.loc[rows["metric"] == "not_applicable", "value"].sum()
        assert (answered.groupby("question")["value"].sum() == 1).all()
        assert counts(answered, "source") == {s: 4 - left_out for s in ("context", "memory", "neither")}
        gates = rows[rows["metric"] == "gate"]
        assert len(gates) == (4 - left_out if adapter == "gated_memory" else 0) and gates["value"].between(0, 1).all()
        known = rows[rows["metric"] == "exact_match"]
        assert len(known) == (0 if condition == "other_document" else 2) and set(known["wording"]) <= {"held_out"}
        assert set(rows["unit"]) <= {"share of questions", "gate 0..1", "questions"}


def test_what_is_known_closed_book_and_its_controls_are_those_of_a_plain_loop(small, tiny):
    changes = {**CHANGES, "mixed_epochs": 6}
    few = {"questions": 12, "recipes": {"lora": "micro/lora"}, "recipe_changes": changes, "every": 1000}
    frame = small(conflict, CONFLICT, **few)
    document = registers.register_of(tiny, 200, 0.5, 0.1)
    asked = [q for q in registers.ask_facts(document, 12, 200) if q.wording == "held_out"]

    def scores(on, questions):
        said = answer(on, document, questions, "none", answer_tokens=2)
        return [exact_match(text, q.answer) for text, q in zip(said, questions, strict=True)]

    wanted = {"base": scores(tiny, asked), "chance": [q.chance for q in asked]}
    plan = Recipe.preset("micro/lora", **changes)
    with lift(tiny, document, plan, known_pairs(document), progress=False).on(tiny) as on:
        wanted["lift"] = scores(on, asked)
        wanted["shuffled_answers"] = scores(on, registers.shuffled(document, asked))
    told = frame[frame["metric"].isin(["exact_match", "chance"])]
    last = told[(told["condition"] != "lift") | (told["step"] == told["step"].max())]
    for condition, values in wanted.items():
        rows = last[last["condition"] == condition]
        assert list(rows["question"]) == [q.text for q in asked] and list(rows["value"]) == values, condition
    assert sum(wanted["lift"]) > 0 and wanted["lift"] != wanted["shuffled_answers"]  # so that the comparison can fail


@pytest.mark.parametrize(("study", "settings"), STUDIES)
def test_a_study_from_scratch_gives_the_same_bytes_and_the_base_rows_of_any_adapter(study, settings, small, tmp_path):
    name = study.__name__.split(".")[-1]
    both = small(study, settings, "a")
    small(study, settings, "b")
    assert (tmp_path / f"a/{name}.csv").read_bytes() == (tmp_path / f"b/{name}.csv").read_bytes()
    one = small(study, settings, "c", recipes={"lora": "micro/lora"}, every=100)
    of = ["metric", "value", "condition", "step", "question"]
    base, alone = (rows.loc[rows["adapter"] == "", of].reset_index(drop=True) for rows in (both, one))
    assert base.equals(alone) and "gated_memory" not in set(one["adapter"])


@pytest.mark.parametrize(("study", "settings"), STUDIES)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"every": 0}, "every = 0: must be at least 1"),
        ({"recipes": {}}, "recipes = 0: must be at least 1"),
        ({"recipes": {"lora": "micro/none"}}, "recipe 'micro/none' is unknown"),
        ({"recipe_changes": {"gate_width": 2}}, "gate_width = 2 is for gated_memory, not lora"),
        (
            {"recipes": {"a": "micro/lora", "b": "smollm2/lora"}, "recipe_changes": {}},
            "the recipes differ in segment_t",
        ),
        ({"windows": 0.0}, "windows = 0.0"),
        ({"score": "bleu"}, "score 'bleu' is unknown: choose among exact_match, f1, contains"),
    ],
)
def test_settings_are_checked_before_anything_is_computed(study, settings, change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        study.run(**{**settings, **change}, records=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_document_beyond_the_window_has_no_conflict(tmp_path):
    with pytest.raises(ValueError, match=r"windows = 1.1: the edited fact must stand in the prompt"):
        conflict.run(**{**CONFLICT, "windows": 1.1}, records=tmp_path)


def test_a_paraphrase_tells_the_same_facts_in_other_words(tiny):
    for seed in range(200, 205):
        document, other = (of(tiny, seed, 2.0, 0.1) for of in (registers.register_of, registers.paraphrase_of))
        assert [(q.text, q.answer) for q in document.asked()] == [(q.text, q.answer) for q in other.asked()]
        told = {document.text[slice(*q.evidence)] for q in document.asked()}
        again = {other.text[slice(*q.evidence)] for q in other.asked()}
        assert len(told & again) < len(told) / 2


def test_shuffled_answers_are_those_of_other_facts_of_the_same_kind(tiny):
    document = registers.register_of(tiny, 200, 2.0, 0.1)
    facts = {(q.kind, q.evidence): q for q in document.asked()}
    permuted = registers.shuffled(document, list(facts.values()))
    own, other = ([q.answer for q in questions] for questions in (facts.values(), permuted))
    assert [replace(q, answer="") for q in facts.values()] == [replace(q, answer="") for q in permuted]
    for relation in vocabulary().relations:
        mine = [answer for answer, question in zip(own, facts.values(), strict=True) if question.kind == relation.name]
        pairs = [(a, b) for a, b, q in zip(own, other, facts.values(), strict=True) if q.kind == relation.name]
        assert sorted(b for _, b in pairs) == sorted(mine)
        assert sum(a == b for a, b in pairs) <= len(mine) - len(set(mine))
    assert permuted == registers.shuffled(document, list(facts.values()))
