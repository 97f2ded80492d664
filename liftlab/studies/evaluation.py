"""The papers' evaluation: the questions of a benchmark's documents, answered under conditions, scored officially."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files
from pathlib import Path

import pandas as pd

from liftlab import cells
from liftlab.documents import Document, Question
from liftlab.lifted import Lifted
from liftlab.models import BaseModel
from liftlab.prompts import style, with_evidence
from liftlab.scoring import CHANCE
from liftlab.stacked import Job
from liftlab.studies import answer_scores, sources, tuning
from liftlab.studies.answer_scores import SHARE, about_question, scored
from liftlab.studies.conditions import Plan, check_weights, pairs_of, plans, sharing
from liftlab.studies.registers import COMPUTE, about, at_least_one, base_model, check_english, data_files, known
from liftlab.studies.together import Answers, Ask, Cell, asking, grouped

OWN = ("documents", "questions", "recipe", "auxiliary", "style", "answer_tokens")  # what a task may have of its own
UNITS = {"failed": "requests", "refused": "requests"}  # of the counts whose name is not their unit
MODULES = (
    *COMPUTE,
    *(f"liftlab.{name}" for name in (
        "benchmarks", "hub_data", "register_tasks", "streaming", "judge",
        "auxiliary.replies", "auxiliary.endpoint", "auxiliary.sentences", "auxiliary.tasks", "auxiliary.local_model",
        "presft", "studies.sources", "studies.conditions", "studies.tuning", "studies.answer_scores",
        "studies.evaluation",
    )),
)  # fmt: skip


def run(
    study: str,
    *,
    base: str,
    window_tokens: int,
    four_bit: bool,
    benchmark: dict,
    documents: int,
    questions: int,
    conditions: dict,
    auxiliary: dict,
    style: str,
    seeds: int,
    answer_tokens: int,
    scores: Sequence[str],
    judge: dict,
    by_task: dict | None = None,
    presft: dict | None = None,
    records: str | Path,
) -> pd.DataFrame:
    """Records of `study`: a row a question, condition and score (0..1), with the answer as it was given.

    A cell of the cache is one document under every condition: a killed run goes on at the document where it stopped.
    `benchmark`: see `sources.FIELDS`; `documents`, `questions` (of a document and kind): 0 = all; `conditions`: see
    `Plan`; `seeds`: training seeds of each lift; `by_task`: see `split`; `presft`: see `tuning.checked`. Further
    metrics, a row a document and condition: train_steps, train_tokens, auxiliary_pairs; of pairs that a generator
    writes auxiliary_requests, _failed and _refused; of a judge judge_failed, the verdicts without a usable reply, which
    count as wrong, and of longreward, whose four ratings are metrics too, longreward_failed. ValueError for a wrong
    setting, before a model is loaded.
    """
    settings = {
        "base": base, "window_tokens": window_tokens, "four_bit": four_bit, "benchmark": benchmark,
        "documents": documents, "questions": questions, "conditions": conditions, "auxiliary": auxiliary,
        "style": style, "seeds": seeds, "answer_tokens": answer_tokens, "scores": list(scores), "judge": judge,
        "by_task": by_task or {}, "presft": presft or {},
    }  # fmt: skip
    recipes = [plan.recipe_for(0) for part in split(settings) for plan in checked(**part).values() if plan.recipe]
    settings["benchmark"] = sources.pinned(benchmark)
    grid = [{**part, "study": study, "place": place} for part in split(settings)
            for place in range(sources.number(part["benchmark"], part["documents"]))]  # fmt: skip
    paper = Path(str(files("liftlab"))) / "paper"
    data = (*data_files(), *(paper / f"{name}.yaml" for name in ("auxiliary", "judge")), *sources.files(benchmark))
    load = partial(base_model, base, window_tokens, four_bit)
    folders = {"replies": str(Path(records) / "replies"), "tuned": str(Path(records) / study)}
    facts = partial(_facts, split(settings), **folders)
    scoring = partial(cell, **folders)
    return cells.run(study, scoring, grid, Path(records), MODULES, facts, data, **grouped(load, recipes))


def split(settings: dict) -> list[dict]:
    """The settings of `checked`: one for all, or where `by_task` is not empty one for each task of the benchmark.

    `by_task`: task to the settings of its own, among `OWN`; recipe is that of every condition which has one. ValueError
    for a task that the benchmark has not, or a setting that is the same for all tasks.
    """
    own, shared = settings.get("by_task", {}), {name: value for name, value in settings.items() if name != "by_task"}
    if not own:
        return [shared]
    benchmark = sources.checked(shared["benchmark"])
    known([benchmark["source"]], ["loogle", "longbench"], "by_task is for documents of one task each: source")
    known(list(own), benchmark["tasks"], "task of by_task")
    for task, settings_of in own.items():
        known(list(settings_of), OWN, f"setting of by_task {task!r}:")
    return [_for_task(shared, task, own.get(task, {})) for task in benchmark["tasks"]]


def _for_task(shared: dict, task: str, own: dict) -> dict:
    conditions = {
        name: {**plan, "recipe": own.get("recipe", plan["recipe"])} if plan.get("recipe") else plan
        for name, plan in shared["conditions"].items()
    }
    changed = {name: value for name, value in own.items() if name != "recipe"}
    return {**shared, "benchmark": {**shared["benchmark"], "tasks": [task]}, "conditions": conditions, **changed}


def checked(
    *, base: str, window_tokens: int, four_bit: bool, benchmark: dict, documents: int, questions: int, conditions: dict,
    auxiliary: dict, style: str, seeds: int, answer_tokens: int, scores: Sequence[str], judge: dict,
    presft: dict | None = None,
) -> dict[str, Plan]:  # fmt: skip
    """The conditions; ValueError for a setting that is wrong. Nothing is loaded."""
    at_least_one(seeds=seeds, answer_tokens=answer_tokens, scores=len(scores))
    for name, value in (("window_tokens", window_tokens), ("documents", documents), ("questions", questions)):
        if value < 0:
            raise ValueError(f"{name} = {value}: give a whole number, 0 for the model's own or for all")
    plan = sources.checked(benchmark)
    sources.files(benchmark)
    check_english(base, plan.get("english", "plain"))
    if plan["source"] in sources.MADE:
        at_least_one(documents=documents)
    answer_scores.check(scores, judge, plan)
    wanted = plans(conditions, style, auxiliary)
    if four_bit:
        check_weights(wanted)
    tuning.checked(presft or {}, wanted, plan, style, four_bit)
    return wanted


@dataclass(frozen=True)
class Answered:
    """What a condition said to the questions, with the training seed (0 where nothing was trained).

    `measures`: a row a measure of its lift.
    """

    condition: str
    seed: int
    said: list[str | None]
    measures: Sequence[dict] = ()


def cell(
    study: str, base: str, window_tokens: int, four_bit: bool, benchmark: dict, documents: int, questions: int,
    conditions: dict, auxiliary: dict, style: str, seeds: int, answer_tokens: int, scores: Sequence[str], judge: dict,
    presft: dict, place: int, replies: str, tuned: str,
) -> Cell:  # fmt: skip
    """One document under every condition."""
    model = base_model(base, window_tokens, four_bit)
    source = json.dumps(benchmark), documents, questions, base, window_tokens, four_bit
    document = _documents(*source)[place]
    asked = [question for question in document.questions if question.wording != "trained"]
    shared = about(study, base, model, document)
    wanted = plans(conditions, style, auxiliary)
    other = _tuned(json.dumps(presft), style, tuned, replies, *source) if presft else model
    answered = yield from _answered((model, other), document, asked, wanted, seeds, answer_tokens, replies)
    rows: list[dict] = []
    for found in answered:
        marks = scored(document, asked, found.said, scores, judge, replies, model)
        rows += [{"condition": found.condition, "seed": found.seed, **row} for row in (*marks, *found.measures)]
    level = {"condition": "chance", "seed": 0, "metric": "chance", "unit": SHARE}
    guessed = [(question, CHANCE.get(scores[0], question.chance)) for question in asked]
    rows += [{**level, **about_question(document, question), "value": chance} for question, chance in guessed if chance]
    return pd.DataFrame({**shared, "kind": "", "question": "", "answer": "", "depth": float("nan"), **r} for r in rows)


@cache
def _documents(benchmark: str, count: int, questions: int, base: str, window_tokens: int, four_bit: bool):
    return sources.documents(json.loads(benchmark), count, base_model(base, window_tokens, four_bit), questions)


def _source(part: dict) -> tuple:
    """What `_documents` needs to know of a part's settings."""
    names = ("documents", "questions", "base", "window_tokens", "four_bit")
    return json.dumps(part["benchmark"]), *(part[name] for name in names)


