"""The log of a run: written by many processes, read at any moment, summed up to where the run is."""

import json
import math
import os
import subprocess
import sys

import pytest

from liftlab import run_log
from liftlab.records import WriteError
from liftlab.run_log import Cells, Executed

GROUPS = [["a", "b"], ["reader"]]


@pytest.fixture
def log(tmp_path, monkeypatch):
    """Open a run of the notebooks a, b and reader; gives its log, in a folder that does not exist before."""
    monkeypatch.delenv(run_log.LOG, raising=False)
    monkeypatch.delenv(run_log.NOTEBOOK, raising=False)
    with run_log.opened(tmp_path / "logs", GROUPS, 2, {"a": 10.0, "reader": 4.0}, profile="micro", sets={}) as path:
        yield path


@pytest.fixture
def clock(monkeypatch):
    """The time of events, in seconds: a list with one number, to be set."""
    now = [1000.0]
    monkeypatch.setattr(run_log.time, "time", lambda: now[0])
    return now


def test_without_a_run_an_event_is_written_nowhere(tmp_path, monkeypatch):
    monkeypatch.delenv(run_log.LOG, raising=False)
    monkeypatch.chdir(tmp_path)
    run_log.event("cells", study="s", total=2, done=0, failed=0)
    assert not run_log.active() and run_log.printed("a") is None and list(tmp_path.iterdir()) == []


def test_a_run_is_told_from_its_beginning_to_its_end(log):
    assert run_log.active() and os.environ[run_log.LOG] == str(log) and run_log.latest(log.parent) == log
    state = run_log.read(log)
    assert state.names("waiting") == ["a", "b", "reader"] and state.alive and state.end == ""
    assert {"liftlab", "git", "packages", "profile"} <= set(state.facts)
    with run_log.notebook("a"):
        assert run_log.read(log).names("running") == ["a"]
    with pytest.raises(ValueError), run_log.notebook("b"):
        raise ValueError("no\n good")
    state = run_log.read(log)
    assert (state.names("done"), state.names("failed"), state.names("waiting")) == (["a"], ["b"], ["reader"])
    assert state.notebooks["b"].reason == "no good"


@pytest.mark.parametrize(
    ("error", "end"), [(KeyboardInterrupt(), "interrupted"), (ValueError("broken"), "failed"), (None, "done")]
)
def test_how_a_run_ended_stands_in_its_log_and_no_process_writes_there_any_more(tmp_path, error, end):
    def run():
        with run_log.opened(tmp_path, [["a"]], 1, {}) as path:
            paths.append(path)
            if error:
                with run_log.notebook("a"):
                    raise error

    paths = []
    if error:
        with pytest.raises(type(error)):
            run()
    else:
        run()
    state = run_log.read(paths[0])
    assert state.end == end and not state.alive and not run_log.active()
    status = {"interrupted": "running", "failed": "failed", "done": "waiting"}[end]  # an interrupted one did not fail
    assert state.names(status) == ["a"]


def test_the_latest_log_is_the_one_that_was_begun_last(tmp_path):
    assert run_log.latest(tmp_path / "none") is None
    for _ in range(3):
        with run_log.opened(tmp_path, [["a"]], 1, {}) as path:
            assert run_log.latest(tmp_path) == path


WRITER = """
import sys
from liftlab import run_log
for done in range(200):
    run_log.event("cells", study=sys.argv[1], total=200, done=done + 1, failed=0, padding="é" * 300)
"""


def test_lines_of_processes_that_write_at_once_do_not_mix(log, monkeypatch):
    monkeypatch.setenv(run_log.NOTEBOOK, "a")
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(number)]) for number in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    state = run_log.read(log)
    assert state.broken == 0 and len(log.read_bytes().splitlines()) == 1 + 3 * 200
    assert {name: cells.done for name, cells in state.notebooks["a"].studies.items()} == {"0": 200, "1": 200, "2": 200}


def test_a_log_read_as_it_grows_gives_the_state_that_reading_it_whole_gives(log):
    """After any number of bytes; a line whose end is missing is not read before it is there."""
    for done in range(4):
        run_log.event("cells", notebook="b", study="s", total=3, done=done, failed=0)
    run_log.event("notebook", notebook="b", status="failed", reason="why")
    whole, growing = log.read_bytes(), log.with_name("growing.jsonl")
    growing.write_bytes(b"")
    follow = run_log.Follower(growing)
    for piece in (whole[start : start + 97] for start in range(0, len(whole), 97)):
        with growing.open("ab") as file:
            file.write(piece)
        state = follow()
        assert state.broken == 0
    assert (state.facts, state.notebooks, state.at) == (
        (read := run_log.read(log)).facts,
        read.notebooks,
        read.at,
    )


def test_broken_lines_are_counted_and_spoil_no_other(log):
    with log.open("ab") as file:
        file.write(b'{"at": 1, "ki\n[]\n{"at": 2, "kind": "notebook", "notebook": "unknown", "status": "done"}\n\xff\n')
    run_log.event("notebook", notebook="a", status="done")
    state = run_log.read(log)
    assert state.broken == 4 and state.names("done") == ["a"]


