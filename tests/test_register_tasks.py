"""Each question asks for what its register states: checked on the register's own sentences, read word for word."""

import re
from dataclasses import replace
from itertools import pairwise

import pytest

from liftlab.documents import Document
from liftlab.pretraining import word_tokenizer
from liftlab.register_tasks import TASKS, timeline_pairs, with_tasks
from liftlab.scoring import coordinate, retrieval
from liftlab.worlds import register, vocabulary

SEEDS = [200, 201, 202]
EVENTS = {"opened a shop": "shop", "won a prize": "prize"}


def stated(document):
    """{(person, relation): value}, read off the text alone by the statements' forms; sentences in order."""
    forms = [(r.name, re.escape(s).replace(r"\{name\}", r"(?P<name>\w+)").replace(r"\{value\}", r"(?P<value>\w+)"))
             for r in vocabulary().relations for s in r.statements]  # fmt: skip
    names, facts = set(vocabulary().names), {}
    for sentence in re.findall(r"[^.]+\.", document.text):
        for relation, form in forms:
            match = re.fullmatch(form, sentence.strip())
            if match and match["name"] in names:
                facts[match["name"], relation] = (match["value"], sentence.strip())
    return facts


def relation_of(question, wordings="held_out"):
    """The relation and the words that stand for the person, by the wordings' forms."""
    for relation in vocabulary().relations:
        for wording in getattr(relation, wordings):
            if match := re.fullmatch(re.escape(wording).replace(r"\{name\}", "(.+)"), question):
                return relation.name, match[1]
    raise AssertionError(question)


def asked(task, seed, words=350):
    document = with_tasks(register(seed, words), [task])
    return document, stated(document), [q for q in document.questions if q.wording == "held_out"]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("task", ["short_qa", "narrativeqa"])
def test_every_fact_is_asked_once_and_its_value_is_the_answer(task, seed):
    _, facts, questions = asked(task, seed)
    found = {}
    for question in questions:
        relation, person = relation_of(question.text)
        found[person, relation] = question.answer
    assert found == {key: value for key, (value, _) in facts.items()} and len(questions) == len(facts) > 30


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("task", ["comprehension_and_reasoning", "musique"])
def test_two_hops_ask_a_mentors_fact_by_way_of_the_pupil(task, seed):
    document, facts, questions = asked(task, seed)
    assert questions
    for question in questions:
        relation, chain = relation_of(question.text)
        pupil = re.fullmatch(r"the mentor of (\w+)", chain)[1]
        mentor, link = facts[pupil, "mentor"]
        value, sentence = facts[mentor, relation]
        assert question.answer == value and document.evidence_of(question) == (sentence, link)


@pytest.mark.parametrize("seed", SEEDS)
def test_two_facts_are_of_one_person_and_answered_in_order(seed):
    document, facts, questions = asked("multiple_information_retrieval", seed)
    assert questions
    for question in questions:
        parts = [relation_of(part.strip() + "?") for part in question.text.split("?") if part]
        assert len(parts) == 2 and len({person for _, person in parts}) == 1 and parts[0] != parts[1]
        told = [facts[person, relation] for relation, person in parts]
        assert question.answer == " ".join(value for value, _ in told)
        assert document.evidence_of(question) == tuple(sentence for _, sentence in told)
        values = {r.name: len(r.values) for r in vocabulary().relations}
        assert question.chance == pytest.approx(1 / (values[parts[0][0]] * values[parts[1][0]]))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_timeline_s_answer_is_its_people_in_order_of_year(seed):
    document, facts, questions = asked("timeline_reorder", seed)
    assert questions
    for question in questions:
        told = re.findall(r"(\w+) (opened a shop|won a prize)\.", question.text)
        assert len(told) == 3 == len({person for person, _ in told})
        years = {person: int(facts[person, EVENTS[did]][0]) for person, did in told}
        order = question.answer.split()
        assert sorted(order) == sorted(years) and all(years[a] < years[b] for a, b in pairwise(order))
        assert set(document.evidence_of(question)) == {facts[person, EVENTS[did]][1] for person, did in told}
        assert coordinate(question.answer, question.answer) == 1
    assert any([person for person, _ in re.findall(r"(\w+) (opened|won)", q.text)] != q.answer.split()
               for q in questions)  # fmt: skip


