"""Cells computed together get what each would get alone, whatever the others ask for and whichever of them fails."""

from contextlib import contextmanager
from inspect import GEN_CLOSED, getgeneratorstate

import pandas as pd
import pytest
import torch

from liftlab import stacked
from liftlab.answering import answer, answer_prompts
from liftlab.cells import CellError
from liftlab.examples import known_pairs
from liftlab.lifting import lift
from liftlab.probes import answers
from liftlab.prompts import PLAIN, put
from liftlab.recipes import Recipe
from liftlab.stacked import Job
from liftlab.studies import (
    conflict,
    evaluation,
    evidence_position,
    gate_values,
    lift_vs_icl,
    memorization_vs_icl,
    oracle_gate,
    segment_offset,
)
from liftlab.studies.registers import ask_facts, base_model, register_of
from liftlab.studies.together import DOCUMENTS_AT_ONCE, Ask, alone, asking, grouped, scored, together

RECIPES = {name: Recipe.preset(f"micro/{name}", mixed_epochs=1) for name in ("lora", "gated_memory", "pissa")}


@pytest.fixture
def registers(tiny):
    return [register_of(tiny, seed, 0.5, 0.1) for seed in (200, 201, 202)]


@pytest.fixture
def lifts(monkeypatch):
    """The documents' names of each call of `stacked.lift`, and the memory it may take."""
    calls, real = [], stacked.lift

    def counted(base, jobs, *, memory_gib, progress):
        calls.append(([job.document.name for job in jobs], memory_gib))
        return real(base, jobs, memory_gib=memory_gib, progress=progress)

    monkeypatch.setattr(stacked, "lift", counted)
    return calls


def prompts(base, document, context="none"):
    return [put(base.tokenizer, document, q, context, base.window, 3) for q in ask_facts(document, 4, 0)]


def asks(base, document, contexts, answer_tokens=3):
    """Asks the base model in each of `contexts`; returns the answers."""
    found = []
    for context in contexts:
        found += yield Ask(prompts(base, document, context), answer_tokens)
    return pd.DataFrame({"said": found})


def lifted(base, document, recipe, questions=2):
    """Lifts, asks the adapter, and then the base model; returns the answers."""
    adapter = yield Job(document, recipe, known_pairs(document))
    said = yield Ask(prompts(base, document)[:questions], 3, adapter)
    plain = yield Ask(prompts(base, document, "truncated"), 4)
    return pd.DataFrame({"said": said + plain, "weights": [sum(v.abs().sum().item() for v in adapter.state.values())]
                         * len(said + plain)})  # fmt: skip


def by_hand(base, document, recipe, questions=2):
    adapter = lift(base, document, recipe, known_pairs(document), progress=False)
    with adapter.on(base) as on:
        said = answer_prompts(on, prompts(base, document)[:questions], 3)
    said += answer_prompts(base, prompts(base, document, "truncated"), 4)
    weights = sum(value.abs().sum().item() for value in adapter.state.values())
    return pd.DataFrame({"said": said, "weights": [weights] * len(said)})


def returns(frame):
    """A cell that asks for nothing."""
    return frame
    yield


@contextmanager
def untouched(base):
    """The base model has the same weights, modules and mode afterwards, and nothing to train."""

    def state():
        return {name: value.clone() for name, value in base.model.state_dict().items()}, str(base.model)

    (before, built) = state()
    yield
    after, still = state()
    assert still == built and not base.model.training and not any(p.requires_grad for p in base.model.parameters())
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_each_cell_gets_the_answers_to_its_own_prompts(tiny, registers):
    """Unlike numbers of prompts and of answer tokens, and one cell without any."""
    told = {"contexts": ["none", "truncated"]}, {"contexts": ["full"], "answer_tokens": 5}, {"contexts": []}
    found = together(tiny, [asks(tiny, document, **how) for document, how in zip(registers, told, strict=True)])
    for document, how, frame in zip(registers, told, found, strict=True):
        tokens = how.get("answer_tokens", 3)
        wanted = [answer_prompts(tiny, prompts(tiny, document, context), tokens) for context in how["contexts"]]
        assert list(frame["said"]) == [text for said in wanted for text in said]


