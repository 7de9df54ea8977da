"""The plain network to compare with: several splits of the same MACs, and short trainings that choose."""

import pytest
from train_tiny import tiny

from routespace.errors import BudgetError
from routespace.grid.cost import architecture_cost
from routespace.recipes import load_recipe
from routespace.train.plain import PlainShape, plain_recipe, plain_recipes, smaller_recipe
from routespace.train.plain_search import best_plain

MACS = 2_000_000


def blocks_of(recipe):
    kinds = [recipe.architecture().grid.edges[name] for name in recipe.architecture().edges]
    each = dict.fromkeys(recipe.grid.rates, 0)
    for edge in kinds:
        if edge.kind == "transformer":
            each[edge.rate] += recipe.grid.depth(edge.layer)
    return tuple(each.values())


@pytest.mark.parametrize("name", ["digits_tiny", pytest.param("digits_small", marks=pytest.mark.slow)])
def test_splits_of_the_same_macs(name):
    recipe = load_recipe(name)
    found = plain_recipes(recipe, MACS)
    own, size = blocks_of(plain_recipe(recipe, MACS)), recipe.grid.image_size
    assert len(found) >= 4
    assert PlainShape((0, 1, 1, 1), size) in found
    for shape, plain in found.items():
        smaller = shape.image_size != size
        assert blocks_of(plain) == shape.blocks
        assert plain.grid.image_size == shape.image_size
        macs = architecture_cost(plain.architecture()).macs
        assert macs == pytest.approx(MACS, rel=0.1 if smaller else 0.03)
        assert plain.routing == "static"
        assert smaller or plain.data == recipe.data
        assert plain.train.epochs == recipe.train.epochs
    assert next(iter(found)) == PlainShape(own, size)  # the recipe's own split comes first
    assert [shape.blocks for shape in found if shape.image_size != size] in ([own], [])


def test_smaller_images_have_smaller_objects():
    recipe = load_recipe("digits_map")
    small = smaller_recipe(recipe, 1.92e6)
    assert small.grid.image_size == (72, 72)
    assert small.data.digit_px == (10, 33)
    assert small.grid.shape == recipe.grid.shape
    tiny_digits = smaller_recipe(recipe.override({"data.digit_px": [9, 30]}), 1.92e6)
    assert tiny_digits.data.digit_px == (8, 22)  # as small as can be read
    with pytest.raises(BudgetError, match="no smaller image"):
        smaller_recipe(recipe, 3.9e6)
    with pytest.raises(BudgetError, match="no smaller image"):
        smaller_recipe(recipe, 1e3)


def test_what_is_of_routed_networks_alone_is_left_out():
    sandwich = load_recipe("digits_tiny", ["train.mode=sandwich", "train.start=open"])
    assert plain_recipe(sandwich, MACS).train.mode == "plain"
    taught = load_recipe("digits_tiny", ["train.teacher=self"])
    assert plain_recipe(taught, MACS).train.teacher is None
    assert plain_recipe(tiny(train__teacher="timm:resnet18"), 3e5).train.teacher == "timm:resnet18"


def test_too_few_macs_are_told():
    with pytest.raises(BudgetError, match="less than the narrowest plain network"):
        plain_recipes(tiny(), 1000)


def test_the_best_of_short_trainings_is_chosen(monkeypatch):
    """Halving: all for an epoch, the better half for two, until one is left; its time is the sum."""
    recipe, trained = load_recipe("digits_tiny"), []

    def train(plain, folder, *, progress):
        class Result:
            metrics = {"metric": "accuracy", "accuracy": -plain.grid.layers / 100, "seconds": 2.0}

        trained.append((PlainShape(blocks_of(plain), plain.grid.image_size), plain.train.epochs))
        return Result

    monkeypatch.setattr("routespace.train.plain_search.train_recipe", train)
    found, wanted = best_plain(recipe, MACS), plain_recipes(recipe, MACS)
    splits = list(wanted)
    assert [each for each, epochs in trained if epochs == 1] == splits
    assert len([each for each, epochs in trained if epochs == 2]) == len(splits) // 2
    assert found.shape == min(splits, key=lambda shape: (sum(shape.blocks), shape))
    assert found.seconds == 2.0 * len(trained)
    assert set(found.tried) == set(splits)
    assert found.recipe == wanted[found.shape]


def test_the_search_trains_for_real():
    recipe = tiny(data__train_size=32, data__val_size=16)
    found = best_plain(recipe, 3e5)
    assert found.seconds > 0
    assert all(0 <= score <= 1 for score in found.tried.values())
    assert found.shape in found.tried
