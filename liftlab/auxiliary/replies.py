"""Requests to a language model and its replies, in order, each kept on disk as soon as it is accepted."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from liftlab import locks, records

ROLES = ("system", "user", "assistant")

Read = Callable[[str], Any]  # ValueError (pydantic.ValidationError is one) for an unusable reply


@dataclass(frozen=True)
class Request:
    """What a model is asked. ValueError for a setting out of its bounds."""

    messages: tuple[tuple[str, str], ...]  # (role, text)
    reply_tokens: int  # at most
    schema: dict | None = None  # JSON schema of the reply; None: free text
    opening: str = ""  # what a local model's reply is made to begin with; an endpoint ignores it
    temperature: float = 0.0
    seed: int = 0
    always_greedy: bool = False  # an unusable reply to a greedy request is not asked for again at a temperature

    def __post_init__(self) -> None:
        roles = [role for role, _ in self.messages]
        if not roles or set(roles) - set(ROLES):
            raise ValueError(f"request: roles {roles}: give at least one message, of {', '.join(ROLES)}")
        if self.reply_tokens < 1:
            raise ValueError(f"request: reply_tokens = {self.reply_tokens}: must be at least 1")
        if not 0 <= self.temperature <= 2:
            raise ValueError(f"request: temperature = {self.temperature}: must be in 0..2")


@dataclass(frozen=True)
class Reply:
    """What came of a request."""

    index: int  # its place among the requests
    text: str  # as the generator wrote it, opening included
    value: Any  # what `read` made of it; None where it failed
    failure: str = ""  # why it failed, "" where it did not
    attempts: int = 0  # requests sent; 0: from the cache


class Generator(Protocol):
    """A language model behind an endpoint or on this machine."""

    name: str  # the model and what else decides its replies; part of the cache's key, never a secret

    def replies(self, requests: Sequence[tuple[int, Request]], read: Sequence[Read]) -> Iterator[Reply]:
        """A reply to each (index, request), in any order, as they are done; `read` are their readers, in order.

        A generator function: closing it cancels what is in flight. A whole text goes to its `read` once, and is
        accepted where that raises no ValueError; a request given up is a reply with its failure, never an exception.
        """
        ...


class ReplyCache:
    """The accepted replies about one document: folder/HASH.jsonl, a line each, only ever added to.

    One process at a time asks about a document (see `asking`), and keeps what is replied. A last line that a kill cut
    short is no reply, and dropped before anything is added; ValueError with its place for any other damaged line.
    """

    def __init__(self, folder: str | Path, document_text: str) -> None:
        self._document = hashlib.sha256(document_text.encode("utf-8", "surrogatepass")).hexdigest()
        self.path = Path(folder) / f"{self._document}.jsonl"
        self._texts = _texts(self.path)[0]

    def key(self, name: str, request: Request) -> str:
        """What a reply is kept under: a hash of the document, the generator's name and the whole request."""
        return _hash({"document": self._document, "generator": name, **asdict(request)})

    def get(self, key: str) -> str | None:
        """The text kept last under `key`, or None."""
        return self._texts.get(key)

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Keep other processes from asking about the document, after waiting for one that is; its replies are known."""
        name = self.path.name[:12]
        waiting = f"liftlab: waiting for another process, which asks about the same document ({name}...)"
        with locks.held(self.path.with_name(f".{self.path.stem}.lock"), nested=True, waiting=waiting):
            self._texts, whole = _texts(self.path)
            if whole is not None:
                with records.refusals_told(self.path):
                    os.truncate(self.path, whole)
            yield

    def keep(self, key: str, text: str, refused: int = 0) -> None:
        """Add a reply, on disk when this returns; `refused` unusable ones went before it. Only while `asking`.

        records.WriteError where the system refuses; no part of the line stays then.
        """
        line = json.dumps({"key": key, "text": text, "refused": refused}) + "\n"  # ASCII: holds a lone surrogate too
        with records.refusals_told(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            before = self.path.stat().st_size if self.path.exists() else 0
            try:
                with self.path.open("ab") as file:
                    file.write(line.encode("ascii"))
                    file.flush()
                    os.fsync(file.fileno())
            except OSError:
                if self.path.exists():
                    os.truncate(self.path, before)
                raise
        self._texts[key] = text


def ask(
    requests: Sequence[Request], read: Read | Sequence[Read], generator: Generator, cache: ReplyCache | None = None
) -> Iterator[Reply]:
    """The replies in the order of `requests`, each as soon as it and all before it are there.

    `read` is one for all or one for each. A reply that the cache holds and `read` still takes is not asked for; a new
    one is cached the moment it is accepted, a failed one never. Equal requests are sent once. Closing the iterator
    cancels what is in flight. ValueError for another number of readers than requests.
    """
    reads = [read] * len(requests) if callable(read) else list(read)
    if len(reads) != len(requests):
        raise ValueError(f"{len(reads)} readers for {len(requests)} requests: give one for all or one for each")
    return _in_order(len(requests), _arrivals(requests, reads, generator, cache))


def _in_order(count: int, arrivals: Iterator[Reply]) -> Iterator[Reply]:
    waiting: dict[int, Reply] = {}
    next_one = 0
    with closing(arrivals):
        for reply in arrivals:
            waiting[reply.index] = reply
            while next_one in waiting:
                yield waiting.pop(next_one)
                next_one += 1
    if next_one < count:
        raise RuntimeError(f"request {next_one} got no reply, not even a failure: the generator broke its contract")


def _arrivals(requests, reads: list[Read], generator: Generator, cache: ReplyCache | None) -> Iterator[Reply]:
    """The cached replies, then the others as they come; equal requests, a group, are asked as one."""
    groups = _groups(requests, generator, cache)
    readers = {key: _together([reads[index] for index in group]) for key, group in groups.items()}
    unknown = yield from _known(cache, groups, readers)
    if not unknown:
        return
    with nullcontext() if cache is None else cache.asking():
        unknown = yield from _known(cache, unknown, readers)  # another process may have asked meanwhile
        if not unknown:
            return
        asked = [(group[0], requests[group[0]]) for group in unknown.values()]
        keeping = [_keeping(readers[key], key, cache) for key in unknown]
        by_first = {group[0]: group for group in unknown.values()}
        with closing(generator.replies(asked, keeping)) as fresh:
            for reply in fresh:
                yield from _each(reply, by_first[reply.index])


def _known(cache: ReplyCache | None, groups: dict[str, list[int]], readers: dict[str, Read]) -> Iterator[Reply]:
    """The replies that the cache holds; returns the groups that it does not."""
    unknown = {}
    for key, group in groups.items():
        found = None if cache is None else _cached(cache.get(key), group[0], readers[key])
        if found is None:
            unknown[key] = group
        else:
            yield from _each(found, group)
    return unknown


def _groups(requests, generator: Generator, cache: ReplyCache | None) -> dict[str, list[int]]:
    """The indices of equal requests, by key."""
    groups: dict[str, list[int]] = {}
    for index, request in enumerate(requests):
        key = _hash(asdict(request)) if cache is None else cache.key(generator.name, request)
        groups.setdefault(key, []).append(index)
    return groups


def _together(reads: list[Read]) -> Read:
    return lambda text: [read(text) for read in reads]


def _keeping(read: Read, key: str, cache: ReplyCache | None) -> Read:
    """`read` that caches what it takes, at once: nothing accepted waits for the consumer."""
    refused = 0

    def read_and_keep(text: str) -> Any:
        nonlocal refused
        try:
            value = read(text)
        except ValueError:
            refused += 1
            raise
        if cache is not None:
            cache.keep(key, text, refused)
        return value

    return read_and_keep


def _cached(text: str | None, index: int, read: Read) -> Reply | None:
    """The reply that was kept; None for none, or for one that is unusable by now."""
    try:
        return None if text is None else Reply(index, text, read(text))
    except ValueError:
        return None


def _each(reply: Reply, group: list[int]) -> Iterator[Reply]:
    """A group's reply for each of its indices; what was sent counts for the first."""
    values = reply.value if not reply.failure else [None] * len(group)
    for index, value in zip(group, values, strict=True):
        yield replace(reply, index=index, value=value, attempts=reply.attempts if index == group[0] else 0)


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode("ascii")).hexdigest()


def _texts(path: Path) -> tuple[dict[str, str], int | None]:
    """The replies in a cache file by key; where its last line is torn, the bytes before that, else None."""
    data = path.read_bytes() if path.exists() else b""
    *whole, tail = data.split(b"\n")
    lines = [line + b"\n" for line in whole] + [tail] * bool(tail)
    texts: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        entry = _entry(line)
        if entry is not None:
            texts[entry[0]] = entry[1]
        elif number == len(lines):
            return texts, len(data) - len(line)
        else:
            raise ValueError(f"{path}:{number} is damaged: it is no reply as written, delete that line to ask again")
    return texts, None


def _entry(line: bytes) -> tuple[str, str] | None:
    """Key and text of a whole line, else None."""
    try:
        entry = json.loads(line) if line.endswith(b"\n") else {}
    except ValueError:
        return None
    known = isinstance(entry, dict) and isinstance(entry.get("key"), str) and isinstance(entry.get("text"), str)
    return (entry["key"], entry["text"]) if known else None
