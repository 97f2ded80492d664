"""Parameters of a notebook: the literals of its parameters cell, and the checks on what would replace them."""

from __future__ import annotations

import ast
import difflib
import json
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from liftlab import bounds
from liftlab.documents import decoded, shown

MOST_YAML = 1_000_000  # bytes of a parameter file


class RunError(ValueError):
    """A notebook, profile or parameter that cannot be run as asked."""


def notebook_json(path: Path) -> dict[str, Any]:
    """The notebook file as JSON (format 4)."""
    try:
        parsed = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise RunError(f"{shown(path)} is not a notebook: {error}") from error
    if not isinstance(parsed, dict) or not isinstance(parsed.get("cells"), list):
        raise RunError(f"{shown(path)} is not a notebook of format 4: it has no cells")
    for number, cell in enumerate(parsed["cells"], start=1):
        if not isinstance(cell, dict) or not {"cell_type", "source"} <= set(cell):
            raise RunError(f"{shown(path)} is not a notebook of format 4: cell {number} has no cell_type and source")
    return parsed


def source_of(cell: dict[str, Any]) -> str:
    """A cell's source, which the file holds as a list of lines or as one text."""
    return "".join(cell["source"])


def defaults(path: Path) -> dict[str, Any]:
    """Names and values in the cell tagged parameters, in order; {} without such a cell.

    RunError for a statement that is not `name = literal`, or that papermill cannot see and would only warn about.
    """
    tagged = [cell for cell in notebook_json(path)["cells"] if "parameters" in cell.get("metadata", {}).get("tags", [])]
    found = dict(_default(statement, path) for statement in _statements(source_of(tagged[0]) if tagged else "", path))
    unseen = [name for name in found if name not in _seen_by_papermill(path)]
    if unseen:
        raise RunError(
            f"papermill does not see parameter {unseen[0]!r} of {path.name}: write `name = literal  # unit, meaning`, "
            "one a line, with a single '=' on the line (comments too)"
        )
    return found


