"""The bounds of notebook parameters and environment variables, as data/parameters.yaml states them."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import Any

MOST_LEVELS = 20  # of lists and dicts in each other
_COMPARED = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
_KINDS = {
    "string": "a text",
    "number": "a finite number",
    "integer": "a whole number",
    "boolean": "true or false",
    "array": "a list",
    "object": "names and values",
}


def check(name: str, value: Any, notebook: str) -> None:
    """ValueError that says which part of parameter `name` breaks which bound; a name without an entry has none."""
    stated = _stated()
    _check(name, value, [part[name] for part in (stated["parameters"], _own(notebook)) if name in part])


def check_environment() -> None:
    """ValueError for the first variable that a run reads, is set, and holds what it cannot use."""
    for name, entry in _stated()["environment"].items():
        if (given := os.environ.get(name)) is None:
            continue
        try:
            _check(name, _number(given), [entry])
        except ValueError as error:
            raise ValueError(f"environment variable {error}: set it so, or unset it") from error


def _number(given: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(given)
        except ValueError:
            continue
    return given


def check_json(where: str, value: Any, level: int = 0) -> None:
    """ValueError for what JSON cannot hold, such as a date or NaN, or what is nested beyond `MOST_LEVELS`."""
    if level > MOST_LEVELS:
        raise ValueError(f"{where:.80} is nested deeper than {MOST_LEVELS} levels: flatten it")
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        for key, item in value.items():
            check_json(f"{where}.{key}", item, level + 1)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            check_json(f"{where}[{index}]", item, level + 1)
    elif type(value) not in (str, int, bool, float, type(None)) or (type(value) is float and not math.isfinite(value)):
        raise ValueError(
            f"{where} = {value!r:.80} ({type(value).__name__}) is no JSON value: use text, finite numbers, true or "
            "false, lists, and dicts with text keys; put a date in quotes"
        )


def _own(notebook: str) -> dict[str, dict]:
    return _stated()["notebooks"].get(notebook, {})


def _check(name: str, value: Any, entries: list[dict]) -> None:
    schema = {"$defs": _stated()["$defs"], "allOf": entries}
    error = next(_validator()(schema, format_checker=_formats()).iter_errors(value), None)
    if error is None:
        return
    where = name + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.absolute_path)
    named = "propertyNames" in error.absolute_schema_path  # it is a name in the value that breaks the bound
    held = f"{where}: the name {error.instance!r:.80}" if named else f"{where} = {error.instance!r:.200}"
    raise ValueError(f"{held} {_words(error, _unit(schema, error.absolute_schema_path))}")


def _unit(schema: dict, path: Iterable[str | int]) -> str:
    """The unit stated nearest to the bound at the end of `path`, which names no $ref on its way; "" for none."""
    unit, here = "", schema
    for step in path:
        if isinstance(here, dict):
            meant = here if step in here else schema["$defs"][here["$ref"].rpartition("/")[2]]
            unit, here = meant.get("unit", here.get("unit", unit)), meant
        here = here[step]
    return unit or next((entry["unit"] for entry in schema["allOf"] if "unit" in entry), "")


def _words(error: Any, unit: str) -> str:
    """What the value must be instead."""
    keyword, wanted = error.validator, error.validator_value
    of = f" ({unit})" if unit else ""
    if keyword == "format":
        return f"is refused: {error.cause}"
    if keyword in _COMPARED:
        return f"must be {_COMPARED[keyword]} {wanted}{of}"
    if keyword == "enum":
        return f"must be one of {', '.join(map(str, wanted))}{_near(error.instance, wanted)}"
    if keyword == "type":
        return f"must be {_KINDS[wanted]}{of}"
    if keyword in ("minItems", "minProperties"):
        return "must not be empty: give at least one"
    if keyword == "uniqueItems":
        return "must hold each item once"
    if keyword in ("required", "dependentRequired"):
        needed = wanted if keyword == "required" else sum((wanted.get(name, []) for name in error.instance), [])
        return f"lacks {next(name for name in needed if name not in error.instance)!r}: add it"
    if keyword == "additionalProperties":
        known = list(error.schema["properties"])
        unknown = next(key for key in error.instance if key not in known)
        return f"has the unknown field {unknown!r}{_near(unknown, known)}: choose among {', '.join(known)}"
    return f"must be {unit}"  # a pattern, or what it must not be: the unit words it


def _near(name: Any, known: list) -> str:
    near = difflib.get_close_matches(str(name), map(str, known), n=1)
    return f", did you mean {near[0]!r}?" if near else ""


@cache
def _stated() -> dict[str, dict]:
    import yaml

    return yaml.safe_load(files("liftlab").joinpath("data/parameters.yaml").read_text("utf-8"))


@cache
def _validator() -> Any:
    """JSON Schema with numbers as Python has them: a whole number is an int, and NaN is none."""
    import jsonschema

    base = jsonschema.Draft202012Validator
    strict = {
        "integer": lambda _, value: type(value) is int,
        "number": lambda _, value: type(value) in (int, float) and math.isfinite(value),
    }
    return jsonschema.validators.extend(base, type_checker=base.TYPE_CHECKER.redefine_many(strict))


@cache
def _formats() -> Any:
    """What is looked up in liftlab/paper; the error of the look-up says what is known there."""
    import jsonschema

    checker = jsonschema.FormatChecker(formats=())
    for name, look_up in _LOOK_UPS.items():
        checker.checks(name, raises=(ValueError, TypeError))(_passing(look_up))
    return checker


def _passing(look_up: Callable[[Any], object]) -> Callable[[Any], bool]:
    def checked(value: Any) -> bool:
        look_up(value)
        return True

    return checked


def _recipe(name: Any) -> None:
    from liftlab.recipes import Recipe

    Recipe.preset(name)


def _gated_recipe(name: Any) -> None:
    from liftlab.recipes import Recipe

    if (adapter := Recipe.preset(name).adapter) != "gated_memory":
        raise ValueError(f"it trains adapter {adapter}, which has no gates: choose one with adapter gated_memory")


def _recipe_changes(changes: Any) -> None:
    """Each field by itself: what two of them say together is the study's to check, which may set one of them."""
    from liftlab.recipes import Recipe

    fitting = Recipe(adapter="gated_memory", segment_tokens=2**62, offset_tokens=1)  # at odds with no other field
    prefixed = replace(fitting, adapter="cartridge", prefix_tokens=2)  # but for these two, which go together
    for field, value in changes.items():
        if field not in (known := list(fitting.as_dict())):
            raise ValueError(f"a recipe has no field {field!r}{_near(field, known)}: choose among {', '.join(known)}")
        of = prefixed if field == "prefix_tokens" or value == "cartridge" else fitting
        replace(of, **{field: value})


def _condition(given: Any) -> None:
    from liftlab.recipes import Recipe

    recipe, changes = given.get("recipe", ""), given.get("recipe_changes", {})
    if recipe:
        Recipe.preset(recipe, **changes)
    elif named := [name for name in ("recipe_changes", "auxiliary") if given.get(name)]:
        raise ValueError(f"it has {named[0]} but no recipe, so nothing is trained: give its recipe")


def _style(name: Any) -> None:
    from liftlab.prompts import style

    style(name)


_LOOK_UPS: dict[str, Callable[[Any], None]] = {
    "recipe": _recipe,
    "gated_recipe": _gated_recipe,
    "recipe_changes": _recipe_changes,
    "condition": _condition,
    "style": _style,
}
