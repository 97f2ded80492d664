"""No probe leaks: who does not know a document scores as one that guesses, and who knows it does not.

The bundled model has never seen these registers and reads nearly perfectly, so that a document that reaches a
measurement of knowledge by any other way than the adapter shows as right answers. A right guess is as probable as
`Question.chance` says, one question a fact and each fact drawn for itself: right answers beyond the binomial's 99.9 %
quantile are no guesses (its variance is at least that of unlike chances with the same mean).
"""

from math import log2
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

from liftlab.documents import Document
from liftlab.examples import document_ids, known_pairs
from liftlab.lifting import lift
from liftlab.models import load
from liftlab.probes import conflict, evidence_position, memorization
from liftlab.prompts import put
from liftlab.recipes import Recipe
from liftlab.studies.registers import ask_facts, register_of
from liftlab.worlds import vocabulary

SHORT, LONG = (310, 311, 314), 312  # seeds of the registers asked about: within the window, three times as long
OTHER = 313  # of the register lifted to answer about them
TOLD_BY_OTHERS = {"mentor", "shop", "prize"}  # a mentor is one of the register's people; years of events rise
RECIPES = {"lora": "micro/lora", "gated_memory": "micro/gated_memory"}
BY_HEART = {"mixed_epochs": 80, "learning_rate": 4e-3}  # segments alone
CUES = {"cue_tokens": 8, "cues": 24, "recite_tokens": 16}
FIGURES = sorted(Path(__file__).parents[1].glob("figures/*/*.csv"))


@pytest.fixture(scope="module")
def base():
    return load("micro", device="cpu")


@pytest.fixture(scope="module")
def short(base):
    return [register_of(base, seed, 0.9, 0.1) for seed in SHORT]


@pytest.fixture(scope="module")
def long(base):
    return [register_of(base, LONG, 3, 0.1)]


@pytest.fixture(scope="module")
def lifted(base):
    """`lift`, each document and recipe once."""
    done = {}

    def lifted(document, recipe, pairs=True, **changes):
        key = document.name, recipe, pairs
        if key not in done:
            asked = known_pairs(document) if pairs else ()
            done[key] = lift(base, document, Recipe.preset(recipe, **changes), asked, progress=False)
        return done[key]

    return lifted


@pytest.fixture(params=["base", *RECIPES])
def ignorant(request, base, lifted):
    """The model without an adapter, or with one of another register."""
    if request.param == "base":
        yield base
    else:
        with lifted(register_of(base, OTHER, 0.9, 0.1), RECIPES[request.param]).on(base) as on:
            yield on


def facts(document):
    """One question a fact, in a held-out wording."""
    return [q for q in ask_facts(document, 1000, 0) if q.wording == "held_out"]


def drawn(document):
    """The facts of which the rest of the register says nothing."""
    return [q for q in facts(document) if q.kind not in TOLD_BY_OTHERS]


def memorized(on, document):
    asked = facts(document)
    rows = memorization.probe(on, document, asked, answer_tokens=2, **CUES).query("metric == 'exact_match'")
    return asked, rows


def absent(on, document):
    asked = facts(document)
    return asked, evidence_position.probe(on, document, asked, context="none", answer_tokens=2)


def dropped(on, document):
    """Asked with head and tail, of what stands in the middle."""
    asked = drawn(document)
    rows = evidence_position.probe(on, document, asked, context="truncated", answer_tokens=2)
    middle = (rows["would_be"] == "middle").tolist()
    return [q for q, kept in zip(asked, middle, strict=True) if kept], rows[middle]


def remembered(on, document):
    """The original answer, where the prompt says another one."""
    asked = drawn(document)
    rows = conflict.probe(on, document, asked, answer_tokens=2).query("source == 'memory' and metric != 'gate'")
    by_text = {q.text: q for q in asked}
    return [by_text[text] for text in rows["question"]], rows


MEASURES = {memorized: "short", absent: "short", dropped: "long", remembered: "short"}
EACH = pytest.mark.parametrize("measure", list(MEASURES))


def right(measure, on, documents):
    """Right answers, the most that guessing gives, and of how many questions."""
    asked, values = [], []
    for document in documents:
        questions, rows = measure(on, document)
        assert len(rows) == len(questions)
        asked += questions
        values += rows["value"].tolist()
    return sum(values), binom.ppf(0.999, len(asked), np.mean([q.chance for q in asked])), len(asked)


@EACH
def test_who_does_not_know_the_document_answers_no_better_than_a_guess(measure, ignorant, request):
    answers, guesses, count = right(measure, ignorant, request.getfixturevalue(MEASURES[measure]))
    assert count >= 30 and guesses < count / 4
    assert answers <= guesses


@EACH
def test_who_knows_the_document_answers_better_than_a_guess(measure, base, lifted, request):
    document = request.getfixturevalue(MEASURES[measure])[0]
    with lifted(document, "micro/gated_memory").on(base) as on:
        answers, guesses, _ = right(measure, on, [document])
    assert answers > guesses


@pytest.mark.parametrize("measure", [memorized, absent])
def test_the_document_in_a_closed_book_s_prompt_would_show(measure, base, short, monkeypatch):
    def leaky(tokenizer, document, question, context, *rest):
        return put(tokenizer, document, question, {"none": "truncated"}.get(context, context), *rest)

    monkeypatch.setattr("liftlab.answering.put", leaky)
    answers, guesses, _ = right(measure, base, short)
    assert answers > guesses


