import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import joblib
import pandas as pd
import pytest
import torch

from liftlab import cells, records
from liftlab.failures import split

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


def failing(rank, seed):
    if rank == 16:
        raise RuntimeError(f"no more\n memory for seed {seed}")
    return measured(rank, seed)


def test_a_failed_cell_is_a_row_with_its_settings_and_stops_no_other(tmp_path, module):
    with pytest.raises(cells.CellsFailed, match="2 of 4 cells failed: {'rank': 16, 'seed': 0}: no more memory for"):
        run(failing, tmp_path)
    frame, made = records.read(tmp_path / "s.csv")
    good, failed = split(frame)
    pd.testing.assert_frame_equal(good, run(measured, tmp_path / "two", GRID[:2]))
    assert failed[["rank", "seed"]].to_dict("records") == GRID[2:]
    assert [told["settings"] for told in made["failed"]] == made["grid"][2:] == GRID[2:]
    kept = sorted((tmp_path / "s").glob("*.failed.json"))
    assert [json.loads(path.read_text())["error"] for path in kept] == ["RuntimeError"] * 2


def test_a_failed_cell_is_tried_again_and_once_it_works_nothing_tells_of_the_failure(tmp_path, module):
    undisturbed = run(measured, tmp_path / "undisturbed")
    for _ in range(2):
        with pytest.raises(cells.CellsFailed, match="2 of 4"):
            run(failing, tmp_path)
    pd.testing.assert_frame_equal(run(cell := Counted(), tmp_path), undisturbed)
    assert cell.calls == GRID[2:] and list(tmp_path.rglob("*.failed.json")) == []
    assert (tmp_path / "s.csv").read_bytes() == (tmp_path / "undisturbed" / "s.csv").read_bytes()


def test_where_every_cell_failed_nothing_is_joined(tmp_path, module):
    with pytest.raises(cells.CellsFailed, match="2 of 2 cells failed"):
        run(failing, tmp_path, GRID[2:])
    assert not (tmp_path / "s.csv").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, cells.CellError, records.WriteError])
def test_what_ends_the_run_is_raised_at_once_and_the_cells_before_it_are_kept(tmp_path, module, error):
    def ending(rank, seed):
        if rank == 16:
            raise error(errno.EACCES, "x")
        return measured(rank, seed)

    with pytest.raises(error):
        run(ending, tmp_path)
    assert list(tmp_path.rglob("*.failed.json")) == list(tmp_path.rglob(".*")) == []
    run(cell := Counted(), tmp_path)
    assert cell.calls == GRID[2:]


def test_a_disk_without_room_is_told_once_and_leaves_the_finished_cells_whole(tmp_path, module, monkeypatch):
    """The third cell's file cannot be written: two are kept, none is half there, no later cell is computed."""
    real, cell = records.replace_file, Counted()

    def full(path, data):
        if len(cell.calls) == 3:
            raise records.WriteError(errno.ENOSPC, f"cannot write {path} (No space left on device)")
        real(path, data)

    with monkeypatch.context() as patched, pytest.raises(records.WriteError, match="cannot write .*No space left"):
        patched.setattr(records, "replace_file", full)
        run(cell, tmp_path)
    assert cell.calls == GRID[:3] and len(list((tmp_path / "s").iterdir())) == 4
    run(again := Counted(), tmp_path)
    assert again.calls == GRID[2:]


def test_temporary_files_that_a_killed_run_left_of_a_cell_or_of_the_table_are_swept(tmp_path, module):
    run(measured, tmp_path)
    whole = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    file = sorted((tmp_path / "s").glob("*.csv"))[0]
    file.unlink()
    left = [file.with_name(f".{file.name}.999999.tmp"), file.with_name(f".{file.stem}.failed.json.1.tmp"),
            tmp_path / ".s.json.999999.tmp"]  # fmt: skip
    other = file.with_name(f".{'0' * 16}.csv.1.tmp")  # of a cell that this run has nothing to do with
    for path in (*left, other):
        path.write_text("half")
    run(measured, tmp_path)
    assert not any(path.exists() for path in left) and other.exists()
    assert {path for path in tmp_path.rglob("*.*")} == {*whole, other}


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
    def without_unit(rank, seed):
        return measured(rank, seed).drop(columns="unit" if rank == 16 else [])

    with pytest.raises(cells.CellsFailed, match="{'rank': 16, 'seed': 0}: record table lacks column 'unit'"):
        run(without_unit, tmp_path)


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


