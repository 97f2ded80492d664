"""A document read once, segment by segment: every epoch of one before the next, after the text before it."""

import random
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from liftlab import adapters, stacked
from liftlab.batches import by_length, epochs
from liftlab.documents import Document
from liftlab.examples import IGNORED, consecutive_segments, document_ids, known_pairs
from liftlab.lifting import lift, make_examples
from liftlab.recipes import Recipe
from liftlab.studies.document_sizes import segments_of
from liftlab.worlds import register

DOCUMENT = register(0, 150)
STREAMED = Recipe.preset("micro/temp_lora", rank=4, segment_tokens=40, offset_tokens=40, segment_epochs=3)


@pytest.mark.parametrize("context", [0, 7, 100, 10_000])
@pytest.mark.parametrize("segment", [16, 37])
def test_segments_are_the_document_once_each_after_the_tokens_before_it_without_loss_there(tiny, segment, context):
    ids = document_ids(tiny.tokenizer, DOCUMENT)
    made, at = consecutive_segments(tiny.tokenizer, DOCUMENT, segment, context), 0
    for example in made:
        before = [label == IGNORED for label in example.labels].count(True)
        own = len(example.ids) - before
        assert before == min(at, context) and example.labels[:before] == (IGNORED,) * before
        assert example.labels[before:] == example.ids[before:]
        assert list(example.ids) == ids[at - before : at + own]
        at += own
        assert own == segment or at == len(ids)
    assert at == len(ids)


def test_a_last_token_alone_is_trained_on_where_something_stands_before_it(tiny):
    ids = document_ids(tiny.tokenizer, DOCUMENT)[:9]
    document = Document("d", tiny.tokenizer.decode(ids))
    assert document_ids(tiny.tokenizer, document) == ids
    assert [len(e.ids) for e in consecutive_segments(tiny.tokenizer, document, 4, 3)] == [4, 7, 4]
    assert [len(e.ids) for e in consecutive_segments(tiny.tokenizer, document, 4, 0)] == [4, 4]


@pytest.mark.parametrize(("window", "context"), [(256, 4096), (60, 4096), (60, 5), (40, 4096)])
def test_the_context_is_what_the_window_leaves_at_most_context_tokens(tiny, window, context):
    recipe = replace(STREAMED, context_tokens=context)
    cut, answered = make_examples(replace(tiny, window=window), DOCUMENT, recipe, known_pairs(DOCUMENT))
    room = min(context, window - 40)
    assert cut == consecutive_segments(tiny.tokenizer, DOCUMENT, 40, room) and answered == []
    tokens = len(document_ids(tiny.tokenizer, DOCUMENT))
    assert [len(e.ids) for e in segments_of(tokens, recipe, window)] == [len(e.ids) for e in cut]


@pytest.mark.parametrize("step", ["batch", "epoch"])
def test_every_epoch_of_a_segment_comes_before_the_next(tiny, step):
    recipe = replace(STREAMED, step=step)
    cut, answered = make_examples(tiny, DOCUMENT, recipe, ())
    order = [example for plan in epochs(cut, answered, recipe) for batch in plan for example in batch]
    assert len(cut) > 2 and order == [example for example in cut for _ in range(3)]
    lifted, read = lift(tiny, DOCUMENT, recipe, progress=False), 0
    assert len(lifted.history) == len(order)
    for taken, example in zip(lifted.history, order, strict=True):
        read += len(example.ids)
        assert (taken.tokens, taken.epoch) == (read, taken.step)


def plainly_streamed(base, recipe):
    """Losses and adapter of the plain loop over the text's own ids: all logits, torch's AdamW carried on."""
    ids, losses = document_ids(base.tokenizer, DOCUMENT), []
    torch.manual_seed(recipe.seed)
    with adapters.attached(base.model, adapters.config(recipe)) as model:
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(trained, recipe.learning_rate, recipe.betas, recipe.epsilon,
                                      weight_decay=recipe.weight_decay, foreach=False)  # fmt: skip
        for start in range(0, len(ids), recipe.segment_tokens):
            first = max(0, start - min(recipe.context_tokens, base.window - recipe.segment_tokens))
            read = torch.tensor([ids[first : start + recipe.segment_tokens]])
            for _ in range(recipe.segment_epochs):
                logits = model(input_ids=read).logits[0]
                scored = max(1, start - first)
                loss = functional.cross_entropy(logits[scored - 1 : -1], read[0, scored:])
                loss.backward()
                torch.nn.utils.clip_grad_norm_(trained, recipe.clip_norm)
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.item())
        return losses, adapters.trained_state(model)[1]


