"""Our rotary positions are transformers' own, to rounding, in value and gradient."""

import pytest
import torch
from transformers.models.gemma2 import modeling_gemma2
from transformers.models.llama import modeling_llama
from transformers.models.mistral import modeling_mistral
from transformers.models.qwen2 import modeling_qwen2
from transformers.models.qwen3 import modeling_qwen3

from liftlab.rotary import NAME, few_passes, rotated, turning


@pytest.mark.parametrize("place", [modeling_llama, modeling_mistral, modeling_qwen2, modeling_qwen3, modeling_gemma2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_values_and_gradients_are_those_of_transformers(place, dtype):
    torch.manual_seed(0)
    angles = torch.rand(3, 7, 4, dtype=dtype).mul(6).repeat(1, 1, 2)
    inputs = [torch.randn(3, heads, 7, 8, dtype=dtype, requires_grad=True) for heads in (4, 2)]
    wanted = [torch.randn_like(x) for x in inputs]
    found = []
    for turn in (rotated, getattr(place, NAME)):
        out = turn(*inputs, angles.cos(), angles.sin())
        found.append([*out, *torch.autograd.grad(sum((o * w).sum() for o, w in zip(out, wanted, strict=True)), inputs)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_it_is_in_place_only_while_wanted(tiny):
    own = getattr(modeling_llama, NAME)
    with pytest.raises(KeyError), few_passes(turning(tiny.model)):
        assert getattr(modeling_llama, NAME) is rotated
        raise KeyError
    assert getattr(modeling_llama, NAME) is own
