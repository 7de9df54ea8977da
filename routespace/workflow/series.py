"""Several networks of falling budgets from one trained network, each cut from the one before and trained on.

    series = extract_series("runs/first", "series", macs=[12e6, 8e6, 4e6], tuning=FineTuning(2))
    series.members[0].taken.card.macs, series.members[0].seconds

The weights of a small network come from a larger one that has learned already, so that each needs little training
of its own (progressive shrinking, arXiv 1908.09791; Minitron, arXiv 2407.14679). Without fine-tuning nothing is
learned in between, and each is taken from the network itself.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from routespace import file_names
from routespace.checked import checked
from routespace.deploy.derive import derive
from routespace.deploy.extract import resized_spec
from routespace.deploy.folder import require_series_place
from routespace.deploy.latency.table import LatencyTable
from routespace.deploy.scores import Score
from routespace.errors import BudgetError, SpecError
from routespace.files import replaced_folder, write_json
from routespace.grid.architecture import Architecture
from routespace.grid.resources import joined_limits
from routespace.train.macs import counted_macs
from routespace.versions import versions_of
from routespace.workflow.artifacts import Artifact, load_artifact
from routespace.workflow.cutting import left_over
from routespace.workflow.extraction import Taken, take_as_wished
from routespace.workflow.fine_tuning import FineTuning, require_tuning
from routespace.workflow.proposing import fitting
from routespace.workflow.sizing import Size, listed_sizes
from routespace.workflow.taking import Extraction, saved
from routespace.workflow.wishes import USUAL_METHOD, ExtractionWatch, Wishes


@dataclass(frozen=True)
class Member:
    """One network of a series.

    Attributes:
        name: of its bundle, in the series' folder.
        taken: the network, its card, and what was measured.
        seconds: that it took to choose, to take out and to train, by the wall's clock.
    """

    name: str
    taken: Extraction
    seconds: float

    def row(self) -> dict[str, Any]:
        """What `series.json` and the table tell of it, as JSON data."""
        taken = self.taken
        tuned = taken.score if taken.tuned is None else taken.tuned[taken.metric]
        return {
            "name": self.name,
            "limits": dict(taken.limits),
            "macs": counted_macs(taken.net, {}),
            "params": taken.card.params,
            "image_size": list(taken.net.spec.image_size),
            "metric": taken.metric,
            "cut": taken.score,
            "score": tuned,
            "epochs": 0 if taken.tuned is None else taken.tuned["epochs"],
            "seconds": round(self.seconds, 2),
            "tried": [each.row() for each in taken.tried],
        }


@dataclass(frozen=True)
class Series:
    """Networks of falling budgets from one.

    Attributes:
        members: the largest first.
    """

    members: tuple[Member, ...]

    def rows(self) -> list[dict[str, Any]]:
        """A row for each network: limits, MACs, parameters, image size, metric, seconds; and the sizes tried."""
        return [member.row() for member in self.members]


@checked
def extract_series(
    source: Artifact | Path | str,
    out: Path | str,
    *,
    macs: Sequence[float] | Mapping[str, float],
    limits: Mapping[str, float] | None = None,
    table: LatencyTable | None = None,
    by: str | None = None,
    every_rate: bool = True,
    evaluated: bool = True,
    overwrite: bool = False,
    tuning: FineTuning | None = None,
    image_size: Size | Sequence[Size] | None = None,
) -> Series:
    """Take several networks of falling MACs out of a trained one, and save each as a bundle of one folder.

    With `tuning` each is cut from the one before, as that was after its training, and trained on itself. A static
    network within the largest budget is taken as it is, without training; of one that is beyond it, blocks may be
    left out. Whatever fails, nothing is saved.

    Args:
        source: a finished run or a bundle, or its folder.
        out: the series' folder, of a bundle for each budget and `series.json`, the table.
        macs: the most MACs of each, in any order; as a mapping with the names of the bundles.
        limits: other resources → the most allowed of each.
        table, every_rate, evaluated: as in `extract_bundle`.
        by: as in `extract_bundle`, but for None, which takes candidates.
        overwrite: replace a series that is there.
        tuning: of each network; None leaves all of them as they are cut from `source`.
        image_size: a size, or several of which each network takes the best, as `extract_bundle` does; after a
            fine-tuning never a larger one again. Of sizes at which nothing has to be left out only the largest is
            tried.

    Raises:
        SpecError: fewer than two budgets, or the same twice; otherwise as `extract_bundle`.
        BudgetError: the smallest budget is below the least possible, which is told before anything is trained.
        BundleError, GridError, RoutespaceError: as `extract_bundle`.
        TrainingStoppedError: a signal came; nothing is saved.
    """
    require_series_place(out, overwrite=overwrite)
    artifact = source if isinstance(source, Artifact) else load_artifact(source)
    budgets = macs if isinstance(macs, Mapping) else {f"{most / 1e6:.4g}M": most for most in macs}
    for most in budgets.values():
        joined_limits(None, most)  # it tells what is no number
    if len(budgets) < len(macs):
        raise SpecError(f"macs: two of {list(macs)} have the same name; give each as a mapping from its name")
    wishes = Wishes(
        joined_limits(limits, None),
        table=table,
        by=by,
        every_rate=every_rate,
        evaluated=evaluated,
        overwrite=overwrite,
        tuning=tuning,
        image_size=image_size,
    )
    return extract_series_as_wished(artifact, out, budgets, wishes)


def extract_series_as_wished(
    artifact: Artifact,
    out: Path | str,
    budgets: Mapping[str, float],
    wishes: Wishes,
    watch: ExtractionWatch | None = None,
) -> Series:
    """All networks of a series, saved together; errors as those of `extract_series`.

    Args:
        artifact: a finished run or a bundle.
        out: the series' folder.
        budgets: name of a bundle → the most MACs.
        wishes: how parts are chosen, and what becomes of them; their limits hold for each.
        watch: hears of each step.
    """
    require_series_place(out, overwrite=wishes.overwrite)
    _check(artifact, budgets, wishes)
    chain = _Chain(artifact, replace(wishes, by=wishes.by or "candidates"), watch or ExtractionWatch())
    for name, most in sorted(budgets.items(), key=lambda each: -each[1]):
        chain.add(name, most)
    with replaced_folder(Path(out)) as partial:
        series = Series(
            tuple(
                replace(member, taken=saved(member.taken, place, partial / member.name))
                for member, place in zip(chain.members, chain.places, strict=True)
            )
        )
        data = {"run": str(artifact.folder), "networks": series.rows(), "versions": versions_of("routespace")}
        write_json(partial / file_names.SERIES, data)
    return series


def _check(artifact: Artifact, budgets: Mapping[str, float], wishes: Wishes) -> None:
    """Raise what stands in the way of the smallest network, before the work."""
    if len(set(budgets.values())) < max(2, len(budgets)):
        raise SpecError(f"macs: a series has two or more different budgets, not {list(budgets.values())}")
    for name in budgets:
        if name in ("", file_names.SERIES) or name.startswith(".") or set(name) & set("/\\\0"):
            raise SpecError(
                f"macs: {name!r:.60} is no name of a folder that is seen; give another to this budget's bundle"
            )
    if "macs" in wishes.limits:
        raise SpecError("limits: macs are given for each network apart; leave them out of what holds for all")
    if wishes.method != USUAL_METHOD:
        raise SpecError(f"method: {wishes.method!r} derives a part from usage, which only the first network has")
    require_tuning(artifact, wishes.tuning)
    limits = {**wishes.limits, "macs": min(budgets.values())}
    whole, problems = _choices(artifact, wishes).net.architecture, list[BudgetError]()
    for size in _sizes(artifact, wishes):
        there = Architecture(resized_spec(whole.spec, size), dict(whole.edges))
        try:
            derive(there, {}, limits=limits, table=wishes.table, every_rate=wishes.every_rate)
        except BudgetError as error:
            problems.append(error)
        else:
            return
    raise problems[0]


def _sizes(artifact: Artifact, wishes: Wishes) -> list[tuple[int, int]]:
    """Image sizes to choose from."""
    own = artifact.net.spec.image_size
    return [own] if wishes.image_size is None else listed_sizes(artifact, wishes.image_size)


def _choices(artifact: Artifact, wishes: Wishes) -> Artifact:
    """The network to cut from: of a static one that may learn to do without them, blocks can be left out."""
    net = artifact.net
    freed = net.architecture.is_static and wishes.tuning is not None
    return left_over(artifact, net, net.architecture) if freed else artifact


class _Chain:
    """Networks that were taken one after the other.

    Attributes:
        members: the largest first.
        places: what each was taken out of.
    """

    def __init__(self, source: Artifact, wishes: Wishes, watch: ExtractionWatch) -> None:
        self.members: list[Member] = []
        self.places: list[Artifact] = []
        self._source, self._wishes, self._watch = source, wishes, watch
        self._left = [_choices(source, wishes)]
        self._whole: Score | None = None

    def add(self, name: str, most: float) -> None:
        """Take the next network."""
        start = time.monotonic()
        limits = {**self._wishes.limits, "macs": most}
        self._watch.member(name, limits)
        taken = self._next(replace(self._wishes, limits=limits))
        scores = [score for score in taken.found.card.scores if score.stage == "before_extraction"]
        self._whole = next(iter(scores), self._whole)
        if self._wishes.tuning is not None:
            self._left.append(left_over(taken.artifact, taken.found.net, self._left[0].net.architecture))
        self.members.append(Member(name, taken.found, time.monotonic() - start))
        self.places.append(taken.artifact)

    def _next(self, wishes: Wishes) -> Taken:
        source = self._source
        if not self.members and self._is_done(wishes):
            wishes = replace(wishes, tuning=None, image_size=None)
            return take_as_wished(source, wishes, self._watch, whole=self._whole)
        # A part may have chosen a way that takes more than others would; then the one before it is cut once more.
        for left in reversed(self._left):
            try:
                sized = replace(wishes, image_size=self._sizes_from(left, wishes))
                return take_as_wished(left, sized, self._watch, origin=source, whole=self._whole)
            except BudgetError as error:
                problem = error
        raise problem

    def _is_done(self, wishes: Wishes) -> bool:
        """Whether the network itself keeps its limits, so that it need not be trained any more."""
        source = self._source
        table = wishes.table if "latency_ms" in wishes.limits else None
        fits = fitting(source, wishes.limits, table, 0, every_rate=wishes.every_rate)
        return wishes.tuning is not None and source.net.architecture.is_static and fits(source.net.architecture)

    def _sizes_from(self, left: Artifact, wishes: Wishes) -> list[tuple[int, int]] | None:
        """Sizes to try: none above what is left, and of those at which all of it fits the largest alone."""
        if wishes.image_size is None:
            return None
        own, whole = left.net.spec.image_size, left.net.architecture.opened()
        sizes = _sizes(left, wishes)
        if len(self._left) > 1:
            sizes = [size for size in sizes if size[0] * size[1] <= own[0] * own[1]] or [own]
        sizes.sort(key=lambda size: -size[0] * size[1])
        for number, size in enumerate(sizes):
            there = Architecture(resized_spec(whole.spec, size), dict(whole.edges))
            if fitting(left, wishes.limits, wishes.table, 0, every_rate=wishes.every_rate)(there):
                return sizes[: number + 1]
        return sizes