@pytest.mark.parametrize("others", ["lora", "gated_memory", "pissa"])
def test_requests_of_unlike_kinds_at_the_same_time_are_answered_as_one_by_one(tiny, registers, others):
    """Two adapters beside a cell that only asks and one that asks for nothing; the base model is itself afterwards."""
    plans = [RECIPES["lora"], RECIPES[others]]
    nothing = pd.DataFrame({"said": ["nothing"]})
    cells = [lifted(tiny, registers[0], plans[0], 8), asks(tiny, registers[2], ["none", "none"]), returns(nothing)]
    with untouched(tiny):
        first, asked, none, last = together(tiny, [*cells, lifted(tiny, registers[1], plans[1])])
    for frame, wanted in (
        (first, by_hand(tiny, registers[0], plans[0], 8)),
        (last, by_hand(tiny, registers[1], plans[1])),
        (asked, alone(tiny, asks(tiny, registers[2], ["none", "none"]))),
    ):
        pd.testing.assert_frame_equal(frame, wanted, rtol=1e-5)
    assert none is nothing


def test_lifts_wait_for_the_cells_that_ask_first_and_go_together(tiny, registers, lifts):
    def later(document, questions):
        for _ in range(questions):
            yield Ask(prompts(tiny, document), 2)
        return (yield from lifted(tiny, document, RECIPES["lora"]))

    together(tiny, [later(document, n) for n, document in enumerate(registers)], memory_gib=0.5)
    assert lifts == [([document.name for document in registers], 0.5)]


def fails_after(steps, error, document, base):
    for _ in range(steps):
        yield Ask(prompts(base, document), 2)
    raise error


@pytest.mark.parametrize("failing", ["a cell", "a lift", "an answer", "a wrong request"])
def test_an_error_is_raised_as_it_is_and_closes_every_cell(tiny, registers, failing):

    def wrong():
        yield "a wish"

    bad, kind, words = {
        "a cell": (fails_after(1, OSError("disk full"), registers[0], tiny), OSError, "disk full"),
        "a lift": (lifted(tiny, registers[0], Recipe(segment_tokens=250, offset_tokens=250)), ValueError, "segment"),
        "an answer": (asks(tiny, registers[0], ["none"], answer_tokens=0), ValueError, "max_new_tokens"),
        "a wrong request": (wrong(), TypeError, "a cell yielded 'a wish': it may ask for a Job or an Ask"),
    }[failing]
    cells = [lifted(tiny, registers[1], RECIPES["lora"]), bad, asks(tiny, registers[2], ["none"] * 9)]
    with untouched(tiny), pytest.raises(kind, match=words):
        together(tiny, cells)
    assert {getgeneratorstate(cell) for cell in cells} == {GEN_CLOSED}


@pytest.mark.parametrize("context", ["none", "truncated", "full"])
def test_asking_is_answering_and_scored_is_the_probe_s(tiny, context):
    """With the adapter and without; a document that is too long has no answers in full."""
    settings = {"answer_tokens": 3, "style": PLAIN}
    for windows in (0.5, 1.5):
        document = register_of(tiny, 200, windows, 0.1)
        questions = ask_facts(document, 4, 0)
        adapter = lift(tiny, document, RECIPES["lora"], known_pairs(document), progress=False)

        def cell(of, document=document, questions=questions):
            return (yield from asking(tiny, of, document, questions, context, **settings))

        def rows(of, document=document, questions=questions):
            return (yield from scored(tiny, of, document, questions, context, **settings, score="f1"))

        with adapter.on(tiny) as on:
            wanted = answer(on, document, questions, context, **settings)
            fits = None not in wanted
            probed = answers.scored(on, document, questions, context, **settings, score="f1") if fits else None
        assert alone(tiny, cell(adapter)) == wanted and fits == (context != "full" or windows < 1)
        assert alone(tiny, cell(None)) == answer(tiny, document, questions, context, **settings)
        if fits:
            pd.testing.assert_frame_equal(alone(tiny, rows(adapter)), probed)
    with pytest.raises(ValueError, match="no question was given about document 'register-200'"):
        alone(tiny, scored(tiny, None, document, [], context, **settings, score="f1"))


def test_a_whole_model_is_lifted_alone_and_other_documents_as_many_at_once_as_is_said(tiny, monkeypatch):
    full = Recipe(adapter="full")
    assert grouped(lambda: tiny, RECIPES.values())["at_once"] == DOCUMENTS_AT_ONCE > 1
    assert grouped(lambda: tiny, [*RECIPES.values(), full])["at_once"] == 1
    monkeypatch.setenv("LIFTLAB_AT_ONCE", "3")
    assert grouped(lambda: tiny, [])["at_once"] == 3


