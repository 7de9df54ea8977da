"""Small folders of pictures, each class of one colour, and recipes for them."""

from pathlib import Path

import numpy as np
from PIL import Image
from train_tiny import tiny

from routespace.train.data.source import make_source

COLOURS = {"ant": (40, 200, 40), "cat": (200, 40, 40), "dog": (40, 40, 200)}


def picture(path, colour=(90, 90, 90), seed=0, side=24):
    """Write a noisy picture of one colour."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(-30, 30, (side, side, 3))
    Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype("uint8")).save(path)


def photos(root, classes=("ant", "cat", "dog"), count=10, *, split="train", sub="", ext="png"):
    """Write `count` pictures of each class, numbered, and return the root."""
    for name in classes:
        for i in range(count):
            picture(Path(root, split, name, sub, f"{i}.{ext}"), COLOURS.get(name, (90, 90, 90)), i)
    return root


def photo_recipe(root, classes=3, **changes):
    """The tiny recipe on a folder; keywords write dots as two underscores."""
    fixed = {"data__kind": "folder", "data__root": str(root), "grid__num_classes": classes, "routing": "static"}
    return tiny(**(fixed | changes))


def photo_source(root, classes=3, **changes):
    """The source of that recipe."""
    return make_source(photo_recipe(root, classes, **changes))


def places(dataset):
    """Where a dataset's pictures lie."""
    return [place for place, _ in dataset.items]
