"""The authors' way of training, rebuilt from its description: the baseline that liftlab's own speed is held against.

For every document the base model is loaded anew, a fresh adapter put on it, and transformers' Trainer fed with padded
batches of a few examples: logits over the whole vocabulary at every position, activations checkpointed. Examples,
optimizer, learning rates, number of steps, precision and device are those of `lifting`. Source: 2502.14644v4.
"""

from __future__ import annotations

import gc
import math
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Sampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from liftlab import adapters
from liftlab.documents import Document
from liftlab.examples import IGNORED, Example, Pair
from liftlab.lifted import Lifted, Step
from liftlab.lifting import learning_rate_share, make_examples
from liftlab.models import BaseModel
from liftlab.recipes import Recipe

_COVERED = {  # what the loop can train, so that it does the same work as `lifting`
    "adapter": ("lora", "gated_memory"),
    "step": ("batch",),
    "segment_epochs": (0,),
    "pair_weight": (1,),
    "gate_penalty": (0,),
}


@dataclass(frozen=True)
class Seconds:
    """What one document took: loading the base model, and all from there to the adapter's weights on the CPU."""

    load: float
    training: float


def lift(
    load: Callable[[], BaseModel], document: Document, recipe: Recipe, pairs: Sequence[Pair] = ()
) -> tuple[Lifted, Seconds]:
    """Fine-tune `document` (and the auxiliary `pairs`) into a fresh adapter on the base model that `load` returns.

    That model is used up: `load` must return another one each time. Activations are checkpointed whatever `recipe`
    says. An epoch is consecutive examples, `batch_examples` a batch: the first in the given order where the recipe has
    first_epoch_in_order, every other one shuffled. The state of the random generators is left as it was.
    Raises ValueError, before anything is loaded, for pairs that are no Sequence and for a recipe with pissa or full
    fine-tuning, step epoch, segment epochs, a pair weight, a gate penalty or no batch_examples; then for batches beyond
    batch_tokens, a device that the Trainer would not train on, and whatever `lifting.lift` raises.
    """
    check(recipe, pairs)
    with _random_state_kept(), tempfile.TemporaryDirectory() as folder:
        began = _clock()
        base = load()
        loaded = _clock()
        lifted, done = _train(base, document, recipe, pairs, folder)
    del base
    gc.collect()  # the Trainer refers to itself: without this the next document's model stands beside this one
    return lifted, Seconds(loaded - began, done - loaded)


def check(recipe: Recipe, pairs: Sequence[Pair]) -> None:
    """ValueError for a recipe, or pairs, that the loop does not cover."""
    if not isinstance(pairs, Sequence):
        raise ValueError("the reference loop cannot train on pairs as they arrive: give them as a list")
    for name, covered in _COVERED.items():
        if (value := getattr(recipe, name)) not in covered:
            raise ValueError(
                f"recipe: {name} = {value!r}: the reference loop covers only {' and '.join(map(str, covered))}: "
                "set that, or use lifting"
            )
    if recipe.batch_examples is None:
        raise ValueError("recipe: batch_examples = None: the reference loop needs a number, such as the authors' 4")


def _train(
    base: BaseModel, document: Document, recipe: Recipe, pairs: Sequence[Pair], folder: str
) -> tuple[Lifted, float]:
    """The lifted document, and the clock when its weights were there; `folder` is what the Trainer may write to."""
    examples = _examples(base, document, recipe, pairs)
    arguments = _arguments(base, recipe, folder)
    torch.manual_seed(recipe.seed)
    with adapters.attached(base.model, adapters.config(recipe)) as model:
        loop = _Loop(model, arguments, examples, recipe, base.tokenizer.pad_token_id)
        loop.train()
        adapter, state = adapters.trained_state(model)
        done = _clock()
    history = tuple(loop.notes.history)
    return Lifted(document, recipe, adapter, state, history, dict(base.provenance)), done


def _examples(base: BaseModel, document: Document, recipe: Recipe, pairs: Sequence[Pair]) -> list[Example]:
    """All examples of an epoch, in the given order; ValueError where there is none or a batch is over the budget."""
    cut, answered = make_examples(base, document, recipe, pairs)
    examples = [*(cut if recipe.segments_in_mixed else ()), *answered]
    if not examples:
        raise ValueError(
            f"nothing to train on: recipe takes no segments and document {document.name!r} came with no pairs"
        )
    padded = max(len(example.ids) for example in examples) * min(recipe.batch_examples, len(examples))
    if padded > recipe.batch_tokens:
        raise ValueError(
            f"recipe: batch_tokens = {recipe.batch_tokens}: the reference loop batches by batch_examples alone, "
            f"here up to {padded} padded tokens: make batch_tokens at least that, or batch_examples smaller"
        )
    return examples