def from_yaml(path: Path) -> dict[str, Any]:
    """A profile's parameter file; an empty one is {}.

    RunError for what is no plain YAML mapping of text to values: tags, aliases, a name given twice, other encodings.
    """
    import yaml

    from liftlab.plain_yaml import PlainLoader

    data = path.read_bytes()
    if len(data) > MOST_YAML:
        raise RunError(f"{shown(path)} has {len(data)} bytes, a parameter file has at most {MOST_YAML}: shorten it")
    try:
        values = yaml.load(decoded(data, "it"), PlainLoader)
    except RecursionError as error:
        raise RunError(f"{shown(path)} is not YAML of use: it is nested too deep, flatten it") from error
    except (yaml.YAMLError, ValueError) as error:
        raise RunError(f"{shown(path)} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict | None):
        raise RunError(f"{shown(path)} must hold `parameter: value` lines, it holds a {type(values).__name__}")
    return values or {}


def assignments(sets: list[str]) -> dict[str, str]:
    """{"seeds": "[0, 1]"} from ["seeds=[0, 1]"]."""
    pairs: dict[str, str] = {}
    for words in sets:
        name, equals, value = (part.strip() for part in words.partition("="))
        if not equals or not name:
            raise RunError(f"--set {words!r} is not of the form key=value")
        if name in pairs:
            raise RunError(f"--set gives {name!r} twice: give it once")
        pairs[name] = value
    return pairs


def from_text(words: str, default: Any) -> Any:
    """A value given on the command line: JSON; plain text where `default` is text or where it is not JSON."""
    try:
        value = json.loads(words, parse_constant=_refuse)
    except (ValueError, RecursionError):  # the latter: what is nested too deep is no value of any parameter
        return words
    return words if isinstance(default, str) and not isinstance(value, str) else value


def checked(name: str, value: Any, known: dict[str, Any], origin: str, notebook: str) -> Any:
    """`value` in the type of parameter `name` (whole numbers become floats where the default is one), or RunError.

    It lies within the bounds of data/parameters.yaml.
    """
    if isinstance(value, list | dict):
        try:
            bounds.check_json(f"parameter {name}", value)
        except ValueError as error:
            raise RunError(f"{error} (from {origin})") from error
    valid = ", ".join(f"{key} ({kind(default)})" for key, default in known.items()) or "none"
    given = f"parameter {name!r} = {value!r:.200} ({kind(value)}, from {origin})"
    if name not in known:
        raise RunError(f"{given} is not one of notebook {notebook}{suggestion(name, known)}; valid: {valid}")
    try:
        taken = _as(value, known[name])
    except TypeError:
        hint = (
            "; YAML reads 1e-3 as text, write 1.0e-3" if isinstance(value, str) and "float" in kind(known[name]) else ""
        )
        wanted = f"must be {kind(known[name])}, such as {known[name]!r}"
        raise RunError(f"{given} of notebook {notebook} {wanted}{hint}; valid: {valid}") from None
    try:
        bounds.check(name, taken, notebook)
    except ValueError as error:
        own = f"{known[name]!r:.200}"
        raise RunError(
            f"{given} of notebook {notebook}: {error}; correct it, or leave it out for the notebook's own {own}"
        ) from error
    return taken


def suggestion(name: str, known: dict[str, Any]) -> str:
    """Words to add to an error: the nearest of the known names, "" if none is near."""
    near = difflib.get_close_matches(str(name), known, n=1)
    return f", did you mean {near[0]!r}?" if near else ""


def kind(value: Any) -> str:
    """A type in words: "int", "list of float", "list" when empty."""
    if not isinstance(value, list) or not value:
        return type(value).__name__
    kinds = list(dict.fromkeys(kind(item) for item in value))
    return "list of " + ("float" if set(kinds) == {"int", "float"} else " or ".join(kinds))


def _as(value: Any, default: Any) -> Any:
    """`value` if it has the type of `default`, TypeError otherwise. A bool is no int; an int is a float."""
    if isinstance(default, float) and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if type(value) is not type(default) or isinstance(default, float):
        raise TypeError
    return [_as_element(item, default) for item in value] if isinstance(default, list) and default else value


def _as_element(item: Any, examples: list[Any]) -> Any:
    """`item` in the type of the examples' elements, floats first, so that [0.5, 1] is a list of floats."""
    for example in sorted(examples, key=lambda example: not isinstance(example, float)):
        try:
            return _as(item, example)
        except TypeError:
            continue
    raise TypeError


def _statements(source: str, path: Path) -> list[ast.stmt]:
    try:
        return ast.parse(source).body
    except SyntaxError as error:
        raise RunError(f"the parameters cell of {path.name} is not Python: line {error.lineno}: {error.msg}") from error


def _default(statement: ast.stmt, path: Path) -> tuple[str, Any]:
    """Name and value of `name = literal`; RunError for any other statement, which would go stale or stay unseen."""
    try:
        (target,) = statement.targets if isinstance(statement, ast.Assign) else (statement.target,)
        if isinstance(statement, ast.Assign | ast.AnnAssign):
            return target.id, _json_literal(ast.literal_eval(statement.value))
    except (ValueError, AttributeError, TypeError):
        pass  # the one error below says it for all
    line = ast.unparse(statement).splitlines()[0]
    wanted = "must be `name = literal` (text, number, True, False, list or dict; a tuple or None has no JSON type)"
    raise RunError(f"parameters cell of {path.name}: `{line}` {wanted}")


def _json_literal(value: Any) -> Any:
    if json.loads(json.dumps(value)) != value or value is None:
        raise ValueError(value)
    return value


def _seen_by_papermill(path: Path) -> set[str]:
    import papermill

    with quiet_papermill():
        try:
            return set(papermill.inspect_notebook(papermill_path(path)))
        except ValueError as error:
            hint = "set the kernelspec's name (python3) and language (python) in its metadata"
            raise RunError(f"papermill cannot read the parameters of {path.name} ({error}): {hint}") from error


def papermill_path(path: Path) -> str:
    """Papermill formats paths with the parameters: braces doubled keep the path as it is."""
    return str(path).replace("{", "{{").replace("}", "}}")


@contextmanager
def quiet_papermill() -> Iterator[None]:
    """Papermill only warns of what is an error here; the errors are ours to raise."""
    logger = logging.getLogger("papermill")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")