def test_in_processes_of_their_own_cells_fail_as_in_one(tmp_path, module, monkeypatch):
    found = {}
    for processes in ("1", "2"):
        monkeypatch.setenv("LIFTLAB_WORKERS", processes)
        with pytest.raises(cells.CellsFailed) as error:
            run(failing, tmp_path / processes)
        found[processes] = (
            (tmp_path / processes / "s.csv").read_bytes(),
            str(error.value).replace(str(tmp_path / processes), ""),
        )
    assert found["1"] == found["2"]


def dies(rank, seed):
    if (rank, seed) == (16, 1):
        os.kill(os.getpid(), signal.SIGKILL)
    return measured(rank, seed)


def test_a_killed_process_is_told_with_what_to_do_and_costs_no_finished_cell(tmp_path, module, monkeypatch):
    monkeypatch.setenv("LIFTLAB_WORKERS", "2")
    with pytest.raises(cells.CellsFailed, match="process that computed cells was killed.*LIFTLAB_WORKERS below 2"):
        run(dies, tmp_path)
    kept = len(list((tmp_path / "s").glob("*.csv")))
    run(cell := Counted(), tmp_path, alone=True)
    assert len(cell.calls) == 4 - kept


def cores(rank, seed):
    return measured(rank, seed).assign(value=float(os.environ["OMP_NUM_THREADS"]))


