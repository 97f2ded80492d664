"""`liftlab status`: what is told of a run that goes on, was killed, was interrupted or ended."""

import os
import re
import subprocess
import sys

import pytest

from liftlab import cli_status, run_log, runner


@pytest.fixture
def root(tmp_path, monkeypatch):
    for name in (run_log.LOG, run_log.NOTEBOOK):
        monkeypatch.delenv(name, raising=False)
    for folder in ("notebooks", "papermill_runs/micro", "papermill_runs/paper"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def say(root, capsys):
    """The lines that the command prints, N for seconds."""

    def status(profile="micro"):
        cli_status.status(profile)
        return re.sub(r"\b\d+ s\b", "N s", capsys.readouterr().out).splitlines()

    return status


def run(root):
    """A run of the notebooks a to e."""
    folder = runner.logs_folder(root, "micro")
    return run_log.opened(folder, [["a", "b", "c", "d"], ["e"]], 2, {}, profile="micro", sets={"seeds": "[1]"})


def some_of_it():
    """a is done, b failed, c and d run."""
    for name, status, reason in (("a", "done", ""), ("b", "failed", "notebook b failed in cell [3]: why; see b.ipynb")):
        run_log.event("notebook", notebook=name, status="running")
        run_log.event("notebook", notebook=name, status=status, reason=reason)
    for name in ("c", "d"):
        run_log.event("notebook", notebook=name, status="running")
    for done in (0, 1):
        run_log.event("cells", notebook="c", study="s", total=9, done=done, failed=2 * done)


def test_a_run_that_goes_on_tells_what_runs_and_no_command(root, say):
    with run(root) as log:
        some_of_it()
        first, counts, *rest = say()
    assert first.startswith("run of micro, begun 20") and first.endswith(f" UTC, goes on (process {os.getpid()})")
    assert counts.startswith("notebooks 2 of 5 (1 failed), cells 3 of 9 (2 failed)") and "unknown length" in counts
    assert rest == [
        "done: a",
        "waiting: e",
        "running: c, N s, cells of s 3 of 9 (2 failed)",
        "running: d, N s",
        "failed: b: notebook b failed in cell [3]: why; see b.ipynb",
        f"log: {log.relative_to(root)}",
    ]


@pytest.mark.parametrize(
    ("how", "told"), [("killed", "was killed: last heard of after"), ("interrupted", "was interrupted after")]
)
def test_a_run_that_was_stopped_tells_what_ran_and_how_to_go_on(root, say, how, told):
    with pytest.raises(KeyboardInterrupt), run(root) as log:
        some_of_it()
        kept = log.read_text()
        raise KeyboardInterrupt
    if how == "killed":  # as if this process had not come to write the last line, and was another one
        log.write_text(kept.replace('"process_began": ', '"process_began": 1'))
    first, counts, *rest = say()
    assert told in first and "left" not in counts
    assert rest[2:4] == ["was running: c, N s, cells of s 3 of 9 (2 failed)", "was running: d, N s"]
    again = "liftlab run b c d e --profile micro --set 'seeds=[1]'"
    assert rest[-1] == f"to go on (finished cells are kept): {again}"


def test_a_run_that_did_all_tells_just_that(root, say):
    with run(root):
        for name in "abcde":
            run_log.event("notebook", notebook=name, status="done")
    first, counts, done, log = say()
    assert ", ended after " in first and (counts, done) == ("notebooks 5 of 5", "done: a, b, c, d, e")
    assert log.startswith("log: papermill_runs/micro/logs/20")


def test_the_latest_run_is_told_and_broken_lines_of_its_log_are(root, say):
    with run(root):
        pass
    with run(root) as log, log.open("a") as file:
        file.write("half a li\n")
    lines = say()
    assert "broken lines of the log, not counted: 1" in lines and f"log: {log.relative_to(root)}" in lines


def test_no_run_an_unknown_profile_and_an_empty_log_are_mistakes_with_a_remedy(root, say):
    with pytest.raises(runner.RunError, match="profile 'paper' has left a log: liftlab run --profile paper"):
        say("paper")
    with pytest.raises(runner.RunError, match="no profile is called 'papre', did you mean 'paper'"):
        say("papre")
    folder = runner.logs_folder(root, "paper")
    folder.mkdir()
    (folder / "1.jsonl").write_text("")
    with pytest.raises(runner.RunError, match="does not tell how it began: remove it"):
        say("paper")


def test_status_starts_without_torch_and_papermill():
    code = "import sys, liftlab.cli_status; sys.exit(bool({'torch', 'papermill', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
