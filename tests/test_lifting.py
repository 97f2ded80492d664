import copy
import math
import random
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from itertools import cycle

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from liftlab import adapters
from liftlab.batches import by_length, epochs
from liftlab.encoding import SPARED_TOKENS, encoded, passes
from liftlab.examples import IGNORED, Example, Pair, known_pairs
from liftlab.gated_layer import collected_gates, mean_gate
from liftlab.history import READ_STEPS
from liftlab.lifted import Lifted
from liftlab.lifting import _batch_loss, _penalty, _step, lift, make_examples
from liftlab.recipes import Recipe
from liftlab.studies.registers import register_of
from liftlab.token_losses import hidden_states
from liftlab.worlds import register

DOCUMENT = register(0, 120)
QUICK = Recipe.preset("micro/lora", rank=4, mixed_epochs=2, segment_tokens=48, offset_tokens=18, batch_tokens=256)


def weights(model):
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}


def on_cpu(batch, recipe):
    return encoded(batch, recipe, 0, torch.device("cpu"))


def reference_loss(model, examples, weight=lambda e: 1.0):
    """Mean loss a scored token by the plain way: one example at a time, all logits, float64."""
    total, scored = 0.0, 0.0
    for e in examples:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([e.ids])).logits[0].double()
        log_p = logits.log_softmax(-1)
        for t in range(1, len(e.ids)):
            if e.labels[t] != IGNORED:
                total -= weight(e) * float(log_p[t - 1, e.labels[t]])
                scored += weight(e)
    return total / scored


@pytest.mark.parametrize("adapter", ["lora", "pissa", "gated_memory", "full"])
def test_lifting_lowers_the_loss_and_leaves_the_base_bit_for_bit(tiny, adapter):
    before = weights(tiny.model)
    fast = {"learning_rate": 0.1, "init": "per_head", "mixed_epochs": 12} if adapter == "gated_memory" else {}
    recipe = replace(QUICK, **{"mixed_epochs": 6, "adapter": adapter, **fast})
    lifted = lift(tiny, DOCUMENT, recipe, known_pairs(DOCUMENT), progress=False)
    assert all(torch.equal(value, before[key]) for key, value in weights(tiny.model).items())
    examples = sum(make_examples(tiny, DOCUMENT, recipe, known_pairs(DOCUMENT)), [])
    untrained = reference_loss(tiny.model, examples)
    with lifted.on(tiny) as on:
        assert reference_loss(on.model, examples) < untrained - 0.1


def test_the_first_loss_is_the_plain_mean_over_the_epoch(tiny):
    """One step an epoch over many batches, head at scored tokens alone = the plain loss of all examples, to 1e-5."""
    recipe = Recipe.preset(
        "micro/lora", step="epoch", batch_tokens=200, mixed_epochs=1, segment_tokens=48, offset_tokens=18
    )
    examples = sum(make_examples(tiny, DOCUMENT, recipe, known_pairs(DOCUMENT)), [])
    lifted = lift(tiny, DOCUMENT, recipe, known_pairs(DOCUMENT), progress=False)
    assert len(lifted.history) == 1
    assert lifted.history[0].loss == pytest.approx(reference_loss(tiny.model, examples), abs=1e-5)


