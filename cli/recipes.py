"""`routespace recipes`: the recipes that come with the package, and what each says. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from routespace.cli.options import Changes
from routespace.errors import SpecError

if TYPE_CHECKING:
    from routespace.train.recipe.parts import PhaseSpec, TrainSpec
    from routespace.train.recipe.recipe import Recipe

NAME = "recipes"
EXAMPLE = "routespace recipes show digits_tiny > my_recipe.yaml"
SHOW = "show"


def run(
    action: Annotated[
        str | None, typer.Argument(metavar="show", help="Print the recipe NAME; without it, list all.")
    ] = None,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="With show: a recipe, YAML file or run folder.")
    ] = None,
    changes: Changes = None,
) -> None:
    """List the recipes, or show one with every field, as YAML to start your own from."""
    from routespace.recipes import load_recipe

    if action is None:
        if changes:
            raise SpecError("set: changes the fields of one recipe; write `routespace recipes show NAME --set …`")
        _list()
        return
    if action != SHOW:
        raise SpecError(f"recipes: {action!r:.40} is not known; write `recipes`, or `recipes show NAME`")
    if name is None:
        raise SpecError("recipes: show needs the NAME of a recipe, such as `recipes show digits_tiny`")
    print(load_recipe(name, changes or []).to_yaml(), end="")


def _list() -> None:
    from routespace.cli.render import table
    from routespace.recipes import load_recipe, recipe_names

    table(
        ("recipe", "task", "image", "1 ×", "budget", "epochs", "search"),
        [_row(name, load_recipe(name)) for name in recipe_names()],
    )
    print("\n1 ×: MACs of the plain network that a budget is a share of; search: fields that vary")


def _length(span: PhaseSpec | TrainSpec) -> str:
    """Epochs as a number, seconds with their unit."""
    return str(span.epochs) if span.seconds is None else f"{span.seconds:g} s"


def _row(name: str, recipe: Recipe) -> tuple[str | None, ...]:
    from routespace.cli.render import giga

    grid, budget = recipe.grid, recipe.budget_macs()
    height, width = grid.image_size
    return (
        name,
        recipe.task.kind,
        str(height) if height == width else f"{height}×{width}",
        giga(recipe.base_macs()),
        giga(budget) if budget is not None else None,
        "+".join([*map(_length, recipe.train.phases), _length(recipe.train)]),
        str(len(recipe.search.space)) if recipe.search else None,
    )
