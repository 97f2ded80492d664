"""Do the files under figures/ follow from the records, and the records from the code? Recomputed and compared."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from liftlab import drawing, records, runner
from liftlab.differences import Comparison
from liftlab.origins import CLAIMS, record_files
from liftlab.parameters import RunError

TOLERANCE = 1e-6  # relative; figure data are written with six digits


def from_records(root: Path, profile: str, tolerance: float = TOLERANCE) -> Comparison:
    """Recompute all figure data, tables and findings of a profile from its records, and compare with figures/.

    Numbers in a .csv may differ by `tolerance`, a relative one; text may not; a picture that differs is a note. Records
    are held against their checksums. Nothing that is stored is touched. RunError where a figure has no records.
    """
    found = Comparison(_checked(tolerance))
    names, stored, paths = (
        runner.runs_under(root, profile),
        root / runner.FIGURES / profile,
        record_files(root, profile),
    )
    if not paths:
        raise RunError(f"profile {profile!r} has no records to verify: liftlab run --profile {profile} makes them")
    _require_records(names, stored, paths, profile)
    damaged = {path.stem for path in paths if not _is_whole(path, root, found)}
    found.files += len(paths)
    with TemporaryDirectory() as folder:
        whole = [path for path in paths if path.stem not in damaged]
        if whole:
            drawing.redrawn(whole, Path(folder), CLAIMS in names and not damaged)
        drawn = {path.stem for path in paths} | {CLAIMS}
        _compare_figures(stored, Path(folder), drawn, damaged | ({CLAIMS} if damaged else set()), found)
    return found


def from_scratch(root: Path, profile: str, tolerance: float = TOLERANCE) -> Comparison:
    """Compute a profile's records anew, in a temporary folder, and compare them row by row with the stored ones.

    Of a notebook that times what it does only the rows are compared, not what it measured. RunError where it cannot be
    run at all; what the run prints goes to stderr.
    """
    found = Comparison(_checked(tolerance))
    stored = {path.stem: path for path in record_files(root, profile)}
    with TemporaryDirectory() as folder:
        again = Path(folder).resolve()
        _copy(root, again, profile)
        _run(again, profile, found)
        anew = {path.stem: path for path in record_files(again, profile)}
        for name in sorted(stored.keys() | anew.keys()):
            _compare_records(root, profile, name, stored.get(name), anew.get(name), found)
    return found


def _checked(tolerance: float) -> float:
    if not 0 <= tolerance < 1:
        raise RunError(f"tolerance {tolerance}: give a relative difference in 0..1 (1 excluded), such as {TOLERANCE}")
    return tolerance


def _require_records(names: list[str], stored: Path, paths: list[Path], profile: str) -> None:
    drawn = {_figure(file.name) for file in stored.glob("[!.]*.*")} & set(names) - {CLAIMS}
    lacking = " ".join(sorted(drawn - {path.stem for path in paths}))
    if lacking:
        raise RunError(
            f"figures/{profile} has figures without records ({lacking}): "
            f"liftlab run {lacking} --profile {profile} makes them"
        )


def _figure(file: str) -> str:
    """The name of the figure that a file belongs to."""
    return file.partition(".")[0]


def _is_whole(path: Path, root: Path, found: Comparison) -> bool:
    try:
        records.read(path)
    except records.RecordError as error:
        found.damaged(str(path.relative_to(root)), str(error))
        return False
    return True


def _compare_figures(stored: Path, made: Path, drawn: set[str], undrawn: set[str], found: Comparison) -> None:
    """`drawn`: the figures that records are drawn as; `undrawn`: those that damaged records did not allow."""
    names = {file.name for folder in (stored, made) if folder.is_dir() for file in folder.glob("[!.]*")}
    for name in sorted(names):
        label, old, new = f"{stored.parent.name}/{stored.name}/{name}", stored / name, made / name
        if _figure(name) in undrawn:
            found.notes.append(f"{label} was not recomputed: records are damaged")
        elif _figure(name) not in drawn:
            found.notes.append(f"{label} is not drawn from records: not compared")
        elif found.of_presence(label, old.is_file(), new.is_file()):
            found.of_files(label, old.read_bytes(), new.read_bytes())


def _copy(root: Path, to: Path, profile: str) -> None:
    """All that a run reads: the notebooks and the profile's parameters."""
    shutil.copytree(root / runner.NOTEBOOKS, to / runner.NOTEBOOKS)
    (to / runner.RUNS / profile).mkdir(parents=True)
    for file in (root / runner.RUNS / profile).glob("*.yaml"):
        shutil.copy2(file, to / runner.RUNS / profile)


def _run(root: Path, profile: str, found: Comparison) -> None:
    """`liftlab run` in `root`; whatever stops this stops it."""
    words = [sys.executable, "-m", "liftlab.cli", "run", "--profile", profile]
    process = subprocess.Popen(words, cwd=root, stdin=subprocess.DEVNULL, stdout=2)  # its stdout to our stderr
    try:
        code = process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    if code not in (0, 1):
        raise RunError(f"profile {profile!r} could not be run again (exit code {code}): what it said stands above")
    if code:
        found.notes.append("a notebook failed in the run from scratch: what it said stands above")


def _compare_records(
    root: Path, profile: str, name: str, stored: Path | None, anew: Path | None, found: Comparison
) -> None:
    label = f"{runner.RUNS}/{profile}/records/{name}.csv"
    if stored and name not in runner.runs_under(root, profile):
        command = records.sidecar(stored)["provenance"].get("command", "no notebook of the profile")
        found.notes.append(f"{label} is made by {command}: not computed again")
    elif found.of_presence(label, stored is not None, anew is not None) and _is_whole(stored, root, found):
        timed = runner.notebook(root, name).times
        if timed:
            found.notes.append(f"{label}: its notebook times what it does, so values are not compared")
        found.of_records(label, records.read(stored)[0], records.read(anew)[0], ["value"] if timed else [])