@EACH
def test_the_evidence_in_the_prompt_would_show(measure, base, request, monkeypatch):
    """The prompt holds the sentence that tells the fact, as the register itself tells it, and nothing else."""
    documents = request.getfixturevalue(MEASURES[measure])
    told = {(d.name, q.text): d.text[slice(*q.evidence)] for d in documents for q in d.asked()}

    def leaky(tokenizer, document, question, context, *rest):
        sentence = Document(document.name, told[document.name, question.text], document.title)
        return put(tokenizer, sentence, question, "full", *rest)

    monkeypatch.setattr("liftlab.answering.put", leaky)
    monkeypatch.setattr("liftlab.probes.conflict.put", leaky)
    answers, guesses, _ = right(measure, base, documents)
    assert answers > guesses


def guessable(base, document, position):
    """Tokens from a cue's end on that are the same in all registers, up to the first name or value.

    Which of several wordings follows is not known either, so a reciter who does not know the register says fewer: what
    it may win by guessing a name or a value, of which there are 32 and more, is less than it loses by that.
    """
    words = vocabulary()
    own = {*words.names, *(value for relation in words.relations for value in relation.values)}
    ids = document_ids(base.tokenizer, document)[position + CUES["cue_tokens"] :][: CUES["recite_tokens"]]
    told = [token in own for token in base.tokenizer.convert_ids_to_tokens(ids)]
    return told.index(True) if True in told else len(told)


def recited(base, on, document):
    """Mean recited tokens, and the most that the kind of text gives."""
    rows = memorization.probe(on, document, **CUES).query("metric == 'recited_tokens'")
    return rows["value"].mean(), np.mean([guessable(base, document, int(position)) for position in rows["position"]])


def paid(base, on, document):
    """Bits of the whole register, and the least that it costs who does not know its facts.

    Each of them is drawn for itself, and tells -log2 chance bits; to pay 10 bits less has a probability of 2 ** -10.
    """
    rows = memorization.probe(on, document, **CUES).query("metric == 'bits_per_token'")
    return (rows["value"] * rows["tokens"]).item(), sum(-log2(q.chance) for q in drawn(document)) - 10


def test_who_does_not_know_the_text_neither_recites_it_nor_foresees_its_facts(base, ignorant, short, long):
    for document in (*short, *long):
        tokens, most = recited(base, ignorant, document)
        assert tokens <= most < CUES["recite_tokens"] / 4
        bits, least = paid(base, ignorant, document)
        assert bits >= least > 50


def test_who_knows_the_text_by_heart_recites_it_and_foresees_its_facts(base, lifted, short):
    document = short[0]
    with lifted(document, "micro/lora", pairs=False, **BY_HEART).on(base) as on:
        tokens, most = recited(base, on, document)
        bits, least = paid(base, on, document)
    assert tokens > 2 * most and bits < least


def tables(on, document):
    """All that the probes of knowledge say of a document."""
    asked = facts(document)
    frames = [memorization.probe(on, document, asked, answer_tokens=2, **CUES)]
    frames += [evidence_position.probe(on, document, asked, context=c, answer_tokens=2) for c in ("none", "truncated")]
    frames += [conflict.probe(on, document, asked, answer_tokens=2)]
    return frames


@pytest.mark.parametrize("knows", [False, True])
def test_what_was_lifted_and_probed_before_does_not_matter(base, lifted, short, knows):
    document, other = short[:2]
    own, wrong = lifted(document, "micro/gated_memory"), lifted(other, "micro/lora")

    def asked():
        if not knows:
            return tables(base, document)
        with own.on(base) as on:
            return tables(on, document)

    before = asked()
    with wrong.on(base) as on:
        between = [*tables(on, other), *tables(on, document)]
    after = asked()
    assert all(a.equals(b) for a, b in zip(before, after, strict=True))
    assert not all(a.equals(b) for a, b in zip(before, between[len(before) :], strict=True))


def closed_book(frame):
    """The rows of a figure that tell what share of questions is answered closed book, all depths together."""
    if not {"panel", "condition", "unit"} <= set(frame):
        return frame[:0]
    of = frame["would_be"] == "all" if "would_be" in frame else frame["panel"].isin(["closed_book", "controls"])
    return frame[of & (frame["unit"] == "share of questions")]


def above(frame, condition):
    """The points of `condition`, and those of them above the base model's interval and, interval and all, chance."""
    rows, chance = closed_book(frame), frame.loc[frame["condition"] == "chance", "mean"].max()
    by = [column for column in ("panel", "line", "windows") if column in rows]
    base = rows[rows["condition"].isin(["base", "closed_book"])].groupby(by)["high"].max().rename("base_high")
    points = rows[rows["condition"] == condition].join(base, on=by)
    points = points[points["base_high"].notna()]
    return points, points[(points["mean"] > points["base_high"]) & ~(points["low"] <= chance)]


CONTROLLED = [path for path in FIGURES if "other_document" in set(closed_book(pd.read_csv(path)).get("condition", ()))]


@pytest.mark.parametrize("path", CONTROLLED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_in_the_figures_another_document_s_adapter_answers_no_better_than_none(path):
    frame = pd.read_csv(path)
    points, leaks = above(frame, "other_document")
    assert len(points) and leaks.empty, leaks.to_string()


def test_the_figures_of_closed_book_answers_have_the_control_and_a_lift_would_not_pass_as_one():
    names = {path.stem for path in CONTROLLED}
    assert {"memorization_vs_icl", "evidence_position", "segment_offset"} <= names
    for path in CONTROLLED:
        points, leaks = above(pd.read_csv(path), "lift")
        assert len(leaks) >= len(points) / 2 > 0, path.stem
