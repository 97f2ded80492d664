"""`liftlab bench`: the authors' loop, liftlab's one by one, and many documents at once, side by side in one run."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from liftlab import runner
from liftlab.parameters import assignments

if TYPE_CHECKING:
    import pandas as pd

    from liftlab.recipes import Recipe

WINDOWS = 1.25  # --windows where --tokens is not given
PLAIN = re.compile(r"[A-Za-z0-9_-]+")


def bench(
    base: Annotated[str, typer.Option(help="micro, smollm2, a hub id, a directory or a .gguf file.")] = "micro",
    documents: Annotated[int, typer.Option(help="Registers lifted in each way and round.")] = 16,
    windows: Annotated[
        float | None, typer.Option(help=f"Length of a document in windows of the base model; {WINDOWS} if not given.")
    ] = None,
    tokens: Annotated[int | None, typer.Option(help="Its length in tokens instead.")] = None,
    pairs: Annotated[int | None, typer.Option(help="Pairs a document, at most; all if not given.")] = None,
    recipe: Annotated[
        str,
        typer.Option(
            help="A name in liftlab/paper/recipes.yaml, as it stands; by default the model's own with the batches of "
            "2502.14644v4: pairs alone, four a batch."
        ),
    ] = "",
    sets: Annotated[list[str] | None, typer.Option("--set", help="field=value, in place of the recipe's.")] = None,
    rounds: Annotated[int, typer.Option(help="Rounds that count, after one that does not.")] = 5,
    at_once: Annotated[
        str, typer.Option(metavar="N,N", help="Documents stacked; 1 is one by one, always measured.")
    ] = "1,4,16",
    reference: Annotated[
        bool, typer.Option("--reference/--no-reference", help="Measure the authors' loop too.")
    ] = True,
    reference_documents: Annotated[
        int | None, typer.Option(help="Documents that the authors' loop lifts; all if not given.")
    ] = None,
    memory: Annotated[float, typer.Option(help="GiB for stacked documents, beside the base model.")] = 4.0,
    processes: Annotated[
        bool, typer.Option("--processes", help="Stack also in as many processes as there are cores (no GPU).")
    ] = False,
    profile: Annotated[str, typer.Option(help="A subfolder of papermill_runs and figures.")] = "micro_timed",
    name: Annotated[str, typer.Option(help="Names the records and the table.")] = "bench",
) -> None:
    """Documents an hour: the authors' loop, liftlab's one by one, and many at once, in turn round by round."""
    root = runner.root()
    records = _records(root, profile, name)
    lengths = _length(windows, tokens) | {"pairs": _counted("--pairs", pairs)}
    if not reference and reference_documents is not None:
        raise ValueError("--reference-documents is for the authors' loop, which --no-reference leaves out: drop one")
    from liftlab.studies import bench as study

    comparison = study.Comparison(
        base=base,
        recipe=_recipe(recipe, base, assignments(sets or [])),
        documents=documents,
        **lengths,
        rounds=rounds,
        at_once=_sizes(at_once),
        reference_documents=_reference_documents(reference, reference_documents, documents),
        memory_gib=memory,
        processes=processes,
    )
    measured = study.run(comparison, records, shlex.join(["liftlab", *sys.argv[1:]]))
    from liftlab import bench_tables

    _print(bench_tables.save(measured, root / runner.FIGURES / profile / name), base)
    typer.echo(f"figures/{profile}/{name}.md .csv\n{records.relative_to(root)}")


def _records(root: Path, profile: str, name: str) -> Path:
    """Where the records go; ValueError for a name that is no plain one, or a notebook's."""
    for option, word in (("--profile", profile), ("--name", name)):
        if not PLAIN.fullmatch(word):
            raise ValueError(f"{option} {word!r}: give a plain name of letters, digits, _ and -")
    if name in {known.name for known in runner.notebooks(root)}:
        raise ValueError(f"--name {name!r} is a notebook's, whose records it would replace: choose another")
    return root / runner.RUNS / profile / "records" / f"{name}.csv"


def _length(windows: float | None, tokens: int | None) -> dict[str, float]:
    if windows is not None and tokens is not None:
        raise ValueError(f"--windows {windows:g} and --tokens {tokens} both give the documents' length: give one")
    return {"windows": WINDOWS if windows is None else windows, "tokens": _counted("--tokens", tokens)}


def _counted(option: str, value: int | None) -> int:
    """0 where it is not given; ValueError below 1."""
    if value is not None and value < 1:
        raise ValueError(f"{option} {value}: must be at least 1")
    return value or 0


def _sizes(words: str) -> tuple[int, ...]:
    parts = [part.strip() for part in words.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"--at-once {words!r}: give whole numbers with commas between them, such as 1,4,16")
    return tuple(map(int, parts))


def _reference_documents(wanted: bool, count: int | None, documents: int) -> int:
    if not wanted:
        return 0
    return documents if count is None else _counted("--reference-documents", count)


def _recipe(name: str, base: str, changes: dict[str, str]) -> Recipe:
    """The named recipe, or the base model's own in the style of 2502.14644v4; both with `changes`."""
    from liftlab.recipes import chosen
    from liftlab.studies.bench import v4_style

    return chosen(name, base, changes if name else v4_style() | changes)


def _print(table: pd.DataFrame, base: str) -> None:
    """What fits a terminal; the files hold the rest."""
    from rich.console import Console
    from rich.table import Table

    shown = table.drop(columns=["documents", "loading counted", "rounds"])
    printed = Table(*shown.columns, title=f"{base}, {table['rounds'].max()} rounds", show_lines=True)
    for row in shown.itertuples(index=False):
        printed.add_row(*map(str, row))
    Console(markup=False).print(printed)
