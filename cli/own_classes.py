"""A recipe of the package knows nothing of one's own data: how many classes there are, the data tells."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from routespace.train.recipe.recipe import Recipe


def with_own_classes(recipe: Recipe, name: str, asked: Collection[str]) -> tuple[Recipe, list[str]]:
    """The recipe with as many classes as its data has, and lines on it: one where it is another number, or none.

    A recipe of one's own, and a number that was asked for, stay as they are: that the data has another number of
    classes is then an error, which tells of a folder too many.

    Args:
        recipe: with one's own data.
        name: as the command line has it: of a recipe of the package, or a path.
        asked: dotted fields that were set.

    Raises:
        DataError: the data is missing or damaged.
        SpecError: the recipe does not go with so many classes.
    """
    from routespace.recipes import recipe_names
    from routespace.train.data.source import count_classes

    field = recipe.task.classes_field
    if name not in recipe_names() or {field, field.partition(".")[0]} & set(asked):
        return recipe, []
    count, former = count_classes(recipe), recipe.num_classes
    if count == former:
        return recipe, []
    changes: dict[str, object] = {field: count}
    weights = "task.class_weights"
    unweighted = isinstance(getattr(recipe.task, "class_weights", None), tuple) and weights not in asked
    if unweighted:  # they are of the recipe's own classes
        changes[weights] = None
    dropped = f"; {weights} of those are left out" if unweighted else ""
    line = f"{field}: {count}, as the data has, in place of the recipe's {former}{dropped}"
    return recipe.override(changes), [line]
