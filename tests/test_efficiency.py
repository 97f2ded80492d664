"""Timed inputs have their length, pairs wait and stream, operations are those counted, failures are records."""

import time
from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from liftlab import adapters, cells, machine, records
from liftlab.answering import answer_prompts
from liftlab.batches import in_order
from liftlab.encoding import encoded
from liftlab.lifting import checkpointing, lift, make_examples
from liftlab.models import load
from liftlab.prompts import style
from liftlab.recipes import Recipe
from liftlab.studies import efficiency, efficiency_parts, timings
from liftlab.studies.inputs import MOST_PAIRS, input_of, paced
from liftlab.studies.timings import decoded_bytes, operations, token_seconds, trained_operations
from liftlab.token_losses import hidden_states

PLAIN = style("plain")
RECIPE = Recipe.preset(
    "2502.14644v4/lora/quality", rank=4, mixed_epochs=1, style="plain", segment_tokens=64, offset_tokens=24
)
SMALL = dict(
    base="tiny", window_tokens=0, recipe="2502.14644v4/lora/quality",
    recipe_changes={"rank": 2, "mixed_epochs": 1, "style": "plain", "segment_tokens": 64, "offset_tokens": 24},
    input_tokens=[120, 400], output_tokens=[1, 3], long_input_tokens=200, pairs_per_sentence=1,
    generation_seconds_per_pair=0.0, parts=list(efficiency.PARTS), at_once=[1, 2], repeats=2, memory_gib=2.0,
)  # fmt: skip


@pytest.fixture
def on_tiny(tiny, monkeypatch):
    """Every part but memory, which loads its model by name in another process."""
    monkeypatch.setattr(efficiency, "base_model", lambda name, window_tokens: tiny)
    monkeypatch.setattr(efficiency, "_warmed", set())
    monkeypatch.setattr(machine, "SIZES", {"cpu": (64,)})
    monkeypatch.setattr(machine, "COPIED_BYTES", {"cpu": 2**20})
    return tiny


def run(folder, *parts, **changes):
    return efficiency.run(**{**SMALL, "parts": list(parts), **changes}, records=folder)


# --- inputs


