"""Released benchmarks from the hub, through its own cache, as documents that name the revision they are of."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from liftlab.benchmarks import read_longbench, read_loogle
from liftlab.documents import MOST_BYTES, Document
from liftlab.hub_weights import HubError, fetch_dataset, first_line

LOOGLE, LOOGLE_TASKS = "bigai-nlco/LooGLE", ("shortdep_qa", "longdep_qa")
LONGBENCH = "THUDM/LongBench"
LONGBENCH_TASKS = ("musique", "narrativeqa", "qmsum", "gov_report", "passage_retrieval_en")  # those of the papers


@dataclass(frozen=True)
class Source(Sequence[Document]):
    """The documents of a benchmark's task, in the released order, that know where they are from.

    `revision` is the commit of the hub data set `repository`, whatever branch or tag was asked for.
    """

    documents: tuple[Document, ...]
    task: str
    repository: str
    revision: str

    def __getitem__(self, place):
        return self.documents[place]

    def __len__(self) -> int:
        return len(self.documents)

    @property
    def provenance(self) -> dict[str, Any]:
        """What a record says of its data."""
        return {"repository": self.repository, "revision": self.revision, "task": self.task}


def loogle(task: str, revision: str | None = None) -> Source:
    """LooGLE's short or long dependency questions; `revision` is a commit, a branch or a tag (default: main).

    Parquet files in a folder a task, or JSONL in data/, as the revision has it; fields as `benchmarks.read_loogle`.
    ValueError for an unknown task or unreadable files; HubError, HubGated or HubUnreachable where the hub has no files.
    """
    _check(task, LOOGLE_TASKS, LOOGLE)
    patterns = [f"{task}/test-*.parquet", f"data/{task}.json*"]
    folder = fetch_dataset(LOOGLE, revision, patterns)
    shards, lines = (sorted(folder.glob(pattern)) for pattern in patterns)
    with _reading(LOOGLE, folder) as temporary:
        if shards:
            lines = [_as_jsonl(shards, temporary / f"{task}.jsonl")]
        documents = read_loogle(_first(lines, folder, LOOGLE, patterns))
    return Source(tuple(documents), task, LOOGLE, folder.name)


def longbench(task: str, revision: str | None = None) -> Source:
    """All of a LongBench task, from the data.zip of its hub data set (its loading script no longer runs).

    Fields as `benchmarks.read_longbench`; arguments and errors as `loogle`.
    """
    _check(task, LONGBENCH_TASKS, LONGBENCH)
    folder = fetch_dataset(LONGBENCH, revision, ["data.zip"])
    archive = _first(sorted(folder.glob("data.zip")), folder, LONGBENCH, ["data.zip"])
    with _reading(LONGBENCH, folder) as temporary:
        extracted = temporary / f"{task}.jsonl"  # this one name, whatever others the archive holds
        with zipfile.ZipFile(archive) as members:
            extracted.write_bytes(_member(members, f"data/{task}.jsonl"))  # tens of MB
        documents = read_longbench(extracted)
    return Source(tuple(documents), task, LONGBENCH, folder.name)


def _check(task: str, known: tuple[str, ...], repository: str) -> None:
    if task not in known:
        raise ValueError(f"task {task!r} of {repository} is unknown: choose one of {', '.join(known)}")


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """One file of an archive; ValueError where it unpacks to more than `MOST_BYTES`, whatever its entry says."""
    with archive.open(name) as member:
        data = member.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(f"{name} unpacks to more than {MOST_BYTES} bytes")
    return data


def _first(found: list[Path], folder: Path, repository: str, patterns: list[str]) -> Path:
    if not found:
        raise HubError(
            f"hub dataset {repository}@{folder.name} has no {' or '.join(patterns)} in {folder}: connect to the hub if "
            "it was fetched in part, or choose a revision that has it"
        )
    return found[0]


@contextmanager
def _reading(repository: str, folder: Path) -> Iterator[Path]:
    """A temporary folder; an error in reading names the data set, its revision and what to do."""
    try:
        with TemporaryDirectory() as temporary:
            yield Path(temporary)
    except HubError:
        raise
    except (ValueError, TypeError, KeyError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"hub dataset {repository}@{folder.name} cannot be read ({first_line(error)}): delete "
            f"{folder.parents[1]} and fetch it again, or choose another revision"
        ) from error


def _as_jsonl(shards: Sequence[Path], path: Path) -> Path:
    """Write the rows of Parquet files, in the order of their names, as JSONL."""
    import pyarrow.parquet as parquet

    with path.open("w", encoding="utf-8", newline="\n") as out:
        for shard in shards:
            for row in parquet.read_table(shard).to_pylist():
                out.write(json.dumps(_without_gaps(row), ensure_ascii=False) + "\n")
    return path


def _without_gaps(row: dict[str, Any]) -> dict[str, Any]:
    """The row without the fields that Parquet's pairs must have and these have not (None)."""
    pairs = row.get("qa_pairs")
    if not isinstance(pairs, list) or not all(isinstance(pair, dict) for pair in pairs):
        return row  # the reader says what is wrong
    return row | {"qa_pairs": [{name: value for name, value in pair.items() if value is not None} for pair in pairs]}
