"""The README's numbers are the figures' numbers, and what it names exists."""

import re
from pathlib import Path

import pandas as pd
import pytest

from liftlab import tables

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
DATA = sorted(path for path in (ROOT / "figures").glob("*/*.csv"))


@pytest.mark.parametrize("path", DATA, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_each_figure_s_table_stands_in_the_readme_as_its_data_gives_it(path):
    table = tables.markdown(tables.TABLES[path.stem](pd.read_csv(path)))
    assert path.with_suffix(".md").read_text("utf-8") == table + "\n"
    assert table in README


def test_every_figure_is_there_in_three_forms_and_shown():
    assert DATA
    for path in DATA:
        assert path.with_suffix(".png").is_file() and path.with_suffix(".svg").is_file()
        assert f"figures/{path.parent.name}/{path.stem}.png" in README


def test_files_and_modules_named_in_the_readme_exist():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    modules = re.findall(r"^\| `([\w./]+)`", README, flags=re.MULTILINE)
    assert links and modules
    for name in links:
        assert (ROOT / name).exists(), name
    for name in modules:
        assert (ROOT / "liftlab" / f"{name}.py").exists() or (ROOT / "liftlab" / name).is_dir(), name


def test_the_module_table_is_the_import_order():
    from test_layers import ORDER

    named = [name.replace("/", ".") for name in re.findall(r"^\| `([\w/]+)`", README, flags=re.MULTILINE)]
    assert named == ORDER


def test_make_targets_in_the_readme_exist():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make (\w+)", README, flags=re.MULTILINE))
    assert {"reproduce", "test", "lab"} <= named <= targets