@pytest.mark.parametrize("tokens", [100, 1000, 9000])
def test_an_input_s_prompt_has_its_tokens_but_for_less_than_a_sentence(tiny, tokens):
    made = input_of(tiny, tokens, PLAIN, 3)
    assert tokens - 40 < len(made.prompt(tiny, PLAIN, with_document=True)) <= tokens
    sentences = made.document.text.split(". ")
    assert len(made.pairs) == 3 * len(sentences)
    for place, pair in enumerate(made.pairs):
        assert pair.answer.rstrip(".") in sentences[place // 3] and pair.question.endswith("?")


def test_inputs_of_other_numbers_hold_other_sentences_and_the_same_number_the_same(tiny):
    first, again, other = (input_of(tiny, 400, PLAIN, MOST_PAIRS, number) for number in (0, 0, 1))
    assert first == again
    assert not set(first.document.text.split(". ")) & set(other.document.text.split(". "))
    assert len(set(first.pairs)) == len(first.pairs)


def test_an_input_without_room_for_a_sentence_is_refused(tiny):
    with pytest.raises(ValueError, match="an input of 20 tokens has no room for a sentence"):
        input_of(tiny, 20, PLAIN, 1)


def test_pairs_come_no_earlier_than_an_endpoint_would_give_them(tiny):
    pairs, began = input_of(tiny, 400, PLAIN, 1).pairs, time.perf_counter()
    came = [time.perf_counter() - began for _ in paced(pairs, 0.02)]
    assert all(at >= 0.02 * place for place, at in enumerate(came, start=1))
    assert list(paced(pairs, 0.0)) == list(pairs)


# --- clock and counts


def test_the_clock_sees_every_token_of_a_model_that_would_end_at_once(tiny):
    prompt = input_of(tiny, 120, PLAIN, 1).prompt(tiny, PLAIN, with_document=True)
    likely = torch.zeros(len(tiny.tokenizer)).index_fill(0, torch.tensor([tiny.tokenizer.eos_token_id]), 1e4)
    tiny.model.get_output_embeddings().register_forward_hook(lambda head, given, logits: logits + likely)
    assert answer_prompts(tiny, [prompt], 12) == [""]
    seconds = token_seconds(tiny, prompt, 12)
    assert len(seconds) == 12 and seconds == sorted(seconds) and seconds[0] > 0


def eager(base):
    """Attention by plain products, so that all of its operations are counted."""
    base.model.set_attn_implementation("eager")
    return base


def test_forward_operations_are_those_counted(tiny):
    """To 1 %, once the half of attention that a causal model does not need is added."""
    base, tokens = eager(tiny), 96
    counted = FlopCounterMode(display=False)
    ids = torch.randint(6, 400, (1, tokens))
    with counted, torch.no_grad():
        base.model(ids, logits_to_keep=1, use_cache=False)
    formula = operations(base, RECIPE, 0)
    unneeded = formula.forward(tokens, tokens**2, 1) - formula.forward(tokens, 0, 1)
    assert counted.get_total_flops() == pytest.approx(formula.forward(tokens, tokens**2, 1) + unneeded, rel=0.01)


@pytest.mark.parametrize(("adapter", "checkpointed"), [("lora", False), ("lora", True), ("full", False)])
def test_training_operations_are_those_counted(tiny, adapter, checkpointed):
    """To 2 %: attention in full, less what the first layer leaves out where its input needs no gradient."""
    recipe = replace(RECIPE, adapter=adapter, gradient_checkpointing=checkpointed, batch_tokens=1000)
    base, given = eager(tiny), input_of(tiny, 120, PLAIN, 2)
    examples = make_examples(base, given.document, recipe, given.pairs)[1]
    rows = [replace(e, ids=e.ids[:9], labels=e.labels[:9]) for e in examples]  # of one length: no padding
    (batch,) = in_order(rows, replace(recipe, batch_examples=99))
    with adapters.attached(base.model, adapters.config(recipe)) as model, checkpointing(base.model, checkpointed):
        trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
        model.train()
        at, needs_gradient = encoded(batch, recipe, 0, model.device), []
        seen = lambda layer, given: needs_gradient.append(given[0].requires_grad)  # noqa: E731
        base.model.get_decoder().layers[0].register_forward_pre_hook(seen)
        with FlopCounterMode(display=False) as counted:
            hidden = hidden_states(model, at.ids).flatten(0, 1)[at.places]
            functional.cross_entropy(base.model.get_output_embeddings()(hidden), at.labels).backward()
        named = dict(model.named_parameters())
    first = [weight for name, weight in named.items() if "layers.0.self_attn" in name and "o_proj" not in name]
    reading = sum(weight.numel() for weight in first if weight.shape[1] == base.model.config.hidden_size)
    left_out = 0 if needs_gradient[0] else reading
    tokens, squares = sum(len(e.ids) for e in batch), sum(len(e.ids) ** 2 for e in batch)
    formula = operations(base, recipe, trained)
    scored = sum(e.scored_tokens for e in batch)
    done = formula.training(tokens, squares, scored)
    attention = done - formula.training(tokens, 0, scored)
    expected = done + attention - 2 * tokens * left_out
    assert counted.get_total_flops() == pytest.approx(expected, rel=0.02)


def test_a_lift_reads_the_tokens_that_are_counted(tiny):
    recipe = replace(RECIPE, segment_epochs=2, mixed_epochs=3, segments_in_mixed=True, offset_tokens=24)
    given = input_of(tiny, 200, PLAIN, 2)
    lifted = lift(tiny, given.document, recipe, given.pairs, progress=False)
    assert trained_operations(tiny, given, recipe, 1)[0] == lifted.history[-1].tokens


def test_what_examples_begin_with_alike_is_counted_once(tiny, monkeypatch):
    """The operations of the linear layers are those of the tokens that a lift computes."""
    recipe = replace(RECIPE, mixed_epochs=2, segments_in_mixed=False, batch_tokens=1000)
    given, computed = input_of(tiny, 200, PLAIN, 9), []
    hook = (
        tiny.model.get_decoder()
        .layers[0]
        .register_forward_hook(lambda layer, read, said: computed.append(read[0].shape[0] * read[0].shape[1]))
    )
    lift(tiny, given.document, recipe, given.pairs, progress=False)
    hook.remove()
    tokens, done = trained_operations(tiny, given, recipe, 1)
    monkeypatch.setattr("liftlab.studies.timings.shares", lambda *_: False)
    whole, per_token = trained_operations(tiny, given, recipe, 1)[1], operations(tiny, recipe, 1).training(1, 0, 0)
    spared = (whole - done) / per_token
    assert spared > 0.05 * tokens
    assert tokens - spared == pytest.approx(sum(computed), rel=0.02)  # which has some padding


def test_a_token_reads_the_head_but_no_embedding_of_its_own(tiny):
    tied = sum(weight.nbytes for weight in tiny.model.parameters())
    assert decoded_bytes(tiny, 100) == tied + 100
    head = tiny.model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    assert decoded_bytes(tiny, 0) == tied


# --- the study


def test_every_part_records_every_condition_at_every_place(on_tiny, tmp_path):
    frame = run(tmp_path, "first_token", "output_length", "throughput", "documents_at_once")
    records.check(frame)
    assert set(frame["device"]) == {machine.device_words(torch.device("cpu"))}
    found = frame[frame["repeat"] == 1].groupby(["part", "condition", "component", "metric"]).size().to_dict()
    lift_parts = ["decode", "generation", "training", "waiting", "whole"]
    assert found == {
        ("first_token", "icl", "prefill", "seconds"): 1, ("first_token", "icl", "whole", "seconds"): 2,
        **{("first_token", c, part, "seconds"): 2 for c in ("lift", "lift_streamed") for part in lift_parts},
        **{("output_length", c, "whole", "seconds"): 2 for c in ("icl", "lift")},
        ("throughput", "machine", "flops", "peak_flops"): 1,
        ("throughput", "machine", "bandwidth", "peak_bandwidth"): 1,
        **{("throughput", c, component, metric): 1
           for c, component, share in (("icl", "prefill", "peak"), ("lift", "training", "peak"),
                                       ("lift", "training_segments", "peak"), ("lift", "decode", "bandwidth"))
           for metric in ("tokens_per_second", f"share_of_{share}")},
        ("documents_at_once", "lift", "whole", "documents_per_hour"): 2,
    }  # fmt: skip
    failed = frame[frame["outcome"] != "measured"]
    assert set(zip(failed["condition"], failed["input_tokens"], failed["outcome"], failed["value"], strict=True)) == {
        ("icl", 400, "beyond window", 0.0)
    }
    measured = frame[frame["outcome"] == "measured"]
    assert (measured.loc[~measured["component"].isin(["generation", "waiting"]), "value"] > 0).all()
    whole = measured[measured["part"] == "first_token"].pivot_table(
        index=["condition", "input_tokens", "repeat"], columns="component", values="value", aggfunc="sum"
    )
    sums = whole[["prefill", "waiting", "training", "decode"]].sum(axis=1)
    assert (sums - whole["whole"]).abs().max() < 1e-3


def test_longer_answers_take_longer_and_one_beyond_the_window_is_told(on_tiny, tmp_path):
    frame = run(tmp_path, "output_length", output_tokens=[1, 4, 80], repeats=1)
    seconds = frame.pivot(index="output_tokens", columns="condition", values="value")
    assert seconds["lift"].is_monotonic_increasing and seconds.loc[4, "icl"] > seconds.loc[1, "icl"] > 0
    assert list(frame.query("outcome == 'beyond window'")["output_tokens"]) == [80]


def test_streaming_hides_generation_behind_training(on_tiny, tmp_path):
    on_tiny.model.get_decoder().register_forward_pre_hook(lambda *_: time.sleep(0.03))
    frame = run(tmp_path, "first_token", generation_seconds_per_pair=0.02, repeats=1, input_tokens=[400],
                recipe_changes={**SMALL["recipe_changes"], "mixed_epochs": 3})  # fmt: skip
    seconds = frame[frame["outcome"] == "measured"].pivot(index="condition", columns="component", values="value")
    pairs = frame["pairs"].max()
    assert (seconds["generation"].dropna() >= 0.95 * 0.02 * pairs).all() and set(frame["pair_seconds"]) == {0.0, 0.02}
    assert seconds.loc["lift", "waiting"] == seconds.loc["lift", "generation"]
    assert seconds.loc["lift_streamed", "waiting"] < 0.8 * seconds.loc["lift_streamed", "generation"]


def test_each_repeat_begins_with_another_condition(on_tiny, tmp_path):
    frame = run(tmp_path, "first_token", input_tokens=[120], repeats=3)
    assert list(frame.groupby("repeat")["condition"].first()) == ["icl", "lift", "lift_streamed"]


def counted(monkeypatch, name, column, stop=()):
    """What the cells of a part are asked for, a list that grows; the call that makes it `stop` is interrupted."""
    part, *known = efficiency.PARTS[name]
    calls = []

    def called(setting, **lengths):
        calls.append((setting.repeat, *lengths[column]))
        if calls == list(stop):
            raise KeyboardInterrupt
        return part(setting, **lengths)

    monkeypatch.setitem(efficiency.PARTS, name, (called, *known))
    return calls


def test_a_killed_run_goes_on_where_it_stopped(on_tiny, tmp_path, monkeypatch):
    calls = counted(monkeypatch, "documents_at_once", "at_once", stop=[(0, 1), (0, 2), (1, 2)])
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "documents_at_once")
    frame = run(tmp_path, "documents_at_once")
    assert calls == [(0, 1), (0, 2), (1, 2), (1, 2), (1, 1)] and set(frame["repeat"]) == {0, 1}
    pd.testing.assert_frame_equal(run(tmp_path, "documents_at_once"), frame)
    assert len(calls) == 5


