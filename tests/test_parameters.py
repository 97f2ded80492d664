import nbformat
import pytest

from liftlab import parameters
from liftlab.parameters import RunError

KNOWN = {
    "seeds": [0, 1],
    "windows": [0.5, 1],
    "rate": 3e-3,
    "epochs": 20,
    "title": "a",
    "merge": True,
    "pairs": [[1, 2]],
    "changes": {},
    "free": [],
}

KERNEL = {"name": "python3", "language": "python", "display_name": "Python 3"}


def write(path, cell, kernelspec=None):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell, metadata={"tags": ["parameters"]})])
    notebook.metadata.kernelspec = kernelspec or KERNEL
    nbformat.write(notebook, path)
    return path


def test_defaults_are_the_literals_of_the_parameters_cell(tmp_path):
    cell = """# units in the comments
seeds = [0, 1]  # list
rate: float = 3e-3  # 1
rows = [
    1,  # first
    2,
]
title = "a # b"
"""
    assert parameters.defaults(write(tmp_path / "a.ipynb", cell)) == {
        "seeds": [0, 1],
        "rate": 3e-3,
        "rows": [1, 2],
        "title": "a # b",
    }


def test_a_notebook_without_parameters_has_none(tmp_path):
    path = tmp_path / "a.ipynb"
    nbformat.write(nbformat.v4.new_notebook(), path)
    assert parameters.defaults(path) == {}


@pytest.mark.parametrize(
    ("cell", "name"),
    [("a = 1\nb = 2  # 0 = none", "b"), ("a = 1; b = 2", "a"), ('a = "x=y"', "a"), ("a: int | None = 3", "a")],
)
def test_a_parameter_that_papermill_cannot_see_is_an_error(tmp_path, caplog, cell, name):
    with pytest.raises(RunError, match=f"papermill does not see parameter '{name}' of a.ipynb"):
        parameters.defaults(write(tmp_path / "a.ipynb", cell))
    assert caplog.text == ""


@pytest.mark.parametrize(
    "statement",
    [
        "n = len('a')",
        "b = a",
        "a += 1",
        "import os",
        "a, b = 1, 2",
        "a = b = 1",
        "a = (1, 2)",
        "a = None",
        "a: int",
        "a = {1}",
    ],
)
def test_anything_but_a_json_literal_is_an_error(tmp_path, statement):
    with pytest.raises(RunError, match="parameters cell of a.ipynb: `.*` must be `name = literal`"):
        parameters.defaults(write(tmp_path / "a.ipynb", statement))


def test_broken_files_are_named(tmp_path):
    with pytest.raises(RunError, match="a.ipynb is not Python: line 2"):
        parameters.defaults(write(tmp_path / "a.ipynb", "a = 1\nb = ="))
    with pytest.raises(RunError, match="cannot read the parameters of a.ipynb .*python3"):
        parameters.defaults(
            write(tmp_path / "a.ipynb", "a = 1", kernelspec={"name": "python3", "display_name": "Python 3"})
        )
    for text in ("", "[]", "{}"):
        (tmp_path / "b.ipynb").write_text(text)
        with pytest.raises(RunError, match="b.ipynb is not a notebook"):
            parameters.defaults(tmp_path / "b.ipynb")


@pytest.mark.parametrize(
    ("name", "value", "taken"),
    [
        ("seeds", [3], [3]),
        ("seeds", [], []),
        ("windows", [1, 2.5], [1.0, 2.5]),
        ("rate", 1, 1.0),
        ("epochs", 3, 3),
        ("title", "b", "b"),
        ("merge", False, False),
        ("pairs", [[3, 4], [5, 6]], [[3, 4], [5, 6]]),
        ("changes", {"rank": 8}, {"rank": 8}),
        ("free", ["x", 1], ["x", 1]),
    ],
)
def test_a_value_of_the_default_s_type_is_taken(name, value, taken):
    found = parameters.checked(name, value, KNOWN, "--set", "n")
    assert found == taken and repr(found) == repr(taken)


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("seeds", "abc", r"'abc' \(str, from --set\).*must be list of int, such as \[0, 1\]"),
        ("seeds", 3, r"3 \(int, .*must be list of int"),
        ("seeds", [0.5], r"\(list of float, .*must be list of int"),
        ("seeds", [True], r"\(list of bool, .*must be list of int"),
        ("windows", ["a"], r"\(list of str, .*must be list of float"),
        ("rate", True, "must be float"),
        ("rate", float("inf"), "must be float"),
        ("rate", "1e-3", "YAML reads 1e-3 as text, write 1.0e-3"),
        ("epochs", 2.0, "must be int"),
        ("epochs", True, "must be int"),
        ("epochs", None, r"None \(NoneType"),
        ("title", 3, "must be str"),
        ("merge", 1, "must be bool"),
        ("pairs", [1, 2], "must be list of list of int"),
        ("changes", [], "must be dict"),
    ],
)
def test_a_value_of_another_type_is_refused_with_both_types(name, value, wanted):
    with pytest.raises(RunError, match=f"parameter '{name}' = .*{wanted}.*valid: seeds .list of int., windows"):
        parameters.checked(name, value, KNOWN, "--set", "n")


def test_an_unknown_parameter_is_refused_with_the_nearest_and_all_valid_ones():
    with pytest.raises(RunError, match="'sedes' = 3 .int, from --set.*did you mean 'seeds'.; valid: .*epochs .int."):
        parameters.checked("sedes", 3, KNOWN, "--set", "n")


@pytest.mark.parametrize(
    ("words", "default", "value"),
    [
        ("[0, 1]", [0], [0, 1]),
        ("1e-3", 1.0, 1e-3),
        ("true", False, True),
        ("abc", [0], "abc"),
        ("abc", "x", "abc"),
        ('"abc"', "x", "abc"),
        ("3", "x", "3"),
        ("true", "x", "true"),
        ("NaN", 1.0, "NaN"),
        ('{"rank": 8}', {}, {"rank": 8}),
    ],
)
def test_command_line_values_are_json_or_plain_text(words, default, value):
    found = parameters.from_text(words, default)
    assert found == value and type(found) is type(value)


def test_assignments_are_split_at_the_first_equals_sign():
    assert parameters.assignments(["a=1", "b = x=y"]) == {"a": "1", "b": "x=y"}
    for sets in (["a"], ["=1"]):
        with pytest.raises(RunError, match="not of the form key=value"):
            parameters.assignments(sets)
    with pytest.raises(RunError, match="'a' twice"):
        parameters.assignments(["a=1", "a=2"])


def test_a_yaml_file_holds_a_mapping_or_nothing(tmp_path):
    path = tmp_path / "a.yaml"
    for text, values in (("", {}), ("# only a comment\n", {}), ("seeds: [1]\n", {"seeds": [1]})):
        path.write_text(text)
        assert parameters.from_yaml(path) == values
    for text, words in (("- 1\n", "holds a list"), ("a: [1\n", "is not YAML")):
        path.write_text(text)
        with pytest.raises(RunError, match=words):
            parameters.from_yaml(path)
