"""What the records say: every number from the records, hedged where the interval holds zero."""

import re

import numpy as np
import pandas as pd
import pytest
from test_probe_plots import (
    PROBES,
    conflict_records,
    memorization_records,
    offset_records,
    position_records,
    table_of,
)

from liftlab import comparisons, findings
from liftlab.canvas import PlotError
from liftlab.statistics import holm, minimum_detectable_effect, paired_test

DIFFERENCES = (0.9, 0.8, 0.7, 1.0, 0.9, 0.8)  # mean 0.85, by document


def line(text, start):
    """The one bullet that starts so."""
    found = [one for one in text.splitlines() if one.startswith(f"- {start}")]
    assert len(found) == 1, text
    return found[0]


def by_hand(values=DIFFERENCES, other=0.0):
    """One adapter, no two hops: the lift answers `values` of the questions, the base model and the rest nothing."""
    rows = []
    for number, value in enumerate(values):
        at = {"document": f"d{number}", "seed": 0, "metric": "exact_match", "unit": "share of questions",
              "context": "none", "wording": "held_out", "hops": 1, "place": "", "text": ""}  # fmt: skip
        lift = at | {"condition": "lift", "adapter": "lora"}
        rows += [at | {"condition": "base", "adapter": "", "step": 0, "value": 0.0}]
        rows += [lift | {"step": 0, "value": 0.0}, lift | {"step": 10 + number, "value": value}]  # its own last step
        rows += [lift | {"condition": "other_document", "step": 10 + number, "value": other * (-1) ** number}]
    return table_of(rows, "memorization_vs_icl")


def test_a_sentence_holds_the_paired_test_s_numbers():
    """Hand-computed: mean of six differences 0.85; sign-flip p = 2 / 2**6; a sentence of one adapter is one test."""
    said = findings.of("memorization_vs_icl", by_hand())
    test = paired_test(dict(enumerate(DIFFERENCES)), dict.fromkeys(range(6), 0.0))
    assert test.p == pytest.approx(2 / 2**6)
    effect = minimum_detectable_effect(DIFFERENCES)
    assert line(said, "Closed book, held-out") == (
        f"- Closed book, held-out wordings, lift minus base: LoRA +0.85 [{test.low:+.2f}, {test.high:+.2f}], "
        f"p = 0.031 (6 documents; an effect of {effect:.2f} would be found with power 0.8)."
    )
    assert "Holm's correction over the comparisons of a sentence" in said and "cannot fall below" not in said


def test_what_was_not_measured_is_not_tested():
    said = findings.of("memorization_vs_icl", by_hand())
    assert line(said, "Closed book, two hops").endswith("base: LoRA not tested, 0 documents with both.")
    assert line(said, "Bits a token").endswith("paraphrase: LoRA not tested, 0 documents with both.")
    said = findings.of("memorization_vs_icl", by_hand(DIFFERENCES[:1]))
    assert line(said, "Closed book, held-out").endswith("LoRA not tested, 1 document with both.")
    assert "Holm" not in said


def test_an_interval_with_zero_is_no_difference_found():
    """All equal to 0 as well: then the detectable effect would be 0 and is not named."""
    said = findings.of("memorization_vs_icl", by_hand(other=0.1))
    assert "LoRA no difference found: +0.00 [-0." in line(said, "Control")
    equal = line(findings.of("memorization_vs_icl", by_hand()), "Control")
    assert "LoRA no difference found: +0.00 [+0.00, +0.00], p = 1 (6 documents; the same in each of them)" in equal
    assert "-0.00" not in said + equal


def test_bits_saved_are_compared_within_a_document():
    """By hand, per document: document 9 - 3 = 6 bits, paraphrase 9 - 5 = 4 bits, so 2 more."""
    rows = []
    for number in range(5):
        for condition, adapter, step, values in (("base", "", 0, (9, 9)), ("lift", "lora", 20, (3, 5))):
            for text, value in zip(("document", "paraphrase"), values, strict=True):
                at = {"document": f"d{number}", "seed": 0, "condition": condition, "adapter": adapter, "step": step}
                rows.append(at | {"metric": "bits_per_token", "unit": "bits a token", "text": text,
                                  "value": value + 0.1 * number})  # fmt: skip
    said = findings.of("memorization_vs_icl", pd.concat([by_hand(), table_of(rows, "s")], ignore_index=True))
    assert "LoRA +2.00 [+2.00, +2.00]" in line(said, "Bits a token")


