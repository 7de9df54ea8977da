"""The smallest recipe that trains: two layers, two rates, 32x32 scenes."""

from tiny_grid import TINY_GRID

from routespace.train.recipe.recipe import Recipe

TINY = {
    "name": "tiny",
    "grid": TINY_GRID,
    "budget": {"ratio": 0.8, "weight": 30.0},
    "data": {"train_size": 64, "val_size": 32, "test_size": 32, "digit_px": [16, 30]},
    "train": {"epochs": 2, "batch_size": 16, "lr": 2e-3, "gate_lr": 1e-2, "device": "cpu"},
}


def tiny(**changes: object) -> Recipe:
    """The tiny recipe; keywords write dots as two underscores: train__epochs=1."""
    return Recipe.parse(TINY).override({key.replace("__", "."): value for key, value in changes.items()})
