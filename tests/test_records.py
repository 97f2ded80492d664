import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from liftlab import records

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


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    """The old table stays readable when the new one cannot be written."""
    path = records.write(table(), tmp_path / "t.csv", {"seed": 0})
    with pytest.raises(records.RecordError, match="JSON values only"):
        records.write(table(2), path, {"seed": object()})
    monkeypatch.setattr(records.os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        records.write(table(2), path, {"seed": 1})
    assert len(records.read(path)[0]) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.csv", "t.json"]


def test_the_provenance_is_there_before_the_table(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(records, "replace_file", lambda path, data: written.append(path.suffix))
    records.write(table(), tmp_path / "t.csv", {})
    assert written == [".json", ".csv"]


def test_provenance_tells_versions_machine_and_facts():
    known = records.provenance(gpu="H100", settings={"rank": 8})
    assert known["packages"]["pandas"] == pd.__version__
    assert known["python"] == sys.version.split()[0]
    assert known["hardware"]["cpu"] and known["hardware"]["cpus"] >= 1
    assert (known["gpu"], known["settings"]) == ("H100", {"rank": 8})
    assert json.loads(json.dumps(known)) == known


def test_a_fact_may_not_hide_what_provenance_finds():
    with pytest.raises(records.RecordError, match="'git'"):
        records.provenance(git="mine")


def git(folder, *words):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_git_state_is_the_commit_and_whether_anything_differs(tmp_path):
    """None outside git and where git does not track the folder; an untracked file counts as dirty."""
    source = tmp_path / "package"
    source.mkdir()
    (source / "a.py").write_text("a = 1\n")
    assert records._git(source) is None
    git(tmp_path, "init", "-q")
    assert records._git(source) is None
    git(tmp_path, "add", ".")
    assert records._git(source) == {"commit": None, "dirty": True}
    git(tmp_path, "commit", "-qm", "first")
    assert records._git(source) == {"commit": git(tmp_path, "rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "new.txt").write_text("x")
    assert records._git(source)["dirty"]
