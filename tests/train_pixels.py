"""The smallest recipes that learn the class of each pixel of 32x32 scenes."""

from tiny_grid import TINY_GRID
from train_tiny import TINY

from routespace.train.recipe.recipe import Recipe

PIXELS = TINY | {
    "name": "pixels",
    "task": {"kind": "semantic", "classes": 11, "channels": 64},
    "grid": TINY_GRID | {"outputs": "pyramid", "num_classes": 0},
    "train": TINY["train"] | {"schedule": "poly"},
}


def pixels(**changes: object) -> Recipe:
    """The recipe; keywords write dots as two underscores: train__epochs=1."""
    return Recipe.parse(PIXELS).override({key.replace("__", "."): value for key, value in changes.items()})
