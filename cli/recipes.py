"""`routespace recipes`: the recipes that come with the package, and what each says. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from routespace.errors import SpecError

if TYPE_CHECKING:
    from routespace.train.recipe.recipe import Recipe

NAME = "recipes"
EXAMPLE = "routespace recipes show digits_tiny > my_recipe.yaml"


def run(
    action: Annotated[str | None, typer.Argument(metavar="[show", help="`show` prints one recipe.")] = None,
    name: Annotated[str | None, typer.Argument(metavar="NAME]", help="A recipe, YAML file or run folder.")] = None,
    changes: Annotated[list[str] | None, typer.Option("--set", metavar="a.b=c", help="Change a field.")] = None,
) -> None:
    """List the recipes, or show one with every field, as YAML to start your own from."""
    from routespace.recipes import load_recipe

    if action is None:
        _list()
        return
    if action != "show" or name is None:
        raise SpecError(f"recipes: {action!r:.40} is not known; `routespace recipes`, or `recipes show NAME`")
    print(load_recipe(name, changes or []).to_yaml(), end="")


def _list() -> None:
    from routespace.cli.render import table
    from routespace.recipes import load_recipe, recipe_names

    table(
        ("recipe", "grid", "image", "MACs, 1 ×", "budget", "data", "epochs", "search"),
        [_row(name, load_recipe(name)) for name in recipe_names()],
    )


def _row(name: str, recipe: Recipe) -> tuple[str, ...]:
    from routespace.cli.render import giga

    grid = recipe.grid
    budget = recipe.budget_macs()
    return (
        name,
        f"{grid.layers} × 1/{grid.rates[0]}…1/{grid.rates[-1]}",
        f"{grid.image_size[0]}×{grid.image_size[1]}",
        giga(recipe.base_macs()),
        giga(budget) if budget is not None else "–",
        recipe.data.kind,
        str(recipe.train.epochs),
        f"{len(recipe.search.space)} fields" if recipe.search else "–",
    )
