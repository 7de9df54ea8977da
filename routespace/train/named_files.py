"""The files that a recipe names, looked for before torch is imported: weights, a teacher, pictures.

Those of a search are all that its trials may ask for, so that the fifth trial does not fail by a typing error.
"""

from __future__ import annotations

from collections.abc import Iterator

from routespace.errors import DataError, SpecError
from routespace.train.data.lookup import require_pictures
from routespace.train.given_weights import require_given
from routespace.train.recipe.data_kinds import LOCATIONS
from routespace.train.recipe.recipe import Recipe
from routespace.train.recipe.searching import Range

GIVEN_FIELDS = ("train.weights", "train.teacher")
PLACES = tuple(f"data.{name}" for name in LOCATIONS)
FEEDS = ("grid.num_classes", "grid.in_channels", "grid.image_size")  # of the grid, what the data must fit


def require_images(recipe: Recipe) -> None:
    """Raise DataError where a recipe's pictures are not there."""
    if recipe.data.kind != "digits":  # of which there is nothing to look for
        require_pictures(recipe.data)


def require_files(recipe: Recipe) -> None:
    """Raise SpecError where weights or teacher are not there, DataError where pictures are not."""
    require_given(recipe.train)
    require_images(recipe)


def require_trial_files(recipe: Recipe) -> None:
    """Look for what the trials of a recipe's search name, whichever values they draw.

    Raises:
        SpecError: no weights, or no teacher, at a place that all trials or one choice of the space name.
        DataError: no pictures there.
    """
    search = recipe.require_search()
    own = recipe.override(search.overrides)
    seen = data_of_trials(recipe)
    require_given(own.train)
    if seen is not None:
        require_images(seen)
    for field, trial in _varied(own):
        try:
            if field in GIVEN_FIELDS:
                require_given(trial.train)
            else:
                require_images(trial)
        except (SpecError, DataError) as error:
            raise type(error)(f"search.space: {error}") from error


def data_of_trials(recipe: Recipe) -> Recipe | None:
    """The recipe with the data that all trials see; None where they search that."""
    search = recipe.require_search()
    if any(_is_of_data(field) for field in search.space):
        return None
    own = {field: value for field, value in search.overrides.items() if _is_of_data(field)}
    return recipe.override(own) if own else recipe


def _is_of_data(field: str) -> bool:
    return field.startswith("data.") or field in FEEDS


def _varied(own: Recipe) -> Iterator[tuple[str, Recipe]]:
    """Each choice of a field that names files, and a recipe that has it; those that stand alone with nothing."""
    for field, choices in own.require_search().space.items():
        if field not in (*GIVEN_FIELDS, *PLACES) or isinstance(choices, Range):
            continue
        for choice in choices:
            try:
                yield field, own.override({field: choice})
            except SpecError:  # it needs another field of the space
                continue
