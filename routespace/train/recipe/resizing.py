"""A recipe for images of another size: what is given in pixels of scenes that are made here goes along.

    size_changes(recipe, (96, 96))         the dotted fields that change, for `Recipe.override`
    resized_recipe(recipe, (96, 96))       all else as it is: data, training, grid, gates

Reading this imports no torch.
"""

from __future__ import annotations

from typing import Any

from routespace.errors import SpecError
from routespace.grid.cost import architecture_cost
from routespace.train.recipe.annotated import AnnotatedSpec
from routespace.train.recipe.recipe import Recipe

LEAST_PX = 8  # of an object that shrinks: of fewer nobody could tell what it is
IN_PIXELS = ("digit_px", "object_px")  # of scenes that are made here: objects shrink with their images


def size_changes(recipe: Recipe, size: tuple[int, int]) -> dict[str, Any]:
    """The dotted fields in which a recipe for images of another size differs.

    Args:
        recipe: data, training and grid to keep.
        size: (H, W) in pixels. Objects of scenes go by the shorter side, and smaller ones keep eight pixels.
    """
    changes: dict[str, Any] = {"grid.image_size": list(size)}
    for name in IN_PIXELS:
        if (pixels := getattr(recipe.data, name, None)) is not None:
            new = (round(each * min(size) / min(recipe.grid.image_size)) for each in pixels)
            low, high = (max(min(LEAST_PX, each), after) for each, after in zip(pixels, new, strict=True))
            changes[f"data.{name}"] = [low, min(high, min(size))]
    return changes


def resized_recipe(recipe: Recipe, size: tuple[int, int]) -> Recipe:
    """The recipe for images of another size; a budget in MACs becomes the same share of what such images take.

    Args:
        recipe: data, training, grid and gates to keep.
        size: (H, W) in pixels.

    Raises:
        SpecError: a size that the grid or the data does not take, or data whose own fields say how large pictures
            go in.
    """
    data, changes = recipe.data, size_changes(recipe, size)
    for name in ("eval_size", "shorter_sides") if isinstance(data, AnnotatedSpec) else ():
        if sides := getattr(data, name):
            raise SpecError(
                f"image_size: data.{name} {list(sides)} says how large this recipe's pictures go in, whatever the "
                f"image size; leave image_size out, or train with another data.{name}"
            )
    if recipe.budget.macs is not None:
        whole = recipe.architecture()
        share = architecture_cost(whole, image_size=size).macs / architecture_cost(whole).macs
        changes["budget.macs"] = round(recipe.budget.macs * share)
    return recipe.override(changes)
