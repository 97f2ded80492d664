"""What a profile's records become: figures, tables, findings and the claims, drawn by as many processes as cores."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any


def redrawn(found: list[Path], folder: Path, claims: bool) -> tuple[list[list[str]], list[str]]:
    """Draw the records files `found` into `folder`: what `drawn` says of each, and what `compared` says of `claims`."""
    import joblib

    comparing = joblib.delayed(_quickly)(compared, found if claims else [], folder)
    tasks = [comparing, *(joblib.delayed(_quickly)(drawn, path, folder) for path in found)]
    said, *files = joblib.Parallel(n_jobs=min(len(found), joblib.cpu_count()), batch_size=1)(tasks)
    return files, said


def _quickly(draw: Callable[..., list[str]], *given: Any) -> list[str]:
    """What `draw` returns. Texts are Python's own, not Arrow's: rows of tables this small are then chosen faster.

    Unused objects are collected once it is done: while a figure is built, almost none of its many are unused.
    """
    import pandas as pd

    collects = gc.isenabled()
    gc.disable()
    try:
        with pd.option_context("mode.string_storage", "python"):
            return draw(*given)
    finally:
        if collects:
            gc.enable()


def drawn(path: Path, folder: Path) -> list[str]:
    """Draw one table of records, with what belongs to its figure; the files written, none if it has no drawing."""
    from liftlab import bench_tables, comparisons, findings, plots, records, tables
    from liftlab.canvas import worked

    name, (table, made_with) = path.stem, records.read(path)
    if set(table["study"].unique()) == {bench_tables.STUDY}:
        bench_tables.save(table, folder / name)
        return [f"{name}.md .csv"]
    if name not in plots.DRAWINGS:
        return []
    cells = len(made_with.get("grid", [])) or None
    written = [f"{name}.png .svg .csv"]
    plots.save(name, table, folder, cells)
    if name in tables.TABLES:
        tables.save(name, folder, worked(table, cells)[1])
        written.append(f"{name}.md")
    if name in comparisons.FINDINGS:
        findings.save(name, table, folder, cells)
        written.append(f"{name}.findings.md")
    return written


def compared(found: list[Path], folder: Path) -> list[str]:
    """Draw the papers' claims against the records of `found`, if any of them is compared with one."""
    from liftlab import claims

    if not claims.notebooks() & {path.stem for path in found}:
        return []
    claims.save(found[0].parent, folder)
    return ["claims.png .svg .csv .md"]
