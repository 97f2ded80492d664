"""What is compared in each notebook's records: the pairs of numbers of its documents, and sentences without a test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pandas as pd

from liftlab.canvas import PlotError, by_document, last_step
from liftlab.companion_points import CANNOT, accuracies, measured_rows
from liftlab.companion_points import LABELS as METHODS
from liftlab.context_plots import ANSWERS, GATES, POSITIONS, length_label
from liftlab.evaluation_plots import SCORE_LABELS, condition_label
from liftlab.evaluation_points import measured_scores
from liftlab.many_documents_plots import SHARED, answers, values
from liftlab.probe_plots import (
    ADAPTERS,
    BITS,
    CLOSED_BOOK,
    CONTROLS,
    FACTS,
    KNOWN,
    RECITED,
    TRACES,
    adapters_in,
    checked,
    chosen,
    ratio_label,
)

PUBLISHED = 3 / 8  # offset / segment length


@dataclass(frozen=True)
class Comparison:
    """a - b over the documents that have both: values by document, in one unit. `who`: the adapter, or ""."""

    what: str
    who: str
    a: pd.Series
    b: pd.Series

    @property
    def documents(self) -> int:
        return len(self.a.index.intersection(self.b.index))


Said = tuple[list[Comparison], list[str]]  # comparisons, those of one sentence side by side; sentences without a test


def counted(count: int) -> str:
    """The number of documents in words."""
    return f"{count} document" + "s" * (count != 1)


def memorization_vs_icl(records: pd.DataFrame) -> Said:
    """Facts, two hops, the wrong document, the original ability, and text beyond facts; all at the last step."""
    rows = checked(records, "exact_match", ["adapter", "step", "context", "wording", "hops"], CONTROLS)
    rows = last_step(rows, ["condition", "adapter"])
    held_out, two, unseen = CLOSED_BOOK["held_out"], CLOSED_BOOK["two_hops"], TRACES["in_context"]["unseen_document"]
    wanted = [
        ("Closed book, held-out wordings, lift minus base", held_out, "lift"),
        ("Closed book, two hops, lift minus base", two, "lift"),
        ("Control, closed book, held-out wordings, lift of another document minus base", held_out, "other_document"),
        ("An unseen document in context, lift minus base", unseen, "lift"),
    ]
    found = [Comparison(what, ADAPTERS[adapter], _values(rows, line, condition, adapter), _values(rows, line, "base"))
             for what, line, condition in wanted for adapter in adapters_in(rows)]  # fmt: skip
    for adapter in adapters_in(rows):
        document, paraphrase = (_values(rows, BITS[text], "base") - _values(rows, BITS[text], "lift", adapter)
                                for text in ("document", "paraphrase"))  # fmt: skip
        what = "Bits a token saved on the document minus bits saved on its paraphrase"
        found.append(Comparison(what, ADAPTERS[adapter], document.dropna(), paraphrase.dropna()))
    return found, []


def conflict(records: pd.DataFrame) -> Said:
    """What is answered from at the last step, the wrong document, the gates, and how many questions do not apply."""
    rows = checked(records, "answered_from", ["adapter", "step", "source"], CONTROLS)
    rows = last_step(rows, ["condition", "adapter"])
    wanted = [
        ("Answered from memory, lift minus base", "memory", "lift"),
        ("Answered from the context, lift minus base", "context", "lift"),
        ("Control, answered from the context, lift of another document minus base", "context", "other_document"),
    ]
    found = [Comparison(what, ADAPTERS[name], _values(rows, ANSWERS[source], condition, name),
                        _values(rows, ANSWERS[source], "base"))
             for what, source, condition in wanted for name in adapters_in(rows)]  # fmt: skip
    for adapter in adapters_in(rows[rows["metric"] == "gate"]):
        memory, context = (_values(rows, GATES[source], "lift", adapter) for source in ("memory", "context"))
        what = "Gate at the answer, answered from memory minus answered from the context"
        found.append(Comparison(what, ADAPTERS[adapter], memory, context))
    left = _values(rows, ("", "not_applicable", {}), "base")
    said = f"{left.mean():.1f} questions a document ({counted(len(left))}) cannot be put against their context."
    return found, [said] if len(left) else []


def evidence_position(records: pd.DataFrame) -> Said:
    """At the longest documents: what is kept by truncation against what is dropped, and the wrong document."""
    columns = ["windows", "would_be", "wording", "hops"]
    rows = chosen(checked(records, "exact_match", columns, [*POSITIONS, "chance"]), "exact_match", FACTS)
    rows = rows[rows["windows"] == rows["windows"].max()]
    places = {"dropped": ["middle"], "kept": ["head", "tail"], "all": sorted(rows["would_be"].unique())}

    def at(condition: str, place: str) -> pd.Series:
        return _values(rows[rows["would_be"].isin(places[place])], ("", "exact_match", {}), condition)

    wanted = [
        ("LIFT, closed book, evidence that truncation drops minus evidence that it keeps", "lift", "dropped", "kept"),
        ("Truncated ICL, evidence dropped minus kept", "truncated_icl", "dropped", "kept"),
    ]
    found = [Comparison(what, "", at(name, first), at(name, second)) for what, name, first, second in wanted]
    for what, first, second, place in [
        ("Evidence dropped, LIFT closed book minus truncated ICL", "lift", "truncated_icl", "dropped"),
        ("Evidence kept, LIFT + truncated ICL minus truncated ICL", "lift_truncated_icl", "truncated_icl", "kept"),
        ("Control, all evidence, LIFT of another document minus base, closed book", "other_document", "closed_book",
         "all"),
    ]:  # fmt: skip
        found.append(Comparison(what, "", at(first, place), at(second, place)))
    return [Comparison(f"{c.what} ({length_label(rows['windows'].max())})", *(c.who, c.a, c.b)) for c in found], []


def segment_offset(records: pd.DataFrame) -> Said:
    """The published offset against the largest one, and against the base model; the wrong document; trained tokens."""
    rows = checked(records, "exact_match", ["adapter", "ratio", "wording", "hops"], CONTROLS)
    ratios = sorted(set(rows.loc[rows["condition"] == "lift", "ratio"].dropna()))
    if PUBLISHED not in ratios or len(ratios) < 2:
        raise PlotError(f"records hold the ratios {ratios}: findings compare 0.375 with a larger or another one")
    largest = [ratio for ratio in ratios if ratio != PUBLISHED][-1]
    small, large = (rows[rows["ratio"] == ratio] for ratio in (PUBLISHED, largest))
    against = f"offset {ratio_label(PUBLISHED)} minus {ratio_label(largest)} of a segment"
    wanted = [
        (f"Closed book, held-out wordings, {against}", KNOWN["held_out"], small, large),
        (f"Tokens recited from a segment's middle, {against}", RECITED["segment_middle"], small, large),
    ]
    present = adapters_in(rows)
    found = [Comparison(what, ADAPTERS[name], *(_values(part, line, "lift", name) for part in (a, b)))
             for what, line, a, b in wanted for name in present]  # fmt: skip
    for what, condition in (("lift at 3/8", "lift"), ("control, lift of another document", "other_document")):
        base = _values(rows, KNOWN["held_out"], "base")
        found += [Comparison(f"Closed book, held-out wordings, {what} minus base", ADAPTERS[name],
                             _values(small, KNOWN["held_out"], condition, name), base) for name in present]  # fmt: skip
    return found, [_tokens({ratio_label(PUBLISHED): small, ratio_label(largest): large}, present)]


def companions(records: pd.DataFrame) -> Said:
    """At each length, LIFT closed book against every other method in accuracy; and what could not run."""
    rows = measured_rows(records)
    found, means, plain = [], accuracies(rows), []
    for length, part in means.groupby("windows"):
        of = {name: values.set_index("document")["value"] for name, values in part.groupby("condition")}
        if "lift" not in of:
            raise PlotError(f"records hold no answers of lift at {length_label(length)}: findings compare it with all")
        what = f"Accuracy at {length_label(length)}, LIFT closed book minus"
        found += [Comparison(what, METHODS[name], of["lift"], of[name])
                  for name in METHODS if name in of and name != "lift"]  # fmt: skip
    for (name, reason), part in rows[rows["metric"] == CANNOT].groupby(["condition", "reason"]):
        counts = part.groupby("windows")["document"].nunique()
        at = [f"{counted(count)} of {length_label(length)}" for length, count in counts.items()]
        plain.append(f"{METHODS[name]} cannot run on {', '.join(at)}: {reason}.")
    return found, plain


def _tokens(parts: dict[str, pd.DataFrame], adapters: list[str]) -> str:
    """How equal the tokens are that the two offsets were trained on."""
    means = {(name, label): _values(rows, ("", "trained_tokens", {}), "lift", name).mean()
             for name in adapters for label, rows in parts.items()}  # fmt: skip
    said = [f"{ADAPTERS[name]} {mean:,.0f} at {label}" for (name, label), mean in means.items()]
    return f"Tokens trained on, mean over documents: {', '.join(said)}."


def _values(rows: pd.DataFrame, line: tuple, condition: str, adapter: str | None = None) -> pd.Series:
    """The line's value of each document (see `by_document`); `adapter` None: whatever it is."""
    _, metric, values = line
    found = chosen(rows, metric, values)
    found = found[found["condition"] == condition]
    if adapter is not None:
        found = found[found["adapter"] == adapter]
    return by_document(found, []).set_index("document")["value"]


