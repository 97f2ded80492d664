"""A lock is held by one process at a time, is free the moment its holder is dead, and leaves no file behind."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from liftlab.locks import held
from liftlab.records import WriteError

HOLDING = """
import sys, time
from pathlib import Path
from liftlab.locks import held
with held(Path(sys.argv[1])) as got:
    print(got, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock until its stdin is closed."""
    command = [sys.executable, "-c", HOLDING, str(tmp_path / "new" / ".a.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "True\n"
        yield process
        process.kill()


def test_a_lock_that_another_process_holds_is_refused_at_once_or_waited_for(tmp_path, holder, capsys):
    path = tmp_path / "new" / ".a.lock"
    with held(path, wait=False) as got:
        assert got is False
    threading.Timer(0.3, holder.stdin.close).start()
    began = time.monotonic()
    with held(path, waiting="another one holds it") as got:
        assert got is True and time.monotonic() - began > 0.2
    assert capsys.readouterr().err == "another one holds it\n"
    assert holder.wait(10) == 0 and list(path.parent.iterdir()) == []


def test_a_killed_holder_s_lock_is_free_and_its_file_no_obstacle(tmp_path, holder):
    path = tmp_path / "new" / ".a.lock"
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert path.exists()
    with held(path, wait=False) as got:
        assert got
    assert not path.exists()


def test_threads_exclude_each_other_and_nested_holders_in_one_process_do_not(tmp_path):
    path = tmp_path / ".a.lock"
    for nested in (False, True):
        seen = []

        def look(nested=nested, seen=seen):
            with held(path, wait=False, nested=nested) as got:
                seen.append(got)

        with held(path, nested=nested):
            thread = threading.Thread(target=look)
            thread.start()
            thread.join()
            assert seen == [nested] and path.exists()
        assert not path.exists()


COUNTING = """
import sys
from pathlib import Path
from liftlab.locks import held
folder = Path(sys.argv[1])
for _ in range(40):
    with held(folder / ".count.lock"):
        count = int((folder / "count").read_text())
        (folder / "count").write_text(str(count + 1))
"""


def test_no_addition_is_lost_though_the_file_is_removed_each_time(tmp_path):
    (tmp_path / "count").write_text("0")
    running = [subprocess.Popen([sys.executable, "-c", COUNTING, str(tmp_path)]) for _ in range(3)]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    assert (tmp_path / "count").read_text() == "120"


def test_an_error_within_frees_the_lock(tmp_path):
    with pytest.raises(KeyboardInterrupt), held(tmp_path / ".a.lock"):
        raise KeyboardInterrupt
    with held(tmp_path / ".a.lock", wait=False) as got:
        assert got


def test_a_folder_that_cannot_be_is_named_with_what_to_do(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(WriteError, match=r"cannot write .*\.a\.lock \(.*\): a file stands where its folder should be"),
        held(tmp_path / "file" / ".a.lock"),
    ):
        pytest.fail("held")
