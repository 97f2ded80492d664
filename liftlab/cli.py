"""The command line: a thin layer on the library. Heavy modules are imported by the command that needs them."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from liftlab import cli_bench, cli_lift, cli_status, cli_verify, drawing, progress, runner
from liftlab.bounds import check_environment
from liftlab.documents import shown
from liftlab.parameters import assignments

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
WORKERS = "LIFTLAB_WORKERS"  # read by liftlab.cells
INTERRUPTED = 130  # exit code of a program stopped by Ctrl-C
Profile = Annotated[str, typer.Option(help="A subfolder of papermill_runs.")]


@app.callback(invoke_without_command=True)
def liftlab(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False
) -> None:
    """Re-run, measure and question LIFT: a long document fine-tuned into a language model at test time."""
    if version:
        from importlib import metadata

        typer.echo(f"liftlab {metadata.version('liftlab')}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("list")
def list_notebooks() -> None:
    """Every notebook: its question, what it reproduces, its last runs; then everything published and who re-runs it."""
    from rich.console import Console
    from rich.table import Column, Table

    from liftlab import published

    root = runner.root()
    whole = {"overflow": "fold"}  # a name cut short cannot be typed
    table = Table(Column("notebook", **whole), "question", "reproduces", "profile: last run", show_lines=True)
    for notebook in runner.notebooks(root):
        profiles = [name for name in runner.profiles(root) if notebook.name in runner.runs_under(root, name)]
        runs = "\n".join(f"{name}: {_told(runner.last_run(root, notebook.name, name))}" for name in profiles)
        table.add_row(notebook.name, notebook.question, notebook.reproduces, runs or "in no profile")
    why = Column("notebook, or why there is none", **whole)
    printed = Table("version", Column("item", **whole), "published", why, show_lines=True)
    for item in published.items():
        printed.add_row(item.version, item.item, item.title, item.told)
    console = Console(markup=False)
    console.print(table, printed)
    for profile in runner.profiles(root):
        if first := runner.first_of(root, profile):
            console.print(f"{profile} runs first, in this order: {', '.join(first)}")


@app.command()
def run(
    names: Annotated[list[str] | None, typer.Argument(help="Notebooks; all of the profile if none is named.")] = None,
    profile: Profile = "micro",
    sets: Annotated[list[str] | None, typer.Option("--set", help="key=value, in place of the profile's.")] = None,
    workers: Annotated[
        int,
        typer.Option(min=0, help="Notebooks or cells side by side; 0: one a core, or one where there is a GPU."),
    ] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Estimate what it takes, execute nothing.")] = False,
) -> None:
    """Execute notebooks under a profile; every parameter is checked before the first kernel starts."""
    check_environment()
    root, given = runner.root(), assignments(sets or [])
    chosen = names or runner.runs_under(root, profile)
    if not chosen:
        raise runner.RunError(f"profile {profile!r} runs no notebook: papermill_runs/{profile} holds no NAME.yaml")
    asked = {name: runner.parameters(root, name, profile, given) for name in chosen}
    if dry_run:
        raise typer.Exit(0 if _estimated(asked) else 1)
    if len(asked) == 1:
        if workers:
            os.environ[WORKERS] = str(workers)  # the kernel inherits it
        raise typer.Exit(0 if _run_one(root, chosen[0], profile, given) else 1)
    from liftlab import cells, side_by_side

    raise typer.Exit(side_by_side.run(root, profile, asked, given, workers or cells.workers()))


@app.command()
def figures(profile: Profile = "micro") -> None:
    """Redraw every figure of a profile from its records, without a model, one process a core."""
    root = runner.root()
    names = runner.runs_under(root, profile)  # an unknown profile is an error of its own
    found = sorted((root / runner.RUNS / profile / "records").glob("*.csv"))
    if not found:
        raise runner.RunError(f"profile {profile!r} has no records to draw: liftlab run --profile {profile}")
    written_by, compared = drawing.redrawn(found, root / runner.FIGURES / profile, "claims" in names)
    for path, written in zip(found, written_by, strict=True):
        for files in written:
            typer.echo(f"figures/{profile}/{files}")
        if not written:
            typer.echo(f"no drawing for {path.relative_to(root)}", err=True)
    for files in compared:
        typer.echo(f"figures/{profile}/{files}")


app.command()(cli_lift.lift)
app.command()(cli_lift.ask)
app.command()(cli_bench.bench)
app.command()(cli_status.status)
app.command()(cli_verify.provenance)
app.command()(cli_verify.verify)


def main() -> None:
    """Console script. Exit code 0; 1 a notebook failed or would; 2 a mistake in what was asked; 130 interrupted."""
    sys.exit(_status())


def _status() -> int:
    try:
        with _stopped_by_signals():
            code = app(standalone_mode=False) or 0
        return _complain("interrupted; finished cells are kept", code) if code == INTERRUPTED else code
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, FloatingPointError) as error:  # the last: a lift that diverged
        return _complain(str(error), 2)
    except Exception as error:
        if hasattr(error, "format_message"):  # typer's own: an unknown option, a missing argument
            return _complain(error.format_message(), 2)
        raise


def _estimated(asked: dict[str, dict[str, Any]]) -> bool:
    """Print what each notebook would take, once all are known; False where one would stop."""
    from liftlab.evaluation_plots import NOTEBOOKS
    from liftlab.studies import dry_run

    known = {name: dry_run.of(values) for name, values in asked.items() if name in (*NOTEBOOKS, "needle")}
    others = {name: dry_run.configured(values) for name, values in asked.items() if name not in known}
    for name in asked:
        typer.echo(f"{name}\n{known[name].text}\n" if name in known else f"{name}: {others[name]}\n")
    if len(known) > 1:
        typer.echo(dry_run.total([*known.values()]))
    return not any(estimate.problems for estimate in known.values())


def _run_one(root: Path, name: str, profile: str, given: dict[str, str]) -> bool:
    """Execute one notebook and print what it wrote; False, and a line on stderr, if a cell failed."""
    start, clock = time.time(), time.perf_counter()
    try:
        with progress.alone(root, name, profile, given):
            runner.run(root, name, profile, given)
    except runner.NotebookFailed as error:
        return not _complain(str(error), 1)
    typer.echo(f"{name} ({profile}): {time.perf_counter() - clock:.1f} s")
    for path in sorted((root / runner.FIGURES / profile).glob(f"{name}.*")):
        if path.stat().st_mtime >= start - 1:  # seconds; some file systems round
            typer.echo(f"  {path.relative_to(root)}")
    return True


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """A batch system's SIGTERM and a closed terminal's SIGHUP stop a run as Ctrl-C does: no kernel stays behind."""
    known = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    taken = [number for number in known if signal.getsignal(number) == signal.SIG_DFL]  # nohup ignores SIGHUP
    for number in taken:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _complain(message: str, code: int) -> int:
    """One line on stderr; what a terminal would act on is escaped."""
    typer.echo(f"liftlab: {shown(' '.join(message.split()))}", err=True)
    return code


def _told(last: runner.LastRun | None) -> str:
    if last is None:
        return "never run"
    return f"{last.status} {last.end[:16].replace('T', ' ')} UTC, {last.seconds:.0f} s"


if __name__ == "__main__":
    main()
