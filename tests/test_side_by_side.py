"""Notebooks side by side: who runs beside whom, with which part of the machine, told in the order asked for."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict

import joblib
import psutil
import pytest
from test_runner import write

from liftlab import processes, progress, run_log, runner, side_by_side
from liftlab.cells import WORKERS

PROGRAM = """
import json, os, signal, sys, time
def log(what):
    line = json.dumps({"name": NAME, "what": what, "at": time.monotonic(), "environment": dict(os.environ)}) + "\\n"
    file = os.open("log", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.write(file, line.encode())
log("began")
exec(BODY)
log("ended")
print(NAME)
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A repository of notebooks a, b, c, of one that times what it does and one that reads records."""
    for folder in ("notebooks", "papermill_runs/micro"):
        (tmp_path / folder).mkdir(parents=True)
    kinds = {"timed": {"times": True}, "reader": {"reads": "records"}}
    for name in ("a", "b", "c", "done", "timed", "reader"):
        write(tmp_path, name, "1", metadata=kinds.get(name))
        (tmp_path / f"papermill_runs/micro/{name}.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    for name in (*side_by_side.CORES, WORKERS, run_log.LOG, run_log.NOTEBOOK):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def execute(root, monkeypatch):
    """Run notebooks whose process is a small program that logs when it began and ended; `bodies` are their code."""

    def run(asked, workers, **bodies):
        def command(name, profile, sets):
            body = bodies.get(name, "time.sleep(0.3)")
            return [sys.executable, "-c", PROGRAM.replace("NAME", repr(name)).replace("BODY", repr(body))]

        monkeypatch.setattr(side_by_side, "command", command)
        return side_by_side.run(root, "micro", dict.fromkeys(asked, {}), {}, workers)

    return run


def logged(root):
    """{name: {"began": seconds, "ended": seconds}} and {name: environment}."""
    times, environments = defaultdict(dict), {}
    for line in (root / "log").read_text().splitlines():
        entry = json.loads(line)
        times[entry["name"]][entry["what"]] = entry["at"]
        environments[entry["name"]] = entry["environment"]
    return times, environments


def keep_run(root, name, seconds, tail=""):
    began = {"start": "2026-01-01T00:00:00.000+00:00", "end": f"2026-01-01T00:00:{seconds:06.3f}+00:00"}
    kept = {"cells": [], "metadata": {"liftlab": {"provenance": began}}}
    (root / f"papermill_runs/micro/{name}{tail}.ipynb").write_text(json.dumps(kept))


def alive(process):
    return psutil.pid_exists(process) and psutil.Process(process).status() != psutil.STATUS_ZOMBIE


def test_the_longest_of_the_last_runs_goes_first_and_an_unknown_one_before_it(root):
    keep_run(root, "a", 5.0)
    keep_run(root, "c", 9.0)
    asked = dict.fromkeys(["a", "b", "c"], {})
    assert side_by_side.turns(root, "micro", asked, 2) == [["b", "c", "a"]]
    keep_run(root, "c", 0.1, ".failed")  # how long a whole run takes is not known from one that failed
    assert side_by_side.turns(root, "micro", asked, 2) == [["b", "c", "a"]]
    keep_run(root, "b", 1.0)
    assert side_by_side.turns(root, "micro", asked, 2) == [["c", "a", "b"]]
    assert side_by_side.turns(root, "micro", asked, 1) == [["a", "b", "c"]]  # nothing to gain: the order asked for


def test_an_order_of_the_profile_s_own_prevails_over_the_longest_first(root):
    keep_run(root, "a", 5.0)
    keep_run(root, "c", 9.0)
    (root / "papermill_runs/micro/order.yaml").write_text("first: [b, a]\n")
    asked = dict.fromkeys(["b", "a", "c"], {})
    assert side_by_side.turns(root, "micro", asked, 2) == [["b", "a", "c"]]


def test_what_times_itself_runs_alone_and_what_reads_records_last(root):
    """Notebooks that ask a generator run side by side as all do: the cache of replies is safe between processes."""
    asked = dict.fromkeys(["reader", "timed", "a", "b", "c"], {})
    asked["b"] = {"auxiliary": {"task": "window", "count": 3, "generator": "model"}, "judge": {"model": "model"}}
    assert side_by_side.turns(root, "micro", asked, 2) == [["a", "b", "c"], ["timed"], ["reader"]]
    assert side_by_side.turns(root, "micro", {"reader": {}}, 2) == [["reader"]]


@pytest.mark.parametrize("cores", [1, 2, 5, 16])
def test_workers_and_cores_are_shared_out_never_more_than_there_are(monkeypatch, cores):
    """Summed over the notebooks at a time: no more workers than given, and no more cores than one each or all."""
    monkeypatch.setattr(joblib, "cpu_count", lambda: cores)
    for workers in (1, 2, 3, 7, 16):
        for group in (1, 2, 5, 20):
            at_a_time, environment = side_by_side.share(workers, group)
            assert at_a_time == min(workers, group)
            each = int(environment.pop(WORKERS))
            assert each >= 1 and at_a_time * each <= workers < at_a_time * (each + 1)
            if at_a_time == 1:
                assert environment == {}  # all cores, as the shell has it
            else:
                assert set(environment) == set(side_by_side.CORES)
                (part,) = {int(value) for value in environment.values()}
                assert part >= 1 and (at_a_time * part <= cores < at_a_time * (part + 1) or part == 1)


def test_a_notebooks_process_is_the_same_program_with_one_name():
    words = side_by_side.command("b", "paper", {"seeds": "[1, 2]", "base": "a=b"})
    wanted = ["run", "b", "--profile", "paper", "--set", "seeds=[1, 2]", "--set", "base=a=b"]
    assert words == [sys.executable, "-m", "liftlab.cli", *wanted]


def test_two_run_at_a_time_the_timed_one_alone_the_reader_last_all_told_in_the_order_asked_for(root, execute, capsys):
    asked = ["reader", "timed", "a", "b", "c"]
    assert execute(asked, 2) == 0
    times, environments = logged(root)
    spans = {name: (time["began"], time["ended"]) for name, time in times.items()}
    others = ("a", "b", "c")
    beside = [(one, two) for one in others for two in others if one < two and overlap(spans[one], spans[two])]
    assert beside and len(beside) < 3  # some run side by side, never all three
    assert spans["timed"][0] >= max(spans[name][1] for name in others)
    assert spans["reader"][0] >= spans["timed"][1]
    share = str(max(1, joblib.cpu_count() // 2))
    for name in others:
        assert environments[name][WORKERS] == "1"
        assert {environments[name][core] for core in side_by_side.CORES} == {share}
    for name in ("timed", "reader"):
        assert environments[name][WORKERS] == "2" and not set(side_by_side.CORES) & set(environments[name])
    out, err = capsys.readouterr()
    assert out.splitlines() == asked
    assert [line.partition(" of 5: ")[0] for line in err.splitlines()] == ["1", "2", "3", "4", "5"]


def overlap(one, two):
    return max(one[0], two[0]) < min(one[1], two[1])


def test_a_notebook_is_told_as_soon_as_it_and_all_before_it_are_done(root, execute, capsys):
    """b is done first, but a, asked for before it, is told first."""
    execute(["a", "b"], 2, a="while 'ended' not in open('log').read(): time.sleep(0.02)\ntime.sleep(1)", b="pass")
    out, err = capsys.readouterr()
    assert out.splitlines() == ["a", "b"]
    assert [line.partition(",")[0] for line in err.splitlines()] == ["1 of 2: b", "2 of 2: a"]


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ("print('liftlab: a failed', file=sys.stderr); sys.exit(1)", 1, "liftlab: a failed\n"),
        ("print('liftlab: unknown', file=sys.stderr); sys.exit(2)", 2, "liftlab: unknown\n"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 1, "liftlab: notebook a was killed by SIGKILL\n"),
        ("sys.exit(130)", 1, ""),
    ],
)
def test_one_that_fails_stops_no_other_and_makes_the_exit_code(execute, capsys, body, code, message):
    assert execute(["a", "b", "reader"], 2, a=body) == code
    out, err = capsys.readouterr()
    assert out.splitlines() == ["b", "reader"] and message in err
    reason = message.removeprefix("liftlab: ").strip() or "it ended with exit code 130 and said nothing"
    assert err.splitlines()[-3:] == [
        "liftlab: 1 of 3 notebooks failed",
        f"  a: {reason}",
        "to go on (finished cells are kept): liftlab run a --profile micro",
    ]


def test_the_log_of_a_run_tells_of_each_notebook_and_keeps_what_it_printed(root, execute):
    says = "print('oops', file=sys.stderr); print('liftlab: a failed', file=sys.stderr); sys.exit(1)"
    execute(["a", "b"], 2, a=says)
    log = run_log.latest(runner.logs_folder(root, "micro"))
    state = run_log.read(log)
    assert (state.end, state.names("done"), state.names("failed")) == ("done", ["b"], ["a"])
    assert state.notebooks["a"].reason == "a failed" and state.facts["groups"] == [["a", "b"]]
    folder = log.with_suffix("")
    assert (folder / "a.err").read_text() == "oops\nliftlab: a failed\n" and (folder / "b.out").read_text() == "b\n"
    _, environments = logged(root)
    assert {environments[name][run_log.LOG] for name in "ab"} == {str(log)}


def test_a_process_that_outlives_its_notebook_holds_up_no_run(execute, capsys):
    """It holds stdout and stderr open, as a killed kernel's own processes do."""
    leaves = "import subprocess; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    began = time.monotonic()
    assert execute(["a", "b"], 2, a=leaves) == 0
    assert time.monotonic() - began < 30
    assert capsys.readouterr().out.splitlines() == ["a", "b"]


def test_on_a_terminal_there_is_one_bar_with_the_names_that_run(execute, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    execute(["a", "b", "c"], 2, a="time.sleep(1)", b="time.sleep(1)")
    out, err = capsys.readouterr()
    assert out.splitlines() == ["a", "b", "c"]
    assert "notebooks 0 of 3" in err and "notebooks 3 of 3" in err and ": a, b" in err
    assert "3 notebooks of unknown length" in err and "1 of 3: " not in err


def test_cells_that_are_done_show_on_the_bar_and_in_the_lines(execute, capsys, monkeypatch):
    cells = "from liftlab import run_log; run_log.event('cells', notebook='a', study='s', total=4, done=%d, failed=1)"
    body = "; ".join(cells % done for done in (0, 1, 2)) + "; time.sleep(1.5)"
    monkeypatch.setattr(progress, "PAUSE", 0.2)
    execute(["a"], 1, a=body)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("notebooks 0 of 1, cells")]
    assert len(lines) == 1 and "cells 3 of 4 (1 failed), " in lines[0]  # told once, as nothing new came
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "150")
    execute(["a"], 1, a=body)
    assert "cells 3 of 4 (1 failed), " in capsys.readouterr().err