def events_of(question):
    return frozenset(re.findall(r"(\w+) (opened a shop|won a prize)\.", question.text))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_timeline_to_train_on_is_right_and_never_one_that_is_asked(seed):
    """What is trained and what is asked make up all choices of three events, and share none."""
    document, facts, questions = asked("timeline_reorder", seed)
    some = replace(document, questions=(*document.asked("trained"), *questions[::3]))
    pairs = timeline_pairs(some)
    trained, told = [events_of(pair) for pair in pairs], {events_of(question) for question in questions[::3]}
    assert pairs and told and not set(trained) & told
    assert set(trained) | told == {events_of(question) for question in questions}
    assert len(trained) == len(set(trained)) and {pair.wording for pair in pairs} == {"trained"}
    for pair in pairs:
        years = {person: int(facts[person, EVENTS[did]][0]) for person, did in events_of(pair)}
        assert sorted(years, key=years.get) == pair.answer.split() and len(set(years.values())) == 3
        assert set(pair.quoted) == {facts[person, EVENTS[did]][1] for person, did in events_of(pair)}
    firsts = {pair.text.split()[0] == pair.answer.split()[0] for pair in pairs}
    assert firsts == {True, False}  # told in another order than that of time, though not always


def test_timelines_to_train_on_are_drawn_by_the_seed_and_none_left_is_an_error():
    document, _, questions = asked("timeline_reorder", 200)
    some = replace(document, questions=(*document.asked("trained"), *questions[:2]))
    assert timeline_pairs(some) == timeline_pairs(some)
    assert [pair.text for pair in timeline_pairs(some)] != [pair.text for pair in timeline_pairs(some, seed=1)]
    for left in (document, Document("d", "Ada.")):
        with pytest.raises(
            ValueError, match="has no timeline of 3 events to train on that is not asked: choose"
        ) as error:
            timeline_pairs(left)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("seed", SEEDS)
def test_about_a_person_all_that_is_stated_in_the_register_s_order(seed):
    document, facts, questions = asked("qmsum", seed)
    of = {}
    for (person, _), (_, sentence) in facts.items():
        of.setdefault(person, []).append(sentence)
    several = {person: sentences for person, sentences in of.items() if len(sentences) > 1}
    assert {q.text for q in questions} == set(several)
    for question in questions:
        told = sorted(several[question.text], key=document.text.index)
        assert question.answer == " ".join(told) and document.evidence_of(question) == tuple(told)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_summary_is_the_first_statements_without_idle_sentences(seed):
    document, facts, (question,) = asked("gov_report", seed)
    told = sorted((sentence for _, sentence in facts.values()), key=document.text.index)[:6]
    assert question.answer == " ".join(told) and question.text == f"{document.title}."


@pytest.mark.parametrize("seed", SEEDS)
def test_a_numbered_event_is_scored_by_its_year_alone(seed):
    _, facts, questions = asked("passage_retrieval_en", seed)
    events = {(person, relation) for person, relation in facts if relation in ("shop", "prize")}
    assert {relation_of(q.text)[::-1] for q in questions} == events
    for question in questions:
        relation, person = relation_of(question.text)
        assert retrieval(facts[person, relation][0], question.answer) == 1 and retrieval("1900", question.answer) == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_no_question_is_worded_as_a_trained_one_and_the_micro_model_knows_every_word(seed):
    plain = register(seed, 350)
    document = with_tasks(plain, list(TASKS))
    trained = {q.text for q in plain.questions if q.wording == "trained"}
    questions = [q for q in document.questions if q.wording == "held_out"]
    assert not {q.text for q in questions} & trained
    assert document.asked("trained") == plain.asked("trained")  # what pairs are made of stays
    assert {q.kind for q in questions} == set(TASKS)
    tokenizer = word_tokenizer()
    for question in questions:
        ids = tokenizer(f"{question.text} {question.answer}", add_special_tokens=False)["input_ids"]
        assert tokenizer.unk_token_id not in ids or "Paragraph" in question.answer


def test_the_same_seed_asks_the_same_and_another_seed_other_wordings():
    plain, tasks = register(200, 350), list(TASKS)
    assert with_tasks(plain, tasks) == with_tasks(plain, tasks)
    assert with_tasks(plain, tasks, seed=1).questions != with_tasks(plain, tasks).questions


def test_an_unknown_task_is_named_and_a_register_without_an_event_has_no_timeline():
    with pytest.raises(ValueError, match="register task 'computation' is unknown: choose among short_qa"):
        with_tasks(register(200, 60), ["short_qa", "computation"])
    assert with_tasks(Document("d", "Ada."), ["timeline_reorder"]).questions == ()
