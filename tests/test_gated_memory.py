import copy
import math

import peft
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from liftlab.gated_layer import FLOOR, collected_gates, layers_of, mean_gate, observed
from liftlab.gated_memory import GatedMemoryConfig

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),  # peft 0.21, transformers 5.2x
    pytest.mark.filterwarnings("ignore:Adapter .* was active which is now deleted:UserWarning"),
]
SIZES = dict(
    vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, max_position_embeddings=64, initializer_range=0.2,
    bos_token_id=None, eos_token_id=None, pad_token_id=0,
)  # fmt: skip
IDS = torch.randint(1, 97, (2, 23), generator=torch.Generator().manual_seed(1))


def llama(dtype=torch.float32, **changes):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES | changes)).to(dtype).eval().requires_grad_(False)


def config(**settings):
    return GatedMemoryConfig(task_type="CAUSAL_LM", **{"init": "per_head"} | settings)


def gated(base, seed=0, **settings):
    torch.manual_seed(seed)
    return peft.get_peft_model(base, config(**settings)).eval()


@torch.no_grad()
def logits(model, ids=IDS, **inputs):
    return model(input_ids=ids, **inputs).logits


def train(model, ids=IDS, steps=3, rate=1e-2):
    """The loss of each step; plain AdamW on all that asks for gradients."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], rate)
    losses = []
    for _ in range(steps):
        losses.append(model(input_ids=ids, labels=ids).loss)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    return [loss.item() for loss in losses]


def trained(base, seed=0, steps=3, **settings):
    model = gated(base, seed, **settings)
    train(model, steps=steps)
    return model


def gates_of(model, ids=IDS, **inputs):
    with torch.no_grad(), collected_gates(model) as gates:
        model(input_ids=ids, **inputs)
    return gates


def adapter_weights(model):
    return {name: p for name, p in model.named_parameters() if "gated_memory" in name}


def names(model):
    return [name for name, _ in model.named_modules()]


def test_llama_3_8b_trains_as_many_parameters_as_the_authors():
    sizes = LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8,
    )  # fmt: skip
    with torch.device("meta"):
        model = gated(LlamaForCausalLM(sizes))
    counts = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    assert sum(counts.values()) == 68_561_920 == model.get_nb_trainable_parameters()[0]
    assert sum(count for name, count in counts.items() if ".memory_" in name) == 67_108_864
    assert sum(count for name, count in counts.items() if ".gate_" in name) == 1_453_056


@pytest.mark.parametrize("init", ["released", "per_head"])
def test_fresh_weights_fill_the_bounds_of_their_fan_in(init):
    for name, weight in adapter_weights(gated(llama(), init=init)).items():
        _, inputs, outputs = weight.shape
        bound = 1 / math.sqrt(inputs * (outputs if init == "released" else 1))
        assert (0.9 if outputs > 1 else 0.5) * bound < weight.abs().max() <= bound, name  # gate_out: only 8 numbers
        assert weight.min() < 0 < weight.max(), name


def test_a_fresh_released_gate_is_near_the_sigmoid_of_minus_three():
    assert abs(FLOOR - 0.0474) < 1e-4
    assert abs(mean_gate(gates_of(gated(llama(), init="released"))) - FLOOR) < 0.005


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 7, 23])
def test_neutral_changes_no_logit_until_it_is_trained(dtype, tokens):
    base, ids = llama(dtype), IDS[:, :tokens]
    before = logits(base, ids)
    model = gated(base, init="neutral")
    assert torch.equal(logits(model, ids), before)
    train(model)
    gates = torch.stack(gates_of(model))
    assert gates.max() > 0 and gates.min() >= 0 and gates.max() <= 1
    assert not torch.equal(logits(model, ids), before)


@pytest.mark.parametrize("init", ["released", "per_head", "neutral"])
def test_training_lowers_the_loss_and_changes_adapter_weights_alone(init):
    base = llama()
    before = copy.deepcopy(base.state_dict())
    model = gated(base, init=init)
    start = {name: weight.detach().clone() for name, weight in adapter_weights(model).items()}
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(start)
    losses = train(model, steps=20)
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert losses[-1] < losses[0] - 0.05
    assert {name for name, p in model.named_parameters() if p.grad is not None} == set(start)
    assert all(not torch.equal(weight, start[name]) for name, weight in adapter_weights(model).items())
    after = model.unload().state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)


def test_disabled_is_the_base_bit_for_bit():
    base = llama()
    before = logits(base)
    model = trained(base)
    said = logits(model)
    with model.disable_adapter():
        assert torch.equal(logits(model), before)
    assert torch.equal(logits(model), said) and not torch.equal(said, before)


def side_by_side(tmp_path, *settings):
    """What differently trained adapters "0", "1"... say alone, and one model that holds them all."""
    said = []
    for number, setting in enumerate(settings):
        model = trained(llama(), seed=number, steps=3 + number, **setting)
        model.save_pretrained(tmp_path / str(number))
        said.append(logits(model))
    model = peft.PeftModel.from_pretrained(llama(), tmp_path / "0", adapter_name="0")
    for number in range(1, len(settings)):
        model.load_adapter(tmp_path / str(number), str(number))
    assert not torch.equal(said[0], said[1])
    return said, model


@pytest.mark.parametrize("settings", [({}, {}), ({"layers_to_transform": [0]}, {"layers_to_transform": 1})])
def test_adapters_side_by_side_each_say_what_they_said_alone(tmp_path, settings):
    said, model = side_by_side(tmp_path, *settings)
    for name in (0, 1, 0):
        model.set_adapter(str(name))
        assert torch.equal(logits(model), said[name])


@pytest.mark.parametrize("deleted", ["0", "1"])
def test_deleting_an_adapter_leaves_the_other(tmp_path, deleted):
    said, model = side_by_side(tmp_path, {}, {"memory_width": 5, "init": "neutral"})
    model.delete_adapter(deleted)
    assert not any(name.endswith(f".{deleted}.memory_in") for name in adapter_weights(model))
    left = str(1 - int(deleted))
    model.set_adapter(left)
    assert torch.equal(logits(model), said[int(left)])
    model.delete_adapter(left)
    assert torch.equal(logits(model.base_model.model), logits(llama()))


def test_a_list_of_layers_restricts_the_parameters_to_them():
    model = gated(llama(num_hidden_layers=4), layers_to_transform=[1, 3])
    assert {name.split(".layers.")[1].split(".")[0] for name in adapter_weights(model)} == {"1", "3"}
    assert [layer.index for layer in layers_of(model)] == [1, 3] and len(gates_of(model)) == 2


def assert_untouched(base, said, modules):
    assert torch.equal(logits(base), said) and names(base) == modules
    assert not any(layer.self_attn.q_proj._forward_hooks for layer in base.model.layers)


def test_unload_leaves_the_base_as_it_was():
    base = llama()
    said, modules = logits(base), names(base)
    model = trained(base)
    assert all(layer.self_attn.q_proj._forward_hooks for layer in base.model.layers)
    assert model.unload() is base
    assert_untouched(base, said, modules)


@pytest.mark.parametrize("verb", ["merge_and_unload", "merge_adapter"])
def test_merging_is_refused_and_leaves_the_adapter_at_work(verb):
    model = trained(llama())
    said = logits(model)
    with pytest.raises(ValueError, match=r"cannot be merged .*: keep the adapter, or unload\(\)"):
        getattr(model, verb)()
    assert torch.equal(logits(model), said)
    assert train(model, steps=1)[0] > 0 and not torch.equal(logits(model), said)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_adapter_says_exactly_what_it_said(tmp_path, dtype):
    model = trained(llama(dtype), gate_penalty=0.5, memory_width=5, gate_width=3, layers_to_transform=[1])
    said = logits(model)
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"adapter_model.safetensors", "adapter_config.json"}
    again = peft.PeftModel.from_pretrained(llama(dtype), tmp_path)
    assert (logits(again) - said).abs().max() == 0
    kept = again.peft_config["default"]
    assert (kept.gate_penalty, kept.memory_width, kept.gate_width, kept.layers) == (0.5, 5, 3, [1])
    other = gated(llama(dtype), seed=9)
    other.load_adapter(tmp_path, "saved")
    other.set_adapter("saved")
    assert (logits(other) - said).abs().max() == 0


def test_a_deep_copy_computes_its_own_thing():
    model = trained(llama())
    said, twin = logits(model), copy.deepcopy(model)
    assert torch.equal(logits(twin), said)
    train(twin)
    moved = logits(twin)
    assert torch.equal(logits(model), said) and not torch.equal(moved, said)
    for own, theirs in zip(layers_of(twin), layers_of(model), strict=True):
        assert own is not theirs
    model.unload()
    assert torch.equal(logits(twin), moved)
    (hook,) = twin.model.model.layers[0].self_attn.q_proj._forward_hooks.values()
    assert hook.__self__ is layers_of(twin)[0]
    assert_untouched(twin.unload(), logits(model.model), names(model.model))


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
def test_a_compiled_model_in_one_graph_says_the_same():
    model = trained(llama(num_hidden_layers=1))
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(logits(compiled), logits(model), atol=1e-5, rtol=0)


def gradients(checkpointing, **settings):
    """The adapter's gradients in training mode, with one padded row."""
    model = trained(llama(), **settings).train()
    if checkpointing:
        base = model.get_base_model()
        start = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
        start({"use_reentrant": False})
    mask = torch.ones_like(IDS)
    mask[1, 15:] = 0
    model(input_ids=IDS, attention_mask=mask, labels=IDS).loss.backward()
    return {name: weight.grad for name, weight in adapter_weights(model).items()}