def plainly_lifted(base, recipe, pairs):
    """Losses and adapter of the plain loop: examples one by one, all logits, the mean gate's penalty, torch's AdamW."""
    losses, plans = [], list(epochs(*make_examples(base, DOCUMENT, recipe, pairs), recipe))
    groups = [list(plan) if recipe.step == "epoch" else [batch] for plan in plans for batch in
              ([plan] if recipe.step == "epoch" else plan)]  # fmt: skip
    torch.manual_seed(recipe.seed)
    with adapters.attached(base.model, adapters.config(recipe)) as model:
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(
            trained, betas=recipe.betas, eps=recipe.epsilon, weight_decay=recipe.weight_decay, foreach=False
        )
        for done, group in enumerate(groups):
            examples = [example for batch in group for example in batch]
            summed, scored, gates, read = 0.0, 0.0, 0.0, sum(len(e.ids) for e in examples)
            for e in examples:
                with collected_gates(model) if recipe.gate_penalty else nullcontext() as seen:
                    logits = model(input_ids=torch.tensor([e.ids])).logits[0]
                weight = recipe.pair_weight if e.kind == "pair" else 1.0
                loss = functional.cross_entropy(logits[:-1], torch.tensor(e.labels[1:]), reduction="sum")
                summed, scored = summed + weight * loss, scored + weight * e.scored_tokens
                gates = gates + (torch.stack(seen).mean() * len(e.ids) / read if recipe.gate_penalty else 0.0)
            (summed / scored + recipe.gate_penalty * gates).backward()
            torch.nn.utils.clip_grad_norm_(trained, recipe.clip_norm)
            optimizer.param_groups[0]["lr"] = recipe.learning_rate * (1 - done / len(groups))
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float((summed / scored).detach()))
        return losses, adapters.trained_state(model)[1]


@pytest.mark.parametrize("step", ["batch", "epoch"])
@pytest.mark.parametrize("adapter", ["lora", "gated_memory"])
def test_losses_and_final_weights_are_those_of_the_plain_loop(tiny, adapter, step):
    """To 1e-5, with weighted pairs, batches gathered to one step an epoch, and the gates' penalty."""
    gated = {"init": "per_head", "gate_penalty": 0.5} if adapter == "gated_memory" else {"rank": 4}
    recipe = Recipe.preset(
        f"micro/{adapter}", **gated, step=step, pair_weight=3.0, segments_in_mixed=True, segment_epochs=1,
        mixed_epochs=2, segment_tokens=48, offset_tokens=18, batch_tokens=400, learning_rate=2e-3, epsilon=1e-6,
        weight_decay=0.1,
    )  # fmt: skip
    pairs = known_pairs(DOCUMENT)
    losses, state = plainly_lifted(tiny, recipe, pairs)
    lifted = lift(tiny, DOCUMENT, recipe, pairs, progress=False)
    assert [s.loss for s in lifted.history] == pytest.approx(losses, abs=1e-5)
    assert lifted.state.keys() == state.keys()
    for key, value in state.items():
        torch.testing.assert_close(lifted.state[key], value, atol=1e-5, rtol=1e-5)


def test_a_pair_s_weight_is_gamma(tiny):
    recipe = Recipe.preset("micro/lora", step="epoch", pair_weight=3.0, mixed_epochs=1)
    examples = sum(make_examples(tiny, DOCUMENT, recipe, known_pairs(DOCUMENT)), [])
    lifted = lift(tiny, DOCUMENT, recipe, known_pairs(DOCUMENT), progress=False)
    expected = reference_loss(tiny.model, examples, lambda e: 3.0 if e.kind == "pair" else 1.0)
    assert lifted.history[0].loss == pytest.approx(expected, abs=1e-5)


def test_padding_changes_no_example_s_loss(tiny):
    cut, answered = make_examples(tiny, DOCUMENT, QUICK, known_pairs(DOCUMENT)[:5])
    batch = [cut[0], *answered, cut[-1]]
    together = _batch_loss(tiny.model, on_cpu(batch, QUICK))
    alone = sum(_batch_loss(tiny.model, on_cpu([e], QUICK)) for e in batch)
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-5)


def test_gradient_checkpointing_and_batch_shape_change_no_result(tiny):
    plain, checkpointed = (
        lift(tiny, DOCUMENT, Recipe.preset("micro/lora", mixed_epochs=2, step="epoch", **change), progress=False)
        for change in ({}, {"gradient_checkpointing": True, "batch_examples": 1})
    )
    for key, value in plain.state.items():
        torch.testing.assert_close(checkpointed.state[key], value, atol=1e-4, rtol=1e-3)
    assert not any(getattr(module, "gradient_checkpointing", False) for module in tiny.model.modules())


