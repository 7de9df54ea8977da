"""Looking at a study: its trials as values, the Pareto front, and the folder of a trial.

study = load_study("runs/search")        # or a storage URL
for trial in study.best: print(trial.number, trial.values, trial.changes)
trial_folder(study, 7)                   # an ordinary run folder
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState

from routespace import file_names
from routespace.checked import checked
from routespace.deploy.study_place import DATABASE, default_url
from routespace.errors import BundleError, SpecError
from routespace.files import read_json
from routespace.search.objectives import objective, objectives_of
from routespace.search.sampler import retried
from routespace.search.storage import open_storage, without_password
from routespace.search.trial import Attr, violations
from routespace.train.recipe.recipe import Recipe

TrialStatus = Literal["finished", "pruned", "failed", "lost", "running", "waiting"]
FORMAT = "routespace.study/1"
MISSED_FRAC = 0.03  # farther from its budget than this, a trial missed it: the same share as in calibration

_STATES: dict[TrialState, TrialStatus] = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


@dataclass(frozen=True)
class TrialRecord:
    """One trial, as it was when it was read.

    Attributes:
        number: counted from 0 within the study.
        state: `finished` (trained), `pruned` (refused before training, or given up by the pruner), `failed`,
            `lost` (interrupted, killed or failed, and queued again under another number), `running` or `waiting`.
        values: objective → value, when finished.
        changes: dotted recipe field → value that was tried; empty before it was drawn.
        metrics: everything that was measured, when finished.
        planned: macs, params and, by a latency table, latency_ms, known before training.
        violations: limit → by which share it is passed; only those above 0.
        reason: why it was pruned or failed; of one that was queued again, why it had failed.
        duplicate_of: number of the trial that trained the same recipe, whose values these are.
        architecture: hash of what was trained.
        folder: the run's folder; None when nothing was trained.
        seconds: from start to end, when ended.
    """

    number: int
    state: TrialStatus
    values: Mapping[str, float] | None
    changes: Mapping[str, Any]
    metrics: Mapping[str, float]
    planned: Mapping[str, float]
    violations: Mapping[str, float]
    reason: str | None
    duplicate_of: int | None
    architecture: str | None
    folder: Path | None
    seconds: float | None

    @property
    def feasible(self) -> bool:
        """Whether it keeps every hard limit."""
        return not self.violations

    @property
    def row(self) -> dict[str, Any]:
        """All of it in one flat mapping: number and state, objectives, what was tried, and all that was measured.

        A limit that is passed stands as `over LIMIT`, what was known beforehand as `planned RESOURCE`.
        """
        found: dict[str, Any] = {"number": self.number, "state": self.state, **(self.values or {}), **self.changes}
        found |= {name: value for name, value in self.metrics.items() if name not in found}
        found |= {f"planned {name}": value for name, value in self.planned.items()}
        found |= {f"over {name}": share for name, share in self.violations.items()}
        rest = {"reason": self.reason, "duplicate_of": self.duplicate_of, "architecture": self.architecture}
        folder = None if self.folder is None else str(self.folder)
        return found | rest | {"folder": folder, "trial_seconds": self.seconds}

    @property
    def off_budget(self) -> float | None:
        """By which share the counted MACs are above their budget, or below; None where that was met or not set."""
        target, counted = self.metrics.get("target_macs"), self.metrics.get("counted_macs")
        if not target or counted is None or abs(counted / target - 1) <= MISSED_FRAC:
            return None
        return counted / target - 1


@dataclass(frozen=True)
class StudyRecord:
    """A study, as it was when it was read.

    Attributes:
        name, storage: where it is kept; without a password.
        out: its folder.
        recipe: what was searched.
        trials: all of them, by number.
    """

    name: str
    storage: str
    out: Path
    recipe: Recipe
    trials: tuple[TrialRecord, ...]

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of the objectives, in the order of the recipe."""
        return objectives_of(self.recipe)

    @property
    def best(self) -> tuple[TrialRecord, ...]:
        """The Pareto front; where no finished trial keeps the limits, the one closest to them."""
        return pareto(self.trials) or least_violating(self.trials)

    def rows(self) -> list[dict[str, Any]]:
        """The `row` of each trial, all with the same names, as for `pandas.DataFrame(study.rows())`."""
        found = [trial.row for trial in self.trials]
        names = dict.fromkeys(name for row in found for name in row)
        return [{name: row.get(name) for name in names} for row in found]

    def count(self, *states: TrialStatus) -> int:
        """Number of trials in these states."""
        return sum(trial.state in states for trial in self.trials)


@checked
def pareto(trials: Sequence[TrialRecord]) -> tuple[TrialRecord, ...]:
    """The finished, feasible trials that no other beats in every objective, best in the first one first.

    A duplicate is left out: the trial that it repeats stands for it.
    """
    rows = [(_losses(t), t) for t in trials if t.state == "finished" and t.feasible and t.duplicate_of is None]
    front = [(loss, trial) for loss, trial in rows if not any(_beats(other, loss) for other, _ in rows)]
    return tuple(trial for _, trial in sorted(front, key=lambda row: (row[0], row[1].number)))


@checked
def least_violating(trials: Sequence[TrialRecord]) -> tuple[TrialRecord, ...]:
    """The trial closest to the limits, a finished one if there is any; empty when none passes a limit."""
    over = [t for t in trials if t.violations and t.state in ("finished", "pruned")]
    rank = {"finished": 0, "pruned": 1}
    return tuple(sorted(over, key=lambda t: (rank[t.state], sum(t.violations.values()), t.number))[:1])