@pytest.mark.parametrize("context", [50, 4096])
def test_losses_and_weights_are_those_of_the_plain_loop(tiny, context):
    """To 1e-5; the window of 110 tokens cuts the larger context."""
    base = replace(tiny, window=110)
    recipe = replace(STREAMED, context_tokens=context, learning_rate=2e-3, epsilon=1e-6, weight_decay=0.1)
    losses, state = plainly_streamed(base, recipe)
    lifted = lift(base, DOCUMENT, recipe, progress=False)
    assert [s.loss for s in lifted.history] == pytest.approx(losses, abs=1e-5)
    assert lifted.state.keys() == state.keys()
    for key, value in state.items():
        torch.testing.assert_close(lifted.state[key], value, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("adapter", ["lora", "pissa", "gated_memory", "full"])
def test_it_is_deterministic_and_takes_every_adapter_whatever_the_pairs(tiny, adapter):
    recipe = replace(STREAMED, adapter=adapter, segment_epochs=1)
    before = {name: weight.clone() for name, weight in tiny.model.state_dict().items()}
    one = lift(tiny, DOCUMENT, recipe, progress=False)
    two = lift(tiny, DOCUMENT, recipe, known_pairs(DOCUMENT), progress=False)
    assert all(torch.equal(value, two.state[key]) for key, value in one.state.items())
    assert all(torch.equal(value, before[name]) for name, value in tiny.model.state_dict().items())


def test_documents_streamed_at_once_are_as_streamed_alone(tiny):
    tiny.model.double()
    jobs = [stacked.Job(register(seed, words, 0.2), STREAMED) for seed, words in ((300, 60), (301, 130), (302, 85))]
    for job, other in zip(jobs, stacked.lift(tiny, jobs, progress=False), strict=True):
        one = lift(tiny, job.document, job.recipe, progress=False)
        assert [(s.step, s.epoch, s.tokens) for s in one.history] == [
            (s.step, s.epoch, s.tokens) for s in other.history
        ]
        assert [s.loss for s in other.history] == pytest.approx([s.loss for s in one.history], rel=1e-6)
        for key, value in one.state.items():
            torch.testing.assert_close(other.state[key], value, atol=1e-6, rtol=1e-6)


def test_other_recipes_keep_their_order_of_batches(tiny):
    """Segments shuffled by the recipe's seed in each epoch, then segments and pairs, from one row of random numbers."""
    recipe = Recipe.preset("micro/lora", segment_epochs=2, mixed_epochs=3, seed=5)
    cut, answered = make_examples(tiny, DOCUMENT, recipe, known_pairs(DOCUMENT))
    rng = random.Random("order 5")
    expected = [by_length(cut, recipe, rng) for _ in range(2)]
    expected += [by_length([*cut, *answered], recipe, rng) for _ in range(3)]
    assert list(epochs(cut, answered, recipe)) == expected
    assert list(epochs([], answered, recipe)) and not list(epochs([], [], recipe))


@pytest.mark.parametrize("name", ["micro/raw", "smollm2/raw", "micro/temp_lora", "smollm2/temp_lora"])
def test_recipes_of_the_text_alone_take_no_pairs(name):
    recipe = Recipe.preset(name)
    assert recipe.mixed_epochs == 0 < recipe.segment_epochs and recipe.adapter == "lora"
    assert recipe.segment_by_segment == name.endswith("temp_lora")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixed_epochs": 1}, "mixed_epochs = 1: .*without pairs: set mixed_epochs = 0"),
        ({"contextualized": True}, "contextualized = True: .*set contextualized = False"),
        ({"offset_tokens": 15}, "offset_tokens = 15: .*set offset_tokens = 40"),
        ({"segment_by_segment": 2}, "segment_by_segment = 2: must be one of True, False"),
    ],
)
def test_settings_that_do_not_go_with_it_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(STREAMED, **changes)


def test_what_cannot_be_streamed_is_refused(tiny):
    with pytest.raises(ValueError, match="context_tokens = -1: give"):
        consecutive_segments(tiny.tokenizer, DOCUMENT, 40, -1)
    with pytest.raises(ValueError, match="the window of tiny is 30"):
        lift(replace(tiny, window=30), DOCUMENT, STREAMED, progress=False)
    with pytest.raises(ValueError, match="has 5 tokens with its title, a segment has 40"):
        lift(tiny, Document("d", "Ada lives in Oslo ."), STREAMED, progress=False)
    with pytest.raises(ValueError, match="pairs that are trained on as they arrive need"):
        lift(tiny, DOCUMENT, STREAMED, iter(known_pairs(DOCUMENT)), progress=False)