def test_each_length_is_kept_by_itself_whatever_others_are_asked_for(on_tiny, tmp_path, monkeypatch):
    calls = counted(monkeypatch, "first_token", "input_tokens")
    run(tmp_path, "first_token", input_tokens=[120], repeats=1)
    frame = run(tmp_path, "first_token", input_tokens=[120, 160], repeats=2)
    assert calls == [(0, 120), (0, 160), (1, 160), (1, 120)]
    assert set(frame["input_tokens"]) == {120, 160}
    run(tmp_path, "first_token", input_tokens=[160], repeats=2)
    assert len(calls) == 4


def test_decoding_is_timed_over_a_bounded_number_of_tokens(on_tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(efficiency_parts, "MOST_DECODED", 4)
    frame = run(tmp_path, "throughput", output_tokens=[1, 30], repeats=1)
    assert set(frame.loc[frame["component"] == "decode", "output_tokens"]) == {4}


def test_running_out_of_memory_is_a_record_and_the_others_go_on(on_tiny, tmp_path, monkeypatch):
    def refuse(base, prompt, tokens):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(efficiency, "_warm", lambda *_: None)
    monkeypatch.setattr(efficiency_parts, "token_seconds", refuse)
    frame = run(tmp_path, "output_length", "first_token", input_tokens=[120], repeats=1)
    outcomes = frame.groupby(["part", "condition", "outcome"]).size().to_dict()
    assert outcomes == {
        ("output_length", "icl", "out of memory"): 2, ("output_length", "lift", "out of memory"): 2,
        ("first_token", "icl", "out of memory"): 1, ("first_token", "lift", "measured"): 5,
        ("first_token", "lift_streamed", "measured"): 5,
    }  # fmt: skip
    assert not any(hasattr(part, "lora_A") for part in on_tiny.model.modules())


def test_peak_memory_is_recorded_with_its_method_and_a_killed_process_as_out_of_memory(tmp_path, monkeypatch):
    """The model is loaded by its name in another process, so that what this process holds does not count."""
    real = machine.peak_memory

    def killed(device, task, condition, *how):
        if condition == "lift" and how[-1] == 100:
            raise machine.OutOfMemory("killed")
        return real(device, task, condition, *how)

    monkeypatch.setattr(machine, "peak_memory", killed)
    frame = run(tmp_path, "memory", base="random:llama-tiny", input_tokens=[100, 900], repeats=1)
    assert {(r.condition, r.input_tokens): (r.outcome, r.method) for r in frame.itertuples()} == {
        ("icl", 100): ("measured", machine.FRESH), ("icl", 900): ("beyond window", ""),
        ("lift", 100): ("out of memory", ""), ("lift", 900): ("measured", machine.FRESH),
    }  # fmt: skip
    gib = frame.loc[frame["outcome"] == "measured", "value"]
    assert gib.between(0.05, 8).all() and set(frame["unit"]) == {"GiB"}  # Python and torch alone take more than 0.05


def test_the_architecture_for_long_inputs_has_the_bundled_model_s_shape():
    ours, bundled = load("random:micro-long", device="cpu"), load("micro", device="cpu")
    shape = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim")
    assert [getattr(ours.model.config, name) for name in shape] == [
        getattr(bundled.model.config, name) for name in shape
    ]
    assert ours.window == 32768


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts": ["speed"]}, "part 'speed' is unknown: choose among first_token"),
        ({"parts": []}, "parts = \\[\\]: name at least one of first_token"),
        ({"input_tokens": [400, 120]}, "input_tokens = \\[400, 120\\]: give whole numbers from 1 on, each once"),
        ({"at_once": []}, "at_once = \\[\\]: give whole numbers"),
        ({"repeats": 0}, "repeats = 0: must be at least 1"),
        ({"pairs_per_sentence": 13}, "a sentence has 12 pairs, give at most that"),
        ({"generation_seconds_per_pair": -1.0}, "generation_seconds_per_pair = -1.0: give seconds"),
        ({"memory_gib": 0.0}, "memory_gib = 0.0: give the memory"),
        ({"output_tokens": [1]}, "decoding is timed from the first token on, give 2 or more"),
        ({"recipe": "micro/lora", "recipe_changes": {}}, "need first_epoch_in_order = True"),
    ],
)
def test_settings_are_checked_before_anything_is_measured(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        efficiency.run(**{**SMALL, **changes}, records=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_modules_that_make_a_record_stale_are_there():
    for name in efficiency.MODULES:
        assert cells._source(f"liftlab.{name}").is_file()
    assert timings.__name__.removeprefix("liftlab.") in efficiency.MODULES