def _losses(trial: TrialRecord) -> tuple[float, ...]:
    assert trial.values is not None
    return tuple(
        -value if objective(name).direction == "maximize" else value for name, value in trial.values.items()
    )


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


@checked
def load_study(source: str | Path, name: str | None = None) -> StudyRecord:
    """Read a study.

    Args:
        source: the study's folder, or its storage (URL, SQLite or journal file).
        name: of the study; not needed where there is one.

    Raises:
        BundleError: there is no study, or it was not made by routespace.
        SpecError: the storage holds several studies and no name was given, or the name is unknown.
    """
    url, folder_name, out = _locate(source)
    storage = open_storage(url, create=False)
    try:
        return snapshot(_load(storage, name or folder_name, url), storage=url, out=out)
    finally:
        close(storage)


def _locate(source: str | Path) -> tuple[str, str | None, Path | None]:
    """Storage, study name and folder of a source."""
    path = Path(source)
    if not path.is_dir():
        if "://" not in str(source) and not path.exists():
            raise BundleError(f"study: {source} does not exist; give a study's folder or storage URL")
        return str(source), None, None
    if not (path / file_names.STUDY).exists():
        if not (path / DATABASE).exists():
            raise BundleError(f"study: {path} has no {file_names.STUDY}; give the folder that `search` wrote")
        return default_url(path), None, path
    data = read_json(path / file_names.STUDY, wanted="a study's storage URL")
    try:
        name, url = str(data["study"]), data["storage"]
    except (KeyError, TypeError) as error:
        raise BundleError(
            f"study: {path / file_names.STUDY} is damaged ({error}); give the storage URL"
        ) from error
    if url is None:
        return default_url(path), name, path
    if ":***@" in url:
        raise BundleError(f"study: {path} is kept in {url}; give that URL with its password")
    return url, name, path


def _load(storage: BaseStorage, name: str | None, url: str) -> optuna.Study:
    names = optuna.get_all_study_names(storage)
    if not names:
        raise BundleError(f"study: {without_password(url)} holds no study; run `search` first")
    if name is None and len(names) > 1:
        raise SpecError(f"study: {without_password(url)} holds {', '.join(sorted(names))}; name one of them")
    if name is not None and name not in names:
        raise SpecError(
            f"study: {without_password(url)} has no study {name!r}; it holds {', '.join(sorted(names))}"
        )
    return optuna.load_study(study_name=names[0] if name is None else name, storage=storage)


def snapshot(study: optuna.Study, *, storage: str, out: Path | None) -> StudyRecord:
    """An Optuna study as a value; raises BundleError when it was not made by routespace."""
    attrs = study.user_attrs
    if attrs.get("format") != FORMAT:
        raise BundleError(f"study: {study.study_name!r} was not made by routespace's search")
    recipe = Recipe.from_yaml(attrs["recipe"])
    out = Path(attrs["out"]) if out is None else out
    trials = records(study.get_trials(deepcopy=False), objectives_of(recipe), out)
    return StudyRecord(study.study_name, without_password(storage), out, recipe, trials)


def records(trials: Sequence[FrozenTrial], objectives: Sequence[str], out: Path) -> tuple[TrialRecord, ...]:
    """Optuna's trials as values."""
    lost = retried(trials)
    return tuple(_record(trial, objectives, out, lost=trial.number in lost) for trial in trials)


def _record(trial: FrozenTrial, objectives: Sequence[str], out: Path, *, lost: bool) -> TrialRecord:
    attrs, state = trial.user_attrs, _STATES[trial.state]
    ended = state in ("finished", "pruned", "failed")
    return TrialRecord(
        number=trial.number,
        state="lost" if lost else state,
        values=dict(zip(objectives, trial.values, strict=True)) if state == "finished" else None,
        changes=json.loads(attrs.get(Attr.CHANGES, "{}")),
        metrics=attrs.get(Attr.METRICS, {}),
        planned=attrs.get(Attr.PLANNED, {}),
        violations=violations(trial),
        reason=attrs.get(Attr.REASON),
        duplicate_of=attrs.get(Attr.DUPLICATE_OF),
        architecture=attrs.get(Attr.ARCHITECTURE),
        folder=_folder(attrs, out),
        seconds=trial.duration.total_seconds() if ended and trial.duration else None,
    )


def _folder(attrs: Mapping[str, Any], out: Path) -> Path | None:
    """Where a run lies: in the study's folder, wherever that has moved; else where its worker put it."""
    if Attr.FOLDER not in attrs:
        return None
    here: Path = out / attrs[Attr.FOLDER]
    return here if here.exists() else Path(attrs[Attr.OUT]) / attrs[Attr.FOLDER]


@checked
def trial_folder(study: StudyRecord, number: int) -> Path:
    """The run folder of a finished trial (of its twin, for a duplicate).

    Raises:
        SpecError: there is no such trial, or it did not finish.
        BundleError: its folder is not on this machine.
    """
    if not 0 <= number < len(study.trials):
        raise SpecError(f"trial: {number} is not in study {study.name!r}; it has 0 to {len(study.trials) - 1}")
    trial = study.trials[number]
    if trial.state != "finished" or trial.folder is None:
        done = [str(t.number) for t in study.trials if t.state == "finished"]
        why = f" ({trial.reason})" if trial.reason else ""
        raise SpecError(f"trial: {number} is {trial.state}{why}; finished ones: {', '.join(done) or 'none'}")
    if not trial.folder.is_dir():
        raise BundleError(f"trial: {trial.folder} is not on this machine; copy it to {study.out / 'trials'}")
    return trial.folder


def close(storage: BaseStorage) -> None:
    """Let go of a database's connections and files."""
    if isinstance(storage, RDBStorage):
        storage.remove_session()
        storage.engine.dispose()
