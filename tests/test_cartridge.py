"""A cartridge is a prefix of keys and values: at first that of the document's own first tokens, then trained."""

import json
import warnings
from dataclasses import replace

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Gemma2Config, Gemma2ForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from liftlab import adapters, bounds, stacked
from liftlab.answering import answer, answer_prompts
from liftlab.encoding import encoded
from liftlab.examples import Example, document_ids, known_pairs
from liftlab.lifted import Lifted
from liftlab.lifting import _batch_loss, lift, make_examples
from liftlab.models import BaseModel
from liftlab.prompts import PLAIN, encode_prompt, put
from liftlab.recipes import Recipe
from liftlab.studies import dry_run, evaluation
from liftlab.studies.registers import ask_facts
from liftlab.token_losses import hidden_states, logits_of
from liftlab.worlds import register

DOCUMENT = register(0, 120)
PAIRS = known_pairs(DOCUMENT)[::6]
PREFIX = 12
RECIPE = Recipe(
    adapter="cartridge", prefix_tokens=PREFIX, segment_epochs=0, segments_in_mixed=False, mixed_epochs=2,
    learning_rate=0.1, step="batch", batch_tokens=256, segment_tokens=48, offset_tokens=18,
)  # fmt: skip
SIZES = dict(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=256, pad_token_id=0, bos_token_id=None, tie_word_embeddings=True,
)  # fmt: skip
MODELS = {
    "llama": None,
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 16}),
    "gemma2": (Gemma2Config, Gemma2ForCausalLM, {"head_dim": 16, "sliding_window": 64}),
}


@pytest.fixture(params=MODELS)
def any_tiny(request, tiny):
    """`tiny`, or one like it of another architecture; all have fewer key-value heads than query heads."""
    if MODELS[request.param] is None:
        return tiny
    kind, model, own = MODELS[request.param]
    words = len(tiny.tokenizer)
    torch.manual_seed(0)
    made = model(kind(vocab_size=words, eos_token_id=tiny.tokenizer.eos_token_id, **SIZES, **own)).eval()
    return BaseModel(request.param, made.requires_grad_(False), tiny.tokenizer, 256, {"name": request.param})


def begun(base):
    """The document's first tokens, and the cartridge that stands for them."""
    ids = document_ids(base.tokenizer, DOCUMENT)[:PREFIX]
    return ids, adapters.prefix_of(base.model, ids)


def fitted(base, **changes):
    return lift(base, DOCUMENT, replace(RECIPE, **changes), PAIRS, progress=False)


def tokens(rows, seed=1):
    return torch.randint(6, 400, rows, generator=torch.Generator().manual_seed(seed))


def prompts_of(base, window):
    return [put(base.tokenizer, DOCUMENT, q, "none", window, 4) for q in ask_facts(DOCUMENT, 6, 0)]


@torch.no_grad()
def test_an_untrained_cartridge_is_the_first_tokens_in_the_prompt(any_tiny):
    """The law that ties it to the model: same logits as with these tokens before the rest, to 1e-5."""
    ids, state = begun(any_tiny)
    rest = tokens((3, 30))
    whole = any_tiny.model(input_ids=torch.cat([torch.tensor([ids] * 3), rest], dim=1)).logits[:, PREFIX:]
    with adapters.attached(any_tiny.model, adapters.config(RECIPE), state) as wrapped:
        torch.testing.assert_close(logits_of(wrapped, hidden_states(wrapped, rest)), whole, atol=1e-5, rtol=0)
        torch.testing.assert_close(wrapped(input_ids=rest).logits, whole, atol=1e-5, rtol=0)
    assert not torch.allclose(any_tiny.model(input_ids=rest).logits, whole, atol=1e-3)


