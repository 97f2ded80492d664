import random
import re
from dataclasses import replace

import pytest
import torch

from liftlab import adapters
from liftlab.documents import Document, Question
from liftlab.gated_layer import collected_gates
from liftlab.gated_memory import GatedMemoryConfig
from liftlab.models import load
from liftlab.probes import conflict
from liftlab.probes.conflict import edited, probe
from liftlab.probes.layout import layout
from liftlab.prompts import put
from liftlab.studies.registers import ask_facts, register_of
from liftlab.worlds import register, word_count

REGISTER = register(0, 200)
TEXT = (
    "Ada lives in Oslo. Hugo calls Milwaukee his home. Nora dwells in Rome. Ada taught Hugo. Ada opened a shop in 1901."
)
ADA, HUGO, NORA, TAUGHT, SHOP = ((m.start(), m.end()) for m in re.finditer(r"[^ .][^.]*\.", TEXT))
ASKED = Question("Where does Ada live?", "Oslo", evidence=ADA, kind="home")
HOME = Question("Where does Hugo live?", "Milwaukee", evidence=HUGO, kind="home", wording="trained")
DOCUMENT = Document("d", TEXT, "", (ASKED, HOME))


def told(document, question):
    return document.text[slice(*question.evidence)]


@pytest.fixture
def gated(tiny):
    """The tiny model with random gates that differ from token to token."""
    torch.manual_seed(1)
    with adapters.attached(tiny.model, GatedMemoryConfig(task_type="CAUSAL_LM", init="per_head")) as model:
        for name, weight in model.named_parameters():
            if "gate_" in name:
                weight.data.mul_(5)
        yield replace(tiny, model=model.eval())


def test_only_the_answer_changes_and_every_question_of_the_fact_has_the_new_one():
    changed = 0
    for question in REGISTER.questions:
        if (other := edited(REGISTER, question)) is None:
            continue
        changed += 1
        pairs = list(zip(REGISTER.questions, other.questions, strict=True))
        new = dict(pairs)[question].answer
        assert new != question.answer and new not in question.text
        assert new in {q.answer for q in REGISTER.questions if q.kind == question.kind}
        for was, now in pairs:
            if was.evidence == question.evidence:
                assert now.answer == new and told(other, now) == told(REGISTER, was).replace(question.answer, new)
            else:
                assert now.answer == was.answer and told(other, now) == told(REGISTER, was)
            if was.bridge not in (None, question.evidence):
                assert other.text[slice(*now.bridge)] == REGISTER.text[slice(*was.bridge)]
        assert len(other.text) - len(REGISTER.text) == len(new) - len(question.answer)
        assert other == edited(REGISTER, question)
    assert changed > 100


def test_spans_before_after_around_and_across_the_answer():
    """A longer answer moves what follows; a span that held part of the old answer holds the whole new one."""
    old = TEXT.index("Oslo")
    spans = {
        "Ada lives in ": (0, old),
        "Ada lives in Milwaukee": (0, old + 2),
        "Milwaukee": (old, old + 4),
        "Milwaukee.": (old + 1, old + 5),
        ". ": (old + 4, old + 6),
        told(DOCUMENT, HOME): HUGO,
    }
    around = tuple(Question(f"{i}?", "x", evidence=s, bridge=s) for i, s in enumerate(spans.values()))
    other = edited(replace(DOCUMENT, questions=(ASKED, HOME, *around)), ASKED)
    assert other.text == TEXT.replace("Oslo", "Milwaukee")
    for words, question in zip(spans, other.questions[2:], strict=True):
        assert told(other, question) == words and question.bridge == question.evidence
    shorter = edited(DOCUMENT, HOME)
    assert (
        shorter.text == TEXT.replace("Milwaukee", "Oslo")
        and told(shorter, shorter.questions[1])[-14:] == "Oslo his home."
    )


