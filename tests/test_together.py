"""Cells computed together get what each would get alone, whatever the others ask for and whichever of them fails."""

import errno
import gc
import re
import weakref
from contextlib import contextmanager
from inspect import GEN_CLOSED, getgeneratorstate
from itertools import cycle

import pandas as pd
import pytest
import torch

from liftlab import answering, stacked
from liftlab.answering import answer, answer_prompts
from liftlab.cells import CellsFailed
from liftlab.examples import known_pairs
from liftlab.failures import CellError, split
from liftlab.lifting import lift
from liftlab.machine import OutOfMemory
from liftlab.probes import answers
from liftlab.prompts import PLAIN, put
from liftlab.recipes import Recipe
from liftlab.records import WriteError, read
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


def closed(cells):
    return {getgeneratorstate(cell) for cell in cells} == {GEN_CLOSED}


@pytest.mark.parametrize("failing", ["a cell", "a lift", "an answer", "a wrong request"])
def test_an_error_ends_its_own_cell_and_the_others_get_what_they_would_get_without_it(tiny, registers, failing):

    def wrong():
        yield "a wish"

    bad, kind, words = {
        "a cell": (fails_after(1, OSError("no such host"), registers[0], tiny), OSError, "no such host"),
        "a lift": (lifted(tiny, registers[0], Recipe(segment_tokens=250, offset_tokens=250)), ValueError, "segment"),
        "an answer": (asks(tiny, registers[0], ["none"], answer_tokens=0), ValueError, "max_new_tokens"),
        "a wrong request": (wrong(), TypeError, "a cell yielded 'a wish': it may ask for a Job or an Ask"),
    }[failing]
    cells = [lifted(tiny, registers[1], RECIPES["lora"]), bad, asks(tiny, registers[2], ["none"] * 9)]
    with untouched(tiny):
        first, error, last = together(tiny, cells)
    assert type(error) is kind and re.search(words, str(error)) and closed(cells)
    pd.testing.assert_frame_equal(first, by_hand(tiny, registers[1], RECIPES["lora"]), rtol=1e-5)
    pd.testing.assert_frame_equal(last, alone(tiny, asks(tiny, registers[2], ["none"] * 9)))


@pytest.mark.parametrize(
    "error", [CellError("grid"), WriteError(errno.EACCES, "x"), OSError(errno.ENOSPC, "x"), KeyboardInterrupt()]
)
def test_an_error_that_is_the_whole_run_s_is_raised_and_closes_every_cell(tiny, registers, error):
    bad = fails_after(1, error, registers[0], tiny)
    cells = [lifted(tiny, registers[1], RECIPES["lora"]), bad, asks(tiny, registers[2], ["none"] * 9)]
    with untouched(tiny), pytest.raises(type(error)) as raised:
        together(tiny, cells)
    assert raised.value is error and closed(cells)


def test_alone_raises_what_ended_the_cell(tiny, registers):
    with pytest.raises(RuntimeError, match="mine"):
        alone(tiny, fails_after(0, RuntimeError("mine"), registers[0], tiny))


SHORT_OF_MEMORY = cycle(
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ]
)


def test_what_memory_does_not_hold_is_lifted_and_asked_in_halves(tiny, registers, monkeypatch):
    """Memory for two documents at once and for two prompts: the bits are those of cells computed two at a time."""
    frames = [frame for two in (registers[:2], registers[2:])
              for frame in together(tiny, [lifted(tiny, d, RECIPES["lora"]) for d in two])]  # fmt: skip
    real_lift, real_generate, refused = stacked.lift, answering.generate, []

    def limited(real, count):
        def call(base, many, *rest, **settings):
            if len(many) > count:
                refused.append(len(many))
                raise next(SHORT_OF_MEMORY)
            return real(base, many, *rest, **settings)

        return call

    monkeypatch.setattr(stacked, "lift", limited(real_lift, 2))
    for module in (stacked, answering):
        monkeypatch.setattr(module, "generate", limited(real_generate, 2))
    with untouched(tiny):
        found = together(tiny, [lifted(tiny, document, RECIPES["lora"]) for document in registers])
    for frame, wanted in zip(found, frames, strict=True):
        pd.testing.assert_frame_equal(frame, wanted)
    assert refused[0] == 3 and len(refused) > 3  # documents; then prompts, of every kind of error


