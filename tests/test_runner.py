import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime

import nbformat
import papermill
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from liftlab import kernels, run_log, runner
from liftlab.locks import held
from liftlab.records import WriteError
from liftlab.runner import NotebookFailed, RunError

PARAMETERS = 'seeds = [0, 1]  # a list\nprofile = "none"\n'
SHOW = """
import os, sys
import matplotlib.pyplot as plt
from pathlib import Path
from liftlab import plots
Path("seen.txt").write_text(f"{seeds} {profile} {os.environ.get('MPLBACKEND')} {sys.executable}")
figure, _ = plt.subplots(figsize=(1, 1))
plt.close(figure)
figure
"""


def write(root, name, *codes, metadata=None):
    cells = [new_markdown_cell("Intro\n\n# What does " + name + " ask?\nmore"), new_markdown_cell("## Later")]
    cells.append(new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}))
    notebook = new_notebook(cells=cells + [new_code_cell(code) for code in codes])
    notebook.metadata.kernelspec = {"name": "python3", "language": "python", "display_name": "Python 3"}
    notebook.metadata.liftlab = metadata or {}
    nbformat.write(notebook, root / "notebooks" / f"{name}.ipynb")


@pytest.fixture
def root(tmp_path):
    """A repository with notebooks b (micro, paper) and a (micro)."""
    tmp_path = tmp_path / "with {braces}"
    for folder in ("notebooks", "papermill_runs/micro", "papermill_runs/paper"):
        (tmp_path / folder).mkdir(parents=True)
    write(tmp_path, "b", SHOW, metadata={"reproduces": "Table 1"})
    write(tmp_path, "a", "1 / 0  # a mistake")
    for run in ("micro/a", "micro/b", "paper/b"):
        (tmp_path / "papermill_runs" / f"{run}.yaml").write_text("")
    return tmp_path


def test_the_root_holds_notebooks_and_runs(root, monkeypatch):
    monkeypatch.chdir(root)
    assert runner.root() == runner.root(root) == root
    monkeypatch.chdir(root / "notebooks")  # where JupyterLab runs a notebook
    assert runner.root() == root
    assert runner.records_folder("micro") == root / "papermill_runs/micro/records"
    assert runner.figures_folder("micro") == root / "figures/micro"
    with pytest.raises(RunError, match="is in no liftlab repository"):
        runner.root(root.parent)


def test_notebooks_are_described_by_their_heading_and_metadata(root):
    a, b = runner.notebooks(root)
    assert (a.name, a.question, a.reproduces) == ("a", "What does a ask?", "")
    assert (b.name, b.question, b.reproduces) == ("b", "What does b ask?", "Table 1")
    assert b.parameters == {"seeds": [0, 1], "profile": "none"}


def test_a_notebook_runs_under_the_profiles_that_have_its_parameter_file(root):
    assert runner.profiles(root) == ["micro", "paper"]
    assert runner.runs_under(root, "micro") == ["a", "b"]
    assert runner.runs_under(root, "paper") == ["b"]