WAITS = "log(os.getpid())\ntime.sleep(60)"
ENDS = """
import os, sys
from liftlab import processes, side_by_side
side_by_side.command = lambda *_: [sys.executable, "-c", "import time, signal\\nfrom liftlab import processes\\n"
    "processes.end_with_parent()\\nopen('ready', 'w').close()\\ntime.sleep(100)"]
from pathlib import Path
side_by_side.run(Path.cwd(), "micro", {"a": {}}, {}, 1)
"""


def test_when_a_run_is_killed_its_notebooks_end_by_themselves(root):
    """The notebook's process ends on the SIGTERM that it sends itself, with no handler here."""
    process = subprocess.Popen([sys.executable, "-c", ENDS], cwd=root)
    while not (root / "ready").exists():
        assert process.poll() is None
        time.sleep(0.02)
    (notebook,) = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    gone, _ = psutil.wait_procs([notebook], 20)
    assert gone or notebook.status() == psutil.STATUS_ZOMBIE
    state = run_log.read(run_log.latest(runner.logs_folder(root, "micro")))
    assert not state.alive and state.end == "" and state.names("running") == ["a"]


LEAVES = "signal.signal(signal.SIGTERM, lambda *_: (log('left'), sys.exit(130)))\n" + WAITS
KERNEL = "import subprocess\nlog(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).pid)\n"
IGNORES = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + KERNEL + WAITS


def test_ctrl_c_ends_every_process_in_order_or_by_force_and_starts_no_other(root, execute, capsys, monkeypatch):
    """a leaves when it is told to, b does not, nor does what it started, c has not begun; what was done is told."""
    monkeypatch.setattr(processes, "GRACE", 0.5)
    started = []

    def interrupt():
        while len(started) < 3:
            time.sleep(0.02)
            lines = (root / "log").read_text().splitlines() if (root / "log").exists() else []
            started[:] = [entry["what"] for entry in map(json.loads, lines) if isinstance(entry["what"], int)]
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        execute(["done", "a", "b", "c"], 2, done="pass", a=LEAVES, b=IGNORES)
    thread.join()
    assert not [process for process in started if alive(process)]
    said = [(entry["name"], entry["what"]) for entry in map(json.loads, (root / "log").read_text().splitlines())]
    assert ("a", "left") in said and not [name for name, _ in said if name == "c"]
    assert capsys.readouterr().out == "done\n"
