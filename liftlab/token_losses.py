"""The loss of each scored token, with the logits of only a few tokens in memory at once."""

from __future__ import annotations

from collections.abc import Callable

import peft
import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

CHUNK_TOKENS = 512  # on a CPU as fast as all at once, with the head of SmolLM2

Losses = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # hidden (n, width), labels (n,) to nats (n,)


def causal_model(model):
    """The transformers model within an adapter, or `model` itself."""
    return model.get_base_model() if isinstance(model, peft.PeftModel) else model


def has_prefix(model) -> bool:
    """Whether the adapter on `model` is a prefix of keys and values (a cartridge)."""
    return isinstance(model, peft.PeftModel) and model.active_peft_config.is_prompt_learning


def hidden_states(model, ids: torch.Tensor) -> torch.Tensor:
    """What the head would read, (batch, tokens, width), for right-padded `ids` (batch, tokens).

    No attention mask: padding stands right, so no real token sees it; the prefix, of one length, is seen by all. The
    positions go on from its last.
    """
    past = {"past_key_values": model.get_prompt(len(ids))} if has_prefix(model) else {}
    return causal_model(model).get_decoder()(input_ids=ids, use_cache=False, **past).last_hidden_state


def logits_of(model, hidden: torch.Tensor) -> torch.Tensor:
    """The head's logits (..., vocabulary), float32, capped where the model caps them (Gemma 2)."""
    causal = causal_model(model)
    logits = causal.get_output_embeddings()(hidden).float()
    cap = getattr(causal.config, "final_logit_softcapping", None)
    return cap * torch.tanh(logits / cap) if cap else logits


def scored_logits(model, ids: torch.Tensor, scored: torch.Tensor) -> torch.Tensor:
    """Logits (scored tokens, vocabulary), float32, that predict the tokens after `ids[:, :-1]` where `scored`.

    `ids` (batch, tokens); `scored` (batch, tokens - 1), bool.
    """
    return logits_of(model, hidden_states(model, ids)[:, :-1][scored])


def token_losses(model, hidden: torch.Tensor, labels: torch.Tensor, chunk_tokens: int = CHUNK_TOKENS) -> torch.Tensor:
    """Cross entropy (n,) in nats, float32, of `labels` (n,) predicted from `hidden` (n, width).

    At most `chunk_tokens` rows of logits exist at once. A token's loss depends on its own hidden row alone: with a
    frozen head the gradient is computed beside the loss, and backward only scales it; a head that trains itself is
    applied again in backward. ValueError for a chunk below 1.
    """
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens = {chunk_tokens}: at least 1 row of logits is needed at once")

    def losses(rows: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(logits_of(model, rows), targets, reduction="none")

    frozen = not any(weight.requires_grad for weight in causal_model(model).get_output_embeddings().parameters())
    if torch.is_grad_enabled() and frozen and hidden.requires_grad:
        return _LossesWithSlopes.apply(hidden, labels, losses, chunk_tokens)
    parts = list(zip(hidden.split(chunk_tokens), labels.split(chunk_tokens), strict=True))
    if torch.is_grad_enabled() and len(parts) > 1:
        return torch.cat([checkpoint(losses, *part, use_reentrant=False) for part in parts])
    return torch.cat([losses(*part) for part in parts])


class _LossesWithSlopes(torch.autograd.Function):
    """`losses` chunk by chunk, each chunk's derivative by its hidden rows taken before its logits are let go."""

    @staticmethod
    def forward(ctx, hidden: torch.Tensor, labels: torch.Tensor, losses: Losses, chunk_tokens: int) -> torch.Tensor:
        found, slopes = [], []
        for part, targets in zip(hidden.split(chunk_tokens), labels.split(chunk_tokens), strict=True):
            rows = part.detach().requires_grad_()
            with torch.enable_grad():
                loss = losses(rows, targets)
                slopes += torch.autograd.grad(loss.sum(), rows)
            found.append(loss.detach())
        ctx.save_for_backward(torch.cat(slopes))
        return torch.cat(found)

    @staticmethod
    @once_differentiable
    def backward(ctx, wanted: torch.Tensor):
        (slopes,) = ctx.saved_tensors
        return (slopes * wanted[:, None]).to(slopes.dtype), None, None, None
