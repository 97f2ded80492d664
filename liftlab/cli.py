"""The command line: a thin layer on the library. Heavy modules are imported by the command that needs them."""

from __future__ import annotations

import os
import sys
import time
from importlib import metadata
from typing import Annotated

import typer

from liftlab import runner
from liftlab.parameters import assignments

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Profile = Annotated[str, typer.Option(help="A subfolder of papermill_runs.")]


@app.callback(invoke_without_command=True)
def liftlab(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False
) -> None:
    """Re-run, measure and question LIFT: a long document fine-tuned into a language model at test time."""
    if version:
        typer.echo(f"liftlab {metadata.version('liftlab')}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("list")
def list_notebooks() -> None:
    """Every notebook: its question, what it reproduces, its profiles and their last runs."""
    from rich.console import Console
    from rich.table import Table

    root = runner.root()
    table = Table("notebook", "question", "reproduces", "profile: last run", show_lines=True)
    for notebook in runner.notebooks(root):
        profiles = [name for name in runner.profiles(root) if notebook.name in runner.runs_under(root, name)]
        runs = "\n".join(f"{name}: {_told(runner.last_run(root, notebook.name, name))}" for name in profiles)
        table.add_row(notebook.name, notebook.question, notebook.reproduces, runs or "in no profile")
    Console(markup=False).print(table)


@app.command()
def run(
    names: Annotated[list[str] | None, typer.Argument(help="Notebooks; all of the profile if none is named.")] = None,
    profile: Profile = "micro",
    sets: Annotated[list[str] | None, typer.Option("--set", help="key=value, in place of the profile's.")] = None,
) -> None:
    """Execute notebooks under a profile; every parameter is checked before the first kernel starts."""
    root, given = runner.root(), assignments(sets or [])
    chosen = names or runner.runs_under(root, profile)
    if not chosen:
        raise runner.RunError(f"profile {profile!r} runs no notebook: papermill_runs/{profile} holds no NAME.yaml")
    for name in chosen:
        runner.parameters(root, name, profile, given)
    for name in chosen:
        start, clock = time.time(), time.perf_counter()
        runner.run(root, name, profile, given)
        typer.echo(f"{name} ({profile}): {time.perf_counter() - clock:.1f} s")
        for path in sorted((root / "figures" / profile).glob(f"{name}.*")):
            if path.stat().st_mtime >= start - 1:  # seconds; file systems round down
                typer.echo(f"  {path.relative_to(root)}")


@app.command()
def figures(profile: Profile = "micro") -> None:
    """Redraw every figure of a profile from its records, without a model."""
    root = runner.root()
    runner.runs_under(root, profile)  # an unknown profile is an error of its own
    tables = sorted((root / runner.RUNS / profile / "records").glob("*.csv"))
    if not tables:
        raise runner.RunError(f"profile {profile!r} has no records to draw: liftlab run --profile {profile}")
    from liftlab import plots, records

    for path in tables:
        if path.stem in plots.DRAWINGS:
            plots.save(path.stem, records.read(path)[0], root / "figures" / profile)
            typer.echo(f"figures/{profile}/{path.stem}.png .svg .csv")
        else:
            typer.echo(f"no drawing for {path.relative_to(root)}", err=True)


def main() -> None:
    """Console script. Exit code 0; 1 a notebook's cell failed; 2 a mistake in what was asked; 130 interrupted."""
    sys.exit(_status())


def _status() -> int:
    try:
        return app(standalone_mode=False) or 0
    except runner.NotebookFailed as error:
        return _complain(str(error), 1)
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError) as error:
        return _complain(str(error), 2)
    except Exception as error:
        if hasattr(error, "format_message"):  # typer's own: an unknown option, a missing argument
            return _complain(error.format_message(), 2)
        raise


def _complain(message: str, code: int) -> int:
    """One line on stderr."""
    typer.echo(f"liftlab: {' '.join(message.split())}", err=True)
    return code


def _told(last: runner.LastRun | None) -> str:
    if last is None:
        return "never run"
    return f"{last.status} {last.end[:16].replace('T', ' ')} UTC, {last.seconds:.0f} s"


if __name__ == "__main__":
    main()
