"""Recipes as data: the YAML files beside this one, listed and loaded by name.

Part of the package: import it as `routespace.recipes`, never as `recipes`.
"""

if __name__ != "routespace.recipes":
    raise ImportError("import routespace.recipes, not recipes: the top-level folder is mapped into the package")

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path

from routespace import file_names
from routespace.checked import checked
from routespace.errors import RoutespaceError, SpecError
from routespace.grid.families.base import Family
from routespace.grid.families.lookup import allow_families
from routespace.train.recipe.recipe import Recipe, parse_assignments

__all__ = ["load_recipe", "recipe_names"]


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package, in alphabetical order."""
    names = (entry.name for entry in files(__name__).iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


@checked
def load_recipe(
    name_or_path: str | Path, overrides: Sequence[str] = (), *, families: Iterable[Family] = ()
) -> Recipe:
    """A recipe by its name, by the path of a YAML file, or by that of a run folder.

    Args:
        name_or_path: such as "digits_tiny", "my/recipe.yaml" or "runs/7".
        overrides: assignments such as "train.epochs=5".
        families: of your own, which the recipe may name.

    Raises:
        SpecError: no such recipe or file, or a field that is not allowed.
    """
    text, origin = _read(name_or_path)
    with allow_families(*families):
        try:
            recipe = Recipe.from_yaml(text)
        except RoutespaceError as error:
            raise SpecError(f"{origin}: {error}") from error
        return recipe.override(parse_assignments(overrides)) if overrides else recipe


def _read(name_or_path: str | Path) -> tuple[str, str]:
    """Text of the recipe, and what to call it in an error."""
    if str(name_or_path) in recipe_names():
        return files(__name__).joinpath(f"{name_or_path}.yaml").read_text(encoding="utf-8"), f"{name_or_path}"
    path = Path(name_or_path)
    try:
        if path.is_dir():
            path = path / file_names.RECIPE
        return path.read_text(encoding="utf-8"), str(path)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        given = str(name_or_path)
        if Path(given).is_dir():
            told = (
                f"is a folder without {file_names.RECIPE}; give a recipe, and a folder of images as --data {given}"
            )
            raise SpecError(f"recipe: {given!r:.100} {told:.300}") from error
        close = " or ".join(get_close_matches(given, recipe_names(), n=3))
        raise SpecError(
            f"recipe: {given!r:.100} is neither a recipe's name nor a readable YAML file; "
            f"{f'perhaps {close}; ' if close else ''}names: {', '.join(recipe_names())}"
        ) from error
