"""Where an evaluation's documents come from: registers, needles, LooGLE, LongBench, or question sets of one's own."""

from __future__ import annotations

import hashlib
import math
import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from liftlab import benchmarks, hub_data, run_log
from liftlab.documents import Document, Question
from liftlab.models import BaseModel
from liftlab.register_tasks import TASKS, with_tasks
from liftlab.studies.registers import FIRST_DOCUMENT, QUESTION_TOKENS, at_least_one, known, register_of
from liftlab.worlds import ENGLISH, vocabulary

FIELDS = {  # of the `benchmark` parameter; a field without a default here must be given
    "register": {"tasks": None, "windows": 1.5, "filler": 0.1, "english": "plain"},
    "register_needle": {"windows": None, "depths": None},
    "loogle": {"tasks": None, "path": "", "revision": ""},
    "longbench": {"tasks": None, "path": "", "revision": ""},
    "needle": {"path": None, "words": None, "depths": None, "needle": None, "question": None, "answer": None},
    "questions": {"path": None},
}
PART_OF = {"timeline_reorder": "longdep_qa"}  # tasks that are one kind of question in a file of LooGLE
NAMES = {  # of tasks
    "register": tuple(TASKS),
    "loogle": (*hub_data.LOOGLE_TASKS, *PART_OF),
    "longbench": hub_data.LONGBENCH_TASKS,
}
INSTEAD = {"loogle": "LIFTLAB_LOOGLE", "longbench": "LIFTLAB_LONGBENCH"}  # environment: folders in place of the hub
MADE = ("register", "register_needle", "needle")  # sources that make as many documents as are asked for
SHORT = "short_qa"  # the kind of LooGLE's short-dependency questions, whose rows name none
OWN = "questions"  # the kind of one's own questions that name none
FILLER = 0.1  # of a needle's register
NEEDLE_TOKENS = 24  # a needle has at most so many


def checked(benchmark: dict) -> dict:
    """`benchmark` with its defaults. ValueError for an unknown source, and an unknown, missing or wrong field."""
    source = benchmark.get("source", "")
    known([source], list(FIELDS), "benchmark source")
    fields = FIELDS[source]
    known([name for name in benchmark if name != "source"], list(fields), f"field of benchmark source {source!r}:")
    missing = [name for name, default in fields.items() if default is None and name not in benchmark]
    if missing:
        raise ValueError(f"benchmark source {source!r} needs {missing[0]!r}: give it beside {', '.join(fields)}")
    plan = {"source": source, **{name: value for name, value in fields.items() if value is not None}, **benchmark}
    for name, default in fields.items():
        _check_field(name, plan[name], listed=default is None and name in ("tasks", "windows", "words", "depths"))
    known(plan.get("tasks", []), NAMES.get(source, ()), f"task of benchmark source {source!r}:")
    if source == "loogle" and (twice := [task for task in plan["tasks"] if PART_OF.get(task) in plan["tasks"]]):
        raise ValueError(f"benchmark: tasks = {plan['tasks']!r}: {PART_OF[twice[0]]} holds {twice[0]}, leave one out")
    return plan


def _check_field(name: str, value: object, listed: bool) -> None:
    """ValueError for a value, or one of a list, that the field `name` cannot have."""
    if listed and not (isinstance(value, list) and value):
        raise ValueError(f"benchmark: {name} = {value!r}: give a list of at least one")
    values = value if listed else [value]
    fits, words = _BOUNDS[name]
    for one in values:
        if not fits(one):
            raise ValueError(f"benchmark: {name} = {value!r}: {'each' if listed else 'it'} must be {words}")
    if len(set(values)) < len(values):
        raise ValueError(f"benchmark: {name} = {value!r}: give each one once")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_TEXT = (lambda v: isinstance(v, str) and bool(v.strip()), "a text that is not empty")
_OR_EMPTY = (lambda v: isinstance(v, str), "a text")
_BOUNDS: dict[str, tuple[Callable[[object], bool], str]] = {
    "tasks": _TEXT,
    "windows": (lambda v: _is_number(v) and v > 0, "a number above 0"),
    "filler": (lambda v: _is_number(v) and 0 <= v < 0.9, "a number in 0..0.9 (0.9 excluded)"),
    "english": (lambda v: v in ENGLISH, f"one of {', '.join(ENGLISH)}"),
    "words": (lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= 1, "a whole number, at least 1"),
    "depths": (lambda v: _is_number(v) and 0 <= v <= 1, "a number in 0..1, where 1 ends the document"),
    "path": _OR_EMPTY,
    "revision": _OR_EMPTY,
    **dict.fromkeys(("needle", "question", "answer"), _TEXT),
}


