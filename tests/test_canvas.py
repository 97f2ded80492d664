"""What all drawings share: heat maps, bytes as `savefig` writes them, and failed cells, which no number may hold."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from PIL import Image
from test_claims import HIGH, LOW, scored
from test_plots import RECORDS

from liftlab import claims, failures, findings, plots, records, tables
from liftlab.canvas import COLOURS, INK, NAMED, PlotError, each_over_documents, heat_map, noted, over_documents, worked

FAILED = "2 of 9 cells failed and are not in these numbers"


def with_failures(frame, count=2):
    failure = failures.Failure({"base": "micro"}, "a reason", "ValueError", "", "2026-01-01T00:00:00+00:00")
    made = failures.rows({f"{n:016x}": failure for n in range(count)}, "s", frame)
    return pd.concat([frame, made], ignore_index=True)


@pytest.fixture
def panel():
    figure, axis = plt.subplots(layout="constrained")
    yield axis
    plt.close(figure)


def grid(rows, columns, seed=0):
    values = np.random.default_rng(seed).random((rows, columns))
    return pd.DataFrame(values).rename_axis(index="layer", columns="head")


def test_a_heat_map_shows_each_value_in_its_own_cell(panel):
    """The first row stands above; a missing cell has neither colour nor number; axes are named after the grid."""
    wanted = grid(3, 2)
    wanted.iloc[1, 0] = np.nan
    heat_map(panel, wanted, 1, "viridis", "small")
    shown = {text.get_position(): text.get_text() for text in panel.texts}
    assert shown == {(c + 0.5, r + 0.5): f"{wanted.iloc[r, c]:.2f}"
                     for r in range(3) for c in range(2) if (r, c) != (1, 0)}  # fmt: skip
    cells = panel.collections[0].get_array()
    assert cells.mask.sum() == 1 and cells.mask[1, 0]
    np.testing.assert_array_equal(cells.compressed(), wanted.to_numpy().ravel()[[0, 1, 3, 4, 5]])
    assert panel.get_ylim() == (3, 0) and (panel.get_xlabel(), panel.get_ylabel()) == ("head", "layer")


@pytest.mark.parametrize("colours", ["viridis", "Blues", "Greys"])
def test_numbers_in_a_heat_map_can_be_read(panel, colours):
    """WCAG contrast of at least 2.2 between each number and its cell."""
    wanted = pd.DataFrame(np.linspace(0, 1, 25).reshape(5, 5))
    heat_map(panel, wanted, 1, colours, "small")
    mesh = panel.collections[0]
    for text, cell in zip(panel.texts, mesh.get_facecolors(), strict=True):
        light, dark = sorted((luminance(text.get_color()), luminance(cell[:3])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 2.2


def luminance(colour):
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("count", [4, NAMED, 33, 80])
def test_names_beside_a_heat_map_do_not_overlap(panel, count):
    heat_map(panel, grid(count, count), 1, "Blues", bar="gate")
    panel.figure.draw_without_rendering()
    for names in (panel.get_xticklabels(), panel.get_yticklabels()):
        boxes = [name.get_window_extent() for name in names]
        assert 1 < len(boxes) <= NAMED and all(box.count_overlaps(boxes) == 1 for box in boxes)
        assert [int(name.get_text()) for name in names] == list(range(0, count, -(-count // NAMED)))


def test_colours_are_told_apart():
    assert len({to_rgb(colour) for colour in [*COLOURS, INK, "white"]}) == len(COLOURS) + 2


@pytest.mark.parametrize("name", ["lift_vs_icl", "gate_values", "oracle_gate"])
def test_files_hold_what_savefig_writes(tmp_path, name):
    """A drawing a file and one layout give matplotlib's own two drawings, the PNG pixel by pixel, the SVG in the
    PNG's layout byte by byte; the figure stays as it was.
    """
    figures = []
    for _ in range(2):
        with plots.mpl.rc_context(plots.STYLE):
            figures.append(plots.DRAWINGS[name](RECORDS[name]())[0])
    plt.close("all")  # which gives a figure another canvas
    ours, theirs = figures
    before = (ours.dpi, type(ours.canvas), ours.get_layout_engine())
    plots.write_figure(ours, pd.DataFrame({"a": [1]}), tmp_path / "ours")
    assert (ours.dpi, type(ours.canvas), ours.get_layout_engine()) == before
    with plots.mpl.rc_context(plots.SVG):
        theirs.savefig(tmp_path / "theirs.png", dpi=plots.DPI, metadata={"Software": None})
        theirs.set_layout_engine("none")
        theirs.savefig(tmp_path / "theirs.svg", dpi=plots.DPI, metadata={"Date": None, "Creator": None})
    assert (tmp_path / "ours.svg").read_bytes() == (tmp_path / "theirs.svg").read_bytes()
    with Image.open(tmp_path / "ours.png") as png, Image.open(tmp_path / "theirs.png") as saved:
        np.testing.assert_array_equal(np.asarray(png.convert("RGBA")), np.asarray(saved))
        assert png.info["dpi"] == saved.info["dpi"]


@pytest.mark.parametrize("name", ["lift_vs_icl", "gate_values", "oracle_gate", "memorization_vs_icl"])
def test_failed_cells_change_no_number_and_are_said(tmp_path, name):
    frame = RECORDS[name]()
    figure = plots.save(name, with_failures(frame), tmp_path / "some", 9)
    plots.save(name, frame, tmp_path / "none", 9)
    tables.save(name, tmp_path / "some", worked(with_failures(frame), 9)[1])
    tables.save(name, tmp_path / "none", worked(frame, 9)[1])
    some, none = ({end: (tmp_path / of / f"{name}.{end}").read_text() for end in ("csv", "md", "svg")}
                  for of in ("some", "none"))  # fmt: skip
    assert some["csv"] == none["csv"] and some["md"] == f"{none['md']}\n{FAILED}\n"
    assert figure.get_suptitle().splitlines()[-1] == FAILED and FAILED in some["svg"] and "failed" not in none["svg"]


def test_a_note_on_failed_cells_covers_no_panel(tmp_path):
    figure = plots.save("lift_vs_icl", with_failures(RECORDS["lift_vs_icl"]()), tmp_path, 9)
    title = figure.texts[0] if figure.texts else figure._suptitle
    assert not any(title.get_window_extent().overlaps(axis.get_tightbbox()) for axis in figure.axes)


def test_findings_compare_without_failed_cells_and_say_so():
    frame = scored({"lift": HIGH, "truncated_icl": LOW, "lift_truncated_icl": HIGH})
    said = findings.of("table_loogle", frame, 9)
    assert findings.of("table_loogle", with_failures(frame), 9) == f"{said}\n{FAILED}\n"


def test_claims_compare_without_failed_cells_and_name_the_notebook(tmp_path):
    frame = scored({"lift_gated_memory": HIGH, "lift_pissa": LOW})
    for name, table in (("none", frame), ("some", with_failures(frame))):
        grid = {"grid": [{"cell": n} for n in range(9)]}
        records.write(table, tmp_path / name / "records/ablation_adapter.csv", grid)
        claims.save(tmp_path / name / "records", tmp_path / name)
    none, some = ((tmp_path / name / "claims.md").read_text() for name in ("none", "some"))
    assert some == f"{none}\nablation_adapter: {FAILED}\n"
    assert (tmp_path / "none/claims.csv").read_bytes() == (tmp_path / "some/claims.csv").read_bytes()
    assert FAILED in (tmp_path / "some/claims.svg").read_text()


@pytest.mark.parametrize(
    ("failed", "cells", "note"),
    [
        (0, 9, ""),
        (1, None, "1 cell failed and is not in these numbers"),
        (2, None, "2 cells failed and are not in these numbers"),
        (2, 9, FAILED),
    ],
)
def test_failed_cells_are_counted(failed, cells, note):
    frame = RECORDS["lift_vs_icl"]()
    kept, said = worked(with_failures(frame, failed) if failed else frame, cells)
    pd.testing.assert_frame_equal(kept, frame)
    assert said == note and noted("text", note) == ("text\n" if not note else f"text\n\n{note}\n")


def test_records_without_a_metric_are_refused():
    with pytest.raises(PlotError, match="records lack column 'metric'"):
        worked(RECORDS["lift_vs_icl"]().drop(columns="metric"))


def test_parts_summarised_together_have_each_the_numbers_of_a_call_of_its_own():
    """Of unequal documents, units and missing keys; a part without rows stays without."""
    rng, parts = np.random.default_rng(7), []
    for place, (count, documents) in enumerate([(40, 5), (0, 1), (30, 3), (4, 1), (40, 5)]):
        keys = {"condition": rng.choice(["lift", "base"], count), "step": rng.choice([0.0, 5.0, np.nan], count)}
        names = [f"d{n}" for n in rng.integers(documents, size=count)]
        about = {"document": names, "seed": rng.integers(2, size=count), "unit": f"unit {place}"}
        parts.append(pd.DataFrame({**keys, **about, "value": rng.random(count), "other": place}))
    by = ["condition", "step"]
    for some in (parts, parts[1:2], []):
        found = each_over_documents(some, by)
        assert len(found) == len(some)
        for part, rows in zip(some, found, strict=True):
            pd.testing.assert_frame_equal(rows, over_documents(part, by), check_exact=True, check_dtype=len(part) > 0)
