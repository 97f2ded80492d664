import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import joblib
import pandas as pd
import pytest
import torch

from liftlab import cells, records

ROOT = Path(__file__).resolve().parents[1]
GRID = [{"rank": rank, "seed": seed} for rank in (8, 16) for seed in (0, 1)]


def measured(rank, seed, documents=2):
    row = {"study": "s", "base_model": "micro", "document_tokens": 9, "seed": seed, "condition": "lift", "rank": rank}
    value = {"metric": "exact_match", "unit": "share of questions", "value": rank / 3 + seed}
    return pd.DataFrame([row | value | {"document": f"d{i}"} for i in range(documents)])


class Counted:
    """A cell that remembers the settings it was called with."""

    def __init__(self):
        self.calls = []

    def __call__(self, **settings):
        self.calls.append(settings)
        return measured(**settings)


@pytest.fixture
def module(tmp_path, monkeypatch):
    """An importable compute module that must not be imported."""
    source = tmp_path / "source" / "compute_for_cells.py"
    source.parent.mkdir()
    source.write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(str(source.parent))
    return source


def run(cell, folder, grid=GRID, facts=None, name="s", **more):
    return cells.run(name, cell, grid, folder, ["compute_for_cells"], facts or {}, **more)


def test_the_joined_table_is_the_cells_in_grid_order(tmp_path, module):
    found = run(measured, tmp_path)
    expected = pd.concat([measured(**settings) for settings in GRID], ignore_index=True)
    pd.testing.assert_frame_equal(found, expected.astype(found.dtypes))
    pd.testing.assert_frame_equal(records.read(tmp_path / "s.csv")[0], found)