@cache
def _tuned(presft: str, style: str, tuned: str, replies: str, *source) -> BaseModel:
    """The base model fine-tuned on other documents than those that `_documents` gives of `source`."""
    model, tests = base_model(*source[3:]), _documents(*source)
    chosen = tuning.chosen(json.loads(presft), style)
    return tuning.tuned(model, chosen, json.loads(source[0]), tests, Path(tuned), Path(replies))


def _facts(parts: Sequence[dict], replies: str, tuned: str) -> dict:
    """The provenance of the base model, of the data, and of the base models fine-tuned before the lifts."""
    of = parts[0]
    model = base_model(of["base"], of["window_tokens"], of["four_bit"])
    made = [_tuned(json.dumps(part["presft"]), part["style"], tuned, replies, *_source(part)).provenance
            for part in parts if part["presft"]]  # fmt: skip
    found = [{"weights_sha256": each["weights_sha256"], **each["presft"]} for each in made]
    told = {"base_model": model.provenance, "data": sources.provenance(of["benchmark"])}
    return told | ({"presft": found} if found else {})


def _answered(
    models: tuple[BaseModel, BaseModel], document: Document, asked: Sequence[Question], wanted: dict[str, Plan],
    seeds: int, tokens: int, replies: str,
) -> Generator[Job | Ask, Lifted | Answers, list[Answered]]:  # fmt: skip
    """What each condition says; one lift for all that share it. `models`: the base model without and with presft."""

    def ask(lifted: Lifted | None, plan: Plan) -> Generator[Ask, Answers, Answers]:
        how = style(plan.style)
        put = [with_evidence(document, question, how) for question in asked] if plan.evidence else asked
        on = models[plan.presft]
        return asking(on, lifted, document, put, plan.context, answer_tokens=tokens, style=how)

    answered: list[Answered] = []
    for name, plan in wanted.items():
        if not plan.recipe:
            answered.append(Answered(name, 0, (yield from ask(None, plan))))
    for first, group in sharing(wanted):
        for seed in range(seeds):
            pairs, counts = pairs_of(first, models[0], document, seed, Path(replies))
            lifted = yield Job(document, first.recipe_for(seed), pairs, base=models[first.presft])
            for name, plan in group.items():
                said = yield from ask(lifted, plan)
                answered.append(Answered(name, seed, said, _measures(lifted, counts)))
    return answered


def _measures(lifted: Lifted, counts: dict[str, int]) -> list[dict]:
    """A row a measure of a lift and of its auxiliary pairs."""
    last = lifted.history[-1]
    rows = [("train_steps", "steps", last.step), ("train_tokens", "tokens", last.tokens)]
    rows += [(f"auxiliary_{what}", UNITS.get(what, what), count) for what, count in counts.items()]
    return [{"metric": metric, "unit": unit, "value": float(value)} for metric, unit, value in rows]