def test_a_profile_s_own_order_comes_first_and_readers_stay_last(root):
    for name in ("c", "d", "reader"):
        write(root, name, "1", metadata={"reads": "records"} if name == "reader" else None)
        (root / f"papermill_runs/micro/{name}.yaml").write_text("")
    order = root / "papermill_runs/micro/order.yaml"
    assert runner.runs_under(root, "micro") == ["a", "b", "c", "d", "reader"] and not runner.first_of(root, "micro")
    order.write_text("first: [d, b]\n")
    assert runner.first_of(root, "micro") == ["d", "b"]
    assert runner.runs_under(root, "micro") == ["d", "b", "a", "c", "reader"]
    assert runner.runs_under(root, "paper") == ["b"]
    with pytest.raises(RunError, match="no profile is called 'macro'"):
        runner.first_of(root, "macro")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "first: [b, aa]",
            "order.yaml names 'aa', which profile 'micro' does not run, did you mean 'a'.; there are: a, b",
        ),
        ("first: [a, a]", "order.yaml names 'a' twice"),
        ("first: [reader, a]", "order.yaml names 'reader', which reads what the others record and runs last"),
        ("first: a", "papermill_runs/micro/order.yaml must hold `first: .NAME, ....`"),
        ("first: []", "must hold `first"),
        ("", "must hold `first"),
        ("first: [a]\nlast: [b]", "must hold `first"),
        ("[a, b]", "order.yaml must hold `parameter: value` lines"),
        ("first: [3]", "names 3, which profile"),
    ],
)
def test_a_wrong_order_is_one_clear_error(root, text, words):
    write(root, "reader", "1", metadata={"reads": "records"})
    (root / "papermill_runs/micro/reader.yaml").write_text("")
    (root / "papermill_runs/micro/order.yaml").write_text(text)
    with pytest.raises(RunError, match=words):
        runner.runs_under(root, "micro")


def test_set_beats_yaml_beats_default(root):
    file = root / "papermill_runs/micro/b.yaml"
    assert runner.parameters(root, "b", "micro", {}) == {"seeds": [0, 1], "profile": "micro"}
    file.write_text("seeds: [2]\n")
    assert runner.parameters(root, "b", "micro", {})["seeds"] == [2]
    assert runner.parameters(root, "b", "micro", {"seeds": "[3, 4]"})["seeds"] == [3, 4]


@pytest.mark.parametrize(
    ("name", "profile", "sets", "words"),
    [
        (
            "b",
            "micro",
            {"sedes": "3"},
            "'sedes' = 3 .int, from --set. .*did you mean 'seeds'.; valid: seeds .list of int.",
        ),
        ("b", "micro", {"seeds": "abc"}, "'seeds' = 'abc' .str, from --set. .*must be list of int"),
        ("b", "micro", {"profile": "paper"}, "'profile' = 'paper' .* is for --profile to set"),
        ("c", "micro", {}, "no notebook is called 'c'; there are: a, b"),
        ("a", "paper", {}, "notebook 'a' has no profile 'paper' .no papermill_runs/paper/a.yaml.; it runs: b"),
        ("a", "papre", {}, "no profile is called 'papre', did you mean 'paper'"),
    ],
)
def test_a_wrong_request_fails_before_papermill_executes(root, monkeypatch, name, profile, sets, words):
    monkeypatch.setattr(runner, "_execute", lambda *_: pytest.fail("a kernel would have started"))
    with pytest.raises(RunError, match=words):
        runner.run(root, name, profile, sets)


def test_a_wrong_value_in_the_profile_names_the_file(root):
    (root / "papermill_runs/micro/b.yaml").write_text("seeds: 3\n")
    with pytest.raises(RunError, match="'seeds' = 3 .int, from papermill_runs/micro/b.yaml"):
        runner.parameters(root, "b", "micro", {})


def test_a_notebook_is_executed_in_the_root_with_this_interpreter(root, monkeypatch):
    """One kernel: parameters arrive, a figure is shown once whatever MPLBACKEND says, the outcome is on record."""
    monkeypatch.setenv("MPLBACKEND", "agg")
    (root / "papermill_runs/micro/b.failed.ipynb").write_text("{}")
    path = runner.run(root, "b", "micro", {"seeds": "[5]"})
    backend = "module://matplotlib_inline.backend_inline"
    assert (root / "seen.txt").read_text() == f"[5] micro {backend} {sys.executable}"
    done = json.loads(path.read_text())
    shown = [output["data"] for output in done["cells"][-1]["outputs"] if "data" in output]
    assert len(shown) == 1 and "image/png" in shown[0]
    provenance = done["metadata"]["liftlab"]["provenance"]
    assert provenance["parameters"] == {"seeds": [5], "profile": "micro"}
    assert done["metadata"]["liftlab"]["reproduces"] == "Table 1"
    last = runner.last_run(root, "b", "micro")
    assert last.status == "done" and last.seconds > 0 and last.end == provenance["end"] > provenance["start"]
    assert names(root) == ["a.yaml", "b.ipynb", "b.yaml"]


