"""Opening a study: create it or join it, and refuse one that belongs to something else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna

from routespace.errors import SpecError
from routespace.files import read_json, write_json
from routespace.grid.spec import content_hash
from routespace.search.candidate import signature
from routespace.search.records import FORMAT, STUDY_FILE, directions
from routespace.search.space import Space, require_search
from routespace.search.storage import default_url, shown
from routespace.train.recipe.recipe import Recipe

if TYPE_CHECKING:
    from routespace.deploy.latency.table import LatencyTable


def open_study(
    recipe: Recipe,
    space: Space,
    table: LatencyTable | None,
    *,
    out: Path,
    name: str,
    storage: optuna.storages.BaseStorage,
    url: str,
) -> optuna.Study:
    """Create the study with the recipe's own point as its first trial, or join it.

    All workers predict times with one `table`, or all measure them: the study keeps the table's hash.
    """
    times = "measured" if table is None else content_hash(table.model_dump(mode="json", exclude_none=True))
    claim = {"study": name, "storage": None if url == default_url(out) else shown(url)}
    _check_claim(out, claim)
    study = optuna.create_study(
        study_name=name,
        storage=storage,
        directions=directions(require_search(recipe).objectives),
        load_if_exists=True,
    )
    attrs = study.user_attrs
    if "recipe" not in attrs:
        if study.get_trials(deepcopy=False):
            raise SpecError(f"study: {name!r} was not made by routespace's search; choose another name")
        own = space.values_in(recipe.override(require_search(recipe).overrides))
        if own is not None:
            study.enqueue_trial(own, skip_if_exists=True)
        study.set_user_attr("format", FORMAT)
        study.set_user_attr("out", str(out))
        study.set_user_attr("times", times)
        study.set_user_attr("recipe", recipe.to_yaml())
    else:
        before, now = signature(Recipe.from_yaml(attrs["recipe"])), signature(recipe)
        if before != now:
            raise SpecError(_difference(name, before, now))
        if attrs.get("times", "measured") != times:
            raise SpecError(
                f"search.latency_table: study {name!r} takes its times from another table, or measures them; give "
                f"the same table, or another study name"
            )
    write_json(out / STUDY_FILE, claim)
    return study


def _difference(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    fields = sorted(f for f in before.keys() | now.keys() if before.get(f) != now.get(f))
    more = f" and {len(fields) - 1} more" if len(fields) > 1 else ""
    first = fields[0]
    return (
        f"study: {name!r} is of another recipe: {first} was {before.get(first)!r:.80}, now is "
        f"{now.get(first)!r:.80}{more}; choose another study name or folder, or go back to that recipe"
    )


def _check_claim(out: Path, claim: Mapping[str, Any]) -> None:
    """Refuse a folder that belongs to another study: their trials would lie in one place."""
    path = out / STUDY_FILE
    if not path.exists():
        return
    found = read_json(path, wanted="another folder")
    if found != claim:
        raise SpecError(f"out: {out} belongs to another study or storage, {found}; choose another folder")