def test_two_identical_lifts_give_bitwise_equal_adapters_also_after_another_document(tiny):
    one = lift(tiny, DOCUMENT, QUICK, known_pairs(DOCUMENT), progress=False)
    lift(tiny, register(9, 100), QUICK, progress=False)
    two = lift(tiny, DOCUMENT, QUICK, known_pairs(DOCUMENT), progress=False)
    assert [s.loss for s in one.history] == [s.loss for s in two.history]
    assert all(torch.equal(value, two.state[key]) for key, value in one.state.items())


def test_two_stages_share_one_optimizer_with_one_step_an_epoch(tiny):
    recipe = Recipe.preset("micro/lora", step="epoch", segment_epochs=3, mixed_epochs=5, rank=2)
    lifted = lift(tiny, DOCUMENT, recipe, known_pairs(DOCUMENT), progress=False)
    cut, answered = make_examples(tiny, DOCUMENT, recipe, known_pairs(DOCUMENT))
    size = [sum(len(e.ids) for e in part) for part in (cut, answered)]
    read = [s.tokens for s in lifted.history]
    assert [b - a for a, b in zip([0, *read], read, strict=False)] == [size[0]] * 3 + [sum(size)] * 5


@pytest.mark.parametrize("adapter", ["lora", "gated_memory"])
def test_watching_a_lift_changes_nothing_of_it(tiny, adapter):
    recipe = replace(QUICK, adapter=adapter)
    pairs, seen = known_pairs(DOCUMENT), []

    def watch(step, base):
        assert not base.model.training and not torch.is_grad_enabled()
        seen.append((step, base.model(input_ids=torch.arange(6, 30)[None]).logits))

    watched = lift(tiny, DOCUMENT, recipe, pairs, watch=watch, progress=False)
    plain = lift(tiny, DOCUMENT, recipe, pairs, progress=False)
    assert [step for step, _ in seen] == list(range(len(plain.history) + 1))
    assert [s.loss for s in watched.history] == [s.loss for s in plain.history]
    assert all(torch.equal(value, watched.state[key]) for key, value in plain.state.items())
    with plain.on(tiny) as on:
        assert torch.equal(on.model(input_ids=torch.arange(6, 30)[None]).logits, seen[-1][1])


def test_watch_is_called_at_step_0_and_each_every_th(tiny):
    seen = []
    lifted = lift(tiny, DOCUMENT, QUICK, watch=lambda step, base: seen.append(step), every=3, progress=False)
    assert seen == list(range(0, len(lifted.history) + 1, 3)) and len(seen) > 1