def test_a_resumed_run_gives_a_cell_the_cores_of_an_unbroken_one(tmp_path, module, monkeypatch):
    """How many cores share a product may decide its last bits: they depend on the grid, not on what is left of it."""
    monkeypatch.setenv("LIFTLAB_WORKERS", "2")
    monkeypatch.setenv("OMP_NUM_THREADS", "77")  # of this process: no part of the cores
    whole = run(cores, tmp_path)
    sorted((tmp_path / "s").glob("*.csv"))[0].unlink()
    pd.testing.assert_frame_equal(run(cores, tmp_path), whole)
    assert set(whole["value"]) == {max(1, joblib.cpu_count() // 2)}


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
        except OSError as error:
            return error


def wished(rank, seed):
    yield "a wish"
    if rank == 99:
        raise OSError("no such host")
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
def test_groups_side_by_side_give_the_same_table_and_failures(tmp_path, module, monkeypatch, processes):
    monkeypatch.setenv("LIFTLAB_WORKERS", processes)
    found = run(wished, tmp_path / "good", together=Grouped(), at_once=2)
    pd.testing.assert_frame_equal(found, run(measured, tmp_path / "plain"))
    with pytest.raises(cells.CellsFailed, match="1 of 5 cells failed: {'rank': 99, 'seed': 7}: no such host"):
        run(wished, tmp_path, [GRID[0], {"rank": 99, "seed": 7}, *GRID[1:]], together=Grouped(), at_once=2)
    pd.testing.assert_frame_equal(split(records.read(tmp_path / "s.csv")[0])[0], found)


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


RACING = """
import os, sys, time
from pathlib import Path
import pandas as pd
from liftlab import cells

folder, log, at_once, runs = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])

def counted(rank, seed):
    (log / f"{rank}-{seed}.{os.getpid()}.{time.monotonic_ns()}").touch()
    time.sleep(0.05)
    if (rank, seed) == (7, 1):
        raise OSError("no such host")
    return pd.DataFrame([{"study": "s", "base_model": "micro", "document": "d", "document_tokens": 9, "seed": seed,
                          "condition": "lift", "metric": "f1", "unit": "share", "value": rank / 3, "rank": rank}])
    yield

def together(generators):
    return [ended(generator) for generator in generators]

def ended(generator):
    try:
        next(generator)
    except StopIteration as end:
        return end.value
    except OSError as error:
        return error

(log / f"ready.{os.getpid()}").touch()
while len(list(log.glob("ready.*"))) < runs:
    time.sleep(0.001)
grid = [{"rank": rank, "seed": seed} for rank in range(8) for seed in (0, 1)]
try:
    cells.run("s", counted, grid, folder, ["liftlab.cells"], {}, together=together, at_once=at_once)
except cells.CellsFailed as error:
    print(error)
"""


def racing(tmp_path, folder, *at_once, workers="1"):
    """Processes that begin at the same moment on the records of `folder`; each cell computed leaves a file beside."""
    log = tmp_path / f"{folder} log"
    log.mkdir()
    words = [[str(tmp_path / folder), str(log), str(count), str(len(at_once))] for count in at_once]
    how = {"stdout": subprocess.PIPE, "text": True, "cwd": ROOT, "env": os.environ | {"LIFTLAB_WORKERS": workers}}
    return [subprocess.Popen([sys.executable, "-c", RACING, *given], **how) for given in words]


def computed(tmp_path, folder):
    """(cell, process) of every computation."""
    names = [path.name.split(".") for path in (tmp_path / f"{folder} log").iterdir()]
    return [(name[0], int(name[1])) for name in names if name[0] != "ready"]


def said(runs):
    return [process.communicate(timeout=100)[0] for process in runs]


def left(tmp_path, folder):
    """The joined table, and every file."""
    files = sorted(path.relative_to(tmp_path / folder) for path in (tmp_path / folder).rglob("*"))
    return (tmp_path / folder / "s.csv").read_bytes(), files


EACH = sorted(f"{rank}-{seed}" for rank in range(8) for seed in (0, 1))


@pytest.mark.parametrize(("at_once", "workers"), [(4, "1"), (1, "1"), (2, "2")])
def test_two_runs_at_the_same_time_compute_each_cell_once_and_end_alike(tmp_path, at_once, workers):
    """A failed one too: the run that waits takes the other's word for it. Nothing but the records is left."""
    first, second = said(racing(tmp_path, "raced", at_once, at_once, workers=workers))
    assert first == second and "1 of 16 cells failed: {'rank': 7, 'seed': 1}: no such host" in first
    done = computed(tmp_path, "raced")
    assert sorted(cell for cell, _ in done) == EACH
    assert len({process for _, process in done}) > 1  # they shared the work
    said(racing(tmp_path, "alone", at_once))
    assert left(tmp_path, "raced") == left(tmp_path, "alone")


def test_runs_that_group_the_grid_otherwise_neither_wait_for_ever_nor_spoil_each_other(tmp_path):
    assert len(set(said(racing(tmp_path, "raced", 3, 4, 5)))) == 1
    said(racing(tmp_path, "alone", 1))
    assert left(tmp_path, "raced") == left(tmp_path, "alone")


def test_a_killed_run_s_locks_are_free_for_the_run_that_waits_for_them(tmp_path):
    """What it finished is not computed again, what it had begun is; the bytes are those of an undisturbed run."""
    killed, waiting = racing(tmp_path, "raced", 4, 4)
    deadline = time.monotonic() + 100
    while killed.pid not in [process for _, process in computed(tmp_path, "raced")]:
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    killed.kill()
    said([killed, waiting])
    again = Counter(cell for cell, _ in computed(tmp_path, "raced"))
    assert sorted(again) == EACH and 0 < again.total() - 16 <= 4  # a group, of which some cells were begun
    said(racing(tmp_path, "alone", 4))
    assert left(tmp_path, "raced") == left(tmp_path, "alone")


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
