"""What a condition is made of: checked settings, the pairs of its lift, and which conditions share one."""

from collections import Counter
from dataclasses import replace

import pytest

from liftlab.auxiliary.endpoint import Endpoint
from liftlab.auxiliary.local_model import LocalModel
from liftlab.documents import Document
from liftlab.examples import known_pairs
from liftlab.recipes import Recipe
from liftlab.register_tasks import timeline_pairs, with_tasks
from liftlab.studies import conditions
from liftlab.studies.conditions import Plan, plans
from liftlab.worlds import register

RECIPE = {"recipe": "micro/lora"}
DOCUMENT = register(200, 350)


def plan(auxiliary=None, **settings):
    return plans({"c": settings}, "plain", auxiliary or {})["c"]


def pairs(tiny, tmp_path, task, count, seed=0, document=DOCUMENT):
    made = plan({"task": task, "count": count}, **RECIPE)
    return conditions.pairs_of(made, tiny, document, seed, tmp_path)


def test_settings_that_a_condition_leaves_out_are_the_notebook_s():
    made = plans(
        {
            "icl": {"context": "truncated"},
            "own": {**RECIPE, "style": "plain_raw", "auxiliary": {"count": 3}, "recipe_changes": {"rank": 2}},
        },
        "loogle_v1",
        {"task": "known_per_fact", "count": 1},
    )
    defaults = (("count", 1), ("endpoint", ""), ("generator", "model"), ("task", "known_per_fact"))
    assert made["icl"] == Plan(context="truncated", style="loogle_v1", auxiliary=defaults)
    assert dict(made["own"].auxiliary) == dict(defaults) | {"count": 3} and made["own"].style == "plain_raw"
    recipe = made["own"].recipe_for(7)
    assert recipe == Recipe.preset("micro/lora", rank=2, style="plain_raw", seed=7)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "conditions is empty: give at least one"),
        ({"chance": {}}, "condition 'chance' cannot be called so"),
        ({" ": {}}, "condition ' ' cannot be called so"),
        ({"c": "truncated"}, "condition 'c' = 'truncated': give its settings"),
        ({"c": {"contxt": "none"}}, "setting of condition 'c': 'contxt' is unknown: choose among recipe, "),
        ({"c": {"context": "half"}}, "context of condition 'c': 'half' is unknown: choose among none, truncated, full"),
        ({"c": {"style": "loogle"}}, "style of condition 'c': 'loogle' is unknown: choose among plain"),
        ({"c": {"style": {"question": "{question}"}}}, "style of condition 'c': .* is unknown"),
        ({"c": {"evidence": "yes"}}, "condition 'c': evidence = 'yes': give true or false"),
        ({"c": {"recipe": "mine"}}, "recipe 'mine' is unknown"),
        ({"c": {**RECIPE, "recipe_changes": {"rnk": 1}}}, "recipe has no field 'rnk'"),
        ({"c": {**RECIPE, "recipe_changes": {"rank": 0}}}, "rank"),
        ({"c": {**RECIPE, "recipe_changes": 3}}, "condition 'c': recipe_changes = 3: give names and values"),
        (
            {"c": {**RECIPE, "recipe_changes": {"style": "plain"}}},
            "recipe_changes holds style: give it as the cond",
        ),
        (
            {"c": {**RECIPE, "recipe_changes": {"seed": 1}}},
            "recipe_changes holds seed: give it as the notebook",
        ),
        ({"c": {"recipe_changes": {"rank": 1}}}, "condition 'c' has recipe_changes but no recipe"),
        ({"c": {"auxiliary": {"count": 1}}}, "condition 'c' has auxiliary but no recipe"),
        ({"c": {**RECIPE, "auxiliary": "known"}}, "condition 'c': auxiliary = 'known': give names and values"),
        (
            {"c": {**RECIPE, "auxiliary": {"tasks": 1}}},
            "auxiliary setting 'tasks' is unknown: choose among task",
        ),
        ({"c": {**RECIPE, "auxiliary": {"task": "qa"}}}, "auxiliary task 'qa' is unknown: choose among known, "),
        ({"c": {**RECIPE, "auxiliary": {"count": -1}}}, "auxiliary: count = -1: give a whole number"),
        ({"c": {**RECIPE, "auxiliary": {"count": True}}}, "auxiliary: count = True: give a whole number"),
        ({"c": {**RECIPE, "auxiliary": {"task": "sentence", "generator": "g"}}}, "generator 'g' needs an endpoint"),
        ({"c": {**RECIPE, "auxiliary": {"task": "window", "generator": "g", "endpoint": "x"}}}, "endpoint: url = 'x'"),
        ({"c": {"recipe": "micro/gated_memory"}}, "condition 'c' trains on nothing: recipe 'micro/gated_memory'"),
    ],
)
def test_a_setting_that_is_wrong_is_named_in_one_line(given, message):
    with pytest.raises(ValueError, match=message) as error:
        plans(given, "plain", {})
    assert "\n" not in str(error.value)


def test_no_pairs_are_no_pairs(tiny, tmp_path):
    assert pairs(tiny, tmp_path, "known", 0) == ([], {"pairs": 0})


