import json
import shutil
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest
from test_plots import lift_records
from test_runner import root, write  # noqa: F401

from liftlab import cli, plots, published, records, runner, side_by_side


@pytest.fixture
def repository(root, monkeypatch):  # noqa: F811
    monkeypatch.chdir(root)
    monkeypatch.setenv("COLUMNS", "200")
    return root


@pytest.fixture
def call(repository, command_line):
    return command_line


def keep_records(root, profile="micro", name="lift_vs_icl"):  # noqa: F811
    return records.write(lift_records(), root / f"papermill_runs/{profile}/records/{name}.csv", {})


def test_list_tells_question_source_profiles_and_last_run(call):
    code, out, err = call("list")
    assert (code, err) == (0, "")
    assert "What does a ask?" in out and "Table 1" in out and "paper: never run" in out


def test_list_tells_of_every_published_item_its_notebook_or_the_reason(call):
    """Read as text, line breaks within the table's cells left out."""
    lines = call("list")[1].partition("published")[2].splitlines()
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    said = " ".join(cell for column in zip(*cells, strict=True) for cell in column if cell)
    for item in published.items():
        assert item.version in said and item.item in said and item.title in said
        assert " ".join(item.told.split()) in said


def test_version_and_help(call):
    assert call("--version")[:2] == (0, f"liftlab {metadata.version('liftlab')}\n")
    for words in ([], ["--help"]):
        code, out, _ = call(*words)
        assert code == 0 and "figures" in out and "list" in out


def test_figures_redraws_every_known_table_of_the_profile(call, repository):
    path = keep_records(repository)
    keep_records(repository, name="something_else")
    code, out, err = call("figures")
    assert (code, out) == (0, "figures/micro/lift_vs_icl.png .svg .csv\nfigures/micro/lift_vs_icl.md\n")
    assert err == "no drawing for papermill_runs/micro/records/something_else.csv\n"
    plots.save("lift_vs_icl", records.read(path)[0], repository / "direct")
    for ending in ("png", "svg", "csv"):
        drawn = (repository / f"figures/micro/lift_vs_icl.{ending}").read_bytes()
        assert drawn == (repository / f"direct/lift_vs_icl.{ending}").read_bytes()