def names(root):
    return sorted(path.name for path in (root / "papermill_runs/micro").iterdir())


def test_an_executed_notebook_is_the_same_each_time_but_for_its_start_and_end(root, monkeypatch, capfd):
    """No clock and no path of the machine is left in it. Nothing is printed, and no log kept that nobody asked for."""
    monkeypatch.delenv(run_log.LOG, raising=False)
    kept = []
    for _ in range(2):
        executed = json.loads(runner.run(root, "b", "micro", {}).read_text())
        moments = [executed["metadata"]["liftlab"]["provenance"].pop(name) for name in ("start", "end")]
        assert datetime.fromisoformat(moments[0]) < datetime.fromisoformat(moments[1])
        for output in (output for cell in executed["cells"] for output in cell.get("outputs", [])):
            output.pop("data", None)  # a picture
        kept.append(json.dumps(executed))
    assert kept[0] == kept[1] and str(root) not in kept[0]
    assert not re.search(r"\d\d:\d\d:\d\d", kept[0])
    assert capfd.readouterr() == ("", "") and not runner.logs_folder(root, "micro").exists()


def test_a_failing_notebook_leaves_itself_and_the_last_good_one(root):
    good = root / "papermill_runs/micro/a.ipynb"
    good.write_text('{"cells": []}')
    with pytest.raises(NotebookFailed, match="notebook a failed in cell .3.: ZeroDivisionError: division by zero; see"):
        runner.run(root, "a", "micro", {})
    assert good.read_text() == '{"cells": []}'
    assert runner.last_run(root, "a", "micro").status == "failed"
    assert names(root) == ["a.failed.ipynb", "a.ipynb", "a.yaml", "b.yaml"]


BODY = """
import os, signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
open("processes", "w").write(f"{os.getpid()} {child.pid}")
"""


def test_a_killed_kernel_is_a_failed_notebook_at_once_and_takes_what_it_started_with_it(root):
    """Its child holds every channel of the kernel open, and would for 100 seconds."""
    write(root, "a", BODY + "os.kill(os.getpid(), signal.SIGKILL)")
    began = time.monotonic()
    with pytest.raises(NotebookFailed, match="notebook a failed because its kernel died or hung: Kernel died; see"):
        runner.run(root, "a", "micro", {})
    assert time.monotonic() - began < 60
    wait_until_gone((root / "processes").read_text().split())
    assert names(root) == ["a.failed.ipynb", "a.yaml", "b.yaml"]


def wait_until_gone(numbers):
    """A process that nobody has waited for yet counts as gone."""
    for number in numbers:
        for _ in range(200):
            state = subprocess.run(["ps", "-o", "stat=", "-p", number], capture_output=True, text=True).stdout
            if not state or state.startswith("Z"):
                break
            time.sleep(0.05)
        else:
            pytest.fail(f"process {number} runs on")


def test_a_signal_ends_the_kernel_and_what_it_started(root):
    write(root, "a", BODY + "time.sleep(100)")

    def interrupt():
        while not (root / "processes").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        runner.run(root, "a", "micro", {})
    thread.join()
    wait_until_gone((root / "processes").read_text().split())
    assert names(root) == ["a.yaml", "b.yaml"]


def test_what_a_kernel_itself_prints_is_kept_with_the_log_of_its_run(root, tmp_path, capfd):
    write(root, "a", "import os\nos.write(2, b'from below')")
    with run_log.opened(tmp_path / "logs", [["a"]], 1, {}):
        runner.run(root, "a", "micro", {})
        kept = run_log.printed("a").read_text()
    assert "from below" in kept and "from below" not in capfd.readouterr().err


