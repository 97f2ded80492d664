"""The last layer skips what nobody reads, and nothing else changes."""

from contextlib import nullcontext

import pytest
import torch

from liftlab import adapters
from liftlab.examples import IGNORED, Example
from liftlab.fused_layers import fused
from liftlab.last_layer import for_scored
from liftlab.packed_attention import SequenceAttention, packed_states
from liftlab.packing import pack
from liftlab.recipes import Recipe
from liftlab.stacked_layers import stacked_on

LORA, GATED = (Recipe.preset(f"micro/{name}") for name in ("lora", "gated_memory"))
ADAPTERS = pytest.mark.parametrize("recipe", [LORA, GATED], ids=["lora", "gated memory"])


def pair(length, seed):
    ids = tuple(torch.randint(6, 400, (length,), generator=torch.Generator().manual_seed(seed)).tolist())
    return Example(ids, (*[IGNORED] * (length - 2), *ids[-2:]), "pair")


ROWS = [[pair(9, 1), pair(12, 2)], [pair(40, 3)], [pair(11, 4), pair(12, 5), pair(8, 6)], [pair(40, 7)]]


def batch():
    return pack(ROWS, [lambda e: 1.0] * len(ROWS), 0)


def outcome(model, stack, packed):
    """What stands at the scored tokens, and every gradient of a stack whose B is not 0."""
    stack.arrange(packed.documents, packed.groups)
    stack.empty = True
    hidden = packed_states(model, packed)[0, packed.places]
    wanted = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(9))
    stack.add_gradients((hidden * wanted).sum())
    return hidden.detach(), stack.gradients.clone()


@ADAPTERS
@pytest.mark.parametrize("with_fused", [False, True])
def test_states_and_gradients_are_those_of_the_whole_layer(tiny, recipe, with_fused):
    packed, model = batch(), tiny.model
    with stacked_on(model, adapters.config(recipe), [0, 1, 2, 3], trained=True) as stack:
        stack.weights += 0.1 * torch.randn(stack.weights.shape, generator=torch.Generator().manual_seed(0))
        with SequenceAttention(model).within(packed):
            whole = outcome(model, stack, packed)
            with fused(model) if with_fused else nullcontext(), for_scored(model, stack, packed):
                found = outcome(model, stack, packed)
    for one, other in zip(found, whole, strict=True):
        assert float((one - other).norm() / other.norm()) < 1e-5


@ADAPTERS
def test_fewer_tokens_go_through_the_last_mlp(tiny, recipe):
    packed, model, seen = batch(), tiny.model, []
    with stacked_on(model, adapters.config(recipe), [0, 1, 2, 3], trained=True) as stack:
        stack.arrange(packed.documents, packed.groups)
        last = model.get_decoder().layers[-1].mlp
        hook = last.down_proj.register_forward_hook(lambda layer, given, said: seen.append(given[0].shape[1]))
        with SequenceAttention(model).within(packed), for_scored(model, stack, packed), torch.no_grad():
            packed_states(model, packed)
        hook.remove()
    assert seen == [len(packed.kept)] and len(packed.kept) < packed.ids.numel() / 2
    assert set(packed.places.tolist()) <= set(packed.kept.tolist())
    assert len(set(packed.kept.tolist())) == len(packed.kept) == sum(n * count for n, count in packed.kept_groups)


def test_the_layer_is_itself_again_also_after_an_error(tiny):
    packed, model = batch(), tiny.model
    with stacked_on(model, adapters.config(LORA), [0, 1, 2, 3], trained=True) as stack:
        with pytest.raises(KeyError), for_scored(model, stack, packed):
            assert any("forward" in vars(module) for module in model.modules())
            raise KeyError
        assert not any("forward" in vars(module) for module in model.modules())
        with fused(model):
            before = {name: vars(m)["forward"] for name, m in model.named_modules() if "forward" in vars(m)}
            with for_scored(model, stack, packed):
                pass
            assert before == {name: vars(m)["forward"] for name, m in model.named_modules() if "forward" in vars(m)}