def test_cells_found_done_count_as_done_but_not_in_the_rate(log, clock):
    """Law: rate = cells computed since the first study began / minutes since then; failed ones are computed too."""
    clock[0] = 2000.0
    run_log.event("cells", notebook="a", study="s", total=10, done=4, failed=0)
    assert run_log.read(log).cells_a_minute(2010.0) is None
    clock[0] = 2030.0
    run_log.event("cells", notebook="a", study="s", total=10, done=6, failed=1)
    clock[0] = 2060.0
    run_log.event("cells", notebook="b", study="t", total=5, done=5, failed=0)
    state = run_log.read(log)
    cells = state.cells()
    assert (cells.total, cells.found, cells.done, cells.failed) == (15, 9, 11, 1)
    assert state.cells_a_minute(2060.0) == pytest.approx(3.0) and state.cells_a_minute(2090.0) == pytest.approx(2.0)


def test_time_left_of_a_study_is_what_its_cells_took_times_those_that_wait():
    half = Cells(total=10, found=2, done=5, failed=1, began=100.0, at=140.0)  # 4 computed in 40 s, 4 wait
    assert half.seconds_left(140.0) == 40.0
    assert half.seconds_left(150.0) == 30.0 and half.seconds_left(999.0) == 0.0
    assert Cells(total=10, found=2, done=2, failed=0, began=100.0, at=100.0).seconds_left(150.0) is None
    assert Cells(total=2, found=2, done=2, failed=0, began=100.0, at=100.0).seconds_left(150.0) == 0.0


def test_time_left_of_a_notebook_is_told_by_its_cells_or_else_by_its_last_run():
    half = Cells(total=10, found=2, done=5, failed=1, began=100.0, at=140.0)
    assert Executed(expected=9.0).seconds_left(150.0) == 9.0 and Executed().seconds_left(150.0) == math.inf
    assert Executed(9.0, "running", began=145.0).seconds_left(150.0) == 4.0
    assert Executed(9.0, "running", began=100.0).seconds_left(150.0) == math.inf  # the last run tells no more
    assert Executed(9.0, "running", began=145.0, studies={"s": half}).seconds_left(150.0) == 30.0
    assert Executed(9.0, "done", 100.0, 140.0, studies={"s": half}).seconds_left(150.0) == 0.0
    assert Executed(9.0, "failed", 100.0, 140.0).seconds_left(150.0) == 0.0


def test_time_left_of_a_run_sums_its_groups_each_shared_by_the_workers(log, clock):
    """a (10 s expected) and b (40 s by its cells) side by side, then reader (4 s): the longest, then reader."""
    assert run_log.read(log).seconds_left(1000.0) == (10.0 + 4.0, 1)  # nothing is known of b
    for moment, done in ((1000.0, 0), (1010.0, 1)):
        clock[0] = moment
        run_log.event("notebook", notebook="b", status="running")
        run_log.event("cells", notebook="b", study="s", total=5, done=done, failed=0)
    assert run_log.read(log).seconds_left(1010.0) == (40.0 + 4.0, 0)
    run_log.event("notebook", notebook="b", status="done")
    run_log.event("notebook", notebook="a", status="done")
    assert run_log.read(log).seconds_left(1010.0) == (4.0, 0)


def test_a_killed_run_is_not_alive_nor_is_another_process_of_its_number(log):
    code = (
        "import os, signal\nfrom pathlib import Path\nfrom liftlab import run_log\n"
        "with run_log.opened(Path('killed'), [['a']], 1, {}):\n    os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=log.parent).returncode < 0
    killed = run_log.read(run_log.latest(log.parent / "killed"))
    assert not killed.alive and killed.end == "" and killed.names("waiting") == ["a"]
    state = run_log.read(log)
    assert state.alive
    state.facts["process_began"] -= 60  # the number was free and is taken again
    assert not state.alive


def test_a_log_that_cannot_be_written_is_said_with_what_to_do(log, monkeypatch):
    monkeypatch.setattr(run_log.os, "write", lambda file, line: len(line) - 1)  # as a full disk does
    with pytest.raises(WriteError, match="cannot write the run's log .* .No space left .*: free space"):
        run_log.event("cells", study="s", total=1, done=0, failed=0)
    monkeypatch.undo()
    blocked = log.parent / "file"
    blocked.write_text("")
    with pytest.raises(WriteError, match="cannot write the run's log"), run_log.opened(blocked, GROUPS, 1, {}):
        pytest.fail("the run began")


def test_every_event_has_its_time_and_the_notebook_of_its_process(log, monkeypatch, clock):
    monkeypatch.setenv(run_log.NOTEBOOK, "b")
    clock[0] = 1234.5678
    run_log.event("cells", study="s", total=1, done=0, failed=0)
    last = json.loads(log.read_text().splitlines()[-1])
    told = {"at": 1234.568, "kind": "cells", "notebook": "b", "study": "s", "total": 1, "done": 0, "failed": 0}
    assert last == told
