"""Locks between processes: files that the system frees when the process that holds them ends, however it ends."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from liftlab import records


@contextmanager
def held(path: Path, *, wait: bool = True, nested: bool = False, waiting: str = "") -> Iterator[bool]:
    """Hold the lock `path` within the block; yields whether it is held, which only without `wait` may be false.

    The file is there as long as somebody holds the lock or waits for it. `nested`: this process may take it again, in
    any thread, while it holds it. `waiting` is said on stderr where another process has to be waited for.
    records.WriteError where the file cannot be made.
    """
    lock = FileLock(path, thread_local=False, is_singleton=nested)
    got = _acquired(lock, blocking=False)
    if wait and not got:
        if waiting:
            print(waiting, file=sys.stderr, flush=True)
        got = _acquired(lock, blocking=True)
    try:
        yield got
    finally:
        if got:
            _release(lock, path)


def _acquired(lock: FileLock, blocking: bool) -> bool:
    with records.refusals_told(Path(lock.lock_file)):
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=blocking)
        except Timeout:  # an OSError too
            return False
    return True


def _release(lock: FileLock, path: Path) -> None:
    """Remove the file while it is locked: whoever opened it before then finds it gone, and tries again with a new one.

    Windows removes no open file; there it stays, which does no harm.
    """
    if lock.lock_counter == 1:
        with suppress(OSError):
            path.unlink(missing_ok=True)
    lock.release()
