"""The papers' claims against our records: published difference, ours with interval and n, and a verdict."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
import yaml
from matplotlib.figure import Figure

from liftlab import published, records
from liftlab.canvas import PlotError, by_document, noted, only, worked
from liftlab.evaluation_plots import condition_label
from liftlab.evaluation_points import LONG_QA, SHARE, measured_scores, published_task
from liftlab.findings import signed
from liftlab.plots import STYLE, write_figure
from liftlab.records import replace_file
from liftlab.statistics import paired_test
from liftlab.tables import markdown

SUPPORTED, NOT_SUPPORTED, OPPOSITE, UNTESTED = (
    "supported", "not supported", "not supported, the opposite holds", "not tested at this scale",
)  # fmt: skip
COLUMNS = ["claim", "version", "notebook", "kind", "a", "b", "published_a", "published_b", "published_difference",
           "score", "base_model", "difference", "low", "high", "p", "documents", "verdict", "why"]  # fmt: skip
LEAST = 2  # documents that an interval needs
ALL = "all"  # questions of every type, such as every place of a needle


@dataclass(frozen=True)
class Scores:
    """What one notebook recorded of its first score: means by kind, condition and document, none without a score."""

    base_model: str
    score: str
    means: pd.DataFrame  # of kind `ALL` too
    failed: str  # how many of its cells failed, "" for none


def against(folder: str | Path) -> pd.DataFrame:
    """Columns `COLUMNS`, a row a test of each claim, from the record files NAME.csv in `folder`.

    Differences are a - b, such that the claim says "above 0"; ours 0..1 with the 95 % interval and the sign-flip p over
    documents (uncorrected), published ones in percent. "supported": the interval lies above 0; "not supported": it does
    not; "not tested at this scale": no records, or fewer than two documents, and `why` says which.
    """
    return _against(_scores_in(Path(folder)))


def _against(known: dict[str, Scores]) -> pd.DataFrame:
    rows = [_row(claim, test, known) for claim in _claims() for test in claim.get("tests", [None])]
    return pd.DataFrame(rows, columns=COLUMNS).astype({"documents": "Int64"})


def _scores_in(folder: Path) -> dict[str, Scores]:
    """What each notebook of a claim recorded, those that have run."""
    paths = {name: folder / f"{name}.csv" for name in sorted(notebooks())}
    return {name: _scores(*records.read(path)) for name, path in paths.items() if path.is_file()}


def _scores(table: pd.DataFrame, provenance: dict) -> Scores:
    rows, failed = worked(table, len(provenance.get("grid", [])) or None)
    base = only(rows, "base_model")
    if not ((rows["unit"] == SHARE) & (rows["condition"] != "chance")).any():
        return Scores(base, "", rows.iloc[:0], failed)
    rows = measured_scores(rows)
    score = rows["metric"].iloc[0]
    rows = rows.loc[rows["metric"] == score, ["kind", "condition", "document", "seed", "value"]]
    parts = [rows, rows[rows["kind"] != LONG_QA].assign(kind=ALL)]
    means = by_document(pd.concat(parts, ignore_index=True), ["kind", "condition"])
    return Scores(base, score, means, failed)


def notebooks() -> set[str]:
    """The notebooks whose records are compared with a claim."""
    return {test["notebook"] for claim in _claims() for test in claim.get("tests", [])}


@cache
def _claims() -> list[dict]:
    return yaml.safe_load(files("liftlab").joinpath("paper/claims.yaml").read_text("utf-8"))


def _row(claim: dict, test: dict | None, known: dict[str, Scores]) -> dict:
    told = {"claim": claim["claim"], "version": claim["version"], "verdict": UNTESTED}
    if test is None:
        return {**told, "why": claim["untested"]}
    told |= {name: test[name] for name in ("notebook", "kind", "a", "b")} | _printed(claim["version"], test)
    if test["notebook"] not in known:
        return {**told, "why": "its notebook has not run"}
    return told | _measured(known[test["notebook"]], test)


def _printed(version: str, test: dict) -> dict:
    """The published numbers of both sides, percent: Llama-3's, and over a grid's cells their mean."""
    said = test.get("published")
    if said is None:
        return {}
    rows = published.numbers()
    rows = rows[(rows["version"] == version) & (rows["item"] == said["item"]) & rows["model"].str.startswith("Llama-3")]
    rows = rows[rows["metric"] == said["metric"]] if "metric" in said else rows
    rows = rows[rows["task"].map(published_task) == test["kind"]] if test["kind"] != ALL else rows
    a, b = (rows.loc[rows["method"] == said.get(side, test[side]), "value"].mean() for side in "ab")
    if pd.isna(a) or pd.isna(b):
        raise PlotError(f"published.csv has no {said} of {version} for {test['kind']}: correct paper/claims.yaml")
    return {"published_a": a, "published_b": b, "published_difference": a - b}


def _measured(scores: Scores, test: dict) -> dict:
    """Our difference over documents in the notebook's first score."""
    known, means = {"base_model": scores.base_model}, scores.means
    if means.empty:
        return known | {"why": "its records hold no score of a question"}
    means = means[means["kind"] == test["kind"]]
    sides = [means[means["condition"] == test[side]].set_index("document")["value"] for side in "ab"]
    both = len(sides[0].index.intersection(sides[1].index))
    known |= {"score": scores.score, "documents": both}
    if both < LEAST:
        missing = [test[side] for side, values in zip("ab", sides, strict=True) if values.empty]
        return known | {"why": f"no {missing[0]} of this type" if missing else f"documents with both: {both}"}
    if all((values == 0).all() for values in sides):
        return known | {"why": "neither condition answers any question of this type"}
    found = paired_test(*sides)
    verdict = SUPPORTED if found.low > 0 else OPPOSITE if found.high < 0 else NOT_SUPPORTED
    return known | {"difference": found.difference, "low": found.low, "high": found.high, "p": found.p,
                    "verdict": verdict, "why": ""}  # fmt: skip