def test_holm_runs_over_the_adapters_of_a_sentence():
    """Nine documents, five sentences of two adapters: the p in the text are those of `holm` over each pair."""
    records = memorization_records(9)
    said = findings.of("memorization_vs_icl", records)
    compared, _ = comparisons.memorization_vs_icl(records)
    pairs = list(zip(compared[::2], compared[1::2], strict=True))
    expected = [p for pair in pairs for p in holm([paired_test(one.a, one.b).p for one in pair])]
    assert all(first.what == second.what and first.who != second.who for first, second in pairs)
    assert re.findall(r"p = ([\d.e-]+) \(", said) == [f"{p:.2g}" for p in expected] and len(expected) == 10


def test_findings_are_kept_beside_the_figure_as_they_are_said(tmp_path):
    said = findings.save("memorization_vs_icl", memorization_records(3), tmp_path)
    assert said == findings.of("memorization_vs_icl", memorization_records(3))
    assert [path.name for path in tmp_path.iterdir()] == ["memorization_vs_icl.findings.md"]
    assert (tmp_path / "memorization_vs_icl.findings.md").read_text("utf-8") == said


def test_conflict_compares_sources_gates_and_counts_what_does_not_apply():
    records = conflict_records(6)
    said = findings.of("conflict", records)
    last = records[records["step"] == records.groupby(["document", "condition"])["step"].transform("max")]
    last = last[(last["metric"] == "answered_from") & (last["source"] == "memory")]
    last = last[last["adapter"] != "gated_memory"]
    means = last.groupby(["condition", "document"])["value"].mean().groupby("condition").mean()
    assert f"LoRA {means['lift'] - means['base']:+.2f} [" in line(said, "Answered from memory")
    assert "Gated Memory +0." in line(said, "Gate at the answer") and "LoRA" not in line(said, "Gate at the answer")
    assert "- 3.0 questions a document (6 documents) cannot be put against their context." in said


def test_position_compares_at_the_longest_documents():
    """Truncated ICL knows what is kept (0.97) and nothing else; a lift knows both alike."""
    said = findings.of("evidence_position", position_records(6))
    assert said.count("(4 windows)") == 5
    assert re.search(r"kept \(4 windows\): (-1\.00|-0\.9\d) \[", line(said, "Truncated ICL"))
    assert "no difference found" in line(said, "Control, all evidence")


def test_offsets_compare_three_eighths_with_the_largest():
    records = offset_records(5)
    said = findings.of("segment_offset", records)
    lift = records[(records["condition"] == "lift") & (records["adapter"] == "lora")]
    held_out = lift[(lift["metric"] == "exact_match") & (lift["wording"] == "held_out")]
    means = held_out.groupby(["ratio", "document"])["value"].mean().groupby("ratio").mean()
    first = line(said, "Closed book, held-out wordings, offset 3/8 minus 1 of a segment")
    assert f"LoRA {means[0.375] - means[1.0]:+.2f} [" in first
    assert "LoRA 32,200 at 3/8, LoRA 12,200 at 1, Gated Memory 33,100 at 3/8" in line(said, "Tokens trained on")
    with pytest.raises(PlotError, match="findings compare 0.375"):
        findings.of("segment_offset", records[~np.isclose(records["ratio"], 0.375)])


@pytest.mark.parametrize("name", sorted(PROBES))
def test_findings_are_two_to_five_bullets_whatever_the_order(name):
    records = PROBES[name]()
    said = findings.of(name, records)
    bullets = [one for one in said.splitlines() if one.startswith("- ")]
    assert 2 <= len(bullets) <= 5 and "nan" not in said and said.endswith("\n")
    assert said == findings.of(name, records.sample(frac=1, random_state=0))


def test_every_probe_has_findings_and_an_unknown_one_is_named():
    assert set(comparisons.FINDINGS) == {
        *PROBES,
        "companions",
        "many_documents",
        *comparisons.CONTRASTS,
    }  # the last: test_evaluation_plots
    with pytest.raises(PlotError, match="no findings are called 'gates'"):
        findings.of("gates", by_hand())


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("memorization_vs_icl", "context"),
        ("conflict", "source"),
        ("evidence_position", "would_be"),
        ("segment_offset", "ratio"),
    ],
)
def test_a_missing_column_is_named(name, column):
    with pytest.raises(PlotError, match=f"records lack column '{column}'"):
        findings.of(name, PROBES[name](2).drop(columns=column))