class Ops(TorchDispatchMode):
    """Counts the operations that torch is asked for, by name."""

    def __init__(self):
        super().__init__()
        self.counted = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.counted[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("adapter", ["lora", "gated_memory"])
def test_nothing_within_a_step_waits_for_the_device(tiny, adapter):
    """No operation whose result the program itself reads, but for what transformers reads in a forward pass."""
    penalised = {"gate_penalty": 1.0} if adapter == "gated_memory" else {}
    cut, answered = make_examples(tiny, DOCUMENT, QUICK, known_pairs(DOCUMENT)[:9])
    with adapters.attached(tiny.model, adapters.config(replace(QUICK, adapter=adapter, **penalised))) as model:
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
        batches = [on_cpu(cut, QUICK), on_cpu(answered, QUICK)]
        with Ops() as forward:
            for batch in batches:
                hidden_states(model, batch.ids)
        with Ops() as step:
            _step(model, optimizer, batches, replace(QUICK, adapter=adapter, **penalised), 1.0)
    reading = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2")
    assert step.counted["_fused_adamw_"] == 1
    assert {op: step.counted[op] for op in reading} == {op: forward.counted[op] for op in reading}


def test_a_loss_that_is_no_number_is_named_with_its_step_though_read_later(tiny):
    """The first step's loss is that of the untrained model; pairs that never end do not put the reading off."""
    taken = []
    pairs = (taken.append(pair) or pair for pair in cycle(known_pairs(DOCUMENT)))
    recipe = Recipe.preset("2502.14644v4/lora/quality", rank=2, style="plain", learning_rate=1e30)
    with pytest.raises(FloatingPointError, match="^the loss is nan at step 2: lower learning_rate .it is 1e.30.$"):
        lift(tiny, DOCUMENT, recipe, pairs, progress=False)
    assert len(taken) == READ_STEPS * recipe.batch_examples


@pytest.mark.parametrize("every", [0, -1])
def test_every_below_1_is_refused(tiny, every):
    with pytest.raises(ValueError, match=f"every = {every}: .* at least 1"):
        lift(tiny, DOCUMENT, QUICK, every=every, progress=False)


def test_seconds_spent_watching_are_not_training_seconds(tiny):
    watched = lift(tiny, DOCUMENT, QUICK, watch=lambda step, base: time.sleep(0.2), progress=False)
    assert watched.history[-1].seconds < 0.2 * len(watched.history)


def test_the_gate_penalty_s_gradient_is_that_of_the_mean_gate_over_real_tokens(tiny):
    """However a step is batched and padded, its penalty is gate_penalty * mean gate over all its real tokens."""
    recipe = replace(QUICK, adapter="gated_memory", gate_penalty=30.0, step="epoch", batch_tokens=100, mixed_epochs=1)
    examples = sum(make_examples(tiny, DOCUMENT, recipe, known_pairs(DOCUMENT)), [])
    torch.manual_seed(recipe.seed)
    with adapters.attached(tiny.model, adapters.config(recipe)) as model:
        lengths, gates = [len(e.ids) for e in examples], []
        for e in examples:
            with collected_gates(model) as one:
                model(input_ids=torch.tensor([e.ids]))
            gates.append(torch.stack(one).mean())
        expected = sum(n * g for n, g in zip(lengths, gates, strict=True)) / sum(lengths)
        whole = torch.autograd.grad(
            30.0 * expected, [p for p in model.parameters() if p.requires_grad], allow_unused=True
        )
        batches = by_length(examples, recipe, random.Random(0))
        parts = 0.0
        for batch in batches:
            with collected_gates(model) as seen:
                _batch_loss(model, on_cpu(batch, recipe))
            parts = parts + _penalty(seen, on_cpu(batch, recipe), recipe, sum(lengths))
        split = torch.autograd.grad(parts, [p for p in model.parameters() if p.requires_grad], allow_unused=True)
        assert float(parts.detach()) == pytest.approx(30.0 * float(expected.detach()), rel=1e-5)
        for a, b in zip(whole, split, strict=True):
            assert (a is None) == (b is None)  # the last layer's memory feeds no gate
            if a is not None:
                torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_a_large_gate_penalty_closes_the_gates_and_is_not_in_the_loss_shown(tiny):
    def closed(penalty):
        recipe = replace(QUICK, adapter="gated_memory", gate_penalty=penalty, learning_rate=0.1, mixed_epochs=12)
        lifted = lift(tiny, DOCUMENT, recipe, known_pairs(DOCUMENT), progress=False)
        with torch.no_grad(), lifted.on(tiny) as on, collected_gates(on.model) as gates:
            on.model(input_ids=torch.arange(6, 30)[None])
        return lifted.history[0].loss, float(mean_gate(gates))

    (first, free), (same, penalised) = closed(0.0), closed(100.0)
    assert first == pytest.approx(same, abs=1e-6) and penalised < free / 2, (free, penalised)


def test_batches_hold_every_example_once_within_the_budget(tiny):
    examples = sum(make_examples(tiny, DOCUMENT, QUICK, known_pairs(DOCUMENT)), [])
    batches = by_length(examples, QUICK, random.Random(0))
    assert sorted(map(id, (e for b in batches for e in b))) == sorted(map(id, examples))
    assert all(max(len(e.ids) for e in b) * len(b) <= QUICK.batch_tokens for b in batches)


@pytest.mark.parametrize(("name", "window"), [("micro/lora", 256), ("smollm2/lora_many_pairs", 512)])
def test_padding_is_under_a_twentieth_of_the_tokens(tiny, name, window):
    """On registers of two windows, the sizes that the studies lift with these recipes."""
    base, recipe = replace(tiny, window=window), Recipe.preset(name)
    for seed in range(200, 205):
        document = register_of(base, seed, 2.0, 0.1)
        examples = sum(make_examples(base, document, recipe, known_pairs(document)), [])
        whole = by_length(examples, recipe, random.Random(seed))
        batches = [on_cpu(part, recipe) for batch in whole for part in passes(batch, torch.device("cpu"))]
        assert 1 - sum(b.tokens for b in batches) / sum(b.ids.numel() for b in batches) < 0.05


def test_a_batch_is_cut_only_where_that_spares_padding_and_never_for_a_gpu():
    def batch(*lengths):
        return [Example((7,) * length, (7,) * length, "segment") for length in lengths]

    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    mixed = batch(12, 200, 14, 190, 12, 100)
    assert [[len(e.ids) for e in part] for part in passes(mixed, cpu)] == [[200, 190], [100], [14, 12, 12]]
    assert passes(mixed, gpu) == [mixed]
    for even in (batch(20, 10, 15), batch(300), batch(SPARED_TOKENS + 4, 5)):  # one less than worth a pass
        assert passes(even, cpu) == [even]
    assert len(passes(batch(SPARED_TOKENS + 5, 5), cpu)) == 2


def test_a_bfloat16_base_keeps_its_weights_and_trains_a_float32_adapter(tiny):
    """PEFT keeps an adapter's weights in float32 beside half-precision base weights, and the losses are float32's."""
    half = replace(tiny, model=copy.deepcopy(tiny.model).bfloat16())
    for adapter in ("lora", "gated_memory"):
        recipe = replace(QUICK, adapter=adapter)
        lifted, plain = (lift(b, DOCUMENT, recipe, known_pairs(DOCUMENT), progress=False) for b in (half, tiny))
        assert {weight.dtype for weight in lifted.state.values()} == {torch.float32}
        assert {weight.dtype for weight in half.model.parameters()} == {torch.bfloat16}
        assert [s.loss for s in lifted.history] == pytest.approx([s.loss for s in plain.history], abs=0.02)


def test_segments_alone_or_pairs_alone_can_be_trained(tiny):
    assert lift(tiny, DOCUMENT, QUICK, progress=False).history
    alone = Recipe.preset("2502.14644v4/lora/quality", rank=2, mixed_epochs=1)
    pairs = [Pair("Where does Ada live?", "Oslo")]
    assert len(lift(tiny, DOCUMENT, alone, pairs, progress=False).history) == 1
    with pytest.raises(ValueError, match="nothing to train on"):
        lift(tiny, DOCUMENT, alone, progress=False)


def test_contextualized_segments_train_within_the_window(tiny):
    recipe = Recipe.preset("2502.14644v3/pissa/loogle", rank=2, segment_tokens=64, offset_tokens=24, context_tokens=64)
    lifted = lift(tiny, DOCUMENT, recipe, known_pairs(DOCUMENT)[:3], progress=False)
    assert len(lifted.history) == 5 and all(math.isfinite(s.loss) for s in lifted.history)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"adapter": "gated_memory", "layers_to_transform": [2]},
            "layer 2 does not exist: the model has layers 0 to 1",
        ),
        ({"segment_tokens": 400, "offset_tokens": 100, "document": 600}, "the window of tiny is 256"),
        ({"learning_rate": 1e30, "mixed_epochs": 9}, "lower learning_rate"),
    ],
)
def test_mistakes_are_named_and_leave_the_base_as_it_was(tiny, changes, message):
    before = weights(tiny.model)
    document = register(0, changes.pop("document", 120))
    with pytest.raises((ValueError, FloatingPointError), match=message):
        lift(tiny, document, Recipe.preset("micro/lora", **changes), progress=False)
    assert all(torch.equal(value, before[key]) for key, value in weights(tiny.model).items())


def test_an_adapter_is_refused_on_another_base_model(tiny):
    from dataclasses import replace

    lifted = lift(tiny, DOCUMENT, QUICK, progress=False)
    assert isinstance(lifted, Lifted)
    other = replace(tiny, name="other", provenance={"name": "other", "weights_sha256": "other-0"})
    with pytest.raises(ValueError, match="was lifted on tiny"), lifted.on(other):
        pass