@pytest.mark.parametrize("count", [1, 10, 10_000])
def test_known_pairs_are_so_many_of_the_document_s_own(tiny, tmp_path, count):
    own = known_pairs(DOCUMENT)
    made, counts = pairs(tiny, tmp_path, "known", count)
    assert len(made) == counts["pairs"] == min(count, len(own)) and len(counts) == 1
    assert not Counter(made) - Counter(own)


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_known_per_fact_takes_so_many_wordings_of_every_fact(tiny, tmp_path, count):
    made, counts = pairs(tiny, tmp_path, "known_per_fact", count)
    facts = {}
    for question in DOCUMENT.asked("trained"):
        facts.setdefault(question.evidence, set()).add(question.text)
    assert len(made) == counts["pairs"] == len(facts) * min(count, 3) == len(set(made))
    assert all(sum(pair.question in texts for pair in made) == min(count, 3) for texts in facts.values())


@pytest.mark.parametrize("task", conditions.KNOWN)
def test_more_pairs_hold_the_fewer_and_another_seed_draws_others(tiny, tmp_path, task):
    few, _ = pairs(tiny, tmp_path, task, 1)
    more, _ = pairs(tiny, tmp_path, task, 2)
    assert set(few) < set(more) and few == pairs(tiny, tmp_path, task, 1)[0]
    assert few != pairs(tiny, tmp_path, task, 1, seed=1)[0]


@pytest.mark.parametrize(
    ("task", "message"),
    [("known", "brings no pairs along, as registers do: choose an"), ("known_timeline", "has no timeline of 3 events"),
     ("known_and_timeline", "brings no pairs along, as registers do: choose an")],
)  # fmt: skip
def test_a_document_without_pairs_of_its_own_is_named(tiny, tmp_path, task, message):
    with pytest.raises(ValueError, match=f"document 'd' {message}"):
        pairs(tiny, tmp_path, task, 1, document=Document("d", "Ada."))


@pytest.mark.parametrize("count", [1, 3])
def test_facts_and_timelines_are_those_of_each_as_many_of_the_one_as_of_the_other(tiny, tmp_path, count):
    """No timeline that is asked is among them, and a document with few timelines gives all of them."""
    document = with_tasks(DOCUMENT, ["timeline_reorder"])
    asked = [q for q in document.questions if q.kind == "timeline_reorder"][:8]
    document = replace(document, questions=(*document.asked("trained"), *asked))
    facts, _ = pairs(tiny, tmp_path, "known_per_fact", count, document=document)
    timelines, _ = pairs(tiny, tmp_path, "known_timeline", len(facts), document=document)
    both, counts = pairs(tiny, tmp_path, "known_and_timeline", count, document=document)
    assert both == facts + timelines and counts == {"pairs": len(both)} and not set(facts) & set(timelines)
    assert len(timelines) == min(len(facts), len(timeline_pairs(document))) > 8
    events = [frozenset(text.split(". ")[:-1]) for text in (q.question for q in timelines)]
    assert not set(events) & {frozenset(q.text.split(". ")[:-1]) for q in asked} and len(set(events)) == len(events)


def test_generated_pairs_are_counted_with_what_failed_and_kept_for_the_next_time(tiny, tmp_path, monkeypatch):
    """A scripted generator: every third request fails for good."""
    calls = []

    class Scripted:
        name = "scripted"

        def replies(self, requests, read):
            from liftlab.auxiliary.replies import Reply

            for (index, _), reader in zip(requests, read, strict=True):
                calls.append(index)
                text = '{"pairs": [{"question": "Q?", "answer": "A"}]}'
                failed = index % 3 == 2
                yield Reply(index, text, None if failed else reader(text), "down" if failed else "", 1)

    monkeypatch.setattr(conditions, "generator_of", lambda base, name, endpoint: Scripted())
    document = Document("d", "Ada sings. Ben reads. Cora eats. Dora runs.")
    made, counts = pairs(tiny, tmp_path, "sentence", 1, document=document)
    assert len(made) == 3 and counts == {"pairs": 3, "requests": 4, "failed": 1, "refused": 0} and len(calls) == 4
    again, _ = pairs(tiny, tmp_path, "sentence", 1, document=document)
    assert again == made and len(calls) == 5  # the failed one alone


def test_a_generator_is_the_base_model_or_the_one_at_the_endpoint(tiny):
    assert isinstance(conditions.generator_of(tiny, "model", ""), LocalModel)
    assert conditions.generator_of(tiny, "g", "http://localhost:1/v1") == Endpoint("http://localhost:1/v1", "g")


def test_conditions_that_train_alike_share_a_lift_and_no_others():
    made = plans(
        {
            "icl": {"context": "truncated"},
            "lift": RECIPE,
            "lift_icl": {**RECIPE, "context": "truncated", "evidence": True},
            "raw": {**RECIPE, "style": "plain_raw"},
            "rank": {**RECIPE, "recipe_changes": {"rank": 2}},
            "pairs": {**RECIPE, "auxiliary": {"count": 3}},
            "same_pairs": {**RECIPE, "auxiliary": {"count": 3, "task": "known"}, "context": "full"},
            "other": {"recipe": "micro/pissa"},
        },
        "plain",
        {},
    )
    groups = [list(group) for _, group in conditions.sharing(made)]
    assert groups == [["lift", "lift_icl"], ["raw"], ["rank"], ["pairs", "same_pairs"], ["other"]]
    assert all(first is next(iter(group.values())) for first, group in conditions.sharing(made))