def test_a_mentor_is_never_replaced_by_who_is_asked_about():
    pupil = Question("Who taught Hugo?", "Ada", evidence=TAUGHT, kind="mentor")
    names = [Question(f"{name}?", name, kind="mentor") for name in ("Hugo", "Nora")]
    assert edited(replace(DOCUMENT, questions=(pupil, *names)), pupil).questions[0].answer == "Nora"
    assert edited(replace(DOCUMENT, questions=(pupil, names[0])), pupil) is None
    unnamed = replace(pupil, text="Whose pupil was he?")  # then the evidence still names him
    assert edited(replace(DOCUMENT, questions=(unnamed, names[0])), unnamed) is None


@pytest.mark.parametrize(
    "question, text, others",
    [
        (ASKED, TEXT, []),  # nobody else has a home
        (ASKED, TEXT, [replace(HOME, answer="oslo.")]),  # the same answer, otherwise spelt
        (ASKED, TEXT, [replace(HOME, kind="trade")]),
        (replace(ASKED, kind=""), TEXT, [replace(HOME, kind="")]),  # nothing says that they are of one kind
        (replace(ASKED, evidence=None), TEXT, [HOME]),
        (replace(ASKED, evidence=NORA), TEXT, [HOME]),  # it tells another city
        (replace(ASKED, answer="Os"), TEXT, [HOME]),  # not a whole word
        (ASKED, TEXT + " Ada lives in Oslo.", [HOME]),  # told twice
        (ASKED, TEXT, [HOME, replace(ASKED, evidence=SHOP)]),  # the same question with another evidence
        (replace(ASKED, evidence=(0, 40)), "Ada of Oslo lives in Oslo in the north. And so on.", [HOME]),
    ],
)
def test_what_cannot_be_edited_is_none(question, text, others):
    questions = tuple(q for q in (question, *others) if q.evidence is None or q.evidence[1] <= len(text))
    assert edited(Document("d", text, "", questions), question) is None
    assert edited(DOCUMENT, ASKED) is not None


@pytest.mark.parametrize(
    ("source", "score", "says"),
    [
        ("context", "exact_match", "milwaukee"),
        ("memory", "exact_match", "The Oslo!"),
        ("neither", "exact_match", "Oslo Milwaukee"),
        ("context", "contains", "It is Milwaukee."),
        ("memory", "contains", "It is Oslo."),
        ("neither", "contains", "Oslo Milwaukee"),  # both
        ("neither", "f1", "It is Oslo."),  # not wholly right
    ],
)
def test_the_answer_decides_the_source(tiny, monkeypatch, source, score, says):
    monkeypatch.setattr(conflict, "answer_prompts", lambda *args, **settings: [says])
    frame = probe(tiny, DOCUMENT, [ASKED, replace(ASKED, kind="")], score=score)
    rows, last = frame[:-1], frame.iloc[-1]
    assert list(frame.columns) == conflict.COLUMNS and set(rows.metric) == {"answered_from"}
    assert dict(zip(rows.source, rows.value, strict=True)) == {name: float(name == source) for name in conflict.SOURCES}
    assert set(rows.question) == {ASKED.text} and set(rows.depth) == {0.0} and set(rows.wording) == {"held_out"}
    assert (last.metric, last.value, last.unit) == ("not_applicable", 1.0, "questions")
    assert frame.iloc[-1:][["question", "source"]].isna().all(axis=None)


def test_the_edited_document_is_what_stands_in_the_prompt(tiny, monkeypatch):
    asked = []
    monkeypatch.setattr(conflict, "answer_prompts", lambda base, *rest: asked.append(rest) or [""] * len(rest[0]))
    probe(tiny, DOCUMENT, [HOME, ASKED], context="full", answer_tokens=3)
    changed = [edited(DOCUMENT, question) for question in (HOME, ASKED)]
    questions = changed[0].questions[1], changed[1].questions[0]
    whole = [put(tiny.tokenizer, *of, "full", tiny.window, 3) for of in zip(changed, questions, strict=True)]
    assert asked == [(whole, 3)] and whole[0] != whole[1]
    assert "Hugo calls Milwaukee" not in tiny.tokenizer.decode(whole[0])


