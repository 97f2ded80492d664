"""Notebooks forked from one process: what they see and how they end is what it is for those that start afresh."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from test_runner import root, write  # noqa: F401

from liftlab import side_by_side
from liftlab.fork_server import Server
from liftlab.forks import PYTHON
from liftlab.processes import Outcome, Processes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks are made on Linux alone")

MARK = "LIFTLAB_TEST_MARK"  # environment variable of all that a test starts
PROGRAM = """
import os, sys
print(os.environ["GIVEN"], "torch" in sys.modules, os.getsid(0) == os.getpid(), __name__)
print("oops", sys.argv[1:], file=sys.stderr)
exec(sys.argv[1])
"""
SEES = """
import os, sys
forked = "torch" in sys.modules
import gc, json, signal, liftlab
import matplotlib as mpl, matplotlib.pyplot as plt, pandas as pd, torch
from transformers.utils import logging
own = ("LIFTLAB_LOG", "LIFTLAB_NOTEBOOK", "JPY_PARENT_PID")
ends = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP, signal.SIGPIPE)]
seen = {
    "environment": {name: value for name, value in os.environ.items() if name not in own},
    "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
    "folder": os.getcwd(), "path": sys.path, "flags": str(sys.flags), "signals": str(ends), "collects": gc.isenabled(),
    "session": os.getsid(0) == os.getpid(), "stdin": os.read(0, 1).decode(), "main": sys.modules["__main__"].__name__,
    "parent": os.getppid() == int(os.environ["JPY_PARENT_PID"]),
    "rc": {name: str(value) for name, value in mpl.rcParams.items()},
    "options": str([pd.get_option("display." + name) for name in ("max_columns", "width", "max_rows")]),
}
open(f"{seeds[0]}.json", "w").write(json.dumps({"forked": forked, "seen": seen}))
logging.get_logger("transformers.test").warning("this is told in the notebook")
print("printed")
pd.DataFrame({str(n): ["a" * 20] for n in range(30)})
"""
SHOWS = "figure, _ = plt.subplots(figsize=(1, 1))\nplt.show()"
WAITS = "import os, time\nopen(f'{seeds[0]}.json', 'w').write(str(os.getpid()))\ntime.sleep(100)"


@pytest.fixture
def repository(root, monkeypatch):  # noqa: F811
    """Notebooks a, b and c, more than run at a time."""
    monkeypatch.chdir(root)
    for name in (*side_by_side.CORES, "MPLBACKEND"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(MARK, str(root))
    return root


def notebooks(repository, *codes):
    for seed, name in enumerate("abc"):
        write(repository, name, *codes)
        (repository / f"papermill_runs/micro/{name}.yaml").write_text(f"seeds: [{seed}]\n")


def started(*words):
    return subprocess.Popen([*PYTHON, "liftlab.cli", "run", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def outputs(path):
    """Of each cell; whether its stdout or its stderr came first is left to chance."""
    cells = json.loads(path.read_text())["cells"]
    return [sorted(map(json.dumps, cell["outputs"])) for cell in cells if cell["cell_type"] == "code"]


def marked(value):
    """Processes that inherited the mark, this one left out."""
    found = [one for one in psutil.process_iter() if one.pid != os.getpid()]
    return [one for one in found if environment(one).get(MARK) == value]


def environment(process):
    try:
        return process.environ()
    except (psutil.Error, OSError):  # a zombie's, or another user's
        return {}


def wait_until(holds, seconds=120):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_forked_notebook_sees_and_shows_what_one_that_starts_afresh_does(repository, monkeypatch):
    notebooks(repository, SEES, SHOWS)
    run = started("--workers", "2")
    assert run.communicate()[1].splitlines()[-1].startswith(b"3 of 3") and run.returncode == 0
    forked = [json.loads(Path(f"{seed}.json").read_text()) for seed in range(3)]
    shown = [outputs(repository / f"papermill_runs/micro/{name}.ipynb") for name in "abc"]
    _, share = side_by_side.share(2, 3)
    for variable, value in share.items():
        monkeypatch.setenv(variable, value)
    again = started("a")
    assert again.communicate()[1] == b"" and again.returncode == 0
    afresh = json.loads(Path("0.json").read_text())
    assert not afresh["forked"] and all(one["forked"] for one in forked)
    for one in forked:
        unlike = {name for name, value in afresh["seen"].items() if one["seen"][name] != value}
        assert not unlike
    assert shown[0] == shown[1] == shown[2] == outputs(repository / "papermill_runs/micro/a.ipynb")
    assert "this is told in the notebook" in str(shown[0]) and "image/png" in str(shown[0])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_however_a_run_of_forked_notebooks_ends_it_leaves_no_process(repository, number):
    notebooks(repository, WAITS)
    run = started("--workers", "2")
    wait_until(lambda: len([*repository.glob("[012].json")]) == 2 or run.poll() is not None)
    run.send_signal(number)
    run.communicate()
    assert run.returncode == (-number if number == signal.SIGKILL else 130)
    wait_until(lambda: not marked(str(repository)), 30)
    assert len([*repository.glob("[012].json")]) == 2  # the third one never began


def test_a_run_that_ends_while_it_imports_leaves_no_process_either(repository):
    notebooks(repository, WAITS)
    run = started("--workers", "2")
    wait_until(lambda: len(marked(str(repository))) > 1)
    run.send_signal(signal.SIGINT)
    run.communicate()
    assert run.returncode == 130
    wait_until(lambda: not marked(str(repository)), 10)


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """Run a program from a server that has imported `modules`, or else afresh; its `body` is code."""
    (tmp_path / "program.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("GIVEN", "here")

    def run(modules, *bodies):
        processes = Processes(tmp_path)
        alone = {"OMP_NUM_THREADS": "1"}  # so that no library has threads, see `forks`
        with processes.forked_from(Server(modules, os.environ | alone | {"GIVEN": "there"})):
            words = [[*PYTHON, "program", body] for body in bodies]
            return [processes.execute(str(place), each, {"GIVEN": "here"}) for place, each in enumerate(words)]

    return run


def test_a_forked_program_ends_prints_and_is_started_as_any_other(execute):
    bodies = {"pass": 0, "sys.exit(3)": 3, "1 / 0": 1, "os.kill(os.getpid(), 9)": -9}
    found = execute([], *bodies)
    assert [one.code for one in found] == [*bodies.values()]
    assert {one.out for one in found[:3]} == {"there True True __main__\n"} and found[0].err == "oops ['pass']\n"
    assert "ZeroDivisionError" in found[2].err and found[3].reason == "notebook 3 was killed by SIGKILL"


def test_where_there_is_no_server_programs_start_afresh(execute, monkeypatch):
    """Where it cannot import what it should, and on another system."""
    afresh = "here False True __main__\n"
    wanted = [Outcome(0, afresh, f"oops ['{body}']\n") for body in ("pass", "1")]
    assert execute(["a_module_that_is_not_there"], "pass", "1") == wanted
    monkeypatch.setattr(sys, "platform", "elsewhere")
    assert execute([], "pass")[0].out == 2 * afresh  # both are kept
