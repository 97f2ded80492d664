"""How the bundled micro model came to be: a tiny Llama taught to answer questions about a register in its context.

Plain training stays on a long plateau before it learns to match names (see the README's log of what did not work). Here
the facts' known places guide three attention heads at first: a full stop gathers its sentence's subject and value, the
place of the answer finds the full stop of its evidence. The guidance fades out and the last part trains without it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from liftlab.branches import REGISTER, Batch, batch_of
from liftlab.documents import Document, Question
from liftlab.examples import IGNORED
from liftlab.worlds import register, vocabulary

WINDOW_TOKENS = 256
FULL_WORDS = 232  # words of a register that fills the window beside a question and its answer
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }} <|end|> {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIALS = ("<|pad|>", "<|unk|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
HEADS = {"subject": (1, 0), "value": (1, 1), "evidence": (2, 0)}  # the guided heads: (layer, head)
TRAINING_SEEDS = 10**6  # registers of pre-training have seeds from here on; documents and tests use smaller ones


@dataclass(frozen=True)
class Schedule:
    """Settings of the pre-training; shares are of all steps, 0..1."""

    steps: int = 1400
    registers: int = 16  # a step
    questions: int = 12  # a register
    learning_rate: float = 2e-3
    warmup_steps: int = 50
    decay_from: float = 0.3  # constant rate until this share, then linear to zero
    longest_from: float = 0.6  # registers grow to the full window until this share
    guided_until: float = 0.7  # the guidance's weight falls from 1 to 0 until this share
    language_from: float = 0.7  # from this share on the register's own text is modelled too
    language_weight: float = 0.1
    closed_book: float = 0.08  # share of sequences without a register: answers at chance, in the right form
    seed: int = 0


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer of the register world's words, with a chat template."""
    words = {word: i for i, word in enumerate((*SPECIALS, "...", *vocabulary().words))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<|unk|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        unk_token="<|unk|>",
        eos_token="<|end|>",
        additional_special_tokens=["<|system|>", "<|user|>", "<|assistant|>"],
        chat_template=CHAT_TEMPLATE,
        model_max_length=WINDOW_TOKENS,
        padding_side="left",
    )


def micro_config(vocabulary_size: int) -> LlamaConfig:
    """A Llama of about 1.2 million weights. Its heads are wide (64): a name or a value must pass through one."""
    return LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=WINDOW_TOKENS,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=SPECIALS.index("<|end|>"),
        pad_token_id=SPECIALS.index("<|pad|>"),
        initializer_range=0.05,
    )


def pretrain(
    schedule: Schedule, measure: Callable[[int, LlamaForCausalLM], None], every: int = 100
) -> LlamaForCausalLM:
    """Train the micro model from scratch. `measure(step, model)` is called every `every` steps and at the end."""
    torch.manual_seed(schedule.seed)
    rng, tokenizer = random.Random(f"pretraining {schedule.seed}"), word_tokenizer()
    model = LlamaForCausalLM._from_config(micro_config(len(tokenizer)), attn_implementation="eager")
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    for step in tqdm(range(1, schedule.steps + 1), desc="pretrain micro", unit="step"):
        share = step / schedule.steps
        longest = int(40 + min(1.0, share / schedule.longest_from) * (FULL_WORDS - 40))
        batch = batch_of(tokenizer, *_draw(rng, schedule, longest))
        loss(model, batch, max(0.0, 1 - share / schedule.guided_until), _language(schedule, share)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate * _rate(schedule, step, share)
        optimizer.step()
        optimizer.zero_grad()
        if step % every == 0 or step == schedule.steps:
            measure(step, model)
    return model.eval()


def _language(schedule: Schedule, share: float) -> float:
    return schedule.language_weight if share > schedule.language_from else 0.0


def _rate(schedule: Schedule, step: int, share: float) -> float:
    return min(1.0, step / schedule.warmup_steps, max(0.01, (1 - share) / (1 - schedule.decay_from)))


def _draw(rng: random.Random, schedule: Schedule, longest: int) -> tuple[list[Document | None], list[list[Question]]]:
    """Registers of 32 to `longest` words (None: closed book) and questions about each, drawn with replacement."""
    documents, asked = [], []
    for _ in range(schedule.registers):
        seed = TRAINING_SEEDS + rng.randrange(10**9)
        document = register(seed, rng.randint(32, longest), filler=rng.choice((0.0, 0.1, 0.3)))
        asked.append(_questions(rng, document, schedule.questions))
        documents.append(None if rng.random() < schedule.closed_book else document)
    return documents, asked


def _questions(rng: random.Random, document: Document, count: int) -> list[Question]:
    """One-hop questions with replacement; more of the mentors, the one relation whose values are people's names."""
    everything = document.asked()
    mentors = [question for question in everything if question.kind == "mentor"]
    return [rng.choice(mentors if mentors and rng.random() < 0.15 else everything) for _ in range(count)]


def loss(model: LlamaForCausalLM, batch: Batch, guidance: float, language: float) -> torch.Tensor:
    """Cross entropy of the answers, plus `guidance` times the guided heads' and `language` times the register's own."""
    out = model(
        input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.positions,
        output_attentions=guidance > 0, output_hidden_states=guidance > 0, use_cache=False,
    )  # fmt: skip
    scored = batch.labels != IGNORED
    total = functional.cross_entropy(out.logits[scored], batch.labels[scored])
    if guidance > 0:
        total = total + guidance * _guidance(model, out, batch)
    if language > 0:
        text = (batch.branch[:, 1:] == REGISTER) & (batch.branch[:, :-1] == REGISTER)
        total = total + language * functional.cross_entropy(out.logits[:, :-1][text], batch.ids[:, 1:][text])
    return total


def _guidance(model: LlamaForCausalLM, out, batch: Batch) -> torch.Tensor:
    """Minus log attention of each guided head on its place; and the value must be readable at its full stop."""
    terms = []
    for name, (layer, head) in HEADS.items():
        row, query, key = torch.tensor(batch.guides[name]).T
        terms.append(-out.attentions[layer][row, head, query, key].clamp_min(1e-6).log().mean())
    row, query, key = torch.tensor(batch.guides["value"]).T
    gathered = out.hidden_states[HEADS["value"][0] + 1][row, query]  # (facts, width), after the gathering layer
    return sum(terms) + functional.cross_entropy(model.lm_head(model.model.norm(gathered)), batch.ids[row, key])


@torch.no_grad()
def answered_right(
    model: LlamaForCausalLM, documents: list[Document], asked: list[list[Question]], closed: bool
) -> list[bool]:
    """Whether each question gets its right answer (one token, the most probable), in order of register and question."""
    tokenizer, right = word_tokenizer(), []
    for document, questions in zip(documents, asked, strict=True):
        batch = batch_of(tokenizer, [None if closed else document], [questions])
        logits = model(
            input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.positions, use_cache=False
        ).logits
        right += [int(logits[row, token].argmax()) == int(batch.labels[row, token]) for row, token in batch.answers]
    return right