def test_questions_whose_evidence_is_not_whole_in_the_prompt_are_counted(tiny):
    document = register(0, 500)
    questions = [q for q in ask_facts(document, 20, 0) if edited(document, q)]

    def shown(question):
        ids = put(tiny.tokenizer, edited(document, question), question, "truncated", tiny.window, 2)
        new = next(q for q in edited(document, question).questions if q.text == question.text)
        words = " ".join(re.findall(r"\w+|[^\w\s]", told(edited(document, question), new)))
        return words in tiny.tokenizer.decode(ids)

    kept = [q for q in questions if shown(q)]
    frame = probe(tiny, document, questions, answer_tokens=2)
    assert 0 < len(kept) < len(questions) and frame.value.iloc[-1] == len(questions) - len(kept)
    assert set(frame.question[:-1]) == {q.text for q in kept} and len(frame) == 3 * len(kept) + 1
    assert list(frame.depth[:-1:3]) == [document.depth(q) for q in kept]


def test_a_question_that_does_not_apply_at_all_is_refused(tiny):
    for document, questions, context in (
        (DOCUMENT, [replace(ASKED, evidence=None)], "truncated"),
        (DOCUMENT, [ASKED], "none"),
        (register(0, 500), ask_facts(register(0, 500), 1, 0), "full"),
        (DOCUMENT, [], "truncated"),
    ):
        with pytest.raises(ValueError, match=f"none of the {len(questions)} questions applies.*'{context}'"):
            probe(tiny, document, questions, context=context)


def test_the_gate_where_the_edited_answer_is_read_off(gated):
    frame = probe(gated, DOCUMENT, [ASKED, HOME], answer_tokens=4)
    gate, said = frame[frame.metric == "gate"], frame.query("metric == 'answered_from' and value == 1")
    assert list(gate.unit) == ["gate 0..1"] * 2 and list(gate.source) == list(said.source)
    for question, value in zip((ASKED, HOME), gate.value, strict=True):
        document = edited(DOCUMENT, question)
        asked = next(q for q in document.questions if q.text == question.text)
        made = layout(gated.tokenizer, document, asked, "truncated", gated.window, 4)
        with collected_gates(gated.model) as seen, torch.no_grad():
            gated.model(input_ids=torch.tensor([made.ids]))
        places = [i for i, role in enumerate(made.roles) if role == "answer"]
        assert value == pytest.approx(torch.stack(seen)[:, 0, places].mean().item(), abs=1e-6)
    with gated.model.disable_adapter():
        assert set(probe(gated, DOCUMENT, [ASKED]).metric) == {"answered_from", "not_applicable"}


def test_the_model_is_as_it_was_and_a_second_time_gives_the_same(gated):
    gated.model.train()
    weights = {name: value.clone() for name, value in gated.model.state_dict().items()}
    mode = lambda: [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in gated.model.modules()]  # noqa: E731
    before = mode(), torch.get_rng_state().tolist(), random.getstate()
    assert probe(gated, DOCUMENT, [ASKED, HOME]).equals(probe(gated, DOCUMENT, [ASKED, HOME]))
    assert before == (mode(), torch.get_rng_state().tolist(), random.getstate())
    assert all(torch.equal(weights[name], value) for name, value in gated.model.state_dict().items())
    with collected_gates(gated.model) as collected:
        gated.model(input_ids=torch.tensor([[6, 7]]))
    assert len(collected) == 2 and collected[0].requires_grad


def test_micro_believes_the_prompt():
    """The base model has no memory of a register: it gives the edited answer, the original one at chance at most."""
    base = load("micro")
    for seed in (300, 301):
        document = register_of(base, seed, 0.9, 0.1)
        assert word_count(document.text) < base.window
        frame = probe(base, document, ask_facts(document, 10, seed), answer_tokens=4)
        shares = frame[frame.metric == "answered_from"].groupby("source").value.mean()
        assert shares["context"] >= 0.9 and shares["memory"] <= 0.05