@torch.no_grad()
def test_a_left_padded_batch_is_continued_as_each_prompt_is_with_the_tokens_in_it(any_tiny):
    """Padding stands between the prefix and the prompt: positions and mask must skip it, token after token."""
    ids, state = begun(any_tiny)
    prompts = [tokens((length,), length).tolist() for length in (31, 9, 17, 2)]
    settings = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    padded = torch.tensor([[0] * (31 - len(prompt)) + prompt for prompt in prompts])
    with adapters.attached(any_tiny.model, adapters.config(RECIPE), state) as wrapped:
        mask = torch.tensor([[0] * (31 - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        found = wrapped.eval().generate(input_ids=padded, attention_mask=mask, **settings)
    for row, prompt in enumerate(prompts):
        alone = any_tiny.model.generate(input_ids=torch.tensor([ids + prompt]), **settings)
        bare = any_tiny.model.generate(input_ids=torch.tensor([prompt]), **settings).logits
        assert found.sequences[row, 31:].tolist() == alone.sequences[0, PREFIX + len(prompt) :].tolist()
        for mine, theirs, without in zip(found.logits, alone.logits, bare, strict=True):
            torch.testing.assert_close(mine[row], theirs[0], atol=1e-5, rtol=0)
            assert not torch.allclose(mine[row], without[0], atol=1e-3)


def test_a_removed_cartridge_leaves_weights_logits_and_attributes_bit_for_bit(any_tiny):
    model, ids = any_tiny.model, tokens((2, 20))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    held = [set(vars(part)) for part in (model, model.get_decoder())]
    said, modules = model(input_ids=ids).logits, [name for name, _ in model.named_modules()]
    with fitted(any_tiny).on(any_tiny) as on:
        answer(on, DOCUMENT, ask_facts(DOCUMENT, 1, 0), "none")
        assert not torch.equal(on.model(input_ids=ids).logits, said)
    assert torch.equal(model(input_ids=ids).logits, said) and not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [set(vars(part)) for part in (model, model.get_decoder())] == held
    assert [name for name, _ in model.named_modules()] == modules
    assert not any(weight.requires_grad or weight.grad is not None for weight in model.parameters())


def test_a_padded_batch_s_loss_is_the_sum_of_its_examples_one_by_one(any_tiny):
    _, state = begun(any_tiny)
    examples = [Example(tuple(row), tuple(row), "pair") for row in (tokens((n,), n).tolist() for n in (40, 7, 21))]
    with adapters.attached(any_tiny.model, adapters.config(RECIPE), state) as wrapped:
        whole, *parts = (
            _batch_loss(wrapped, encoded(batch, RECIPE, 0, torch.device("cpu"))).item()
            for batch in (examples, *([example] for example in examples))
        )
    assert whole == pytest.approx(sum(parts), rel=1e-5)


def test_training_lowers_the_loss_and_moves_all_but_the_first_token(any_tiny):
    ids, start = begun(any_tiny)
    lifted = fitted(any_tiny, mixed_epochs=8)
    assert lifted.history[-1].loss < lifted.history[0].loss - 0.1
    (key,), end = lifted.state, lifted.state[adapters.PREFIX]
    moved = (end != start[key]).any(dim=1)
    assert not moved[0] and moved[1:].all() and end.dtype == torch.float32
    assert torch.equal(end, fitted(any_tiny, mixed_epochs=8).state[key])


def test_the_first_loss_is_that_of_the_pairs_after_the_first_tokens(tiny):
    ids, _ = begun(tiny)
    recipe = replace(RECIPE, step="epoch", mixed_epochs=1)
    lost, scored = 0.0, 0
    for example in make_examples(tiny, DOCUMENT, recipe, PAIRS)[1]:
        with torch.no_grad():
            logits = tiny.model(input_ids=torch.tensor([[*ids, *example.ids]])).logits[0, PREFIX:-1]
        labels = torch.tensor(example.labels[1:])
        kept = labels != -100
        lost += float(torch.nn.functional.cross_entropy(logits[kept].double(), labels[kept], reduction="sum"))
        scored += int(kept.sum())
    assert fitted(tiny, step="epoch", mixed_epochs=1).history[0].loss == pytest.approx(lost / scored, abs=1e-5)


def test_saved_and_read_again_it_answers_alike_and_peft_itself_reads_it(tiny, tmp_path):
    lifted, ids = fitted(tiny), tokens((2, 20))
    folder = lifted.save(tmp_path / "out")
    assert sorted(load_file(folder / "adapter_model.safetensors")) == [adapters.PREFIX]
    again = Lifted.load(folder)
    assert (again.recipe, again.history) == (lifted.recipe, lifted.history)
    questions = ask_facts(DOCUMENT, 6, 0)
    with torch.no_grad(), lifted.on(tiny) as on:
        said, logits = answer(on, DOCUMENT, questions, "none"), on.model(input_ids=ids).logits
    with torch.no_grad(), again.on(tiny) as on:
        assert answer(on, DOCUMENT, questions, "none") == said
        assert torch.equal(on.model(input_ids=ids).logits, logits)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        assert torch.equal(peft.PeftModel.from_pretrained(tiny.model, str(folder))(input_ids=ids).logits, logits)


def test_several_documents_lifted_at_once_are_what_they_are_alone(tiny):
    lifted = stacked.lift(tiny, [stacked.Job(DOCUMENT, RECIPE, PAIRS[n:]) for n in (0, 1)], progress=False)
    alone = [lift(tiny, DOCUMENT, RECIPE, PAIRS[n:], progress=False) for n in (0, 1)]
    states = [[of.state[adapters.PREFIX] for of in several] for several in (lifted, alone)]
    for together, by_itself in zip(*states, strict=True):
        torch.testing.assert_close(together, by_itself, atol=1e-4, rtol=1e-3)
        assert torch.equal(together[0], by_itself[0])  # the first token is frozen
    assert not torch.equal(*states[0])
    prompts = prompts_of(tiny, tiny.window - PREFIX)
    said = []
    for one in alone:
        with one.on(tiny) as on:
            said.append(answer_prompts(on, prompts, 4))
    assert stacked.answer(tiny, lifted, [prompts] * 2, 4) == said


@pytest.mark.parametrize("name", ["micro/cartridge", "smollm2/cartridge"])
def test_the_named_recipes_train(tiny, name):
    """A few steps on a tiny model; neither is told as a published one."""
    recipe = Recipe.preset(name, mixed_epochs=1)
    prefix = min(recipe.prefix_tokens, 64)
    assert (recipe.adapter, recipe.segments_in_mixed) == ("cartridge", False)
    lifted = lift(tiny, DOCUMENT, replace(recipe, prefix_tokens=prefix), PAIRS, progress=False)
    assert lifted.state[adapters.PREFIX].shape == (prefix, 64) and len(lifted.history) >= 1


def evaluated(**changes):
    pairs = {"task": "known_per_fact", "count": 2, "generator": "model", "endpoint": ""}
    fields = {"mixed_epochs": 1, **changes}
    return {
        "base": "micro", "window_tokens": 96, "four_bit": False,
        "benchmark": {"source": "register", "tasks": ["short_qa"], "windows": 2.0}, "documents": 1, "questions": 3,
        "conditions": {
            "lift": {"recipe": "micro/cartridge", "recipe_changes": fields},
            "lift_icl": {"recipe": "micro/cartridge", "recipe_changes": fields, "context": "truncated"},
        },
        "auxiliary": pairs, "style": "plain", "seeds": 1, "answer_tokens": 4, "scores": ["exact_match"], "judge": {},
    }  # fmt: skip


def test_no_prompt_of_an_evaluation_runs_out_of_the_window(tmp_path, monkeypatch):
    """Prefix, the document's part that fits and the answer fill the window and do not exceed it."""
    real, seen = answer_prompts, []

    def watched(base, prompts, answer_tokens=8, batch_tokens=16384):
        seen.extend((base.window, len(prompt) + answer_tokens) for prompt in prompts)
        return real(base, prompts, answer_tokens, batch_tokens)

    monkeypatch.setattr(stacked, "answer_prompts", watched)
    frame = evaluation.run("cartridge", **evaluated(prefix_tokens=40), records=tmp_path)
    assert set(frame["condition"]) >= {"lift", "lift_icl"} and (frame["metric"] == "exact_match").sum() >= 6
    assert {window for window, _ in seen} == {96 - 40}
    assert 96 - 40 - 8 <= max(length for _, length in seen) <= 96 - 40


def test_a_dry_run_counts_the_prefix_off_the_window():
    assert not dry_run.of(evaluated(prefix_tokens=40)).problems
    asked, segments = (
        dry_run.of(settings).problems
        for settings in (
            evaluated(prefix_tokens=60) | {"answer_tokens": 30},
            evaluated(prefix_tokens=40, segments_in_mixed=True),
        )
    )
    assert len(asked) == 1 and asked[0].startswith("a question with its answer takes up to")
    (said,) = segments
    assert said == "a training sequence of recipe micro/cartridge takes up to 104 tokens, the window of micro has 96"
    with pytest.raises(ValueError, match="prefix_tokens = 96 leaves nothing of the window of micro, 96 tokens"):
        dry_run.of(evaluated(prefix_tokens=96))
    narrow, wide = (dry_run.of(evaluated(prefix_tokens=n)).table.loc["lift_icl", "prompt_tokens"] for n in (40, 10))
    assert narrow < wide


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prefix_tokens": 1}, "prefix_tokens = 1: must be a whole number, at least 2"),
        ({"prefix_tokens": 2.5}, "prefix_tokens = 2.5: must be a whole number"),
        ({"prefix_tokens": None}, "prefix_tokens = None with adapter cartridge"),
        ({"adapter": "lora"}, "prefix_tokens = 12 with adapter lora: .* leave prefix_tokens out"),
        ({"gradient_checkpointing": True}, "gradient_checkpointing = True with adapter cartridge"),
        ({"gate_penalty": 0.1}, "gate_penalty = 0.1 is for gated_memory, not cartridge"),
    ],
)
def test_a_recipe_that_no_cartridge_can_have_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(RECIPE, **changes)


def test_changes_that_make_a_cartridge_are_checked_field_by_field():
    bounds._recipe_changes({"adapter": "cartridge", "prefix_tokens": 32})
    with pytest.raises(ValueError, match="prefix_tokens = 0"):
        bounds._recipe_changes({"prefix_tokens": 0})


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        (256, "prefix_tokens = 256 leaves nothing of the window of tiny, 256 tokens"),
        (10**12, "leaves nothing of the window"),
        (250, "does not fit a window of 6 tokens"),
        (200, "has 1[0-9][0-9] tokens with its title, and the prefix begins as its first ones"),
    ],
)
def test_a_prefix_beyond_the_window_or_the_document_is_refused(tiny, prefix, message):
    with pytest.raises(ValueError, match=message):
        fitted(tiny, prefix_tokens=prefix)
    assert not any(weight.requires_grad for weight in tiny.model.parameters())


