"""Laws of the benchmarks from the hub: what was fetched is read whatever its layout, and names its commit."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import pyarrow
import pyarrow.parquet as parquet
import pytest

from liftlab import hub_data, hub_weights
from liftlab.benchmarks import read_longbench, read_loogle
from liftlab.hub_weights import HubError, HubGated, HubUnreachable

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PAIRS = [
    {"Q": "Where does Ada live?", "A": "Oslo", "S": ["Ada lives in Oslo."], "type": "computation"},
    {"Q": "What is the pet of Bo?", "A": "a cat", "S": ["Bo has a cat.", "It purrs."], "type": "timeline_reorder"},
]
ROWS = [
    {"input": "Ada lives in Oslo. Bo has a cat. It purrs.", "title": "Two", "qa_pairs": PAIRS, "output": "none"},
    {"input": "Ada\u2028lives in Oslo.", "title": "One \U0001f408", "qa_pairs": PAIRS[:1], "output": "none"},
    {"input": "Bo has a cat. It purrs.", "title": "Three", "qa_pairs": PAIRS[1:], "output": "none"},
]
LONG_ROWS = [
    {"_id": "a1", "context": "Ada lives in Oslo.", "input": "Where?", "answers": ["Oslo", "in Oslo"], "dataset": "m"},
    {"_id": "b2", "context": "Bo has a cat.", "input": "", "answers": ["A cat."], "dataset": "m"},
]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, with the hub itself out of reach."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def snapshot(cache: Path, repository: str) -> Path:
    """The empty snapshot folder of a data set's main branch."""
    folder = cache / f"datasets--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    made = folder / "snapshots" / COMMIT
    made.mkdir(parents=True)
    return made


def lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def as_text(rows: list[dict]) -> list[dict]:
    """The rows with their pairs as text that holds a Python literal, as first released."""
    return [row | {"qa_pairs": repr(row["qa_pairs"])} for row in rows]


def written(folder: Path, layout: str, task: str) -> None:
    """LooGLE's `ROWS` in one of the layouts that its revisions have."""
    (folder / task).mkdir()
    (folder / "data").mkdir()
    if layout in ("json", "jsonl"):
        (folder / "data" / f"{task}.{layout}").write_text(lines(as_text(ROWS)))
    elif layout == "one parquet":
        parquet.write_table(pyarrow.Table.from_pylist(as_text(ROWS)), folder / task / "test-00000-of-00001.parquet")
    else:  # two shards, pairs as lists of structs
        for number, part in enumerate((ROWS[:2], ROWS[2:])):
            path = folder / task / f"test-{number:05d}-of-00002.parquet"
            parquet.write_table(pyarrow.Table.from_pylist(part), path)


@pytest.mark.parametrize("task", hub_data.LOOGLE_TASKS)
@pytest.mark.parametrize("layout", ["json", "jsonl", "one parquet", "two shards"])
def test_loogle_is_the_same_in_every_layout(cache: Path, tmp_path: Path, layout: str, task: str):
    """Documents, names, questions and evidence are those of the JSONL file, whatever the revision's layout."""
    written(snapshot(cache, hub_data.LOOGLE), layout, task)
    (tmp_path / f"{task}.jsonl").write_text(lines(ROWS))
    source = hub_data.loogle(task)
    assert list(source) == read_loogle(tmp_path / f"{task}.jsonl")
    assert (source.repository, source.revision) == (hub_data.LOOGLE, COMMIT)


def test_a_field_that_a_pair_lacks_is_not_made_up(cache: Path):
    """Parquet gives every struct every field, empty where a pair has none: such a kind or evidence is none."""
    folder = snapshot(cache, hub_data.LOOGLE)
    (folder / "shortdep_qa").mkdir()
    bare = [{"Q": "Where?", "A": "Oslo"}, PAIRS[0]]
    rows = [{"input": "Ada lives in Oslo.", "title": "T", "qa_pairs": bare}]
    kept = pyarrow.Table.from_pylist(rows, schema=pyarrow.Table.from_pylist(ROWS).drop(["output"]).schema)
    parquet.write_table(kept, folder / "shortdep_qa" / "test-00000-of-00001.parquet")
    first, second = hub_data.loogle("shortdep_qa")[0].questions
    assert (first.kind, first.evidence, second.kind, second.evidence) == ("", None, "computation", (0, 18))


def longbench_zip(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "data.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../outside.jsonl", "escaped")
        archive.writestr("data/qmsum.jsonl", "not this task")
        archive.writestr("data/musique.jsonl", lines(LONG_ROWS))
    return folder / "data.zip"


def test_longbench_reads_its_task_alone_from_the_archive(cache: Path, tmp_path: Path):
    """The documents are those of the member; no other member is written anywhere."""
    longbench_zip(snapshot(cache, hub_data.LONGBENCH))
    (tmp_path / "musique.jsonl").write_text(lines(LONG_ROWS))
    before = sorted(path for path in tmp_path.rglob("*"))
    source = hub_data.longbench("musique")
    assert list(source) == read_longbench(tmp_path / "musique.jsonl")
    assert source.provenance == {"repository": hub_data.LONGBENCH, "revision": COMMIT, "task": "musique"}
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_a_source_is_a_sequence_of_its_documents(cache: Path):
    written(snapshot(cache, hub_data.LOOGLE), "jsonl", "longdep_qa")
    source = hub_data.loogle("longdep_qa")
    assert len(source) == 3 and source[1].title == "One \U0001f408" and list(source[:2]) == list(source)[:2]


