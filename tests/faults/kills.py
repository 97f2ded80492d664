"""Kill a micro run at random moments, go on with it, and compare its records with those of an undisturbed run.

    python tests/faults/kills.py --kills 50 --out figures/micro/faults.csv

Each run is `liftlab run lift_vs_icl` of six small cells in a copy of the repository's notebooks. What is killed is
the command alone (its kernel is left behind and dies by itself), the kernel alone, or everything at once, by SIGKILL,
or the command by SIGTERM.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil  # comes with ipykernel

ROOT = Path(__file__).parents[2]
NOTEBOOK = "lift_vs_icl"
SETTINGS = {
    "windows": "[0.5]",
    "documents": "6",
    "seeds": "1",
    "questions": "4",
    "conditions": '["closed_book", "lift"]',
    "recipe_changes": '{"mixed_epochs": 3, "segment_epochs": 0}',
}
WAYS = ("command", "kernel", "all", "SIGTERM")
LONGEST = 300.0  # seconds that a run may take before it counts as hung


@dataclass(frozen=True)
class Kill:
    """One kill: when (seconds after the start), what, how many cells stood finished then, and how it went on.

    `repeated`: finished cells that were written again; `records`: "same" if all bytes are the undisturbed run's.
    """

    number: int
    seconds: float
    way: str
    cells_finished: int
    repeated: int
    left_behind: int  # temporary or half-executed files after the resumed run
    exit_code: int  # of the resumed run
    records: str

    @property
    def survived(self) -> bool:
        return (self.repeated, self.left_behind, self.exit_code, self.records) == (0, 0, 0, "same")


def prepared(folder: Path) -> Path:
    """A repository with that notebook alone."""
    (folder / "papermill_runs/micro").mkdir(parents=True)
    (folder / "notebooks").mkdir()
    shutil.copy(ROOT / f"notebooks/{NOTEBOOK}.ipynb", folder / "notebooks")
    shutil.copy(ROOT / f"papermill_runs/micro/{NOTEBOOK}.yaml", folder / "papermill_runs/micro")
    return folder


def started(folder: Path, prepare: Callable[[], object] | None = None) -> subprocess.Popen:
    """The run, in a session of its own; `prepare` is called in its process before it begins."""
    words = [sys.executable, "-m", "liftlab.cli", "run", NOTEBOOK]
    words += [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    with (folder / "output.txt").open("ab") as output:
        return subprocess.Popen(words, cwd=folder, stdout=output, stderr=output, env=environment(),
                                start_new_session=True, preexec_fn=prepare)  # fmt: skip


def environment() -> dict[str, str]:
    one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "LIFTLAB_WORKERS", "LIFTLAB_AT_ONCE"), "1")
    return os.environ | one


def finished(folder: Path) -> int:
    """The exit code of a run to its end."""
    return started(folder).wait(LONGEST)


def records_folder(folder: Path) -> Path:
    return folder / "papermill_runs/micro/records"


def cells(folder: Path) -> dict[str, tuple[int, int]]:
    """Each finished cell (table and provenance) with what changes if it is written again."""
    found = {}
    for path in (records_folder(folder) / NOTEBOOK).glob("*.csv"):
        if path.with_suffix(".json").is_file():
            about = path.stat()
            found[path.name] = (about.st_ino, about.st_mtime_ns)
    return found


def digest(folder: Path) -> str:
    """One hash of the joined table, every cell's table and the drawn numbers."""
    whole = hashlib.sha256()
    tables = [*records_folder(folder).rglob("*.csv"), *(folder / "figures").rglob("*.csv")]
    for path in sorted(tables):
        whole.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return whole.hexdigest()


def left_behind(folder: Path) -> int:
    return sum(path.name.endswith(".tmp") or ".running" in path.name for path in folder.rglob("*"))


def kill(process: subprocess.Popen, way: str) -> None:
    command = psutil.Process(process.pid)
    others = command.children(recursive=True)
    targets = {"kernel": others or [command], "all": [command, *others]}.get(way, [command])  # there is no kernel yet
    for target in targets:
        with suppress(psutil.NoSuchProcess):
            target.send_signal(signal.SIGTERM if way == "SIGTERM" else signal.SIGKILL)


def killed(number: int, seconds: float, way: str, wanted: str) -> Kill | None:
    """A run killed `seconds` after its start and gone on with; None where it had ended by then."""
    with tempfile.TemporaryDirectory(prefix="liftlab-kill-") as name:
        folder = prepared(Path(name))
        process = started(folder)
        time.sleep(seconds)
        if process.poll() is not None:
            return None
        kill(process, way)
        process.wait(LONGEST)
        before = cells(folder)
        code = finished(folder)
        after = cells(folder)
        repeated = sum(after.get(cell) != state for cell, state in before.items())
        same = "same" if digest(folder) == wanted else "differ"
        return Kill(number, round(seconds, 2), way, len(before), repeated, left_behind(folder), code, same)


def undisturbed() -> tuple[str, float]:
    """The hash of an undisturbed run, and the seconds it takes."""
    with tempfile.TemporaryDirectory(prefix="liftlab-kill-") as name:
        folder, began = prepared(Path(name)), time.monotonic()
        code = finished(folder)
        if code:
            sys.exit(f"the undisturbed run ended with exit code {code}: {(folder / 'output.txt').read_text()}")
        return digest(folder), time.monotonic() - began


def kill_all(kills: int, seed: int, side_by_side: int) -> Iterator[Kill]:
    """`kills` kills, in turn of each way, as they are done; each at a moment drawn uniformly after the imports."""
    wanted, seconds = undisturbed()
    seconds *= side_by_side**0.5  # runs beside each other take longer; a run that ended is drawn again

    def one(number: int) -> Kill:
        dice = random.Random(f"{seed} {number}")
        while (found := killed(number, dice.uniform(0.3, 1.0) * seconds, WAYS[number % len(WAYS)], wanted)) is None:
            continue
        return found

    with ThreadPoolExecutor(side_by_side) as pool:
        for done in as_completed([pool.submit(one, number) for number in range(kills)]):
            yield done.result()


def write(found: Sequence[Kill], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(asdict(found[0])), lineterminator="\n")
        table.writeheader()
        table.writerows(asdict(one) for one in sorted(found, key=lambda one: one.number))


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--kills", type=int, default=50)
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--side-by-side", type=int, default=os.cpu_count() or 1)
    words.add_argument("--out", type=Path, help="where the table goes (CSV), a row more after each kill")
    asked = words.parse_args()
    found: list[Kill] = []
    for one in kill_all(asked.kills, asked.seed, asked.side_by_side):
        found.append(one)
        print(f"{len(found)} of {asked.kills}: {one}", flush=True)
        if asked.out:
            write(found, asked.out)
    survived = sum(one.survived for one in found)
    print(f"{survived} of {len(found)} kills resumed to the undisturbed run's records")
    sys.exit(survived < len(found))


if __name__ == "__main__":
    main()
