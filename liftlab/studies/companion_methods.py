"""The methods beside LIFT and LIFT itself: what each puts into the prompt, what it answers, and what it costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

from liftlab import grouped_positions, long_perplexity
from liftlab.adapters import beside_prefix
from liftlab.answering import answer_prompts
from liftlab.documents import Document, Question
from liftlab.lifted import Lifted
from liftlab.models import BaseModel
from liftlab.prompts import Cuts, PromptStyle, put
from liftlab.retrieval import Passages
from liftlab.scoring import best
from liftlab.studies.together import Answers, Ask


@dataclass(frozen=True)
class Method:
    """What stands in the prompt, and what is trained before: the name of its recipe among the parameter `recipes`.

    `context`: none, truncated, full (prompts.CONTEXTS), passages (retrieval) or grouped (the whole document, beyond the
    window too, at grouped positions). `pairs`: whether the recipe is given the register's own pairs.
    """

    context: str
    recipe: str = ""
    pairs: bool = False


METHODS = {
    "closed_book": Method("none"),
    "truncated_icl": Method("truncated"),
    "full_icl": Method("full"),
    "retrieval": Method("passages"),
    "self_extend": Method("grouped"),
    "lift": Method("none", "lift", pairs=True),
    "lift_truncated_icl": Method("truncated", "lift", pairs=True),
    "raw_text": Method("none", "raw_text"),
    "temp_lora": Method("none", "temp_lora"),
    "cartridge": Method("none", "cartridge", pairs=True),
}
STRIDES = 4  # tokens scored in one reading of the window: a quarter of it


def stored_bytes(lifted: Lifted) -> int:
    """Bytes of the adapter's weights on disk. Its config, about a kilobyte, names a folder and is left out."""
    with TemporaryDirectory() as folder:
        kept = lifted.save(Path(folder) / "lifted")
        return sum(file.stat().st_size for file in kept.rglob("*.safetensors"))


def cannot(reason: str) -> dict:
    return {"metric": "cannot_run", "unit": "document", "value": 1.0, "reason": " ".join(reason.split())}


@dataclass(frozen=True)
class Asked:
    """A document and what is asked of it, with how it is asked and scored."""

    base: BaseModel
    document: Document
    questions: Sequence[Question]
    form: PromptStyle
    answer_tokens: int
    score: str
    passage_tokens: int
    positions: dict[str, int]  # group, neighbours
    timed: bool

    @cached_property
    def key_tokens(self) -> list[int]:
        """The document's tokens that a long context makes likely to the base model."""
        short_tokens = max(1, self.base.window // long_perplexity.SHORT_SHARE)
        return long_perplexity.key_tokens(self.base, self.document, short_tokens, stride=self._stride)

    @property
    def _stride(self) -> int:
        return max(1, self.base.window // STRIDES)

    def predicted(self, lifted: Lifted | None) -> list[dict]:
        """Perplexity of the document to the base model or to a lifted one, over all tokens and the key ones."""
        with lifted.on(self.base) if lifted else nullcontext(self.base) as on:
            found = long_perplexity.of_model(on, self.document, key=self.key_tokens, stride=self._stride)
        return found[["metric", "unit", "value", "context"]].to_dict("records")

    def measured(
        self, method: Method, lifted: Lifted | None, trained_seconds: float = 0.0
    ) -> Generator[Ask, Answers, list[dict]]:
        """A row a question and a cost, or one that says why the method cannot run."""
        if method.context == "grouped" and (reason := grouped_positions.cannot(self.base.model)):
            return [cannot(reason)]
        began = time.perf_counter()
        window = beside_prefix(self.base, lifted.recipe).window if lifted else self.base.window
        prompt = self._prompter(method.context, window)
        ready = time.perf_counter()
        prompts = [prompt(question) for question in self.questions]
        if None in prompts:
            return [cannot(self._too_long(method.context))]
        if method.context == "grouped":
            with grouped_positions.grouped(self.base.model, **self.positions):
                said = answer_prompts(self.base, prompts, self.answer_tokens)
        else:
            said = yield Ask(prompts, self.answer_tokens, lifted)
        each = (time.perf_counter() - ready) / len(prompts)
        seconds = [trained_seconds + ready - began, each] if self.timed else []
        return [*self._scored(said), *self._costs(method, lifted, prompts, seconds)]

    def _prompter(self, context: str, window: int) -> Callable[[Question], list[int] | None]:
        """From a question to its prompt; None where the whole document does not fit."""
        tokenizer, rest = self.base.tokenizer, (self.answer_tokens, self.form)
        if context == "passages":
            passages = Passages(tokenizer, self.document, self.passage_tokens)
            return lambda question: passages.put(question, window, *rest)
        cuts = Cuts(tokenizer, self.document.text)
        if context == "grouped":
            context, window = "full", self._reach()
        return lambda question: put(tokenizer, self.document, question, context, window, *rest, cuts)

    def _reach(self) -> int:
        return grouped_positions.reach(self.base.window, **self.positions)

    def _too_long(self, context: str) -> str:
        room = f"the window of {self.base.window} tokens"
        if context == "grouped":
            room = f"the {self._reach():,} tokens that group {self.positions['group']} reaches"
        return f"a prompt with the whole document does not fit {room}"

    def _scored(self, said: Answers) -> Iterator[dict]:
        for question, text in zip(self.questions, said, strict=True):
            yield {"kind": question.kind, "question": question.text, "answer": text, "metric": self.score,
                   "unit": "share of questions", "value": best(self.score, text, question)}  # fmt: skip

    def _costs(
        self, method: Method, lifted: Lifted | None, prompts: Sequence[list[int]], seconds: Sequence[float]
    ) -> Iterator[dict]:
        text = 0 if method.context == "none" else len(f"{self.document.title}{self.document.text}".encode())
        costs = {
            "training_tokens": ("tokens", float(lifted.history[-1].tokens) if lifted else 0.0),
            "prompt_tokens": ("tokens", sum(map(len, prompts)) / len(prompts)),
            "stored_bytes": ("bytes", float(text + (stored_bytes(lifted) if lifted else 0))),
        }
        if seconds:
            costs |= {"prepare_seconds": ("s", seconds[0]), "question_seconds": ("s", seconds[1])}
        for name, (unit, value) in costs.items():
            yield {"metric": name, "unit": unit, "value": value}