def test_segments_must_fit_what_the_prefix_leaves(tiny):
    with pytest.raises(ValueError, match="has 48 tokens, the window of tiny is 40"):
        fitted(replace(tiny, window=52), segments_in_mixed=True)


def in_file(folder, name, **fields):
    content = json.loads((folder / name).read_text())
    (content["recipe"] if name == "lift.json" else content).update(fields)
    (folder / name).write_text(json.dumps(content))


def test_a_stranger_s_cartridge_that_does_not_fit_is_refused_before_memory_is_taken_for_it(tiny, tmp_path):
    folder = fitted(tiny).save(tmp_path / "out")
    good = load_file(folder / "adapter_model.safetensors")
    for changed in (
        {adapters.PREFIX: torch.ones(PREFIX, 8)},
        {"other": good[adapters.PREFIX]},
        good | {"x": torch.ones(1)},
    ):
        save_file(changed, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        with (
            pytest.raises(ValueError, match=r"does not fit tiny .*lift the document again"),
            Lifted.load(folder).on(tiny),
        ):
            pass
    save_file(good, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    in_file(folder, "adapter_config.json", num_virtual_tokens=10**12)
    with pytest.raises(ValueError, match=r"num_virtual_tokens = 1000000000000: the recipe in lift.json needs 12"):
        Lifted.load(folder)
    in_file(folder, "lift.json", prefix_tokens=10**12)
    wide = replace(tiny, window=10**13)
    with (
        pytest.raises(ValueError, match=r"\(12, 64\) in the file and \(1000000000000, 64\) there"),
        Lifted.load(folder).on(wide),
    ):
        pass


def test_weights_of_another_shape_put_on_by_hand_are_refused(tiny):
    with (
        pytest.raises(ValueError, match=r"\(3, 64\).* has a place for .*\(12, 64\)"),
        adapters.attached(tiny.model, adapters.config(RECIPE), {adapters.PREFIX: torch.zeros(3, 64)}),
    ):
        pass


def test_the_prompt_itself_holds_nothing_of_the_prefix(tiny):
    """What `on` narrows is the window alone: a short closed-book prompt is the same ids as without a cartridge."""
    with fitted(tiny).on(tiny) as on:
        assert on.window == tiny.window - PREFIX
        question = ask_facts(DOCUMENT, 1, 0)[0]
        assert put(on.tokenizer, DOCUMENT, question, "none", on.window, 4) == encode_prompt(
            tiny.tokenizer, PLAIN.text(question.text, DOCUMENT.title, None), PLAIN
        )