@pytest.mark.parametrize("revision", ["main", COMMIT])
def test_a_revision_by_any_name_is_told_as_its_commit(cache: Path, revision: str):
    written(snapshot(cache, hub_data.LOOGLE), "jsonl", "longdep_qa")
    assert hub_data.loogle("longdep_qa", revision).revision == COMMIT


@pytest.mark.parametrize(
    ("read", "known"), [("loogle", "shortdep_qa, longdep_qa"), ("longbench", "musique, narrativeqa")]
)
def test_an_unknown_task_is_answered_with_the_known_ones_before_the_hub(monkeypatch, read: str, known: str):
    monkeypatch.setattr(hub_data, "fetch_dataset", lambda *_: pytest.fail("the hub was asked"))
    with pytest.raises(ValueError, match=f"task 'cloze' of .* is unknown: choose one of {known}"):
        getattr(hub_data, read)("cloze")


def test_an_unreachable_hub_is_one_clear_error(cache: Path):
    with pytest.raises(
        HubUnreachable, match="hub dataset bigai-nlco/LooGLE@v9 cannot be fetched .* connect to the hub, or"
    ):
        hub_data.loogle("longdep_qa", "v9")


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        ("GatedRepoError", HubGated, "hub dataset THUDM/LongBench is gated: accept its licence .* set HF_TOKEN"),
        ("RepositoryNotFoundError", HubError, "no hub dataset THUDM/LongBench .* check the id, the revision"),
        ("RevisionNotFoundError", HubError, "no hub dataset THUDM/LongBench .* check the id, the revision"),
    ],
)
def test_what_the_hub_refuses_is_told_with_what_to_do(monkeypatch, error: str, kind: type, said: str):
    """The hub's own errors, raised where it is asked first."""
    from huggingface_hub import errors

    def refuse(*_: object, **asked: object) -> None:
        assert asked["repo_type"] == "dataset"
        answer = SimpleNamespace(headers={}, request=None)  # the HTTP library behind it changes with the hub's version
        raise getattr(errors, error)("refused", response=answer)

    monkeypatch.setattr(hub_weights.HfApi, "repo_info", refuse)
    with pytest.raises(kind, match=said) as caught:
        hub_data.longbench("musique")
    assert type(caught.value) is kind


def test_a_snapshot_without_the_task_says_what_was_looked_for(cache: Path):
    """A cache that was filled for the other task, or a revision of a third layout."""
    written(snapshot(cache, hub_data.LOOGLE), "jsonl", "shortdep_qa")
    with pytest.raises(
        HubError, match=r"has no longdep_qa/test-\*.parquet or data/longdep_qa.json\* in .*choose a revision"
    ):
        hub_data.loogle("longdep_qa")


@pytest.mark.parametrize("damage", ["cut", "flipped", "no member", "not a row"])
def test_a_damaged_archive_is_one_clear_error(cache: Path, damage: str):
    path = longbench_zip(snapshot(cache, hub_data.LONGBENCH))
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[content.index(b"data/musique.jsonl") + 30] ^= 255
        path.write_bytes(content)
    task = {"no member": "gov_report", "not a row": "qmsum"}.get(damage, "musique")
    with pytest.raises(
        ValueError, match=f"LongBench@{COMMIT} cannot be read .*: delete .*datasets--THUDM--LongBench and fetch"
    ):
        hub_data.longbench(task)


def test_a_damaged_parquet_file_is_one_clear_error(cache: Path):
    folder = snapshot(cache, hub_data.LOOGLE)
    written(folder, "one parquet", "longdep_qa")
    (path,) = folder.rglob("*.parquet")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=f"LooGLE@{COMMIT} cannot be read .*delete .* fetch it again"):
        hub_data.loogle("longdep_qa")


def test_without_torch():
    code = "import sys, liftlab.hub_data; sys.exit(bool({'torch', 'transformers', 'pyarrow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_an_archive_that_unpacks_beyond_the_bound_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch):
    made = snapshot(cache, hub_data.LONGBENCH)
    with zipfile.ZipFile(made / "data.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data/musique.jsonl", b" " * 100_000)
    monkeypatch.setattr(hub_data, "MOST_BYTES", 99_999)
    with pytest.raises(ValueError, match="musique.jsonl unpacks to more than 99999 bytes"):
        hub_data.longbench("musique")


def test_pairs_of_another_kind_are_refused_by_the_reader(cache: Path):
    made = snapshot(cache, hub_data.LOOGLE)
    (made / "shortdep_qa").mkdir()
    rows = [ROWS[0] | {"qa_pairs": ["Where?"]}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), made / "shortdep_qa" / "test-00000-of-00001.parquet")
    with pytest.raises(ValueError, match="qa_pairs"):
        hub_data.loogle("shortdep_qa")