def save(folder: str | Path, figures: str | Path) -> tuple[Figure, pd.DataFrame]:
    """Compare, and write `figures`/claims .csv, .md, .png and .svg; the figure and the table as a reader sees it."""
    known = _scores_in(Path(folder))
    data, failed = _against(known), "; ".join(f"{name}: {of.failed}" for name, of in known.items() if of.failed)
    with mpl.rc_context(STYLE):
        figure = draw(data)
    shown = table(data)
    write_figure(figure, data, Path(figures) / "claims", failed, wide=True)
    replace_file(Path(figures) / "claims.md", noted(markdown(shown), failed).encode("utf-8"))
    return figure, shown


def table(data: pd.DataFrame) -> pd.DataFrame:
    """The comparison in words: a row a test, the claim named once."""
    first = ~data["claim"].duplicated()
    tested = data["difference"].notna()
    shown = pd.DataFrame({
        "claim": data["claim"].where(first, ""),
        "version": data["version"].where(first, ""),
        "notebook": data["notebook"].fillna("-"),
        "questions": data["kind"].fillna("-").str.replace("_", " "),
        "difference": [f"{condition_label(a)} minus {condition_label(b)}" if isinstance(a, str) else "-"
                       for a, b in zip(data["a"], data["b"], strict=True)],
        "published, percent": [signed(d) if pd.notna(d) else "-" for d in data["published_difference"]],
        "ours, 0..1": [f"{signed(r.difference)} [{signed(r.low)}, {signed(r.high)}]" if t else "-"
                 for t, r in zip(tested, data.itertuples(), strict=True)],
        "n": [f"{n:.0f} documents" if pd.notna(n) else "-" for n in data["documents"]],
        "p": [f"{p:.2g}" if pd.notna(p) else "-" for p in data["p"]],
        "scale": [f"{m}, {s}" if isinstance(m, str) else "-"
                  for m, s in zip(data["base_model"], data["score"], strict=True)],
        "verdict": [f"{v} ({w})" if w else v for v, w in zip(data["verdict"], data["why"].fillna(""), strict=True)],
    })  # fmt: skip
    return shown


def draw(data: pd.DataFrame) -> Figure:
    """Our differences with their intervals, a row a test; open diamonds are the published ones, as shares."""
    rows = data[data["difference"].notna()].iloc[::-1].reset_index(drop=True)
    if rows.empty:
        raise PlotError("no claim could be tested: run the evaluation's notebooks of this profile first")
    figure, axis = plt.subplots(figsize=(9.5, 0.3 * len(rows) + 1.6), layout="constrained")  # inches
    colours = {SUPPORTED: "C2", NOT_SUPPORTED: "0.5", OPPOSITE: "C3"}
    for verdict, colour in colours.items():
        part = rows[rows["verdict"] == verdict]
        reach = [(part["difference"] - part["low"]).clip(lower=0), (part["high"] - part["difference"]).clip(lower=0)]
        axis.errorbar(part["difference"], part.index, xerr=reach, fmt="o", color=colour, capsize=2, label=verdict)
    axis.plot(rows["published_difference"] / 100, rows.index, "d", color="black", markerfacecolor="none",
              label="published (another scale)")  # fmt: skip
    axis.axvline(0, color="0.3", linewidth=0.8)
    names = [f"{r.notebook}, {r.kind.replace('_', ' ')}: {condition_label(r.a)} - {condition_label(r.b)}"
             for r in rows.itertuples()]  # fmt: skip
    axis.set_yticks(rows.index, names, fontsize="x-small")
    axis.set_xlabel("difference in score, above 0 as claimed")
    models = ", ".join(dict.fromkeys(rows["base_model"]))
    figure.suptitle(f"{models}: the papers' claims, 95 % intervals over documents", fontsize="medium")
    figure.legend(loc="outside lower center", ncols=4, fontsize="small")
    return figure
