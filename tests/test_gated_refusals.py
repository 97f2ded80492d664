"""What Gated Memory refuses: other architectures, settings out of bounds, adapters of other models. One error each."""

import peft
import pytest
import torch
from test_gated_architectures import model_of
from test_gated_memory import config, gated, llama, logits, names
from torch import nn

from liftlab.gated_layer import layers_of
from liftlab.gated_memory import SUPPORTED

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft 0.21

SMALL = dict(
    vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, pad_token_id=0
)
UNSUPPORTED = {
    "gpt2": lambda: model_of("GPT2Config", "GPT2LMHeadModel", vocab_size=20, n_embd=16, n_layer=1, n_head=2),
    "phi3": lambda: model_of("Phi3Config", "Phi3ForCausalLM", **SMALL),
    "gpt_neox": lambda: model_of("GPTNeoXConfig", "GPTNeoXForCausalLM", **SMALL),
    "mamba": lambda: model_of("MambaConfig", "MambaForCausalLM", vocab_size=20, hidden_size=16, num_hidden_layers=1),
    "Sequential": lambda: nn.Sequential(nn.Linear(3, 3)),
}


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_another_architecture_is_refused_by_name_with_the_supported_ones(kind):
    base = UNSUPPORTED[kind]()
    modules = names(base)
    with pytest.raises(ValueError, match=f"does not support {kind}: .* supported are {', '.join(SUPPORTED)}$"):
        gated(base)
    assert names(base) == modules


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"memory_width": 0}, "memory_width = 0: must be a whole number, at least 1, or None"),
        ({"memory_width": 2.5}, "memory_width = 2.5: must be a whole number, at least 1, or None"),
        ({"gate_width": 0}, "gate_width = 0: must be a whole number, at least 1, or None"),
        ({"init": "zero"}, "init = 'zero': must be one of released, per_head, neutral"),
        ({"gate_penalty": -1}, "gate_penalty = -1: must be a number, at least 0"),
        ({"gate_penalty": float("nan")}, "gate_penalty = nan: must be a number, at least 0"),
        ({"gate_penalty": "0.1"}, "gate_penalty = '0.1': must be a number, at least 0"),
        ({"layers_to_transform": []}, r"layers_to_transform = \[\]: must be an index from 0, a list of them, or None"),
        ({"layers_to_transform": -1}, "layers_to_transform = -1: must be an index from 0"),
        ({"layers_to_transform": [1.0]}, r"layers_to_transform = \[1.0\]: must be an index from 0"),
        ({"layers_to_transform": True}, "layers_to_transform = True: must be an index from 0"),
    ],
)
def test_a_setting_out_of_its_bounds_is_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        config(**settings)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([0, 9], "layer 9 does not exist: the model has layers 0 to 1"),
        (2, "layer 2 does not exist: the model has layers 0 to 1"),
    ],
)
def test_layers_that_are_not_there_are_refused_and_nothing_changes(layers, said):
    base = llama()
    before, modules = logits(base), names(base)
    with pytest.raises(ValueError, match=said):
        gated(base, layers_to_transform=layers)
    assert torch.equal(logits(base), before) and names(base) == modules and not hasattr(base, "peft_config")
    model = gated(base)
    before, modules = logits(model), names(model)
    with pytest.raises(ValueError, match=said):
        model.add_adapter("second", config(layers_to_transform=layers))
    assert torch.equal(logits(model), before) and names(model) == modules and list(model.peft_config) == ["default"]


def test_a_head_size_that_does_not_divide_is_refused_and_nothing_changes():
    base = llama()
    before, modules = logits(base), names(base)
    base.model.layers[1].self_attn.head_dim = 7
    with pytest.raises(ValueError, match=r"layers\.1\.self_attn: q_proj gives 32 .* head_dim = 7: correct head_dim"):
        gated(base)
    base.model.layers[1].self_attn.head_dim = 8
    assert torch.equal(logits(base), before) and names(base) == modules


@pytest.mark.parametrize(
    "sizes",
    [{"num_attention_heads": 8, "head_dim": 4}, {"head_dim": 16}, {"num_hidden_layers": 3}, {"num_hidden_layers": 1}],
    ids=str,
)
def test_an_adapter_of_another_model_is_refused_with_both_shapes(tmp_path, sizes):
    gated(llama(**sizes)).save_pretrained(tmp_path)
    base, said = (
        llama(),
        "trained on a base model of . layers with . heads of .*, this one has 2 layers with 4 heads of 8",
    )
    before, modules = logits(base), names(base)
    with pytest.raises(ValueError, match=said):
        peft.PeftModel.from_pretrained(base, tmp_path)
    assert torch.equal(logits(base), before) and names(base) == modules
    model = gated(base)
    before, modules = logits(model), names(model)
    with pytest.raises(ValueError, match=said):
        model.load_adapter(tmp_path, "other")
    assert torch.equal(logits(model), before) and names(model) == modules and list(model.peft_config) == ["default"]


@pytest.mark.parametrize("sizes", [{"head_dim": 16}, {"num_hidden_layers": 3}, {"num_hidden_layers": 1}], ids=str)
def test_weights_of_another_model_are_refused_with_both_shapes_and_nothing_is_overwritten(sizes):
    state, model = peft.get_peft_model_state_dict(gated(llama(**sizes))), gated(llama())
    before = logits(model)
    said = r"is (\(.*\)|absent) in the adapter and (\(.*\)|absent) in the base model: load the adapter onto the model"
    with pytest.raises(ValueError, match=said):
        peft.set_peft_model_state_dict(model, state)
    assert torch.equal(logits(model), before)


def test_one_config_may_serve_several_models():
    settings = config()
    for sizes in ({"num_hidden_layers": 1}, {"head_dim": 16}):
        assert logits(peft.get_peft_model(llama(**sizes), settings)).isfinite().all()


def test_layers_of_a_model_without_gates_says_what_it_holds():
    base = llama()
    with pytest.raises(ValueError, match=r"no gates \(it holds no adapter\): lift with adapter gated_memory"):
        layers_of(base)
    lora = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    with pytest.raises(ValueError, match=r"no gates \(it holds LORA\): lift with adapter gated_memory"):
        layers_of(lora)