def test_a_finished_cell_is_not_computed_again_and_no_byte_changes(tmp_path, module):
    run(first := Counted(), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    run(second := Counted(), tmp_path)
    assert (first.calls, second.calls) == (GRID, [])
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


def test_a_grown_grid_computes_only_what_is_new(tmp_path, module):
    run(measured, tmp_path, GRID[1:3])
    run(cell := Counted(), tmp_path)
    assert cell.calls == [GRID[0], GRID[3]]


def test_key_order_of_settings_does_not_matter(tmp_path, module):
    run(measured, tmp_path)
    run(cell := Counted(), tmp_path, [dict(reversed(settings.items())) for settings in GRID])
    assert cell.calls == []


@pytest.mark.parametrize("change", ["source", "data", "name"])
def test_a_change_of_source_data_or_study_makes_every_cell_stale(tmp_path, module, change):
    weights = tmp_path / "weights.bin"
    weights.write_bytes(b"1")
    run(measured, tmp_path, data=[weights])
    if change == "source":
        module.write_text("x = 2\n")
    elif change == "data":
        weights.write_bytes(b"2")
    run(cell := Counted(), tmp_path, data=[weights], name="t" if change == "name" else "s")
    assert cell.calls == GRID


def damage_table(path):
    path.write_bytes(path.read_bytes()[:-5])


def damage_sidecar(path):
    path.with_suffix(".json").write_text("{")


def lose_sidecar(path):
    path.with_suffix(".json").unlink()


@pytest.mark.parametrize("damage", [damage_table, damage_sidecar, lose_sidecar])
def test_a_damaged_cell_is_named_and_computed_again(tmp_path, module, capsys, damage):
    whole = run(measured, tmp_path)
    file = sorted((tmp_path / "s").glob("*.csv"))[0]
    damage(file)
    pd.testing.assert_frame_equal(run(cell := Counted(), tmp_path), whole)
    assert len(cell.calls) == 1
    assert f"warning: cell {file} is damaged" in capsys.readouterr().err


def test_the_cells_before_a_failure_are_kept(tmp_path, module):
    def failing(rank, seed):
        if rank == 16:
            raise RuntimeError("out of memory")
        return measured(rank, seed)

    with pytest.raises(RuntimeError, match="out of memory"):
        run(failing, tmp_path)
    assert not (tmp_path / "s.csv").exists()
    run(cell := Counted(), tmp_path)
    assert cell.calls == GRID[2:]


@pytest.mark.parametrize(
    ("value", "words"),
    [((1, 2), "tuple"), (float("nan"), "nan"), ({1: "a"}, "dict"), ([1, {2}], r"\['x'\]\[1\] = \{2\} \(set\)")],
)
def test_settings_that_are_not_json_are_named(tmp_path, module, value, words):
    with pytest.raises(cells.CellError, match=f"(?s)settings.*{words}.*is not a JSON value"):
        run(measured, tmp_path, [{"x": value}])


def test_an_empty_grid_and_doubled_settings_are_refused(tmp_path, module):
    with pytest.raises(cells.CellError, match="empty grid"):
        run(measured, tmp_path, [])
    with pytest.raises(cells.CellError, match="twice in its grid"):
        run(measured, tmp_path, [GRID[0], GRID[0]])


@pytest.mark.parametrize("name", ["liftlab.nothing", "nothing.at_all", "sys"])
def test_a_module_without_source_is_named(tmp_path, name):
    with pytest.raises(cells.CellError, match=f"compute module '{name}'"):
        cells.run("s", measured, GRID, tmp_path, [name], {})


def test_a_cell_that_breaks_the_contract_is_named(tmp_path, module):
    with pytest.raises(records.RecordError, match="cell {'rank': 8, 'seed': 0}: record table lacks column 'unit'"):
        run(lambda **settings: measured(**settings).drop(columns="unit"), tmp_path)


def test_facts_are_asked_for_once_and_only_when_something_was_computed(tmp_path, module):
    asked = []
    run(measured, tmp_path, facts=lambda: asked.append(1) or {"weights": "abc"})
    run(measured, tmp_path, facts=lambda: asked.append(1) or {"weights": "abc"})
    assert asked == [1]
    provenance = records.read(tmp_path / "s.csv")[1]
    assert provenance["grid"] == GRID
    assert [made["weights"] for made in provenance["made_with"]] == ["abc"]
    cell = json.loads((tmp_path / "s" / f"{provenance['keys'][2]}.json").read_text())["provenance"]
    assert cell["settings"] == GRID[2]


def draw(rank, seed):
    """A cell whose values depend on what a process must not share: torch's random numbers, its threads."""
    torch.manual_seed(seed)
    values = torch.randn(200, rank) @ torch.randn(rank, 2)
    return measured(rank, seed).assign(value=values.abs().sum(0).tolist(), threads=torch.get_num_threads())


def test_two_processes_give_the_table_of_one_and_share_the_cores(tmp_path, module, monkeypatch):
    alone = run(draw, tmp_path / "alone")
    monkeypatch.setenv("LIFTLAB_WORKERS", "2")
    side_by_side = run(draw, tmp_path / "both")
    pd.testing.assert_frame_equal(side_by_side.drop(columns="threads"), alone.drop(columns="threads"))
    assert set(side_by_side["threads"]) == {max(1, joblib.cpu_count() // 2)}


def third_fails(rank, seed):
    if (rank, seed) == (16, 0):
        raise RuntimeError("out of memory")
    return measured(rank, seed)


def test_a_cell_that_fails_in_a_process_of_its_own_is_the_run_s_error(tmp_path, module, monkeypatch):
    monkeypatch.setenv("LIFTLAB_WORKERS", "2")
    with pytest.raises(RuntimeError, match="out of memory"):
        run(third_fails, tmp_path)
    assert not (tmp_path / "s.csv").exists()
    kept = len(list((tmp_path / "s").glob("*.csv")))
    run(cell := Counted(), tmp_path, alone=True)
    assert len(cell.calls) == 4 - kept


def test_cells_that_time_things_have_the_machine_to_themselves(tmp_path, module, monkeypatch):
    monkeypatch.setenv("LIFTLAB_WORKERS", "2")
    run(cell := Counted(), tmp_path, alone=True)
    assert cell.calls == GRID  # in this process


class Grouped:
    """`together` that runs each generator to its end, and remembers how many it was given."""

    def __init__(self):
        self.sizes = []

    def __call__(self, generators):
        self.sizes.append(len(generators))
        return [self.end(generator) for generator in generators]

    def end(self, generator):
        try:
            while True:
                next(generator)
        except StopIteration as end:
            return end.value


def wished(rank, seed):
    yield "a wish"
    if rank == 99:
        raise OSError("disk full")
    return measured(rank, seed)


def test_cells_are_computed_in_groups_that_the_grid_alone_decides(tmp_path, module):
    """A group that lacks a cell is computed whole; what was finished stays untouched, and the table is the same."""
    plain = run(measured, tmp_path / "plain")
    found = run(wished, tmp_path, together=(first := Grouped()), at_once=3)
    pd.testing.assert_frame_equal(found, plain)
    assert first.sizes == [3, 1]
    files = sorted((tmp_path / "s").glob("*.csv"), key=lambda path: path.stat().st_mtime_ns)
    files[1].unlink()
    kept = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files if path != files[1]}
    pd.testing.assert_frame_equal(run(wished, tmp_path, together=(again := Grouped()), at_once=3), plain)
    assert again.sizes == [3] and files[1].exists()
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in kept} == kept
    run(wished, tmp_path, together=(none := Grouped()), at_once=2)
    assert none.sizes == []  # how many go together makes no cell stale


def test_every_cell_of_a_group_is_a_tick(tmp_path, module, capsys):
    run(wished, tmp_path, together=Grouped(), at_once=4)
    assert "4/4" in capsys.readouterr().err


@pytest.mark.parametrize("processes", ["1", "2"])
def test_groups_side_by_side_give_the_same_table_and_an_error_names_its_cell(tmp_path, module, monkeypatch, processes):
    monkeypatch.setenv("LIFTLAB_WORKERS", processes)
    found = run(wished, tmp_path / "good", together=Grouped(), at_once=2)
    pd.testing.assert_frame_equal(found, run(measured, tmp_path / "plain"))
    with pytest.raises(OSError, match="disk full") as error:
        run(wished, tmp_path, [*GRID, {"rank": 99, "seed": 7}], together=Grouped(), at_once=2)
    assert error.value.__notes__ == ["in the cell {'rank': 99, 'seed': 7}"]


@pytest.mark.parametrize("given", ["0", "-1", "two", "1.5", ""])
def test_a_wrong_number_of_workers_is_named(tmp_path, module, monkeypatch, given):
    monkeypatch.setenv("LIFTLAB_WORKERS", given)
    with pytest.raises(cells.CellError, match=f"LIFTLAB_WORKERS = '{given}': give the number of processes"):
        run(measured, tmp_path)


def test_without_a_number_there_is_a_process_a_core_or_one_beside_a_gpu(monkeypatch):
    monkeypatch.delenv("LIFTLAB_WORKERS")
    for gpu, expected in ((False, joblib.cpu_count()), (True, 1)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        assert cells.workers() == expected


SLOW = """
import sys, time
from pathlib import Path
sys.path[:0] = {paths!r}
from test_cells import GRID, measured
from liftlab import cells

def slow(**settings):
    with open({log!r}, "a") as log:
        log.write(f"{{settings['rank']}} {{settings['seed']}}\\n")
    if settings == GRID[2] and {hang}:
        time.sleep(600)
    return measured(**settings)

cells.run("s", slow, GRID, Path({folder!r}), ["liftlab.cells"], {{}})
"""


def test_a_killed_run_goes_on_where_it_stopped(tmp_path):
    """SIGKILL in the third cell: the first two are kept, the third and fourth are computed by the next run."""
    log, folder = tmp_path / "log", tmp_path / "records"
    paths = [str(ROOT), str(ROOT / "tests")]

    def program(hang):
        source = SLOW.format(paths=paths, log=str(log), folder=str(folder), hang=hang)
        return subprocess.Popen([sys.executable, "-c", source], stderr=subprocess.DEVNULL)

    killed, deadline = program(hang=True), time.monotonic() + 100
    while not (log.exists() and len(log.read_text().splitlines()) == 3):
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert len(list((folder / "s").glob("*.csv"))) == 2
    assert program(hang=False).wait(100) == 0
    assert log.read_text().split("\n") == ["8 0", "8 1", "16 0", "16 0", "16 1", ""]
    expected = pd.concat([measured(**settings) for settings in GRID], ignore_index=True)
    found = records.read(folder / "s.csv")[0]
    pd.testing.assert_frame_equal(found, expected.astype(found.dtypes))
