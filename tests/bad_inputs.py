"""A place to type commands in: notebooks, profiles, a document and adapters; and the law of bad inputs."""

import shutil

import pytest

from liftlab import lifting, models, runner
from liftlab.examples import known_pairs
from liftlab.recipes import Recipe
from liftlab.worlds import register

REAL = runner.root(__file__)
NOTEBOOKS = {"micro": ("lift_vs_icl", "conflict", "table_loogle"), "micro_timed": ("efficiency", "adapters")}
DOCUMENT = register(0, 80)
LIFT = ["lift", "document.txt", "--model", "micro", "--out", "out"]


@pytest.fixture(scope="session")
def adapters(tmp_path_factory):
    """Adapters of the bundled model, each trained for one step, by name."""
    folder, base = tmp_path_factory.mktemp("adapters"), models.load("micro")
    for name, recipe, changes in (("lora", "micro/lora", {}), ("gated", "micro/gated_memory", {}),
                                  ("full", "micro/lora", {"adapter": "full"})):  # fmt: skip
        plan = Recipe.preset(recipe, segment_epochs=0, mixed_epochs=1, segments_in_mixed=False, **changes)
        lifting.lift(base, DOCUMENT, plan, known_pairs(DOCUMENT)[:1], progress=False).save(folder / name)
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch, adapters):
    """A repository with some of the notebooks, a document, pairs and adapters; the working directory."""
    (tmp_path / "notebooks").mkdir()
    for profile, names in NOTEBOOKS.items():
        (tmp_path / "papermill_runs" / profile).mkdir(parents=True)
        for name in names:
            shutil.copy(REAL / "notebooks" / f"{name}.ipynb", tmp_path / "notebooks")
            (tmp_path / "papermill_runs" / profile / f"{name}.yaml").write_text("")
    (tmp_path / "papermill_runs/empty").mkdir()
    (tmp_path / "document.txt").write_text(DOCUMENT.text)
    shutil.copytree(adapters, tmp_path / "adapters")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


@pytest.fixture
def says(place, command_line):
    return command_line


def listing(folder):
    return {path: (path.lstat().st_size, path.lstat().st_mtime_ns) for path in folder.rglob("*")}


def check_refused(place, says, words, fragments):
    """One line, exit code 2, nothing written, nothing that a terminal would act on."""
    before = listing(place)
    code, out, errors = says(*words)
    assert (code, out) == (2, ""), errors
    assert errors.count("\n") == 1 and errors.startswith("liftlab: ") and "Traceback" not in errors
    assert not [fragment for fragment in fragments if fragment not in errors], errors
    assert all(character.isprintable() for character in errors.rstrip("\n"))
    assert listing(place) == before
