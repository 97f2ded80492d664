"""How a condition of an evaluation answers: lifted or not, with which pairs, and what stands in its prompt."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path

from liftlab.auxiliary.endpoint import Endpoint
from liftlab.auxiliary.local_model import LocalModel
from liftlab.auxiliary.replies import Generator, ReplyCache
from liftlab.auxiliary.tasks import TASKS, Auxiliary
from liftlab.documents import Document
from liftlab.examples import Pair, known_pairs
from liftlab.models import BaseModel
from liftlab.prompts import CONTEXTS, STYLES
from liftlab.recipes import Recipe
from liftlab.register_tasks import timeline_pairs
from liftlab.studies.registers import known

# pairs that the document brings along: `count` drawn; `count` for each fact; `count` timelines that are not asked; or
# `count` for each fact, and as many such timelines
KNOWN = ("known", "known_per_fact", "known_timeline", "known_and_timeline")
FIXED = {"style": "as the condition's style", "seed": "as the notebook's seeds"}  # what recipe_changes may not hold
AUXILIARY = {"task": "known", "count": 0, "generator": "model", "endpoint": ""}


@dataclass(frozen=True)
class Plan:
    """One condition.

    `recipe`: a name in paper/recipes.yaml, "" = the base model as it is; `recipe_changes`: fields of it to change;
    `context`: what of the document stands in the prompt; `evidence`: whether the question's evidence does, too;
    `style`: how the pairs and the questions are put; `auxiliary`: task, count, generator ("model" = the base model
    itself, else a model's name at `endpoint`); `presft`: whether the base model is fine-tuned on other documents first.
    """

    recipe: str = ""
    recipe_changes: tuple[tuple[str, object], ...] = ()
    context: str = "none"
    evidence: bool = False
    style: str = "plain"
    auxiliary: tuple[tuple[str, object], ...] = ()
    presft: bool = False

    @property
    def lift(self) -> tuple:
        """What decides the adapter: conditions that share it are served by one lift."""
        return self.recipe, self.recipe_changes, self.style, self.auxiliary, self.presft

    def recipe_for(self, seed: int) -> Recipe:
        """The recipe with its changes, this condition's style, and a training seed."""
        return replace(Recipe.preset(self.recipe, **dict(self.recipe_changes)), style=self.style, seed=seed)


def plans(conditions: dict[str, dict], base_style: str, auxiliary: dict) -> dict[str, Plan]:
    """The conditions by name, each checked; `base_style` and `auxiliary` hold where a condition gives none.

    ValueError names the condition, the field and what is allowed.
    """
    if not conditions:
        raise ValueError("conditions is empty: give at least one")
    for name in conditions:
        if not name.strip() or name == "chance":
            raise ValueError(f"condition {name!r} cannot be called so: give another name (chance is the chance level)")
    return {name: _plan(name, given, base_style, auxiliary) for name, given in conditions.items()}


def _plan(name: str, given: dict, base_style: str, auxiliary: dict) -> Plan:
    if not isinstance(given, dict):
        raise ValueError(f"condition {name!r} = {given!r}: give its settings, such as {{context: truncated}}")
    known(list(given), [field.name for field in fields(Plan)], f"setting of condition {name!r}:")
    for setting in ("recipe_changes", "auxiliary"):
        if not isinstance(given.get(setting, {}), dict):
            raise ValueError(f"condition {name!r}: {setting} = {given[setting]!r}: give names and values")
    pairs = _auxiliary({**auxiliary, **given.get("auxiliary", {})})
    made = Plan(**{**{"style": base_style}, **given,
                   "recipe_changes": _items(given.get("recipe_changes", {})), "auxiliary": _items(pairs)})  # fmt: skip
    known([made.context], CONTEXTS, f"context of condition {name!r}:")
    known([made.style], list(STYLES), f"style of condition {name!r}:")
    for setting in ("evidence", "presft"):
        if (value := getattr(made, setting)) not in (True, False):
            raise ValueError(f"condition {name!r}: {setting} = {value!r}: give true or false")
    if made.recipe:
        _check_recipe(name, made)
    elif empty := [setting for setting in ("recipe_changes", "auxiliary") if given.get(setting)]:
        raise ValueError(f"condition {name!r} has {empty[0]} but no recipe: nothing is trained, give its recipe")
    return made


def _check_recipe(name: str, plan: Plan) -> None:
    for field, where in FIXED.items():
        if field in dict(plan.recipe_changes):
            raise ValueError(f"condition {name!r}: recipe_changes holds {field}: give it {where}")
    recipe = plan.recipe_for(0)
    if dict(plan.auxiliary)["count"] == 0 and not recipe.segment_epochs and not recipe.segments_in_mixed:
        raise ValueError(
            f"condition {name!r} trains on nothing: recipe {plan.recipe!r} takes no segments and auxiliary count is 0, "
            "raise it, or set segments_in_mixed in recipe_changes"
        )


def check_weights(wanted: dict[str, Plan]) -> None:
    """ValueError for an adapter that changes the base weights, where four_bit packs them."""
    for name, plan in wanted.items():
        if plan.recipe and (adapter := plan.recipe_for(0).adapter) in ("pissa", "full"):
            raise ValueError(
                f"condition {name!r}: adapter {adapter} changes the base weights, which four_bit packs: "
                "set four_bit = false"
            )


def _auxiliary(given: dict) -> dict:
    """`given` with its defaults, checked."""
    known(list(given), list(AUXILIARY), "auxiliary setting")
    made = {**AUXILIARY, **given}
    known([made["task"]], [*KNOWN, *TASKS], "auxiliary task")
    count = made["count"]
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise ValueError(f"auxiliary: count = {count!r}: give a whole number, 0 for no pairs")
    if made["task"] not in KNOWN:
        check_generator("auxiliary: generator", made["generator"], made["endpoint"])
    return made


def check_generator(what: str, name: str, endpoint: str) -> None:
    """ValueError, beginning with `what`, for a generator that cannot be; no request is sent."""
    if name == "model":
        return
    if not endpoint:
        raise ValueError(f"{what} {name!r} needs an endpoint: give its URL, or 'model' for the base model itself")
    Endpoint(endpoint, name)


def _items(settings: dict) -> tuple[tuple[str, object], ...]:
    return tuple(sorted((name, tuple(v) if isinstance(v, list) else v) for name, v in settings.items()))


def pairs_of(
    plan: Plan, base: BaseModel, document: Document, seed: int, replies: Path
) -> tuple[list[Pair], dict[str, int]]:
    """The auxiliary pairs of one lift, and how many were asked for, kept, failed and refused."""
    asked = dict(plan.auxiliary)
    if asked["count"] == 0:
        return [], {"pairs": 0}
    if asked["task"] in KNOWN:
        pairs = _known(document, asked["task"], asked["count"], seed)
        return pairs, {"pairs": len(pairs)}
    generator = generator_of(base, asked["generator"], asked["endpoint"])
    cache = ReplyCache(replies, document.text)
    made = Auxiliary(document, asked["task"], asked["count"], generator, cache, seed)
    pairs = list(made)
    counts = made.counts
    return pairs, {"pairs": counts.pairs, "requests": counts.requests, "failed": counts.failed,
                   "refused": counts.refused}  # fmt: skip


def generator_of(base: BaseModel, name: str, endpoint: str) -> Generator:
    """The base model itself for "model", else the model of that name at the endpoint."""
    return LocalModel(base) if name == "model" else Endpoint(endpoint, name)


def _known(document: Document, task: str, count: int, seed: int) -> list[Pair]:
    """The pairs that the document brings along for `task` (see `KNOWN`), drawn by `seed`.

    As many as there are, where there are fewer; a larger count has those of a smaller one too. ValueError for none.
    """
    if task == "known_timeline":
        return _timelines(document, count, seed)
    facts = _facts(document, count, seed, each=task != "known")
    return facts + _timelines(document, len(facts), seed) if task == "known_and_timeline" else facts


def _timelines(document: Document, count: int, seed: int) -> list[Pair]:
    return [Pair(question.text, question.answer) for question in timeline_pairs(document, seed)[:count]]


def _facts(document: Document, count: int, seed: int, each: bool) -> list[Pair]:
    """`count` of the document's own pairs, or of the wordings of `each` of its facts. ValueError for none."""
    facts: dict[tuple, list[Pair]] = {}
    for question, pair in zip(document.asked("trained"), known_pairs(document), strict=True):
        fact = (question.kind, question.evidence, question.answer) if each else ()
        facts.setdefault(fact, []).append(pair)
    if not facts:
        raise ValueError(
            f"document {document.name!r} brings no pairs along, as registers do: choose an auxiliary task that "
            f"generates them ({', '.join(TASKS)}), or count 0"
        )
    rng = random.Random(f"known pairs {document.name} {seed}")
    return [pair for of in facts.values() for pair in rng.sample(of, len(of))[:count]]


def sharing(plans: dict[str, Plan]) -> Iterable[tuple[Plan, dict[str, Plan]]]:
    """Lifted conditions grouped by the lift that they share."""
    groups: dict[tuple, dict[str, Plan]] = {}
    for name, plan in plans.items():
        if plan.recipe:
            groups.setdefault(plan.lift, {})[name] = plan
    return [(next(iter(group.values())), group) for group in groups.values()]
