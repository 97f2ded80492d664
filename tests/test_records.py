import errno
import os
import pickle
import stat

import numpy as np
import pandas as pd
import pytest

from liftlab import records
from liftlab.provenance import ProvenanceError

ROW = {
    "study": "lift_vs_icl",
    "base_model": "micro",
    "document": "register-0",
    "document_tokens": 512,
    "seed": 0,
    "condition": "lift",
    "metric": "exact_match",
    "unit": "share of questions",
    "value": 0.1 + 0.2,
}


def table(rows=3, **columns):
    frame = pd.DataFrame([ROW | {"document": f"register-{i}"} for i in range(rows)])
    return frame.assign(**columns)


def test_check_returns_a_good_table_unchanged():
    frame = table()
    assert records.check(frame) is frame


@pytest.mark.parametrize("name", records.COLUMNS)
def test_a_missing_column_is_named(name):
    with pytest.raises(records.RecordError, match=f"lacks column '{name}'"):
        records.check(table().drop(columns=name))


@pytest.mark.parametrize(
    ("column", "values", "words"),
    [
        ("value", [1.0, np.nan, 1.0], "'value' .* not finite in row 1"),
        ("value", [1.0, 1.0, np.inf], "'value' .* not finite in row 2"),
        ("value", ["1", "2", "3"], "'value' .* must hold numbers"),
        ("value", [True, False, True], "'value' .* must hold numbers"),
        ("unit", ["share", " ", "share"], "'unit' .* empty in row 1"),
        ("document", ["a", None, "b"], "'document' .* empty in row 1"),
        ("condition", [1, 2, 3], "'condition' .* must hold text"),
        ("seed", [0.0, 1.0, 2.0], "'seed' .* must hold whole numbers"),
        ("document_tokens", ["1", "2", "3"], "'document_tokens' .* must hold whole numbers"),
        ("adapter", ["lora", 3, "full"], "'adapter' .* one of text, numbers, true/false"),
    ],
)
def test_a_broken_column_is_named_with_its_fault(column, values, words):
    with pytest.raises(records.RecordError, match=words):
        records.check(table(**{column: values}))


def test_an_empty_or_doubled_table_is_refused():
    with pytest.raises(records.RecordError, match="no rows"):
        records.check(table(0, **dict.fromkeys(ROW, [])))
    with pytest.raises(records.RecordError, match="'seed' twice"):
        records.check(pd.concat([table(), table()["seed"]], axis=1))


def test_what_was_written_is_read_back_exactly(tmp_path):
    """Types, awkward texts and every bit of a number survive; writing what was read gives the same bytes."""
    frame = table(
        wording=['a, "b"', "line\nbreak\r\n and \r", ""],
        windows=[0.5, np.nan, np.inf],
        rank=[8, 16, -1],
        merged=[True, False, True],
        value=[0.1 + 0.2, 1e-17, -3.0],
        label=["NA", "007", "null"],
    )
    path = records.write(frame, tmp_path / "a" / "t.csv", {"seed": 0})
    read, provenance = records.read(path)
    pd.testing.assert_frame_equal(read, frame.astype(read.dtypes))
    assert provenance == {"seed": 0}
    again = records.write(read, tmp_path / "again.csv", provenance)
    assert again.read_bytes() == path.read_bytes()
    assert again.with_suffix(".json").read_bytes() == path.with_suffix(".json").read_bytes()


@pytest.mark.parametrize(
    "text", ["a lone \r return", "\r", "nul \0", "  spaces ", "long " * 50_000, "'", '""', "é \u2028 \x85"]
)
def test_any_text_is_read_back_as_it_was(tmp_path, text):
    """Whatever a model answers, however long: no text ends a line or a field."""
    path = records.write(table(question=["before", text, "after"]), tmp_path / "t.csv", {})
    assert records.read(path)[0]["question"].tolist() == ["before", text, "after"]


def test_each_kind_is_read_in_its_own_type(tmp_path):
    path = records.write(table(merged=[True, False, True], rank=[2**62 + 1, 0, -5]), tmp_path / "t.csv", {})
    read, _ = records.read(path)
    assert (read["merged"].dtype, read["rank"].dtype, read["value"].dtype) == (bool, np.int64, np.float64)
    assert read["rank"].tolist() == [2**62 + 1, 0, -5]


def test_whole_values_are_read_as_numbers(tmp_path):
    read, _ = records.read(records.write(table(value=[1, 2, 3]), tmp_path / "t.csv", {}))
    assert read["value"].dtype == np.float64


def test_a_missing_text_reads_as_empty(tmp_path):
    read, _ = records.read(records.write(table(kind=["town", None, np.nan]), tmp_path / "t.csv", {}))
    assert read["kind"].tolist() == ["town", "", ""]


