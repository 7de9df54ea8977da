"""`task.class_weights: balanced` of a recipe, made into numbers by the training images."""

from __future__ import annotations

from routespace.train.data.source import Source
from routespace.train.recipe.recipe import Recipe
from routespace.train.tasks.kinds import ClassifySpec

BALANCED = "balanced"
DIGITS = 4  # of a weight in a recipe that people read


def balanced(recipe: Recipe, source: Source) -> Recipe:
    """The recipe with a weight for each class in place of `balanced`; any other as it is.

    A class of n of the N training images of K classes weighs N / (K·n), as in scikit-learn: the images of each
    class weigh the same together, and an image weighs 1 on average. A class without images weighs as one with one.
    """
    if not _asks(recipe):
        return recipe
    counts = source.summary.counts["train"]
    images = [max(counts.get(name, 0), 1) for name in source.classes]
    mean = sum(counts.values()) / len(images)
    return recipe.override({"task.class_weights": [float(f"{mean / count:.{DIGITS}g}") for count in images]})


def as_balanced(recipe: Recipe, saved: Recipe) -> Recipe:
    """The recipe with the weights of the run that it is to go on with, in place of `balanced`."""
    if not _asks(recipe) or not isinstance(saved.task, ClassifySpec):
        return recipe
    return recipe.override({"task.class_weights": saved.task.class_weights})


def _asks(recipe: Recipe) -> bool:
    return isinstance(recipe.task, ClassifySpec) and recipe.task.class_weights == BALANCED
