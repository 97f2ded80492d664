import hashlib
import json
import re
from collections import Counter
from dataclasses import asdict

import pytest

from liftlab.worlds import register, vocabulary, word_count


@pytest.mark.parametrize("words", [24, 100, 230, 1840])
def test_a_register_nearly_fills_its_words(words):
    for seed in range(8):
        assert words - 20 < word_count(register(seed, words).text) <= words


def test_the_same_seed_tells_the_same_register():
    assert register(3, 200) == register(3, 200) != register(4, 200)


@pytest.mark.parametrize(
    ("settings", "sha256"),
    [
        ((0, 24, 0.0, None), "32d3ca35de005703fe249aff3a1ffd04b4a7c05376a68df297e3c39d65472ccc"),
        ((200, 230, 0.1, None), "a22c5c5e58698b5d4b9b71426848f7b159747e2a6945d98117903dd80c2983ab"),
        ((5, 1000, 0.0, 1), "28f3758cb6b2ea2e7e36767790011f11dfe7b47df30ea8251674ca32a4077dd3"),
        ((201, 1840, 0.3, 7), "1dab3a1ef2d3899cb1aeb119bf128b2cfa56c296ae5f20937e23b05eef6fda24"),
    ],
)
def test_plain_registers_are_byte_for_byte_those_of_the_records(settings, sha256):
    """Name, text, title and every question, as they were when micro was pre-trained and the records were made."""
    told = json.dumps(asdict(register(*settings)))
    assert hashlib.sha256(told.encode()).hexdigest() == sha256


def test_another_wording_seed_tells_the_same_facts_in_other_words():
    one, other = register(5, 1000, filler=0.0), register(5, 1000, filler=0.0, wording_seed=1)
    assert one.text != other.text

    def facts(document):
        return [(q.text, q.answer) for q in document.asked()]

    shared = min(len(facts(one)), len(facts(other)))
    assert shared > 300 and facts(one)[:shared] == facts(other)[:shared]


def test_the_evidence_of_every_question_states_person_and_answer():
    document = register(7, 600)
    names = set(vocabulary().names)
    for question in document.asked():
        sentence = document.text[slice(*question.evidence)]
        asked_about = [word for word in re.findall(r"\w+", question.text) if word in names]
        assert sentence.endswith(".") and sentence.count(".") == 1
        assert re.search(rf"\b{question.answer}\b", sentence) and re.search(rf"\b{asked_about[0]}\b", sentence)
        assert 0.0 <= document.depth(question) <= 1.0


def test_no_two_facts_answer_one_question():
    counts = Counter(question.text for question in register(11, 1840).asked())
    assert max(counts.values()) == 1


def test_held_out_wordings_are_never_trained_wordings():
    for relation in vocabulary().relations:
        assert len(relation.statements) >= 4 and len(relation.questions) >= 3 and len(relation.held_out) >= 2
        assert not set(relation.questions) & set(relation.held_out)
    document = register(2, 400)
    assert not {q.text for q in document.asked("trained")} & {q.text for q in document.asked("held_out")}


def test_events_stand_in_time_order():
    document = register(13, 1500)
    years = {q.evidence: int(q.answer) for q in document.asked() if q.kind in ("shop", "prize")}
    told = [year for _, year in sorted(years.items())]
    assert len(told) > 20 and told == sorted(told)


def test_a_chain_needs_both_of_its_facts():
    chains = register(17, 800).asked(hops=2)
    document = register(17, 800)
    mentor_of = {q.evidence: q.answer for q in document.asked() if q.kind == "mentor"}
    assert chains
    for question in chains:
        assert question.bridge != question.evidence
        assert mentor_of[question.bridge] in document.text[slice(*question.evidence)]


def test_chance_is_one_over_the_relation_s_values():
    for question in register(19, 400).asked():
        relation = next(r for r in vocabulary().relations if r.name == question.kind)
        assert question.chance == 1 / len(set(relation.values))


@pytest.mark.parametrize(("settings", "message"), [({"words": 10}, "words = 10"), ({"filler": 1.0}, "filler = 1.0")])
def test_settings_out_of_bounds_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        register(0, **settings)
