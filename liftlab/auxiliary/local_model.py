"""Replies from a base model on this machine."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from liftlab.auxiliary.replies import Read, Reply, Request
from liftlab.models import BaseModel

BATCH_TOKENS = {"cpu": 8192, "cuda": 65536}  # padded tokens of one batch, by the device's type
RETRY_TEMPERATURE = 0.7  # of a greedy request whose reply was unusable: greedy again would give the same


@dataclass(frozen=True)
class _Job:
    index: int
    request: Request
    read: Read
    prompt: str
    ids: list[int]

    def temperature(self, attempt: int) -> float:
        """Of attempt 1, 2, ...; 0 is greedy."""
        asked = self.request.temperature
        return asked if attempt == 1 or self.request.always_greedy else max(asked, RETRY_TEMPERATURE)

    def noise(self, attempt: int) -> torch.Generator:
        """The attempt's own source of noise, the same in whatever batch it is."""
        seed = random.Random(f"{self.request.seed} {attempt} {self.prompt}").getrandbits(63)
        return torch.Generator().manual_seed(seed)


class LocalModel:
    """A generator (see `replies.Generator`) on `base`, a base model or `Lifted.on(base)`.

    Messages go through the chat template, and the reply begins with the request's `opening`. The first attempt is at
    the request's temperature (0: greedy), later ones at RETRY_TEMPERATURE or above, with noise that the request and the
    attempt alone decide. A request that does not fit the window is a failure. `batch_tokens` bounds the padded tokens
    of one batch, replies included (one request may exceed it); None: as `BATCH_TOKENS` has it. ValueError without a
    chat template. The model and the global random state are left as they are.
    """

    def __init__(self, base: BaseModel, attempts: int = 2, batch_tokens: int | None = None) -> None:
        if batch_tokens is None:
            batch_tokens = BATCH_TOKENS.get(base.model.device.type, BATCH_TOKENS["cpu"])
        for setting, value in (("attempts", attempts), ("batch_tokens", batch_tokens)):
            if value < 1:
                raise ValueError(f"local model: {setting} = {value}: must be at least 1")
        if not base.tokenizer.chat_template:
            raise ValueError(f"the tokenizer of {base.name} has no chat template: generate pairs with a chat model")
        self.base, self.attempts, self.batch_tokens = base, attempts, batch_tokens
        self.name = _name(base)

    def replies(self, requests: Sequence[tuple[int, Request]], read: Sequence[Read]) -> Iterator[Reply]:
        """The replies, batch by batch: a batch's come once each has a usable one or no attempt left."""
        batch: list[_Job] = []
        for (index, request), reader in zip(requests, read, strict=True):
            prompt = self._prompt(request)
            job = _Job(index, request, reader, prompt, self._ids(prompt))
            if len(job.ids) + request.reply_tokens > self.base.window:
                yield Reply(index, "", None, self._too_long(job))
                continue
            if batch and not self._together([*batch, job]):
                yield from self._answered(batch)
                batch = []
            batch.append(job)
        if batch:
            yield from self._answered(batch)

    def _prompt(self, request: Request) -> str:
        messages = [{"role": role, "content": text} for role, text in request.messages]
        opened = self.base.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return opened + request.opening

    def _ids(self, prompt: str) -> list[int]:
        return self.base.tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]

    def _too_long(self, job: _Job) -> str:
        return (
            f"the prompt takes {len(job.ids)} tokens and the reply up to {job.request.reply_tokens}, the window of "
            f"{self.base.name} is {self.base.window}: use a model with a larger window"
        )

    def _together(self, jobs: list[_Job]) -> bool:
        """Whether they make one batch: replies of one length, so that none runs out of the window beside another."""
        tokens = {job.request.reply_tokens for job in jobs}
        longest = max(len(job.ids) for job in jobs) + max(tokens)
        return len(tokens) == 1 and longest * len(jobs) <= self.batch_tokens

    def _answered(self, batch: list[_Job]) -> Iterator[Reply]:
        done: dict[int, Reply] = {}
        for attempt in range(1, self.attempts + 1):
            still = [job for job in batch if job.index not in done or done[job.index].failure]
            if not still:
                break
            for job, text in zip(still, self._generate(still, attempt), strict=True):
                done[job.index] = _reply(job, job.request.opening + text, attempt)
        yield from (done[job.index] for job in batch)

    @torch.no_grad()
    def _generate(self, jobs: list[_Job], attempt: int) -> list[str]:
        """Continuations of left-padded prompts, special tokens removed."""
        model, tokenizer = self.base.model, self.base.tokenizer
        longest, pad = max(len(job.ids) for job in jobs), tokenizer.pad_token_id
        rows = [(longest - len(job.ids), job.ids) for job in jobs]
        ids = torch.tensor([[pad] * gap + row for gap, row in rows], device=model.device)
        mask = torch.tensor([[0] * gap + [1] * len(row) for gap, row in rows], device=model.device)
        out = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=jobs[0].request.reply_tokens, do_sample=False,
            repetition_penalty=1.0, pad_token_id=pad, logits_processor=LogitsProcessorList([_Sampling(jobs, attempt)]),
        )  # fmt: skip
        return tokenizer.batch_decode(out[:, longest:], skip_special_tokens=True)


class _Sampling(LogitsProcessor):
    """Sampling within a greedy search, a row of the batch from its own noise.

    The largest of logits / temperature + Gumbel noise is a draw from the softmax of logits / temperature.
    """

    def __init__(self, jobs: list[_Job], attempt: int) -> None:
        self._rows = [(job.temperature(attempt), job.noise(attempt)) for job in jobs]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.float()  # (rows, vocabulary)
        for row, (temperature, noise) in enumerate(self._rows):
            if temperature:
                gumbel = -torch.empty(scores.shape[1]).exponential_(generator=noise).log()
                scores[row] = scores[row] / temperature + gumbel.to(scores.device)
        return scores


def _reply(job: _Job, text: str, attempt: int) -> Reply:
    try:
        return Reply(job.index, text, job.read(text), attempts=attempt)
    except ValueError as error:
        return Reply(job.index, text, None, f"unusable reply: {error} (after {attempt} attempts)", attempt)


def _name(base: BaseModel) -> str:
    """The model by its weights, and what else decides its replies."""
    known, template = base.provenance, str(base.tokenizer.chat_template)
    facts = {
        "weights": known.get("weights_sha256") or known.get("revision"),  # None: random weights, told by their name
        "adapter": _adapter(base.model),
        "dtype": str(base.model.dtype).removeprefix("torch."),
        "template": hashlib.sha256(template.encode()).hexdigest(),
        "retries at": RETRY_TEMPERATURE,
    }
    return ", ".join([f"local {known['name']}", *(f"{fact} {value}" for fact, value in facts.items())])


def _adapter(model: torch.nn.Module) -> str | None:
    """A hash of what a lift left on the model: the weights that may be trained, of which a base model has none."""
    trained = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    content = hashlib.sha256()
    for name, weight in trained:
        content.update(name.encode())
        content.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return content.hexdigest() if trained else None
