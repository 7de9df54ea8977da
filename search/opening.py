"""Opening a study: create it or join it; refuse one that belongs to something else, and leave nothing then."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.exceptions import ExperimentalWarning

from routespace import file_names
from routespace.deploy.study_place import DATABASE, TURN_FILE, WORKERS, default_url
from routespace.errors import SpecError
from routespace.files import read_json, write_json
from routespace.grid.spec import content_hash
from routespace.search.objectives import directions, objectives_of
from routespace.search.problem import Problem
from routespace.search.records import FORMAT
from routespace.search.storage import without_password
from routespace.train.recipe.identity import without_elsewhere
from routespace.train.recipe.recipe import Recipe

if TYPE_CHECKING:
    from routespace.deploy.latency.table import LatencyTable

TOLD = 3  # fields that differ are told with both values; of more, the number
VALUE_CHARS = 200  # of a value in a message


def open_study(
    recipe: Recipe,
    problem: Problem[Any],
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
    claim = {"study": name, "storage": None if url == default_url(out) else without_password(url)}
    _check_claim(out, claim)
    study = optuna.create_study(
        study_name=name, storage=storage, directions=directions(problem.objectives), load_if_exists=True
    )
    if "recipe" in study.user_attrs:
        _check_same(study, recipe, times, out=out)
    elif study.get_trials(deepcopy=False):
        raise SpecError(f"study: {name!r} was not made by routespace's search; choose another name")
    else:
        own = problem.space.values_in(recipe.override(recipe.require_search().overrides))
        if own is not None:
            study.enqueue_trial(own, skip_if_exists=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.set_metric_names(list(problem.objectives))  # what optuna-dashboard calls them
        for key, value in (("format", FORMAT), ("out", str(out)), ("times", times), ("recipe", recipe.to_yaml())):
            study.set_user_attr(key, value)
    write_json(out / file_names.STUDY, claim)
    return study


def _check_same(study: optuna.Study, recipe: Recipe, times: str, *, out: Path) -> None:
    before, now = signature(Recipe.from_yaml(study.user_attrs["recipe"])), signature(recipe)
    if before != now:
        raise SpecError(_difference(study.study_name, before, now, out=out))
    if study.user_attrs.get("times", "measured") != times:
        raise SpecError(
            f"search.latency_table: study {study.study_name!r} takes its times from another table, or measures "
            f"them; give the same table, or another study name"
        )


def signature(recipe: Recipe) -> dict[str, Any]:
    """What two workers of one study must agree on: dotted field → value."""
    data = without_elsewhere(recipe.to_data())
    del data["name"]
    search = recipe.require_search()
    data["search"] = {key: data["search"][key] for key in ("space", "limits", "overrides")}
    data["search"]["objectives"] = list(objectives_of(recipe))
    data["search"]["overrides"] = dict(search.overrides)
    return _flat(data, depth=3)


def _flat(data: Mapping[str, Any], depth: int) -> dict[str, Any]:
    """Nested mappings as dotted fields; a range of `search.space` stays whole."""
    found: dict[str, Any] = {}
    for name, value in data.items():
        if isinstance(value, Mapping) and depth > 1:
            found |= {f"{name}.{field}": inner for field, inner in _flat(value, depth - 1).items()}
        else:
            found[name] = value
    return found


def _difference(name: str, before: Mapping[str, Any], now: Mapping[str, Any], *, out: Path) -> str:
    fields = sorted(f for f in before.keys() | now.keys() if before.get(f) != now.get(f))
    told = ", ".join(f"{f} was {_value(before, f)}, now is {_value(now, f)}" for f in fields[:TOLD])
    more = f" and {len(fields) - TOLD} more" if len(fields) > TOLD else ""
    line = (
        f"study: {name!r} is of another recipe: {told}{more}; choose another study name or folder, or go back to "
        f"that recipe"
    )
    own = [field.removeprefix("search.overrides.") for field in fields]
    if not all(field.startswith("train.") for field in own):
        return line
    sets = "".join(f" --set {shlex.quote(f'{o}={now[f]}')}" for o, f in zip(own, fields, strict=True) if f in now)
    folder = shlex.quote(str(out / "trials"))
    return f"{line}; to train one trial so: routespace train {folder}/NUMBER/recipe.yaml{sets} --out DIR"


def _value(data: Mapping[str, Any], field: str) -> str:
    if field not in data:
        return "not given"
    text = repr(data[field])
    return text if len(text) <= VALUE_CHARS else f"{text[:VALUE_CHARS]}…"


@contextmanager
def left_clean(out: Path) -> Iterator[None]:
    """What a refused study leaves: nothing. One that has begun stays as it is."""
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        yield
    except BaseException:
        if not (out / file_names.STUDY).exists():
            with suppress(OSError):  # another worker is in the folder: then all of it stays
                _clear(out, made)
        raise


def _clear(out: Path, made: Sequence[Path]) -> None:
    (out / WORKERS).rmdir()
    (out / TURN_FILE).unlink(missing_ok=True)
    if made:
        for path in out.glob(f"{DATABASE}*"):
            path.unlink()
    for folder in made:
        folder.rmdir()


def _check_claim(out: Path, claim: Mapping[str, Any]) -> None:
    """Refuse a folder that belongs to another study: their trials would lie in one place."""
    path = out / file_names.STUDY
    if not path.exists():
        return
    found = read_json(path, wanted="another folder")
    if found != claim:
        known = found if isinstance(found, dict) else {}
        told = f"study {known.get('study')!r} in {known.get('storage') or DATABASE}"
        raise SpecError(f"out: {out} belongs to another study or storage, {told}; choose another folder")