def many_documents(records: pd.DataFrame) -> Said:
    """Each way of having several documents in one adapter against an adapter each; the wrong route; the base model."""
    rows = by_document(answers(records), ["condition", "together"])
    sizes = sorted(size for size in rows["together"].unique() if size > 1)
    merged = [name for name in SHARED if name in rows["condition"].unique() and name != "routed"]
    found = [Comparison(f"An adapter each minus {SHARED[name]}", f"{size} documents", values(rows, "routed", size),
                        values(rows, name, size)) for name in merged for size in sizes]  # fmt: skip
    largest = sizes[-1]
    for what, first, second in [
        ("Cost of the wrong route, own adapter minus another document's", "routed", "routed_wrong"),
        ("One adapter trained on all minus base, closed book", "joint", "closed_book"),
    ]:
        other = values(rows, second, 0 if second == "closed_book" else largest)
        found.append(Comparison(what, f"{largest} documents", values(rows, first, largest), other))
    return found, ["What is averaged and tested is a group of documents; the counts of documents at p are of groups."]


CONTRASTS = {  # notebook: (condition, minus which other)
    "table_loogle": [("lift_truncated_icl", "truncated_icl"), ("lift", "truncated_icl")],
    "table_longbench": [("lift_truncated_icl", "truncated_icl"), ("lift", "truncated_icl")],
    "ablation_contextualized": [("lift_with_contextualized_training", "lift_without_contextualized_training")],
    "ablation_auxiliary": [
        ("lift_10_auxiliary_qa", "lift_0_auxiliary_qa"),
        ("lift_30_auxiliary_qa", "lift_10_auxiliary_qa"),
    ],
    "ablation_adapter": [("lift_gated_memory", "lift_pissa"), ("gated_memory_matched_steps", "pissa_matched_steps")],
    "needle": [("lift", "finetune_raw"), ("lift", "truncated_icl")],
    "sentence_qa": [("lift_more_pairs", "finetune_raw"), ("lift_more_pairs", "truncated_icl")],
    "prompt_format": [
        ("truncated_icl_chat", "truncated_icl_raw"),
        ("lift_truncated_icl_raw", "truncated_icl_raw"),
        ("lift_truncated_icl_chat", "truncated_icl_chat"),
    ],
    "evidence_in_prompt": [
        ("truncated_icl_evidence", "truncated_icl"),
        ("lift_truncated_icl", "truncated_icl"),
        ("truncated_icl_evidence", "lift_truncated_icl"),
    ],
    "pre_lift_sft": [
        ("sft_truncated_icl", "truncated_icl"),
        ("sft_lift_truncated_icl", "lift_truncated_icl"),
        ("sft_lift_auxiliary_truncated_icl", "lift_auxiliary_truncated_icl"),
        ("lift_auxiliary_truncated_icl", "truncated_icl"),
        ("sft_lift_auxiliary_truncated_icl", "truncated_icl"),
    ],
    "timeline": [
        ("lift_timeline_tasks", "lift"),
        ("lift_timeline_tasks", "truncated_icl"),
        ("lift_timeline_tasks_truncated_icl", "lift_truncated_icl"),
        ("lift_timeline_tasks_truncated_icl", "truncated_icl"),
    ],
}


def contrasts(notebook: str, records: pd.DataFrame) -> Said:
    """The notebook's conditions against each other in its first score, one comparison a question type."""
    rows = measured_scores(records)
    score = rows["metric"].iloc[0]
    rows = rows.loc[rows["metric"] == score, ["kind", "condition", "document", "seed", "value"]]
    if notebook == "needle":
        rows = rows.assign(kind="all")
    kinds, means = list(rows["kind"].unique()), by_document(rows, ["kind", "condition"])
    found = []
    for first, second in CONTRASTS[notebook]:
        what = f"{condition_label(first)} minus {condition_label(second)}, {SCORE_LABELS.get(score, score)}"
        for kind in kinds:
            part = means[means["kind"] == kind]
            sides = [part[part["condition"] == name].set_index("document")["value"] for name in (first, second)]
            found.append(Comparison(what, kind.replace("_", " "), *sides))
    return found, []


FINDINGS: dict[str, Callable[[pd.DataFrame], Said]] = {
    **{name: partial(contrasts, name) for name in CONTRASTS},
    "memorization_vs_icl": memorization_vs_icl,
    "conflict": conflict,
    "evidence_position": evidence_position,
    "segment_offset": segment_offset,
    "many_documents": many_documents,
    "companions": companions,
}