def _arguments(base: BaseModel, recipe: Recipe, folder: str) -> TrainingArguments:
    """The Trainer's settings; ValueError for a device that it would not train on."""
    known = {field.name for field in fields(TrainingArguments)}
    verb = "activation" if "activation_checkpointing" in known else "gradient"  # renamed within transformers 5
    arguments = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=recipe.batch_examples,
        num_train_epochs=recipe.mixed_epochs,
        optim="adamw_torch_fused",
        learning_rate=recipe.learning_rate,
        adam_beta1=recipe.betas[0],
        adam_beta2=recipe.betas[1],
        adam_epsilon=recipe.epsilon,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.clip_norm,
        seed=recipe.seed,
        use_cpu=base.model.device.type == "cpu",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **{f"{verb}_checkpointing": True, f"{verb}_checkpointing_kwargs": {"use_reentrant": False}},
    )
    if arguments.device != base.model.device:
        raise ValueError(
            f"the reference loop trains on {arguments.device} here and {base.name} is on {base.model.device}: "
            f"load it on {arguments.device}, or on cpu"
        )
    arguments._n_gpu = 1  # as the Trainer itself says "one device": with several it would copy the model to each
    return arguments


class _Notes(TrainerCallback):
    """The history of a training run; the loop notes loss and tokens before each step ends."""

    def __init__(self) -> None:
        self.history: list[Step] = []
        self.loss, self.tokens, self.began = math.nan, 0, 0.0

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.began = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        seconds = time.perf_counter() - self.began
        self.history.append(Step(state.global_step, math.ceil(state.epoch), self.loss, seconds, self.tokens))


class _Loop(Trainer):
    """The Trainer with a recipe's order of examples and learning rates; silent, and it notes every step."""

    def __init__(self, model, arguments: TrainingArguments, examples: list[Example], recipe: Recipe, pad: int) -> None:
        self.recipe, self.notes = recipe, _Notes()
        collate = partial(_padded, pad=pad)
        super().__init__(model, arguments, data_collator=collate, train_dataset=examples, callbacks=[self.notes])
        self.remove_callback(PrinterCallback)

    def get_train_dataloader(self) -> DataLoader:
        loader = DataLoader(
            self.train_dataset,
            self.args.train_batch_size,
            sampler=_Order(len(self.train_dataset), self.recipe),
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )
        return self.accelerator.prepare(loader)

    def create_scheduler(self, num_training_steps: int, optimizer=None) -> torch.optim.lr_scheduler.LambdaLR:
        share = partial(learning_rate_share, self.recipe, total=num_training_steps)
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, share)
        return self.lr_scheduler

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.notes.loss = loss.item()  # costs no time: the Trainer itself waits for the loss after every step
        self.notes.tokens += int(inputs["attention_mask"].sum())
        if not math.isfinite(self.notes.loss):
            raise FloatingPointError(
                f"the loss is {self.notes.loss} at step {self.state.global_step + 1}: lower learning_rate "
                f"(it is {self.recipe.learning_rate:g})"
            )
        return loss


class _Order(Sampler[int]):
    """The indices of one epoch after another: the first in order where the recipe says so, the others shuffled."""

    def __init__(self, size: int, recipe: Recipe) -> None:
        self.size, self.in_order = size, recipe.first_epoch_in_order
        self.rng = random.Random(f"order {recipe.seed}")

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        in_order, self.in_order = self.in_order, False
        return iter(range(self.size) if in_order else self.rng.sample(range(self.size), self.size))


def _padded(batch: Sequence[Example], pad: int) -> dict[str, torch.Tensor]:
    """A batch as a collator gives it, each (examples, longest), padded on the right: no loss at the padding."""
    columns = {
        "input_ids": ([e.ids for e in batch], pad),
        "attention_mask": ([(1,) * len(e.ids) for e in batch], 0),
        "labels": ([e.labels for e in batch], IGNORED),
    }
    return {
        name: pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=fill)
        for name, (rows, fill) in columns.items()
    }


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """The Trainer seeds every generator there is; afterwards they are as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _clock() -> float:
    """Seconds, once an accelerator has done what it was given."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()