def watched_by(tiny, document, watch):
    """Lifts with a watch and returns the weights."""
    adapter = yield Job(document, RECIPES["lora"], known_pairs(document), watch)
    return pd.DataFrame({"weights": [value.abs().sum().item() for value in adapter.state.values()]})


def test_a_document_that_memory_never_holds_fails_alone(tiny, registers):
    """In the midst of training, whatever else is in the stack; the others' weights are those without it."""

    def full(step, on):
        if step == 2:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    watches = [None, full, None]
    with untouched(tiny):
        found = together(tiny, [watched_by(tiny, *of) for of in zip(registers, watches, strict=True)])
    assert isinstance(found[1], OutOfMemory)
    assert str(found[1]).startswith("one document alone needs more memory than there is (CUDA out of memory. Tried")
    for place in (0, 2):
        wanted = alone(tiny, watched_by(tiny, registers[place], None))
        pd.testing.assert_frame_equal(found[place], wanted, rtol=1e-5)


def test_a_document_that_diverges_fails_alone(tiny, registers):
    """No number for a loss in one document: the others' answers and weights are those that they get without it."""
    wild = Recipe.preset("micro/lora", mixed_epochs=1, learning_rate=1e30)
    plans = [RECIPES["lora"], RECIPES["lora"], wild]
    with untouched(tiny):
        first, second, third = together(tiny, [lifted(tiny, *of) for of in zip(registers, plans, strict=True)])
    assert isinstance(third, FloatingPointError) and "document 'register-202'" in str(third)
    for document, frame in zip(registers, (first, second), strict=False):
        pd.testing.assert_frame_equal(frame, by_hand(tiny, document, RECIPES["lora"]), rtol=1e-5)


def test_a_kept_error_keeps_no_memory(tiny, registers):
    """Nothing that the calls held is held by the error: the next try has need of it."""
    held = []

    def full(step, on):
        activations = torch.zeros(8)
        held.append(weakref.ref(activations))
        raise torch.OutOfMemoryError("CUDA out of memory")

    found = together(tiny, [watched_by(tiny, document, full) for document in registers[:2]])
    assert all(isinstance(error, OutOfMemory) for error in found)
    gc.collect()
    assert len(held) == 3 and not any(reference() is not None for reference in held)


def test_a_cell_may_go_on_after_its_lift_has_failed(tiny, registers):
    def careful(document):
        try:
            yield Job(document, Recipe(segment_tokens=250, offset_tokens=250))
        except ValueError as error:
            said = yield Ask(prompts(tiny, document), 2)
            return pd.DataFrame({"said": said, "why": str(error)})

    found = alone(tiny, careful(registers[0]))
    assert "segment" in found["why"][0] and list(found["said"]) == answer_prompts(tiny, prompts(tiny, registers[0]), 2)


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


def test_a_document_that_fails_is_a_row_of_its_study_and_works_the_next_time(tmp_path, monkeypatch):
    """The other documents' records are those of an undisturbed run; so are all, when what failed has worked."""
    monkeypatch.setenv("LIFTLAB_AT_ONCE", "4")
    settings = {**GATED, "documents": 3, "windows": 0.3, "every": 10}
    wanted = gate_values.run(**settings, records=tmp_path / "undisturbed")
    real = stacked.lift

    def full(base, jobs, **how):
        if any(job.document.name == "register-201" for job in jobs):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(base, jobs, **how)

    with monkeypatch.context() as patched:
        patched.setattr(stacked, "lift", full)
        with pytest.raises(
            CellsFailed, match=r"1 of 3 cells failed: \{'document_seed': 201\}: one document alone needs"
        ):
            gate_values.run(**settings, records=tmp_path / "short")
    good, failed = split(read(tmp_path / "short" / "gate_values.csv")[0])
    expected = wanted[wanted["document"] != "register-201"].reset_index(drop=True)
    pd.testing.assert_frame_equal(good, expected, rtol=1e-4, atol=1e-4)
    assert len(failed) == 1 and failed["base_model"][0] == "micro"
    again = gate_values.run(**settings, records=tmp_path / "short")
    pd.testing.assert_frame_equal(again, wanted, rtol=1e-4, atol=1e-4)
