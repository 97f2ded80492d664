"""The studies on Gated Memory, on a tiny random model: what they record, and that it is what was asked."""

import pandas as pd
import pytest
import torch

from liftlab.studies import adapters, gate_values, oracle_gate, registers

RECIPE = {"mixed_epochs": 1, "init": "per_head", "segment_tokens": 48, "offset_tokens": 18}
COMMON = dict(base="tiny", window_tokens=0, documents=2, seeds=2, questions=3, recipe="micro/gated_memory",
              filler=0.1, answer_tokens=2)  # fmt: skip
GATES = {**COMMON, "windows": 2.0, "every": 3, "recipe_changes": RECIPE}
ORACLE = {**COMMON, "windows": 0.5, "recipe_changes": RECIPE}


@pytest.fixture(autouse=True)
def on_tiny(tiny, monkeypatch):
    for study in (gate_values, oracle_gate, adapters, registers):
        monkeypatch.setattr(study, "base_model", lambda name, window_tokens: tiny)


def test_gates_are_recorded_per_head_at_the_last_step_and_in_the_mean_along_the_way(tmp_path):
    frame = gate_values.run(**GATES, records=tmp_path)
    gates, by = (
        frame[frame["metric"] == "gate"],
        ["document", "seed", "condition", "role", "evidence", "evidence_place"],
    )
    last = gates.groupby(["document", "seed"])["step"].transform("max")
    heads, whole = gates[gates["layer"].notna()], gates[gates["layer"].isna()]
    assert (heads["step"] == last[heads.index]).all() and gates["value"].between(0, 1).all()
    for _, lift in whole.groupby(["document", "seed"]):
        steps = sorted(set(lift["step"]))
        assert steps[:-1] == list(range(0, steps[-1], 3)) and len(steps) > 2
    mean = heads.groupby(by)["value"].agg(["mean", "size"])
    assert (mean["size"] == 2 * 4).all()  # layers x heads
    final = whole[whole["step"] == last[whole.index]].set_index(by)["value"]
    pd.testing.assert_series_equal(mean["mean"], final.sort_index(), check_names=False)
    assert {"absent", "dropped"} < set(gates["evidence_place"]) <= {"absent", "kept", "cut", "dropped"}
    assert len(frame[frame["metric"] == "accuracy"]) == len(whole[["document", "seed", "step"]].drop_duplicates())


def test_every_token_of_every_prompt_is_counted_once(tmp_path, tiny):
    from liftlab.answering import put
    from liftlab.studies.registers import ask_facts, register_of

    frame = gate_values.run(**{**GATES, "documents": 1, "seeds": 1}, records=tmp_path)
    rows = frame[(frame["metric"] == "gate") & frame["layer"].isna() & (frame["step"] == 0)]
    document = register_of(tiny, 200, 2.0, 0.1)
    asked = [q for q in ask_facts(document, 3, 200) if q.wording == "held_out"]
    for condition, context in (("lift", "none"), ("lift_truncated_icl", "truncated")):
        answers = [len(tiny.tokenizer(q.answer)["input_ids"]) - 1 for q in asked]
        prompts = [len(put(tiny.tokenizer, document, q, context, tiny.window, 2)) for q in asked]
        assert rows.loc[rows["condition"] == condition, "tokens"].sum() == sum(prompts) + sum(answers)


@pytest.mark.parametrize(("study", "settings"), [(gate_values, GATES), (oracle_gate, ORACLE)])
def test_a_study_from_scratch_gives_the_same_bytes(study, settings, tmp_path):
    name = study.__name__.split(".")[-1]
    for folder in ("a", "b"):
        study.run(**{**settings, "documents": 1, "seeds": 1}, records=tmp_path / folder)
    assert (tmp_path / f"a/{name}.csv").read_bytes() == (tmp_path / f"b/{name}.csv").read_bytes()


def test_the_exact_gate_is_the_base_model_s_whatever_the_training_seed(tmp_path):
    frame = oracle_gate.run(**ORACLE, records=tmp_path)
    values = frame.pivot(index=["document", "role", "layer"], columns=["metric", "seed"], values="value")
    assert (values["gate_exact"][0] == values["gate_exact"][1]).all()
    assert (values["gate_learned"][0] != values["gate_learned"][1]).all()
    both = values.xs("both", level="role")
    assert (both["output_error_constant"] <= both["output_error_no_memory"] + 1e-9).all(axis=None)
    assert set(values.index.get_level_values("layer")) == {0, 1} and len(set(frame["document"])) == 2


@pytest.mark.parametrize(
    ("study", "settings", "message"),
    [
        (gate_values, {**GATES, "recipe": "micro/lora", "recipe_changes": {}}, "adapter lora, which has no gates"),
        (oracle_gate, {**ORACLE, "recipe": "micro/lora", "recipe_changes": {}}, "adapter lora, which has no gates"),
        (gate_values, {**GATES, "every": 0}, "every = 0: must be at least 1"),
        (gate_values, {**GATES, "recipe_changes": {"gate_width": 0}}, "gate_width = 0: must be a whole number"),
        (oracle_gate, {**ORACLE, "windows": 1.5}, r"windows = 1.5: the exact gate needs the whole document"),
    ],
)
def test_settings_are_checked_before_anything_is_computed(study, settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        study.run(**settings, records=tmp_path)
    assert list(tmp_path.iterdir()) == []


ADAPTERS = {**COMMON, "documents": 1, "windows": 0.5, "published_recipe": "micro/gated_memory_published",
            "other_recipes": {"lora": "micro/lora", "pissa": "micro/pissa"}}  # fmt: skip


def test_equal_steps_are_equal_and_equal_time_is_as_near_as_whole_epochs_allow(tmp_path, tiny):
    frame = adapters.run(**ADAPTERS, records=tmp_path)
    told = frame.pivot_table(index=["condition", "seed"], columns="metric", values="value")
    assert set(told.index.get_level_values("condition")) == {
        "gated_memory", "gated_memory_published", "lora_equal_steps", "lora_equal_time", "pissa_equal_steps",
        "pissa_equal_time", "gated_memory_segments", "lora_segments", "pissa_segments", "chance",
    }  # fmt: skip
    steps = told["steps"]
    assert (steps["gated_memory"] == steps["lora_equal_steps"]).all() and (steps["gated_memory_published"] == 8).all()
    assert (steps["gated_memory"] == steps["pissa_equal_steps"]).all()
    more = [steps[f"{name}_segments"] > steps["gated_memory"] for name in ("gated_memory", "lora", "pissa")]
    assert all(segments.all() for segments in more)
    seconds, epoch = told["train_seconds"], steps["lora_equal_steps"] / 12
    for name in ("lora", "pissa"):
        ratio = seconds["gated_memory"] / seconds[f"{name}_equal_steps"]
        wanted = (12 * ratio).round().clip(lower=1)
        assert (steps[f"{name}_equal_time"] / epoch - wanted).abs().max() < 0.5
    weights, heads, head_dim = told["trained_weights"], 4, 8
    networks = heads * (4 * head_dim * head_dim + (head_dim + 1) * 2)
    assert (weights["gated_memory"] == 2 * networks).all()
    modules = [module for module in tiny.model.model.modules() if isinstance(module, torch.nn.Linear)]
    assert (weights["pissa_equal_time"] == sum(8 * (m.in_features + m.out_features) for m in modules)).all()


def test_the_other_recipes_are_named_one_by_one(tmp_path):
    with pytest.raises(ValueError, match="other_recipes names lora: give one for each of"):
        adapters.run(**{**ADAPTERS, "other_recipes": {"lora": "micro/lora"}}, records=tmp_path)
