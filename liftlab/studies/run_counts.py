"""What an evaluation would do, counted: prompts, lifts, steps, tokens, requests, and the operations they take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path

from liftlab import costs
from liftlab.adapters import beside_prefix
from liftlab.auxiliary.sentences import sentences
from liftlab.batches import epochs
from liftlab.examples import Example, pair_examples
from liftlab.lifting import make_examples
from liftlab.models import Configuration
from liftlab.prompts import encode_prompt, style, with_evidence
from liftlab.recipes import Recipe
from liftlab.studies import tuning
from liftlab.studies.conditions import KNOWN, Plan, pairs_of, sharing
from liftlab.studies.document_sizes import Sized, blank, corpus, segments_of

ANY_WINDOW = 2**31  # tokens: sequences are counted whatever the window, and compared with it afterwards
TUNING = "pre-LIFT fine-tuning"  # the row of what is done before the lifts


class Counts:
    """`rows`: a Counter a condition (as `dry_run.COLUMNS`, and decoded: steps of decoding)."""

    def __init__(self, settings: dict, known: Configuration, plans: dict[str, Plan], sized: Sequence[Sized]) -> None:
        self.settings, self.known, self.plans, self.sized, self.size = settings, known, plans, sized, size_of(known)
        self._longest: dict[str, int] = {}  # tokens of what has to fit the window
        self._generated: set[tuple] = set()  # auxiliary settings whose replies are in the cache by then
        self.rows = {name: self._asking(plan) for name, plan in plans.items()}
        for first, group in sharing(plans):
            self.rows[next(iter(group))].update(self._lifting(first))
        if given := settings.get("presft"):
            self.rows[TUNING] = self._tuning(tuning.chosen(given, settings["style"]))

    def _asking(self, plan: Plan) -> Counter:
        found, tokens = Counter(), self.settings["answer_tokens"]
        for one in self.sized:
            prompts, times = self._prompts(one, plan), one.number * (self.settings["seeds"] if plan.recipe else 1)
            asked = sum(prompts.values())
            together = max(1, min(ceil(asked), costs.ASKED_TOGETHER // max(prompts, default=1)))
            read, squares = _sums(prompts)
            found.update(documents=one.number, questions=one.number * one.questions, prompt_tokens=times * read,
                         answer_tokens=times * asked * tokens, decoded=times * ceil(asked / together) * tokens,
                         operations=times * costs.reading(self.size, read, squares))  # fmt: skip
        return found

    def _prompts(self, one: Sized, plan: Plan) -> Counter:
        """How many prompts of each length (tokens) one document has; a whole document that does not fit has none."""
        window = self._left(plan.recipe_for(0)) if plan.recipe else self.known.window
        answers, prefix, found = self.settings["answer_tokens"], self.known.window - window, Counter()
        for bare, number in self._bare(one, plan).items():
            self._reaches("a question with its answer", bare + answers + prefix)
            whole = bare + (one.tokens if plan.context != "none" else 0)
            if plan.context != "full" or whole + answers <= window:
                found[min(whole, max(bare, window - answers))] += number
        return found

    def _bare(self, one: Sized, plan: Plan) -> Counter:
        """How many prompts of each length there are, the document left out of them."""
        if one.document is None:
            length = costs.FORM_TOKENS + costs.QUESTION_TOKENS + costs.EVIDENCE_TOKENS * plan.evidence
            return Counter({length: one.questions})
        how, empty = style(plan.style), None if plan.context == "none" else ""
        asked = [question for question in one.document.questions if question.wording != "trained"]
        put = [with_evidence(one.document, question, how) if plan.evidence else question for question in asked]
        texts = [how.text(question.text, one.document.title, empty) for question in put]
        return Counter(len(encode_prompt(self.known.tokenizer, text, how)) for text in texts)

    def _lifting(self, plan: Plan) -> Counter:
        found, fresh = Counter(), plan.auxiliary not in self._generated
        self._generated.add(plan.auxiliary)
        for one in self.sized:
            seeds = self.settings["seeds"] if one.document else 1  # without the document all seeds count the same
            times = one.number * self.settings["seeds"] / seeds
            for seed in range(seeds):
                parts = [self._lift([one], plan, seed), self._generating(one, plan) if fresh else Counter()]
                for part in parts:
                    found.update({name: times * value for name, value in part.items()})
        return found

    def _tuning(self, chosen: tuning.Tuning) -> Counter:
        """The fine-tuning before the lifts."""
        documents = corpus(chosen, self.settings["benchmark"], self.known, self.sized)
        found = self._lift(documents, chosen.plan, 0)
        for one in documents:
            found.update(self._generating(one, chosen.plan), documents=1)
        return found

    def _lift(self, documents: Sequence[Sized], plan: Plan, seed: int) -> Counter:
        """Steps and tokens of one training, counted over the batches of its epochs."""
        recipe = plan.recipe_for(seed)
        found = [self._examples(one, plan, recipe) for one in documents]
        cut, answered = ([example for of in found for example in of[kind]] for kind in (0, 1))
        pairs = sum(of[2] for of in found)
        longest = max((len(example.ids) for example in [*cut, *answered]), default=0) + (recipe.prefix_tokens or 0)
        self._reaches(f"a training sequence of recipe {plan.recipe}", longest)
        batches = [list(epoch) for epoch in epochs(cut, answered, recipe)]
        lengths = Counter(len(example.ids) for epoch in batches for batch in epoch for example in batch)
        tokens, squares = _sums(lengths)
        operations = costs.training(self.size, tokens, squares, full=recipe.adapter == "full",
                                    checkpointing=recipe.gradient_checkpointing)  # fmt: skip
        steps = len(batches) if recipe.step == "epoch" else sum(map(len, batches))
        return Counter(lifts=1, steps=steps, train_tokens=tokens, pairs=pairs, operations=operations)

    def _examples(self, one: Sized, plan: Plan, recipe: Recipe) -> tuple[list[Example], list[Example], int]:
        """The segments, the pairs' examples, and how many pairs; assumed where the document, or a pair, is unknown."""
        asked = dict(plan.auxiliary)
        if one.document is None:
            cut, pairs = segments_of(one.tokens, recipe, self.known.window), ()
            if asked["task"] in KNOWN and asked["count"]:
                raise ValueError("the benchmark's documents bring no pairs along: choose a task that generates them")
        else:
            fills = recipe.segment_by_segment and recipe.segment_tokens <= self.known.window  # what the window leaves
            window = self.known.window if fills else ANY_WINDOW
            cut = list(make_examples(replace(self.known, window=window), one.document, recipe, ())[0])
            pairs = pairs_of(plan, self.known, one.document, recipe.seed, Path())[0] if asked["task"] in KNOWN else ()
        if asked["task"] not in KNOWN and asked["count"]:
            number = asked["count"] * _requests(one, asked["task"], 1)
            return cut, [self._pair(one, asked["task"], recipe)] * (number if recipe.mixed_epochs else 0), number
        used = pairs if recipe.mixed_epochs else ()
        form = style(recipe.style), recipe.pair_context, self._left(recipe)
        read = pair_examples(self.known.tokenizer, one.document, used, *form) if used else []
        return cut, read, len(pairs)

    def _pair(self, one: Sized, task: str, recipe: Recipe) -> Example:
        """The example of a generated pair, of assumed length."""
        length = costs.FORM_TOKENS + costs.REPLIES[task].question + costs.REPLIES[task].answer
        whole = length + (one.tokens if recipe.pair_context != "none" else 0)
        return blank(min(whole, self._left(recipe)) if recipe.pair_context == "truncated" else whole, "pair")

    def _left(self, recipe: Recipe) -> int:
        """Tokens of the window that the recipe's adapter leaves."""
        return beside_prefix(self.known, recipe).window

    def _generating(self, one: Sized, plan: Plan) -> Counter:
        """The requests for one document's pairs, and what they take where the base model itself replies."""
        asked = dict(plan.auxiliary)
        if asked["task"] in KNOWN or not asked["count"]:
            return Counter()
        of, requests = costs.REPLIES[asked["task"]], _requests(one, asked["task"], asked["count"])
        reply = of.reply * (asked["count"] if asked["task"] == "sentence" else 1)
        found = Counter(requests=requests, request_tokens=requests * of.request, reply_tokens=requests * reply)
        if asked["generator"] == "model":
            found["operations"] = costs.reading(self.size, requests * of.request, requests * of.request**2)
            found["decoded"] = ceil(requests / costs.REPLIES_TOGETHER) * reply
        return found

    def _reaches(self, what: str, tokens: int) -> None:
        self._longest[what] = max(self._longest.get(what, 0), tokens)

    @property
    def problems(self) -> list[str]:
        """What would stop the run."""
        window = f"tokens, the window of {self.known.name} has {self.known.window}"
        beyond = {what: tokens for what, tokens in self._longest.items() if tokens > self.known.window}
        return [f"{what} takes up to {tokens} {window}" for what, tokens in beyond.items()]


def _requests(one: Sized, task: str, count: int) -> int:
    """`count`, or for task sentence one request a sentence."""
    if task != "sentence":
        return count
    return len(sentences(one.document.text)) if one.document else ceil(one.tokens / costs.SENTENCE_TOKENS)


def _sums(lengths: Counter) -> tuple[float, float]:
    """The sum of the lengths and of their squares."""
    return sum(n * length for length, n in lengths.items()), sum(n * length**2 for length, n in lengths.items())


def size_of(known: Configuration) -> costs.Size:
    text = known.config.get_text_config()
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    embeddings = text.vocab_size * text.hidden_size * (1 if text.tie_word_embeddings else 2)
    return costs.Size(known.parameters, text.num_hidden_layers, text.num_attention_heads * head, embeddings)
