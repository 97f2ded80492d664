from dataclasses import replace

import peft
import pytest
import torch

from liftlab import adapters
from liftlab.documents import Document, Question
from liftlab.gated_layer import collected_gates
from liftlab.gated_memory import GatedMemoryConfig
from liftlab.probes.gates import gates
from liftlab.probes.layout import layout

DOCUMENT = Document("d", "Ada lives in Oslo. Where does Ada live? Nothing else.")
QUESTION = Question("Where does Ada live?", "in Oslo", evidence=(0, 18))
COLUMNS = ["prompt", "layer", "head", "position", "role", "evidence", "evidence_place", "gate"]


@pytest.fixture
def layouts(tiny):
    return [layout(tiny.tokenizer, DOCUMENT, QUESTION, context, 256, 8) for context in ("full", "none")]


@pytest.fixture
def gated(tiny):
    """The tiny model with random gates that differ from token to token."""
    torch.manual_seed(1)
    with adapters.attached(tiny.model, GatedMemoryConfig(task_type="CAUSAL_LM", init="per_head")) as model:
        for name, weight in model.named_parameters():
            if "gate_" in name:
                weight.data.mul_(5)
        yield replace(tiny, model=model.eval())


def test_a_row_a_layer_head_and_token_with_its_gate(gated, layouts):
    frame = gates(gated, layouts)
    assert list(frame.columns) == COLUMNS and frame.index.is_unique
    assert len(frame) == sum(2 * 4 * len(made.ids) for made in layouts)
    for prompt, made in enumerate(layouts):
        with collected_gates(gated.model) as by_hand, torch.no_grad():
            gated.model(input_ids=torch.tensor([made.ids]))
        rows = frame[frame.prompt == prompt]
        for row in rows.sample(60, random_state=0).itertuples():
            assert row.gate == pytest.approx(by_hand[row.layer][0, row.position, row.head, 0].item(), abs=1e-6)
            assert (row.role, row.evidence) == (made.roles[row.position], made.evidence[row.position])
        assert set(rows.evidence_place) == {made.evidence_place}
        assert not rows.duplicated(["layer", "head", "position"]).any()
    assert frame.gate.between(0, 1).all() and frame.gate.std() > 0.01


def test_roles_and_evidence_of_a_document_by_hand(gated, layouts):
    one = gates(gated, layouts).query("prompt == 0 and layer == 1 and head == 2").set_index("position")
    assert list(one.index[one.evidence]) == [1, 2, 3, 4, 5]
    told = ["template", *["document"] * 13]  # Ada lives in Oslo . Where does Ada live ? Nothing else .
    assert list(one.role) == [*told, *["question"] * 5, "template", "answer", "answer"]


def test_only_layers_with_a_memory_have_rows(tiny, layouts):
    with adapters.attached(tiny.model, GatedMemoryConfig(task_type="CAUSAL_LM", layers_to_transform=[1])) as model:
        frame = gates(replace(tiny, model=model), layouts)
    assert set(frame.layer) == {1} and len(frame) == sum(4 * len(made.ids) for made in layouts)


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_as_it_was(gated, layouts, fails):
    gated.model.train()
    gated.model.base_model.model.model.layers[1].mlp.eval()
    before = [(name, module.training) for name, module in gated.model.named_modules()]
    weights = {name: value.clone() for name, value in gated.model.state_dict().items()}
    if fails:
        with pytest.raises(IndexError):
            gates(gated, [replace(layouts[0], ids=[10**6] * len(layouts[0].ids))])
    else:
        gates(gated, layouts)
    assert before == [(name, module.training) for name, module in gated.model.named_modules()]
    assert all(torch.equal(weights[name], value) for name, value in gated.model.state_dict().items())
    with collected_gates(gated.model) as collected:
        gated.model(input_ids=torch.tensor([layouts[0].ids]))
    assert len(collected) == 2 and collected[0].requires_grad


def test_a_model_without_gates_is_refused_by_name(tiny, gated, layouts):
    with pytest.raises(ValueError, match="adapter is switched off"), gated.model.disable_adapter():
        gates(gated, layouts)
    with pytest.raises(ValueError, match="no layout was given"):
        gates(gated, [])


def test_lora_and_no_adapter_have_no_gates(tiny, layouts):
    with pytest.raises(ValueError, match="holds no adapter"):
        gates(tiny, layouts)
    settings = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])
    with (
        adapters.attached(tiny.model, settings) as model,
        pytest.raises(ValueError, match="no gates .it holds LORA.*gated_memory"),
    ):
        gates(replace(tiny, model=model), layouts)
