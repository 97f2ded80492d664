import json

import pytest

from liftlab.recipes import Recipe, presets


def test_published_recipes_carry_the_published_numbers():
    """Spot values: 2502.14644 v1-v3 (3+5 epochs, one step an epoch), v4 (the pairs alone), 2412.13626 (full)."""
    v3 = Recipe.preset("2502.14644v3/gated_memory/loogle")
    assert (v3.segment_epochs, v3.mixed_epochs, v3.learning_rate, v3.step) == (3, 5, 1e-3, "epoch")
    assert (v3.segment_tokens, v3.offset_tokens, v3.betas, v3.weight_decay) == (2048, 768, (0.9, 0.98), 1e-4)
    v4 = Recipe.preset("2502.14644v4/lora/quality")
    assert (v4.rank, v4.alpha, v4.learning_rate, v4.mixed_epochs, v4.segments_in_mixed) == (128, 256, 5e-5, 5, False)
    first = Recipe.preset("2412.13626/full/loogle")
    assert (first.adapter, first.learning_rate, first.offset_tokens, first.mixed_epochs) == ("full", 7e-6, 1024, 5)
    assert {name.split("/")[0] for name in presets()} >= {
        "2412.13626",
        "2502.14644v3",
        "2502.14644v4",
        "micro",
        "smollm2",
    }


def test_only_v4_begins_in_document_order_and_its_recipes_can_train_while_pairs_arrive():
    for name, recipe in presets().items():
        assert recipe.first_epoch_in_order == name.startswith("2502.14644v4")
        if recipe.first_epoch_in_order:
            recipe.check_streams()


def test_the_offset_is_three_eighths_of_the_segment_where_the_paper_says_so():
    for name, recipe in presets().items():
        if name.startswith(("2502.14644v3", "micro", "smollm2")) and not recipe.segment_by_segment:
            assert recipe.offset_tokens == recipe.segment_tokens * 3 / 8


def test_a_recipe_survives_json():
    for recipe in presets().values():
        assert Recipe(**json.loads(json.dumps(recipe.as_dict()))) == recipe


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offset_tokens": 200, "segment_tokens": 128}, "offset_tokens = 200 is larger than segment_tokens = 128"),
        ({"rank": 0}, "rank = 0: must be a whole number, at least 1"),
        ({"rank": True}, "rank = True"),
        ({"learning_rate": 0.0}, "learning_rate = 0.0: must be a number above 0"),
        ({"learning_rate": float("nan")}, "learning_rate = nan"),
        ({"step": "token"}, "step = 'token': must be one of epoch, batch"),
        ({"betas": [0.9, 1.0]}, "betas"),
        ({"segment_epochs": 0, "mixed_epochs": 0}, "both 0"),
        ({"learning_rat": 1.0}, "no field 'learning_rat'"),
    ],
)
def test_bad_settings_are_named_with_their_bound(changes, message):
    with pytest.raises(ValueError, match=message):
        Recipe.preset("micro/lora", **changes)


def test_an_unknown_recipe_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match="recipe 'best' is unknown: choose one of .*micro/lora"):
        Recipe.preset("best")
