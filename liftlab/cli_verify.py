"""`liftlab provenance` and `liftlab verify`: where a figure comes from, and whether it still follows from there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from liftlab import origins, runner, verifying
from liftlab.differences import Comparison
from liftlab.origins import Source
from liftlab.parameters import RunError

if TYPE_CHECKING:
    from rich.console import Console

SHOWN = 100  # differences that are printed
FIRST = ("liftlab", "git", "start", "end", "cells", "base_model", "data")  # facts of a maker, before all others


def provenance(
    figure: Annotated[
        str, typer.Argument(help="A name such as conflict or conflict.png, or a path: figures/micro/conflict.png.")
    ],
    profile: Annotated[
        str | None, typer.Option(help="A subfolder of figures; the path's, or micro, if not given.")
    ] = None,
) -> None:
    """Where a figure comes from: commands, notebook, parameters, records, and what made those."""
    root = runner.root()
    found = origins.origin(root, figure, profile)
    console = _console()
    _print_facts(console, f"{found.figure}, profile {found.profile}", {
        "files": ", ".join(str(path.relative_to(root)) for path in found.files) or "none: not drawn yet",
        "drawn by": found.command,
    })  # fmt: skip
    for source in found.sources:
        _print_source(console, root, source)
    damaged = [str(source.path.relative_to(root)) for source in found.sources if not source.whole]
    if damaged:
        raise RunError(f"{', '.join(damaged)} does not match its checksum: edited or cut short, run again")


def verify(
    profile: Annotated[str, typer.Option(help="A subfolder of papermill_runs.")] = "micro",
    rerun: Annotated[
        bool, typer.Option("--rerun", help="Also compute the records from scratch, in a temporary folder, and compare.")
    ] = False,
    tolerance: Annotated[
        float, typer.Option(help="Relative difference up to which two numbers count as equal.")
    ] = verifying.TOLERANCE,
) -> None:
    """Recompute a profile's figure data, tables and findings from its records and report what differs.

    Exit code 0 where nothing does, else 1. Nothing that is stored is changed.
    """
    root = runner.root()
    differ = _report(verifying.from_records(root, profile, tolerance), "recomputed from records")
    if rerun:
        differ += _report(verifying.from_scratch(root, profile, tolerance), "records computed from scratch")
    raise typer.Exit(1 if differ else 0)


def _print_source(console: Console, root: Path, source: Source) -> None:
    """A records file, its settings, and each way in which its cells were made."""
    checksum = "matches" if source.whole else "DOES NOT MATCH: edited or cut short"
    facts = {
        "made by": source.command,
        "notebook": source.notebook and source.notebook.relative_to(root),
        "parameters": source.parameters and source.parameters.relative_to(root),
        "sha256": f"{source.sha256} ({checksum})",
        "cells": f"{source.cells - source.failed} of {source.cells} worked" if source.cells else None,
        "rows": source.rows if source.whole else None,
        "seeds": source.seeds or None,
    }
    console.print()
    _print_facts(console, str(source.path.relative_to(root)), facts)
    _print_facts(console, "settings", source.settings | {k: _listed(v) for k, v in source.varied.items()})
    for maker in source.makers:
        order = [fact for fact in FIRST if fact in maker] + sorted(set(maker) - set(FIRST))
        _print_facts(console, "made with", {fact: maker[fact] for fact in order})


def _listed(values: list) -> str:
    """The values that cells have, one each."""
    return f"one of {', '.join(map(_told, values))}"


def _print_facts(console: Console, title: str, facts: dict[str, Any]) -> None:
    """A line a fact; those that are None or empty say nothing."""
    from rich.table import Column, Table

    table = Table(Column(no_wrap=True), Column(overflow="fold"), box=None, show_header=False, title=title)
    table.title_justify, table.title_style = "left", "bold"
    for fact, value in facts.items():
        if value not in (None, "", [], {}):
            table.add_row(fact, _told(value))
    console.print(table)


def _told(value: Any) -> str:
    """A value in words: of a flat dict its facts with commas between them, of a deeper one its JSON."""
    if isinstance(value, dict) and not any(isinstance(inner, dict) for inner in value.values()):
        return ", ".join(f"{fact} {_told(inner)}" for fact, inner in value.items() if inner not in (None, "", []))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list) and not any(isinstance(inner, dict | list) for inner in value):
        return ", ".join(map(_told, value))
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)


def _report(found: Comparison, what: str) -> int:
    """Print the differences, notes and their sum; the number of differences."""
    from rich.table import Column, Table

    console, count = _console(), len(found.differences)
    if count:
        whole = {"overflow": "fold"}
        table = Table(
            Column("file", **whole), "row", "column", Column("stored", **whole), Column("recomputed", **whole)
        )
        for difference in found.differences[:SHOWN]:
            table.add_row(*map(str, vars(difference).values()))
        console.print(table)
    if count > SHOWN:
        typer.echo(f"... and {count - SHOWN} more differences")
    for note in found.notes:
        typer.echo(f"note: {note}")
    typer.echo(
        f"{what}: {count} difference{'s' * (count != 1)} in {found.files} files "
        f"(tolerance {found.tolerance:g}, largest relative difference of two numbers {found.largest:.2g})"
    )
    return count


def _console() -> Console:
    """Text as it is: names and answers hold brackets."""
    from rich.console import Console

    return Console(markup=False, highlight=False)