@pytest.mark.parametrize("settings", [{}, {"gate_penalty": 3.0}])
def test_gradient_checkpointing_changes_no_gradient(settings):
    plain, kept = gradients(False, **settings), gradients(True, **settings)
    assert all(grad.abs().max() > 1e-4 for grad in plain.values())
    torch.testing.assert_close(kept, plain, atol=1e-6, rtol=0)


@pytest.mark.parametrize("padding", [0, 9])
def test_the_loss_gains_the_penalty_times_the_mean_gate_of_real_tokens(padding):
    mask = torch.ones_like(IDS)
    mask[1, IDS.shape[1] - padding :] = 0
    inputs = dict(input_ids=IDS, labels=IDS, attention_mask=mask)
    with_penalty, without = gated(llama(), gate_penalty=0.7), gated(llama())
    for weights in zip(with_penalty.parameters(), without.parameters(), strict=True):
        assert torch.equal(*weights)
    gates = torch.cat(gates_of(without, attention_mask=mask), dim=2).mean(dim=(2, 3))
    mean = gates[mask.bool()].mean()
    assert (mean - gates.mean()).abs() > 1e-5 or not padding
    assert with_penalty(**inputs).loss == without(**inputs).loss  # evaluation
    gained = with_penalty.train()(**inputs).loss - without.train()(**inputs).loss
    torch.testing.assert_close(gained, 0.7 * mean, atol=1e-6, rtol=0)


def test_a_large_penalty_closes_the_gates():
    plain, pressed = gated(llama()).train(), gated(llama(), gate_penalty=100.0).train()
    train(plain, steps=20), train(pressed, steps=20)
    assert mean_gate(gates_of(pressed.eval())) < 0.5 * mean_gate(gates_of(plain.eval()))


@pytest.mark.parametrize("training", [False, True])
def test_an_observer_sees_each_layer_once_a_pass_and_is_gone_afterwards(training):
    model, seen = gated(llama(), gate_penalty=0.5).train(training), []
    with pytest.raises(RuntimeError, match="stop"), observed(model, lambda *what: seen.append(what)):
        logits(model)
        logits(model)
        raise RuntimeError("stop")
    assert [what[0] for what in seen] == [0, 1, 0, 1]
    assert [tuple(part.shape) for part in seen[0][1:]] == [(2, 23, 4, n) for n in (8, 8, 1, 8)]
    with collected_gates(model) as gates:
        logits(model)
    logits(model)
    assert len(seen) == 4 and len(gates) == 2 and not any(layer.observers for layer in layers_of(model))
