"""A failure is kept as it was, is a row that records allow, and leaves the other rows as they are."""

import errno

import pandas as pd
import pytest

from liftlab import records
from liftlab.failures import CellError, CellsFailed, Failure, ends_run, path_of, read, rows, split, summary, write

SETTINGS = {"base": "micro", "rank": 8, "windows": 0.5, "chat": True, "style": "plain", "plan": {"x": 1}, "name": None}
OTHERS = pd.DataFrame(
    [{"study": "s", "base_model": "micro", "document": "d", "document_tokens": 9, "seed": 1, "condition": "lift",
      "metric": "f1", "unit": "share", "value": 0.5, "rank": 16, "windows": 0.25, "chat": False, "style": "chat",
      "plan": "none", "name": "x", "step": 3, "depth": 0.1, "kept": True}] * 2
)  # fmt: skip


def failed(error=None, **settings):
    try:
        raise error or RuntimeError("no\n more  memory")
    except Exception as raised:
        return Failure.of(SETTINGS | settings, raised)


@pytest.mark.parametrize("text", ["plain", "\ud800 half", "{braces} \x00", "é" * 2000])
def test_a_failure_comes_back_as_it_was_kept(tmp_path, text):
    kept = failed(ValueError(text))
    write(kept, path_of(tmp_path / "KEY.csv"))
    assert [path.name for path in tmp_path.iterdir()] == ["KEY.failed.json"]
    found = read(tmp_path / "KEY.failed.json")
    assert found == kept or text == "\ud800 half" and found.settings == kept.settings
    assert found.error == "ValueError" and "\n" not in found.reason and len(found.reason) <= 400
    assert "Traceback" in found.trace and found.trace.rstrip()[-5:] == kept.trace.rstrip()[-5:]


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"settings": {}}'])
def test_a_damaged_failure_is_named_with_what_to_do(tmp_path, content):
    (tmp_path / "a.failed.json").write_text(content)
    with pytest.raises(records.RecordError, match=r"a\.failed\.json is damaged .*: delete it and run again"):
        read(tmp_path / "a.failed.json")


def test_an_error_without_words_is_told_by_its_kind():
    assert failed(MemoryError()).reason == "MemoryError, which says no more"


def test_a_failure_s_row_holds_the_settings_that_its_columns_can_hold(tmp_path):
    (row,) = rows({"KEY": failed()}, "s", OTHERS).to_dict("records")
    assert {name: row[name] for name in ("metric", "unit", "value")} == {"metric": "failed", "unit": "cell", "value": 1}
    assert {name: row[name] for name in ("study", "base_model", "document", "rank", "windows", "chat", "style")} == {
        "study": "s", "base_model": "micro", "document": "cell KEY", "rank": 8, "windows": 0.5, "chat": True,
        "style": "plain"}  # fmt: skip
    assert (row["plan"], row["name"], row["step"], row["kept"]) == ("", "", 0, False) and pd.isna(row["depth"])
    (other,) = rows({"KEY": failed(base=3, rank=True, windows="0.5", chat=1)}, "s", OTHERS).to_dict("records")
    assert (other["base_model"], other["rank"], other["chat"]) == ("unknown", 0, False) and pd.isna(other["windows"])


def test_split_gives_back_the_other_rows_and_the_failures_through_a_records_file(tmp_path):
    table = pd.concat([OTHERS, rows({"a": failed(), "b": failed(rank=4)}, "s", OTHERS)], ignore_index=True)
    records.write(table, tmp_path / "s.csv", {})
    records.write(OTHERS, tmp_path / "others.csv", {})
    good, bad = split(records.read(tmp_path / "s.csv")[0])
    pd.testing.assert_frame_equal(good, records.read(tmp_path / "others.csv")[0])
    assert list(bad["rank"]) == [8, 4] and list(bad.index) == [0, 1]
    alone, none = split(good)
    pd.testing.assert_frame_equal(alone, good)
    assert none.empty


def test_a_summary_tells_a_cell_by_what_sets_it_apart_and_names_no_more_than_five(tmp_path):
    grid = [SETTINGS | {"rank": rank} for rank in range(20)]
    told = summary([failed(rank=3), failed(rank=7)], grid, tmp_path)
    assert told == (
        "2 of 20 cells failed: {'rank': 3}: no more memory; {'rank': 7}: no more memory: "
        f"why stands in {tmp_path}/*.failed.json, and the next run tries them again"
    )
    told = summary([failed(rank=rank) for rank in range(9)], grid, tmp_path)
    assert "{'rank': 4}" in told and "{'rank': 5}" not in told and "; and 4 more: why" in told
    assert "'style': 'plain'" in summary([failed()], [SETTINGS], tmp_path)  # the only cell: by all of its settings


@pytest.mark.parametrize(
    ("error", "ends"),
    [(CellError("x"), True), (records.WriteError(errno.EACCES, "x"), True), (OSError(errno.ENOSPC, "x"), True),
     (OSError(errno.EROFS, "x"), True), (OSError(errno.EDQUOT, "x"), True), (OSError(errno.ENOENT, "x"), False),
     (OSError("x"), False), (ValueError("x"), False), (MemoryError(), False), (CellsFailed("x"), False)],
)  # fmt: skip
def test_a_run_ends_where_nothing_could_be_kept_or_the_grid_is_wrong(error, ends):
    assert ends_run(error) is ends
