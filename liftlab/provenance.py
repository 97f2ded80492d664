"""What made a result: versions, git state, machine and torch's settings, told by the process that computed it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "peft", "tokenizers", "numpy", "pandas", "scipy")
SOURCE = ("notebooks", ":(glob)papermill_runs/**/*.yaml", "pyproject.toml", "requirements.lock")  # beside the package
OF_ONE_CELL = ("settings", "key", "start", "end")  # facts in which the cells of one run differ


class ProvenanceError(ValueError):
    """Facts that cannot be kept."""


def provenance(**facts: Any) -> dict[str, Any]:
    """What made a record: versions, git state, machine, torch, plus the caller's `facts` (base model, settings ...).

    `torch` is None in a process that has not imported it. Names of facts that are usual: start, end (see `now`).
    """
    known = _of_this_process() | {"torch": _torch()}
    taken = sorted(set(known) & set(facts))
    if taken:
        raise ProvenanceError(f"fact {taken[0]!r} is one that provenance finds by itself: name yours otherwise")
    return json.loads(as_json(known | facts))


def joined(cells: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The provenance of a table that several cells make: one entry for each way in which cells were made.

    It holds the facts on which its cells agree, their number `cells`, the first `start` and the last `end`.
    """
    found: dict[bytes, dict[str, Any]] = {}
    for cell in cells:
        same = {fact: value for fact, value in cell.items() if fact not in OF_ONE_CELL}
        made = found.setdefault(as_json(same), same | {"cells": 0})
        made["cells"] += 1
        for fact, outer in (("start", min), ("end", max)):
            if fact in cell:
                made[fact] = outer(made.get(fact, cell[fact]), cell[fact])
    return list(found.values())


def now() -> str:
    """This moment in UTC, ISO 8601 to the millisecond: such texts sort as the moments do."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def hashes(paths: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of each file by its name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in map(Path, paths)}


def as_json(content: Any) -> bytes:
    """Sorted keys, a line a value; ProvenanceError for what JSON cannot hold."""
    try:
        return (json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode("utf-8")
    except TypeError as error:
        raise ProvenanceError(f"provenance must hold JSON values only: {error}") from error


@cache
def _of_this_process() -> dict[str, Any]:
    """Asked once, near the start: the sources that run are those of then."""
    return {
        "liftlab": _version("liftlab"),
        "git": _git(Path(__file__).resolve().parent),
        "packages": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "hardware": {"platform": platform.platform(), "cpu": _cpu_name(), "cpus": os.cpu_count()},
    }


def _torch() -> dict[str, Any] | None:
    """The settings on which the bits of a result depend, in this process; torch is asked only where it is loaded."""
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    there = torch.cuda.is_available()
    return {
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "float32_products": torch.get_float32_matmul_precision(),
        "gpus": [torch.cuda.get_device_name(place) for place in range(torch.cuda.device_count())] if there else [],
        "cuda": torch.version.cuda,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(package: Path) -> dict[str, Any] | None:
    """Commit and whether the source differs from it (new files too): what makes results, not the results themselves.

    The source is `package` and, beside it, `SOURCE`. None where `package` is not tracked by git.
    """
    if not _git_says(package, "ls-files", "."):
        return None
    source = ("--untracked-files=all", "--", package.name, *SOURCE)
    return {
        "commit": (_git_says(package, "rev-parse", "--verify", "--quiet", "HEAD") or "").strip() or None,
        "dirty": bool(_git_says(package.parent, "status", "--porcelain", *source)),
    }


def _git_says(folder: Path, *words: str) -> str | None:
    """Git's answer, None if git is absent or refuses. A hook's GIT_* variables would name another repository."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "--no-optional-locks", "-C", str(folder), *words]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout


def _cpu_name() -> str:
    """The processor's name as the system reports it; the architecture where it reports none."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text("utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