def test_lifting_is_given_the_memory_that_is_said(tiny, registers, lifts, monkeypatch):
    for given, wanted in ((None, None), ("0.25", 0.25)):
        if given:
            monkeypatch.setenv("LIFTLAB_MEMORY_GIB", given)
        grouped(lambda: tiny, [])["together"]([lifted(tiny, registers[0], RECIPES["lora"])])
        assert lifts.pop() == (["register-200"], wanted)


@pytest.mark.parametrize(
    ("variable", "given"),
    [("LIFTLAB_AT_ONCE", text) for text in ("0", "-1", "all", "2.5", "")]
    + [("LIFTLAB_MEMORY_GIB", text) for text in ("0", "-1", "much", "nan", "inf", "")],
)
def test_a_wrong_number_in_the_environment_is_named(tmp_path, monkeypatch, variable, given):
    monkeypatch.setenv(variable, given)
    monkeypatch.setattr("liftlab.studies.registers.base_model", lambda *_: pytest.fail("loaded"))
    with pytest.raises(CellError, match=f"{variable} = {given!r}: give the .*, (1 or more|above 0)"):
        gate_values.run(**GATED, windows=0.5, every=2, records=tmp_path)
    assert list(tmp_path.iterdir()) == []


CHANGES = {"mixed_epochs": 1, "segment_tokens": 64, "offset_tokens": 24}
COMMON = dict(base="micro", window_tokens=0, documents=2, seeds=1, questions=2, filler=0.1, answer_tokens=2)
LORA = {**COMMON, "recipe": "micro/lora", "recipe_changes": CHANGES}
GATED = {**COMMON, "recipe": "micro/gated_memory", "recipe_changes": {"mixed_epochs": 1}}
TWO = {**COMMON, "recipes": {"lora": "micro/lora", "gated_memory": "micro/gated_memory"}, "every": 10,
       "recipe_changes": {**CHANGES, "segments_in_mixed": False},
       "score": "exact_match"}  # fmt: skip
OFFSET = {**LORA, "recipe_changes": {"mixed_epochs": 1, "segment_tokens": 64}, "score": "exact_match"}
EVALUATION = dict(
    base="micro", window_tokens=0, four_bit=False, documents=2, questions=2, style="plain", seeds=1, answer_tokens=4,
    benchmark={"source": "register", "tasks": ["short_qa"], "windows": 0.5}, scores=["f1", "contains"], judge={},
    auxiliary={"task": "known", "count": 12},
    conditions={
        "icl": {"context": "truncated"}, "lift": {"recipe": "micro/lora", "recipe_changes": {"mixed_epochs": 3}},
        "pissa": {"recipe": "micro/pissa", "recipe_changes": {"mixed_epochs": 1}, "context": "truncated"},
    },
)  # fmt: skip
STUDIES = {
    lift_vs_icl: {**LORA, "windows": [0.5], "conditions": ["full_icl", "lift", "lift_segments_only"]},
    evidence_position: {**LORA, "windows": [0.4, 1.1], "conditions": ["full_icl", "lift"], "score": "f1"},
    segment_offset: {**OFFSET, "windows": 0.5, "ratios": [0.5], "segment_epochs": 1, "cues": 2},
    memorization_vs_icl: {**TWO, "windows": 0.5, "cues": 1},
    conflict: {**TWO, "windows": 0.5},
    gate_values: {**GATED, "windows": 0.5, "every": 4},
    oracle_gate: {**GATED, "windows": 0.5},
    evaluation: EVALUATION,
}


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.__name__.rpartition(".")[2])
def test_a_study_s_records_together_are_those_of_each_document_alone(study, tmp_path, monkeypatch, lifts):
    """Answers and all other text are equal, values to 1e-4; several documents really are lifted at once.

    Rank correlations are left out: rounding settles the order of nearly equal gates.
    """
    frames = []
    for at_once in ("1", "4"):
        monkeypatch.setenv("LIFTLAB_AT_ONCE", at_once)
        named = ["study"] if study is evaluation else []
        with untouched(base_model("micro", 0, *[False] * len(named))):
            frames.append(study.run(*named, **STUDIES[study], records=tmp_path / at_once))
    one_by_one, at_once = (frame[frame["metric"] != "gate_spearman"] for frame in frames)
    pd.testing.assert_frame_equal(at_once, one_by_one, rtol=1e-4, atol=1e-4)
    sizes = [len(names) for names, _ in lifts]
    assert sizes.count(1) == sum(sizes) / 2 and min(sizes[sizes.count(1) :]) > 1
