"""The scores of an evaluation's answers: functions of the words, LongBench's by task, BERTScore, a judge's marks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from liftlab.auxiliary.replies import ReplyCache
from liftlab.documents import Document, Question
from liftlab.judge import JUDGED, ToRate, grounds_of, marks
from liftlab.models import BaseModel
from liftlab.scoring import SCORES, TASK_SCORES, best
from liftlab.studies.conditions import check_generator, generator_of
from liftlab.studies.registers import known
from liftlab.text_overlap import bertscore

LONGBENCH, BERTSCORE = "longbench", "bertscore"  # not one function: by task; by another model
SHARE = "share of questions"


def check(scores: Sequence[str], judge: dict, benchmark: dict) -> None:
    """ValueError for a score that is unknown or not of the benchmark, or a judge that is missing or not asked."""
    known(scores, [*SCORES, LONGBENCH, *JUDGED, BERTSCORE], "score")
    if len(set(scores)) < len(scores):
        raise ValueError(f"scores = {list(scores)}: give each score once")
    if LONGBENCH in scores:
        known(benchmark.get("tasks", []), list(TASK_SCORES), f"score {LONGBENCH!r} is LongBench's own: task")
    known(list(judge), ["model", "endpoint"], "setting of judge:")
    if set(judge) != ({"model", "endpoint"} if set(JUDGED) & set(scores) else set()):
        raise ValueError(
            f"judge = {judge}: give model and endpoint where scores has judge or longreward, and {{}} where it has not"
        )
    if judge:
        check_generator("judge: model", judge["model"], judge["endpoint"])


def about_question(document: Document, question: Question) -> dict:
    depth = document.depth(question)
    return {"kind": question.kind, "question": question.text, "depth": float("nan") if depth is None else depth}


def scored(
    document: Document, asked: Sequence[Question], said: Sequence[str | None], scores: Sequence[str], judge: dict,
    replies: str, model: BaseModel,
) -> Iterator[dict]:  # fmt: skip
    """A row a question and score; a whole document that does not fit the prompt has no answers, and no rows."""
    answered = [(question, text) for question, text in zip(asked, said, strict=True) if text is not None]
    for score in scores:
        metric = "longbench_score" if score == LONGBENCH else score
        if score in JUDGED:
            columns, failed = _judged(score, document, answered, judge, Path(replies), model)
            yield {"metric": f"{score}_failed", "unit": "verdicts", "value": float(failed)}
        elif score == BERTSCORE:
            columns = {metric: bertscore([text for _, text in answered], [q.answer for q, _ in answered])}
        else:
            columns = {metric: [_score(score, question, text) for question, text in answered]}
        for name, values in columns.items():
            for (question, text), value in zip(answered, values, strict=True):
                yield {
                    **about_question(document, question),
                    "answer": text,
                    "metric": name,
                    "unit": SHARE,
                    "value": value,
                }


def _score(score: str, question: Question, text: str) -> float:
    if score != LONGBENCH:
        return best(score, text, question)
    known([question.kind], list(TASK_SCORES), f"score {LONGBENCH!r} is LongBench's own: task")
    return best(TASK_SCORES[question.kind], text, question)


def _judged(
    score: str, document: Document, answered: Sequence[tuple[Question, str]], judge: dict, replies: Path,
    model: BaseModel,
) -> tuple[dict[str, list[float]], int]:  # fmt: skip
    """The judge's marks of each answer, by metric, and how many it gave none for: these count 0."""
    generator = generator_of(model, judge["model"], judge["endpoint"])
    asked = [ToRate(question.text, question.answer, text, grounds_of(document, question, model.tokenizer,
                    model.window // 2)) for question, text in answered]  # fmt: skip
    return marks(score, asked, generator, ReplyCache(replies / "judge", document.text))
