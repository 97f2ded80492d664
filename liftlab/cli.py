"""The command line: a thin layer on the library. Heavy modules are imported by the command that needs them."""

from __future__ import annotations

import os
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from liftlab import runner
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
    workers: Annotated[
        int,
        typer.Option(min=0, help="Processes side by side; 0: one a core, or one where there is a GPU."),
    ] = 0,
) -> None:
    """Execute notebooks under a profile; every parameter is checked before the first kernel starts."""
    if workers:
        os.environ[WORKERS] = str(workers)  # the kernels inherit it
    root, given = runner.root(), assignments(sets or [])
    chosen = names or runner.runs_under(root, profile)
    if not chosen:
        raise runner.RunError(f"profile {profile!r} runs no notebook: papermill_runs/{profile} holds no NAME.yaml")
    for name in chosen:
        runner.parameters(root, name, profile, given)
    passed = [_run_one(root, name, profile, given) for name in chosen]  # one failure does not stop a night's work
    if not all(passed):
        raise typer.Exit(1)


@app.command()
def figures(profile: Profile = "micro") -> None:
    """Redraw every figure of a profile from its records, without a model."""
    root = runner.root()
    runner.runs_under(root, profile)  # an unknown profile is an error of its own
    found = sorted((root / runner.RUNS / profile / "records").glob("*.csv"))
    if not found:
        raise runner.RunError(f"profile {profile!r} has no records to draw: liftlab run --profile {profile}")
    from liftlab import findings, plots, records, tables

    folder = root / runner.FIGURES / profile
    for path in found:
        if path.stem in plots.DRAWINGS:
            table = records.read(path)[0]
            plots.save(path.stem, table, folder)
            typer.echo(f"figures/{profile}/{path.stem}.png .svg .csv")
            if path.stem in tables.TABLES:
                tables.save(path.stem, folder)
                typer.echo(f"figures/{profile}/{path.stem}.md")
            if path.stem in findings.FINDINGS:
                findings.save(path.stem, table, folder)
                typer.echo(f"figures/{profile}/{path.stem}.findings.md")
        else:
            typer.echo(f"no drawing for {path.relative_to(root)}", err=True)


@app.command()
def lift(
    file: Annotated[Path, typer.Argument(help="The document: a UTF-8 text or Markdown file.")],
    out: Annotated[Path, typer.Option(help="The adapter's directory, which must not exist yet.")],
    title: Annotated[str | None, typer.Option(help="Heads the document; the file's name if not given.")] = None,
    model: Annotated[str, typer.Option(help="micro, smollm2, a hub id, a directory or a .gguf file.")] = "smollm2",
    pairs: Annotated[
        Path | None, typer.Option(help="JSONL with a question and an answer a line, trained on too.")
    ] = None,
    recipe: Annotated[str, typer.Option(help="A name in liftlab/paper/recipes.yaml; by default the model's own.")] = "",
    sets: Annotated[list[str] | None, typer.Option("--set", help="field=value, in place of the recipe's.")] = None,
) -> None:
    """Fine-tune a document into an adapter, kept as a PEFT adapter directory."""
    from liftlab import documents, examples, lifting, models
    from liftlab.recipes import chosen

    plan = chosen(recipe, model, assignments(sets or []))
    document = documents.read_text(file, title)
    known = examples.read_pairs(pairs) if pairs else []
    if out.exists():
        raise FileExistsError(f"{out} exists already: choose another --out, or remove it first")
    lifted = lifting.lift(models.load(model), document, plan, known)
    lifted.save(out)
    first, last = lifted.history[0], lifted.history[-1]
    told = f"{last.step} steps, {last.tokens} tokens, {last.seconds:.0f} s, loss {first.loss:.2f} to {last.loss:.2f}"
    typer.echo(f"{out}: {told}")


@app.command()
def ask(
    folder: Annotated[Path, typer.Argument(help="A directory that `liftlab lift` wrote.")],
    question: Annotated[str, typer.Argument(help="The question.")],
    context: Annotated[
        str, typer.Option(help="What of the document stands in the prompt: none or truncated.")
    ] = "none",
    answer_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the answer, at most.")] = 64,
) -> None:
    """Ask a lifted document."""
    from liftlab import models, prompts
    from liftlab.answering import answer
    from liftlab.lifted import Lifted

    if context not in ("none", "truncated"):
        raise ValueError(f"--context {context!r} is unknown: choose none or truncated")
    if not question.strip():
        raise ValueError("the question is empty: ask something")
    lifted = Lifted.load(folder)
    style = prompts.style(lifted.recipe.style)
    with lifted.on(models.load(lifted.base["name"])) as base:
        typer.echo(answer(base, lifted.document, [question], context, answer_tokens=answer_tokens, style=style)[0])


def main() -> None:
    """Console script. Exit code 0; 1 a notebook's cell failed; 2 a mistake in what was asked; 130 interrupted."""
    sys.exit(_status())


def _status() -> int:
    try:
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


def _run_one(root: Path, name: str, profile: str, given: dict[str, str]) -> bool:
    """Execute one notebook and print what it wrote; False, and a line on stderr, if a cell failed."""
    start, clock = time.time(), time.perf_counter()
    try:
        runner.run(root, name, profile, given)
    except runner.NotebookFailed as error:
        return not _complain(str(error), 1)
    typer.echo(f"{name} ({profile}): {time.perf_counter() - clock:.1f} s")
    for path in sorted((root / runner.FIGURES / profile).glob(f"{name}.*")):
        if path.stat().st_mtime >= start - 1:  # seconds; some file systems round
            typer.echo(f"  {path.relative_to(root)}")
    return True


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