def files(benchmark: dict) -> tuple[Path, ...]:
    """The local files that the documents are read from; FileNotFoundError where one is not there."""
    plan = checked(benchmark)
    if not _folder(plan):
        return ()
    path = Path(_folder(plan)).expanduser()
    if plan["source"] == "needle":
        found = tuple(sorted(file for file in path.glob("*") if file.suffix in (".txt", ".md"))) or (path / "*.txt",)
    else:
        found = tuple(path / f"{_file(plan, task)}.jsonl" for task in plan["tasks"]) if "tasks" in plan else (path,)
    for file in found:
        if not file.is_file():
            raise FileNotFoundError(f"benchmark: no such file: {file}: give the path of the data")
    return found


def pinned(benchmark: dict) -> dict:
    """`benchmark`; where it is read from the hub, with the commit of its revision, so that records hold and keep it."""
    plan = checked(benchmark)
    if plan["source"] not in INSTEAD or _folder(plan):
        return benchmark
    hub = hub_data.loogle if plan["source"] == "loogle" else hub_data.longbench
    return {**plan, "revision": hub(_file(plan, plan["tasks"][0]), plan["revision"] or None).revision}


def provenance(benchmark: dict) -> dict:
    """What a record says of its data: source, the hub's commit ("" for none), and each local file's SHA-256."""
    plan = checked(benchmark)
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files(benchmark)}
    return {"source": plan["source"], "revision": plan.get("revision", ""), "files_sha256": hashes}


def number(benchmark: dict, count: int) -> int:
    """How many documents `documents` gives; no model is needed."""
    plan = checked(benchmark)
    if plan["source"] not in MADE:
        return len(_SOURCES[plan["source"]](plan, count, None))
    at_least_one(documents=count)
    lengths = {"register": [plan.get("windows")]}.get(plan["source"], plan.get("words", plan.get("windows")))
    return count * len(lengths) * len(plan.get("depths", [None]))


def documents(benchmark: dict, count: int, base: BaseModel, questions: int = 0) -> list[Document]:
    """The first `count` documents (0 = all that the source has) with at most `questions` questions of a kind (0 = all).

    Released benchmarks are drawn from, by a fixed seed, so that a part of them is a sample, and a part of any larger
    one; sources in `MADE` need a count, and make `count` documents of each length (and depth). ValueError for a
    document without a question.
    """
    plan = checked(benchmark)
    made = [replace(d, questions=_drawn(d, questions)) for d in _SOURCES[plan["source"]](plan, count, base)]
    for document in made:
        if all(question.wording == "trained" for question in document.questions):
            raise ValueError(
                f"document {document.name!r} has no question of {', '.join(plan.get('tasks', ['its kind']))}: "
                "make it longer (windows), or ask another task"
            )
    return made


def _drawn(document: Document, count: int) -> tuple[Question, ...]:
    """The trained wordings, and of each other kind at most `count`, drawn by the document's name, in its order."""
    asked = [q for q in document.questions if q.wording != "trained"]
    rng = random.Random(f"questions {document.name}")
    kept: list[int] = []
    for kind in dict.fromkeys(q.kind for q in asked):
        kept += _some([place for place, q in enumerate(asked) if q.kind == kind], count, rng)
    return (*document.asked("trained"), *(asked[place] for place in sorted(kept)))


def _some(places: list[int], count: int, rng: random.Random) -> list[int]:
    """`count` of the places (0 or too many: all), sorted; a larger count has them too."""
    return sorted(rng.sample(places, len(places))[: count or None])


def _registers(plan: dict, count: int, base: BaseModel) -> list[Document]:
    at_least_one(documents=count)
    seeds = range(FIRST_DOCUMENT, FIRST_DOCUMENT + count)
    length = plan["windows"], plan["filler"], plan["english"]
    return [with_tasks(register_of(base, seed, *length), plan["tasks"]) for seed in seeds]


def _register_needles(plan: dict, count: int, base: BaseModel) -> list[Document]:
    """Registers with one more fact, about somebody whom they do not name, at each length (windows) and depth."""
    at_least_one(documents=count)
    seeds = range(FIRST_DOCUMENT, FIRST_DOCUMENT + count)
    places = [(seed, length, depth) for length in plan["windows"] for depth in plan["depths"] for seed in seeds]
    return [_register_needle(base, *place) for place in places]


def _register_needle(base: BaseModel, seed: int, length: float, depth: float) -> Document:
    """The fact, and the document's name, are the same at every depth: they are no independent documents."""
    rng = random.Random(f"needle {seed}")
    hay = register_of(base, seed, length - NEEDLE_TOKENS / (base.window - QUESTION_TOKENS), FILLER)
    relation = rng.choice([r for r in vocabulary().relations if r.name not in ("mentor", "shop", "prize")])
    value, statement = rng.choice(relation.values), rng.choice(relation.statements)
    unnamed = [name for name in vocabulary().names if name not in hay.text]
    if not unnamed:
        raise ValueError(f"benchmark: windows = {length:g}: so long a register names everybody, give a shorter one")
    name, asked = rng.choice(unnamed), rng.choice(relation.held_out)
    needle = statement.format(name=name, value=value)
    told = benchmarks.with_needle(hay.text, needle, asked.format(name=name), value, len(hay.text.split()), depth)
    (question,) = told.questions
    question = replace(question, chance=1 / len(relation.values))
    questions = [
        replace(question, kind=f"length_{length:g}w_depth_{100 * depth:g}"),
        *(
            replace(question, text=w.format(name=name), kind=relation.name, wording="trained")
            for w in relation.questions
        ),
        *_moved(hay.asked("trained"), question.evidence),
    ]
    return Document(f"needle-{seed}-{length:g}w", told.text, hay.title, tuple(questions))