def test_pandas_alone_reads_the_same_table(tmp_path):
    path = records.write(table(windows=[0.5, 1.0, 2.0]), tmp_path / "t.csv", {})
    pd.testing.assert_frame_equal(pd.read_csv(path), records.read(path)[0])


def test_an_edited_file_is_refused(tmp_path):
    path = records.write(table(), tmp_path / "t.csv", {})
    path.write_text(path.read_text().replace("512", "513", 1))
    with pytest.raises(records.RecordError, match="differ from the checksum"):
        records.read(path)


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"sha256": "0"'])
def test_a_table_without_whole_provenance_is_refused(tmp_path, content):
    path = records.write(table(), tmp_path / "t.csv", {})
    sidecar = path.with_suffix(".json")
    sidecar.unlink() if content is None else sidecar.write_text(content)
    with pytest.raises(records.RecordError, match="lack a whole"):
        records.read(path)


def test_a_missing_file_and_a_wrong_ending_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such records"):
        records.read(tmp_path / "t.csv")
    with pytest.raises(records.RecordError, match="must end in .csv"):
        records.write(table(), tmp_path / "t.txt", {})


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    """The old table stays readable when the new one cannot be written."""
    path = records.write(table(), tmp_path / "t.csv", {"seed": 0})
    with pytest.raises(ProvenanceError, match="JSON values only"):
        records.write(table(2), path, {"seed": object()})
    monkeypatch.setattr(records.os, "fsync", full_disk)
    with pytest.raises(records.WriteError, match=r"t\.json \(No space left on device\): free some space") as refused:
        records.write(table(2), path, {"seed": 1})
    assert refused.value.errno == errno.ENOSPC and isinstance(refused.value, OSError)
    again = pickle.loads(pickle.dumps(refused.value))  # as it comes from another process
    assert (type(again), str(again), again.errno) == (records.WriteError, str(refused.value), errno.ENOSPC)
    assert len(records.read(path)[0]) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.csv", "t.json"]


def test_the_provenance_is_there_before_the_table(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(records, "replace_file", lambda path, data: written.append(path.suffix))
    records.write(table(), tmp_path / "t.csv", {})
    assert written == [".json", ".csv"]


def states(path):
    return [(file.read_bytes(), file.stat().st_mtime_ns, file.stat().st_ino) for file in both(path)]


def both(path):
    return [path, path.with_suffix(".json")]


def test_an_equal_table_is_kept_with_its_provenance_where_that_is_asked_for(tmp_path):
    """Neither file is touched; any other table, or a damaged file, is written anew."""
    path = records.write(table(), tmp_path / "t.csv", {"run": 1})
    before = states(path)
    records.write(table(), path, {"run": 2}, keep_equal=True)
    assert states(path) == before
    records.write(table(), path, {"run": 2})
    assert records.read(path)[1] == {"run": 2}
    records.write(table(2), path, {"run": 3}, keep_equal=True)
    assert len(records.read(path)[0]) == 2 and records.read(path)[1] == {"run": 3}
    for damaged in both(path):
        damaged.write_bytes(damaged.read_bytes()[:-20])
        records.write(table(2), path, {"run": 4}, keep_equal=True)
        assert records.read(path)[1] == {"run": 4}
        path.with_suffix(".json").unlink()
        records.write(table(2), path, {"run": 5}, keep_equal=True)
        assert records.read(path)[1] == {"run": 5}


def test_a_new_name_is_synced_with_its_folder(tmp_path, monkeypatch):
    """First the data, then, when the file has its name, the folder that holds the name."""
    synced = []

    def sync(number):
        folder = stat.S_ISDIR(os.fstat(number).st_mode)
        synced.append(("folder" if folder else "file", (tmp_path / "a.txt").exists()))

    monkeypatch.setattr(records.os, "fsync", sync)
    records.replace_file(tmp_path / "a.txt", b"data")
    assert synced == [("file", False), ("folder", True)]


def test_a_system_that_cannot_sync_a_folder_writes_all_the_same(tmp_path, monkeypatch):
    real = os.fsync

    def sync(number):
        if stat.S_ISDIR(os.fstat(number).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(number)

    monkeypatch.setattr(records.os, "fsync", sync)
    records.replace_file(tmp_path / "a.txt", b"data")
    assert (tmp_path / "a.txt").read_bytes() == b"data"


def test_a_refused_write_says_where_why_and_what_to_do(tmp_path):
    (tmp_path / "taken").write_text("a file")
    (tmp_path / "folder").mkdir()
    cases = {
        tmp_path / "taken" / "a.txt": "a file stands where its folder should be",
        tmp_path / "folder": "a folder stands where the file should be",
        tmp_path / ("x" * 300): "use a shorter name",
    }
    for path, remedy in cases.items():
        with pytest.raises(records.WriteError) as refused:
            records.replace_file(path, b"data")
        assert str(path) in str(refused.value) and remedy in str(refused.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "taken"]