def test_figures_and_list_import_no_torch(repository):
    """In a process of their own, warnings being errors: what a paper's figures need is neither torch nor a GPU."""
    keep_records(repository)
    source = """
import sys
from liftlab import cli
for word in ("figures", "list"):
    sys.argv = ["liftlab", word]
    try:
        cli.main()
    except SystemExit as left:
        if left.code:
            raise
sys.exit(sorted({"torch", "transformers", "peft"} & set(sys.modules)) or 0)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", source], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "figures/micro/lift_vs_icl.png" in done.stdout and "What does a ask?" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "b", "--set", "sedes=3"], "did you mean 'seeds'?; valid: seeds (list of int)"),
        (["run", "b", "--set", "seeds=abc"], "must be list of int"),
        (["run", "b", "--set", "seeds"], "not of the form key=value"),
        (["run", "c"], "no notebook is called 'c'"),
        (["run", "--profile", "empty"], "runs no notebook"),
        (["run", "--profile", "mirco"], "did you mean 'micro'?"),
        (["figures"], "profile 'micro' has no records to draw"),
        (["figures", "--profile", "mirco"], "did you mean 'micro'?"),
        (["figures", "--nonsense"], "--nonsense"),
        (["nonsense"], "nonsense"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(call, repository, monkeypatch, words, message):
    (repository / "papermill_runs/empty").mkdir()
    monkeypatch.setattr(runner, "_execute", lambda *_: pytest.fail("a kernel would have started"))
    code, out, err = call(*words)
    assert (code, out) == (2, "")
    assert message in err and err.count("\n") == 1 and err.startswith("liftlab: ")


def test_outside_a_repository_every_command_says_so(call, repository, monkeypatch):
    monkeypatch.chdir(repository.parent)
    for word in ("list", "run", "figures"):
        code, _, err = call(word)
        assert code == 2 and "is in no liftlab repository" in err


def test_damaged_records_are_a_mistake_of_one_line(call, repository):
    path = keep_records(repository)
    path.write_bytes(path.read_bytes()[:-9])
    code, _, err = call("figures")
    assert code == 2 and "differ from the checksum" in err and err.count("\n") == 1
    assert not (repository / "figures").exists()


def test_every_parameter_is_checked_before_the_first_notebook_runs(call, repository, monkeypatch):
    monkeypatch.setattr(side_by_side, "run", lambda *_: pytest.fail("a process would have started"))
    (repository / "papermill_runs/micro/b.yaml").write_text("seeds: wrong\n")
    assert call("run")[0] == 2


def test_run_prints_seconds_and_the_figure_files_written(call, repository, monkeypatch):
    def draw(root, name, profile, sets):  # noqa: F811
        (root / "figures/micro").mkdir(parents=True)
        (root / "figures/micro" / f"{name}.png").write_bytes(b"")

    monkeypatch.setattr(runner, "run", draw)
    code, out, _ = call("run", "b", "--set", "seeds=[1]")
    lines = out.splitlines()
    assert code == 0 and lines[0].startswith("b (micro): ") and lines[0].endswith(" s")
    assert lines[1:] == ["  figures/micro/b.png"]


def test_a_failing_cell_is_exit_code_1(call):
    code, _, err = call("run", "a")
    assert code == 1 and err.count("\n") == 1
    assert err.startswith(
        "liftlab: notebook a failed in cell [3]: ZeroDivisionError: division by zero; see papermill_runs"
    )


def test_a_failing_notebook_does_not_stop_the_next(call, repository):
    """Both are tried, in kernels of their own; the failure is told, and the exit code says that not all is well."""
    write(repository, "b", "import os\nopen('seen', 'w').write(os.environ['LIFTLAB_WORKERS'])")
    code, out, err = call("run", "--workers", "4")
    assert code == 1 and out.startswith("b (micro): ") and out.count("\n") == 1
    assert "liftlab: notebook a failed in cell [3]: ZeroDivisionError" in err
    assert (repository / "seen").read_text() == "2"  # its part of four workers
    assert runner.last_run(repository, "a", "micro").status == "failed"
    assert runner.last_run(repository, "b", "micro").status == "done"


def test_several_notebooks_get_the_workers_asked_for_and_each_name_counts_once(call, monkeypatch):
    """Without --workers those of liftlab.cells, which the tests set to one."""
    seen = []
    monkeypatch.setattr(side_by_side, "run", lambda root, profile, asked, sets, workers: seen.append(workers) or 1)  # noqa: F811
    assert call("run", "a", "b", "--workers", "3") == (1, "", "")
    assert call("run")[0] == 1 and seen == [3, 1]
    monkeypatch.setattr(cli, "_run_one", lambda *words: seen.append(words[1]) or True)
    assert call("run", "b", "b")[0] == 0 and seen == [3, 1, "b"]


def test_as_a_module_it_is_the_same_program(repository):
    done = subprocess.run([sys.executable, "-m", "liftlab.cli", "run", "c"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("liftlab: no notebook is called 'c'")


def test_an_interrupted_run_is_one_line_and_exit_code_130(call, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run", interrupted)
    assert call("run", "b") == (130, "", "liftlab: interrupted; finished cells are kept\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("names", [["b"], ["a", "b"]])
def test_a_batch_systems_signal_stops_a_run_as_ctrl_c_does(call, monkeypatch, number, names):
    def stopped(*_):
        signal.raise_signal(number)
        pytest.fail("the run went on")

    monkeypatch.setattr(runner, "run", stopped)
    monkeypatch.setattr(side_by_side, "run", stopped)
    assert call("run", *names) == (130, "", "liftlab: interrupted; finished cells are kept\n")
    assert signal.getsignal(number) == signal.SIG_DFL


WAIT = "import os, time\nopen(f'{seeds[0]}.kernel', 'w').write(str(os.getpid()))\ntime.sleep(100)"


def test_interrupted_notebooks_leave_no_kernel_and_nothing_half_written(repository):
    """Two run side by side, in processes of their own; the signal goes to `liftlab run` alone, which passes it on."""
    for seed, name in enumerate(("a", "b")):
        write(repository, name, WAIT)
        (repository / f"papermill_runs/micro/{name}.yaml").write_text(f"seeds: [{seed}]\n")
    words = [sys.executable, "-m", "liftlab.cli", "run", "--workers", "2"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    kernels = [repository / f"{seed}.kernel" for seed in (0, 1)]
    wait_until(lambda: all(kernel.exists() and kernel.read_text() for kernel in kernels) or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    assert process.communicate() == ("", "liftlab: interrupted; finished cells are kept\n")
    assert process.returncode == 130
    wait_until(lambda: not any(Path(f"/proc/{kernel.read_text()}").exists() for kernel in kernels))
    left = sorted(path.name for path in (repository / "papermill_runs/micro").iterdir())
    assert left == ["a.yaml", "b.yaml", "logs"]


def wait_until(holds, seconds=120):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def keep_evaluation(root, **changes):  # noqa: F811
    """The needle's notebook and its parameter file under micro, one small document."""
    shutil.copy(runner.root(__file__) / "notebooks/needle.ipynb", root / "notebooks")
    given = {"documents": 1, "benchmark": {"source": "register_needle", "windows": [0.5], "depths": [0.5]}, **changes}
    (root / "papermill_runs/micro/needle.yaml").write_text(json.dumps(given))


def test_a_dry_run_estimates_checks_and_writes_nothing(call, repository, monkeypatch):
    monkeypatch.setattr(runner, "_execute", lambda *_: pytest.fail("a kernel would have started"))
    keep_evaluation(repository)
    before = {path: path.stat().st_mtime_ns for path in repository.rglob("*")}
    code, out, err = call("run", "--dry-run")
    assert (code, err) == (0, "")
    assert "needle\n" in out and "an estimate, not a measurement" in out and "total of" not in out
    assert "a: the parameters alone were checked\n" in out
    assert {path: path.stat().st_mtime_ns for path in repository.rglob("*")} == before


def test_a_dry_run_of_several_evaluations_ends_with_their_total(call, repository):
    keep_evaluation(repository)
    assert call("run", "needle", "needle", "--dry-run")[1].count("an estimate") == 1  # a notebook once
    shutil.copy(runner.root(__file__) / "notebooks/table_loogle.ipynb", repository / "notebooks")
    (repository / "papermill_runs/micro/table_loogle.yaml").write_text("documents: 1\n")
    last = call("run", "needle", "table_loogle", "--dry-run")[1].splitlines()[-1]
    assert last.startswith("total of 2 notebooks, an estimate: ")


def test_a_dry_run_with_a_mistake_is_one_line_and_exit_code_2(call, repository):
    keep_evaluation(repository, style="nonsense")
    code, out, err = call("run", "--dry-run")
    assert (code, out) == (2, "") and err.count("\n") == 1 and "nonsense" in err


def test_a_dry_run_of_what_would_stop_is_exit_code_1(call, repository):
    keep_evaluation(repository, answer_tokens=300)
    code, out, _ = call("run", "needle", "--dry-run")
    assert code == 1 and "! the run would stop: a question with its answer" in out