def _moved(questions: tuple[Question, ...], needle: tuple[int, int]) -> list[Question]:
    """The register's own one-hop questions with their evidence where it stands beside the needle."""
    by = needle[1] - needle[0] + 1  # and the space after it
    return [replace(q, evidence=tuple(at + by * (q.evidence[0] >= needle[0]) for at in q.evidence)) for q in questions]


def _loogle(plan: dict, count: int, base: BaseModel | None) -> list[Document]:
    read = _read(plan, benchmarks.read_loogle, hub_data.loogle)
    found = [d for task in plan["tasks"] for d in _some_of(plan, task, _of_kind(read(_file(plan, task)), task), count)]
    return [replace(d, questions=tuple(replace(q, kind=q.kind or SHORT) for q in d.questions)) for d in found]


def _file(plan: dict, task: str) -> str:
    """The name of the benchmark's file that holds the task."""
    return PART_OF.get(task, task) if plan["source"] == "loogle" else task


def _of_kind(found: list[Document], task: str) -> list[Document]:
    """The documents with the task's questions alone, where it is one kind of a file's; only those that have any."""
    if task not in PART_OF:
        return found
    kept = [replace(d, questions=tuple(q for q in d.questions if q.kind == task)) for d in found]
    return [document for document in kept if document.questions]


def _longbench(plan: dict, count: int, base: BaseModel | None) -> list[Document]:
    read = _read(plan, benchmarks.read_longbench, hub_data.longbench)
    return [document for task in plan["tasks"] for document in _some_of(plan, task, read(task), count)]


def _read(plan: dict, local: Callable, hub: Callable) -> Callable[[str], list[Document]]:
    """A task's documents: of a folder that holds TASK.jsonl, where one is given (see `_folder`), else from the hub."""
    if _folder(plan):
        return lambda task: local(Path(_folder(plan)).expanduser() / f"{task}.jsonl")
    return lambda task: hub(task, plan["revision"] or None).documents


def _folder(plan: dict) -> str:
    """Where a benchmark's files are: its path, or what the environment gives in place of the hub, or ""."""
    return plan.get("path") or os.environ.get(INSTEAD.get(plan["source"], ""), "")


def _some_of(plan: dict, task: str, found: list[Document], count: int) -> list[Document]:
    """`_sample`; a folder that stands in for the hub may hold fewer documents than that has: then all of them."""
    if count > len(found) and _folder(plan) and not plan["path"]:
        run_log.say(f"{INSTEAD[plan['source']]} holds {len(found)} documents of {task}, not {count}: all are used")
        return found
    return _sample(found, count)


def _needles(plan: dict, count: int, base: BaseModel | None) -> list[Document]:
    """One needle in a folder of texts; `count` haystacks a place, each starting further into the texts.

    A haystack has one name at all places: they are no independent documents.
    """
    at_least_one(documents=count)
    if not plan["path"].strip():
        raise ValueError("benchmark: path is empty: give the folder of texts that the needle is put into")
    hay = benchmarks.haystack(Path(plan["path"]).expanduser())
    words = hay.split(" ")
    step = max(0, len(words) - max(plan["words"])) // count
    made = []
    for start in range(count):
        part = " ".join(words[start * step :])
        for length in plan["words"]:
            for depth in plan["depths"]:
                told = benchmarks.with_needle(part, plan["needle"], plan["question"], plan["answer"], length, depth)
                (asked,) = told.questions
                asked = replace(asked, kind=f"length_{length}_depth_{100 * depth:g}")
                made.append(replace(told, name=f"needle-{start}", questions=(asked,)))
    return made


def _questions(plan: dict, count: int, base: BaseModel | None) -> list[Document]:
    found = _sample(benchmarks.read_questions(Path(plan["path"]).expanduser()), count)
    return [replace(d, questions=tuple(replace(q, kind=q.kind or OWN) for q in d.questions)) for d in found]


def _sample(found: list[Document], count: int) -> list[Document]:
    """`count` of the documents in their order, drawn by a fixed seed; all of them for 0. ValueError for too many."""
    if count > len(found):
        raise ValueError(f"documents = {count}: the benchmark has {len(found)}, give at most that, or 0 for all")
    return [found[place] for place in _some(list(range(len(found))), count, random.Random("documents"))]


_SOURCES: dict[str, Callable[[dict, int, BaseModel], list[Document]]] = {
    "register": _registers,
    "register_needle": _register_needles,
    "loogle": _loogle,
    "longbench": _longbench,
    "needle": _needles,
    "questions": _questions,
}
