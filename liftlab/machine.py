"""The machine beside its work: what it is, the most it computes and moves, and the memory that a task takes of it."""

from __future__ import annotations

import gc
import multiprocessing
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from liftlab import records

SIZES = {"cpu": (512, 1024, 2048), "gpu": (4096, 8192, 16384)}  # rows of the square matrices that are multiplied
COPIED_BYTES = {"cpu": 2**28, "gpu": 2**30}  # of one copy, far beyond any cache
ROUNDS = 5  # timed runs of each, after two untimed ones; the fastest counts
FRESH, ALLOCATED = "peak resident set of a fresh process", "peak of torch's allocator on the GPU"
_REFUSED = ("not enough memory", "can't allocate memory")  # how torch's CPU allocator words it, as a RuntimeError


class OutOfMemory(Exception):
    """The task needs more memory than the machine has."""


@dataclass(frozen=True)
class Peak:
    """The most measured: operations a second of a matrix product, bytes a second (read and written) of a copy."""

    flops: float
    bandwidth: float


@dataclass(frozen=True)
class Memory:
    """The most memory that a task held at one time, in bytes, and what was measured: FRESH or ALLOCATED."""

    bytes: int
    method: str


def device_words(device: torch.device) -> str:
    """The processor's name and torch's threads on it, or the GPU's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return str(device)
    return f"{records.provenance()['hardware']['cpu']}, {torch.get_num_threads()} threads"


@torch.no_grad()
def peak(device: torch.device, dtype: torch.dtype) -> Peak:
    """The machine's peak in `dtype`, measured now: the best of several sizes and runs. Takes seconds."""
    kind = "cpu" if device.type == "cpu" else "gpu"
    flops = max(2 * size**3 / _product_seconds(size, device, dtype) for size in SIZES[kind])
    source = torch.ones(COPIED_BYTES[kind] // dtype.itemsize, dtype=dtype, device=device)
    target = torch.empty_like(source)
    seconds = _best_seconds(lambda: target.copy_(source), device)
    return Peak(flops, 2 * source.nbytes / seconds)


def _product_seconds(size: int, device: torch.device, dtype: torch.dtype) -> float:
    a, b = torch.full((2, size, size), 0.5, dtype=dtype, device=device)
    out = torch.empty_like(a)
    return _best_seconds(lambda: torch.mm(a, b, out=out), device)


def _best_seconds(work: Callable[[], object], device: torch.device) -> float:
    seconds = []
    for _ in range(2 + ROUNDS):
        began = time.perf_counter()
        work()
        wait(device)
        seconds.append(time.perf_counter() - began)
    return min(seconds[2:])


def wait(device: torch.device) -> None:
    """Return when the device has done all it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@contextmanager
def memory_errors() -> Iterator[None]:
    """Whatever says within that memory has run out is raised as OutOfMemory."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory(str(error)) from error
    except RuntimeError as error:
        if not any(words in str(error) for words in _REFUSED):
            raise
        raise OutOfMemory(str(error)) from error


def free(device: torch.device) -> None:
    """Give back what no longer is referred to, so that the next task finds the memory it would find alone."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def peak_memory(device: torch.device, task: Callable[..., object], *arguments) -> Memory:
    """The memory of `task(*arguments)`: on CUDA in this process, all that it has allocated there counted.

    Elsewhere in a fresh process, Python and torch counted too; `task` must be a module's own function then and the
    arguments must pickle. Raises OutOfMemory, also where the system kills the process for it, and what `task` raises.
    """
    if device.type != "cuda":
        return Memory(_in_fresh_process(task, arguments), FRESH)
    free(device)
    torch.cuda.reset_peak_memory_stats(device)
    with memory_errors():
        task(*arguments)
    return Memory(torch.cuda.max_memory_allocated(device), ALLOCATED)


def _in_fresh_process(task: Callable[..., object], arguments: tuple) -> int:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, task.__module__])  # imported once, for all processes to come
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(theirs, task, arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        said = ours.recv()
    except EOFError:
        said = None
    process.join()
    if isinstance(said, BaseException):
        raise said
    if said is None and process.exitcode == -signal.SIGKILL:
        raise OutOfMemory(f"the process of {task.__name__} was killed")
    if said is None:
        raise RuntimeError(
            f"the process of {task.__name__} ended with exit code {process.exitcode}: its own message says why "
            'before this; a script keeps what it runs under if __name__ == "__main__", as such processes read it too'
        )
    return said


def _report(to: Connection, task: Callable[..., object], arguments: tuple) -> None:
    """Run by the fresh process: its peak in bytes, or what was raised."""
    try:
        with memory_errors():
            task(*arguments)
        to.send(_peak_resident())
    except Exception as error:
        to.send(error)


def _peak_resident() -> int:
    """Bytes. Linux hands getrusage's peak down from the parent process, so the process's own is asked for there."""
    status = Path("/proc/self/status")
    if status.is_file():
        lines = status.read_text("utf-8").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