def test_a_second_execution_waits_for_the_first_and_says_so(root, tmp_path, monkeypatch, capfd):
    """Under the same profile; what the first one has left half-written is not swept while it runs."""
    monkeypatch.setattr(kernels, "execute", lambda source, output, values, root: output.write_text('{"cells": []}'))
    running = root / "papermill_runs/micro/b.running.ipynb"
    done = []
    with run_log.opened(tmp_path / "logs", [["b"]], 1, {}) as log:
        second = threading.Thread(target=lambda: done.append(runner.run(root, "b", "micro", {})))
        with held(root / "papermill_runs/micro/.b.lock"):
            running.write_text("of the first")
            second.start()
            while not run_log.read(log).notebooks["b"].reason:
                time.sleep(0.02)
            assert running.read_text() == "of the first" and not done
            runner.run(root, "b", "paper", {})  # another profile's is another
        second.join()
        assert run_log.read(log).notebooks["b"].status == "running"
    assert done and done[0].is_file()
    said = "liftlab: another run executes notebook b under micro: waiting for its end\n"
    assert capfd.readouterr().err == said


KILLED = """
import os, signal, sys
from pathlib import Path
from liftlab import kernels, records, runner
root = Path(sys.argv[1])
def half(source, output, values, root):
    output.write_text('{"cells": [')
    (output.parent / ".b.ipynb.1234.tmp").write_text("{")
    os.kill(os.getpid(), signal.SIGKILL)
kernels.execute = half
runner.run(root, "b", "micro", {})
"""


def test_what_a_killed_execution_left_is_swept_by_the_next_and_its_lock_is_free(root, monkeypatch):
    assert subprocess.run([sys.executable, "-c", KILLED, str(root)]).returncode < 0
    assert {".b.ipynb.1234.tmp", "b.running.ipynb"} <= set(names(root))
    monkeypatch.setattr(kernels, "execute", lambda source, output, values, root: output.write_text('{"cells": []}'))
    runner.run(root, "b", "micro", {})
    assert names(root) == ["a.yaml", "b.ipynb", "b.yaml"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_full_or_read_only_disk_is_one_sentence_and_leaves_what_was_there(root, monkeypatch, number):
    """Papermill writes the notebook; so does keeping it, when it is done."""
    good = root / "papermill_runs/micro/b.ipynb"
    good.write_text("as it was")

    def refused(*_, **__):
        (root / "papermill_runs/micro/b.running.ipynb").write_text("{")
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(papermill, "execute_notebook", refused)
    said = f"cannot execute notebook b into .*b.running.ipynb .{os.strerror(number)}.: free space on the disk, or make"
    with pytest.raises(WriteError, match=said) as raised:
        runner.run(root, "b", "micro", {})
    assert raised.value.errno == number
    monkeypatch.setattr(kernels, "execute", lambda source, output, values, root: output.write_text('{"cells": []}'))
    monkeypatch.setattr(os, "fsync", refused)
    with pytest.raises(WriteError, match="cannot write .*b.ipynb"):
        runner.run(root, "b", "micro", {})
    assert good.read_text() == "as it was" and names(root) == ["a.yaml", "b.ipynb", "b.yaml"]


def test_the_environment_is_as_before_afterwards(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    before = dict(os.environ)
    with pytest.raises(KeyError), kernels._clean_environment("b"):
        assert "MPLBACKEND" not in os.environ and os.environ[run_log.NOTEBOOK] == "b"
        raise KeyError
    assert dict(os.environ) == before


def test_no_run_is_no_last_run(root):
    assert runner.last_run(root, "a", "micro") is None


def test_an_interrupted_run_leaves_nothing_half_written(root, monkeypatch):
    def interrupted(source, output, values, root):
        output.write_text("{")
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "_execute", interrupted)
    with pytest.raises(KeyboardInterrupt):
        runner.run(root, "b", "micro", {})
    assert names(root) == ["a.yaml", "b.yaml"]
