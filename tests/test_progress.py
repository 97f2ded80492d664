"""How far a run is, in words."""

import math
import os
import signal

import pytest
from test_runner import root, write  # noqa: F401

from liftlab import progress, run_log, runner
from liftlab.run_log import Cells, Executed, State


@pytest.fixture(autouse=True)
def no_run(monkeypatch):
    monkeypatch.delenv(run_log.LOG, raising=False)
    monkeypatch.delenv(run_log.NOTEBOOK, raising=False)


def state(tmp_path, **notebooks):
    return State(tmp_path, {"groups": [list(notebooks)], "workers": 1}, notebooks)


def half(failed=0, began=0.0):
    return Cells(total=8, found=2, done=4 - failed, failed=failed, began=began, at=began + 60)


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.2, "1 s"), (59.0, "59 s"), (59.1, "1 min 0 s"), (61.0, "1 min 1 s"), (3599.5, "1 h 0 min"),
        (7500.0, "2 h 5 min"), (360000.0, "100 h 0 min"),
    ],
)  # fmt: skip
def test_seconds_are_told_in_the_two_largest_units_rounded_up(seconds, told):
    assert progress.duration(seconds) == told


def test_only_what_is_known_is_told(tmp_path):
    """No cells, no rate, no time left where nobody has told of any; what is unknown is counted."""
    run = state(tmp_path, a=Executed(), b=Executed(30.0))
    assert progress.line(run, 60.0) == "notebooks 0 of 2, about 30 s left and 1 notebook of unknown length"
    run = state(tmp_path, a=Executed(), b=Executed())
    assert progress.line(run, 60.0) == "notebooks 0 of 2, 2 notebooks of unknown length"
    run = state(tmp_path, a=Executed(status="running", began=0.0, studies={"s": half()}), b=Executed(status="failed"))
    said = "notebooks 1 of 2 (1 failed), cells 4 of 8, 2 cells a minute"
    assert progress.counts(run, 60.0) == said and progress.line(run, 60.0) == said + ", about 2 min 0 s left"
    run = state(tmp_path, a=Executed(status="done", studies={"s": half(failed=1)}))
    assert progress.line(run, 60.0) == "notebooks 1 of 1, cells 4 of 8 (1 failed), 2 cells a minute"


def test_the_bar_is_full_when_all_notebooks_are_over_and_counts_the_cells_of_those_that_run():
    assert progress._share(Executed(status="failed", studies={"s": half()})) == 1.0
    assert progress._share(Executed(status="running", studies={"s": half()})) == 0.5
    assert progress._share(Executed(status="running")) == progress._share(Executed()) == 0.0


def test_the_command_to_go_on_is_one_that_a_shell_takes():
    said = progress.again(["a", "b"], "micro", {"seeds": "[1, 2]"})
    assert said == "liftlab run a b --profile micro --set 'seeds=[1, 2]'"


def test_a_notebook_executed_alone_leaves_a_log(root, capsys):  # noqa: F811
    """How long its last whole run took is in it."""
    write(root, "b", "1")
    for executed_before in (False, True):
        if executed_before:
            runner.run(root, "b", "micro", {})
        with progress.alone(root, "b", "micro", {}):
            assert run_log.active()
        told = run_log.read(run_log.latest(runner.logs_folder(root, "micro")))
        assert (told.names("done"), told.end, told.facts["profile"]) == (["b"], "done", "micro")
        assert math.isfinite(told.notebooks["b"].expected) == executed_before
    with pytest.raises(runner.RunError), progress.alone(root, "b", "micro", {}):
        raise runner.RunError("no good")
    told = run_log.read(run_log.latest(runner.logs_folder(root, "micro")))
    assert told.notebooks["b"].reason == "no good" and capsys.readouterr() == ("", "")


def test_as_part_of_a_run_it_opens_no_log_of_its_own_and_ends_when_nobody_waits_for_it(root, tmp_path, monkeypatch):  # noqa: F811
    """The end of its stdin is the run's death; a notebook that runs another one has a stdin of its own."""
    kills = []
    monkeypatch.setattr(os, "kill", lambda process, number: kills.append((process, number)))
    reads, writes = os.pipe()
    with os.fdopen(reads) as stdin, run_log.opened(tmp_path / "logs", [["b"]], 1, {}):
        monkeypatch.setattr("sys.stdin", stdin)
        monkeypatch.setenv(run_log.NOTEBOOK, "b")
        with progress.alone(root, "b", "micro", {}):
            pass
        monkeypatch.delenv(run_log.NOTEBOOK)
        threads = set(progress.threading.enumerate())
        with progress.alone(root, "b", "micro", {}):
            (watching,) = set(progress.threading.enumerate()) - threads
            assert not kills and watching.is_alive()
            os.close(writes)
            watching.join(10)
            assert kills == [(os.getpid(), signal.SIGTERM)]
    assert not runner.logs_folder(root, "micro").exists()


def test_a_log_out_of_reach_is_told_in_place_of_the_counts(tmp_path):
    told = progress._shown(run_log.Follower(tmp_path / "none.jsonl"))
    assert told == {"description": "the run's log cannot be read (No such file or directory)"}
