"""Peaks agree with a direct timing; a task's memory is its own; running out of it is one error and no other."""

import os
import signal
import time

import pytest
import torch

from liftlab import machine
from liftlab.machine import FRESH, OutOfMemory, device_words, memory_errors, peak, peak_memory

CPU = torch.device("cpu")
MIB = 2**20


def fill(mib):
    torch.ones(mib * MIB, dtype=torch.uint8)


def run_out(how):
    if how == "torch":
        torch.empty(2**60, dtype=torch.uint8)
    if how == "python":
        bytearray(2**62)
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "exit":
        os._exit(3)
    raise ValueError("a mistake of the task's own")


def test_the_peak_is_that_of_a_direct_timing_within_a_factor_of_two(monkeypatch):
    monkeypatch.setattr(machine, "SIZES", {"cpu": (64, 512)})
    monkeypatch.setattr(machine, "COPIED_BYTES", {"cpu": 64 * MIB})
    measured = peak(CPU, torch.float32)
    a, source = torch.rand(512, 512), torch.rand(16 * MIB)
    target = torch.empty_like(source)

    def fastest(work):
        seconds = []
        for _ in range(20):
            began = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - began)
        return min(seconds)

    assert 0.5 < measured.flops / (2 * 512**3 / fastest(lambda: a @ a)) < 2
    assert 0.5 < measured.bandwidth / (2 * 64 * MIB / fastest(lambda: target.copy_(source))) < 2


def test_a_task_s_memory_is_its_own_whatever_this_process_holds():
    """256 MiB more in the task are 256 MiB more of memory; 512 MiB held here are none."""
    little = peak_memory(CPU, fill, 1)
    held = torch.ones(512 * MIB, dtype=torch.uint8)
    much = peak_memory(CPU, fill, 257)
    assert little.method == much.method == FRESH and held.nbytes == 512 * MIB
    assert 240 * MIB < much.bytes - little.bytes < 272 * MIB


@pytest.mark.parametrize("how", ["torch", "python", "killed"])
def test_running_out_of_memory_is_one_error_however_it_shows(how):
    with pytest.raises(OutOfMemory):
        peak_memory(CPU, run_out, how)


@pytest.mark.parametrize(("how", "kind", "message"), [
    ("itself", ValueError, "a mistake of the task's own"), ("exit", RuntimeError, "run_out ended with exit code 3"),
])  # fmt: skip
def test_other_errors_of_a_task_stay_what_they_are(how, kind, message):
    with pytest.raises(kind, match=message):
        peak_memory(CPU, run_out, how)


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory"), MemoryError(),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
])  # fmt: skip
def test_memory_errors_have_one_name(error):
    with pytest.raises(OutOfMemory), memory_errors():
        raise error


def test_another_runtime_error_is_no_memory_error():
    with pytest.raises(RuntimeError, match="shapes"), memory_errors():
        raise RuntimeError("shapes do not fit")


def test_a_processor_is_named_with_its_threads():
    assert device_words(CPU).endswith(f", {torch.get_num_threads()} threads")
