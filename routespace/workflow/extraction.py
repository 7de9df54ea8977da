"""From a trained supernet to a small network in a folder of its own: choose, extract, verify, evaluate, save.

extract_bundle("runs/first", "small", macs=12_000_000)
extract_bundle("runs/first", "small", macs=12_000_000, image_size=[96, 112, 128])    the best of these sizes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from routespace.checked import checked
from routespace.deploy.folder import require_bundle_place
from routespace.deploy.latency.table import LatencyTable
from routespace.deploy.scores import Score
from routespace.grid.architecture import Architecture
from routespace.grid.resources import joined_limits
from routespace.workflow.artifacts import Artifact, load_artifact
from routespace.workflow.choosing import choose_best, choose_part
from routespace.workflow.cutting import Stage, cut_down, way_in
from routespace.workflow.fine_tuning import FineTuning, require_tuning
from routespace.workflow.first_epochs import first_epochs
from routespace.workflow.sizing import Size, SizeChoice, choose_size
from routespace.workflow.taking import Extraction, saved, take_chosen
from routespace.workflow.wishes import USUAL_METHOD, ExtractionWatch, Wishes


@checked
def extract_bundle(
    source: Artifact | Path | str,
    out: Path | str,
    *,
    macs: float | None = None,
    limits: Mapping[str, float] | None = None,
    table: LatencyTable | None = None,
    method: str = USUAL_METHOD,
    by: str | None = None,
    every_rate: bool = True,
    evaluated: bool = True,
    overwrite: bool = False,
    tuning: FineTuning | None = None,
    image_size: Size | Sequence[Size] | None = None,
) -> Extraction:
    """Take the best part under a limit out of a trained supernet, verify it, and save it as a bundle.

    Args:
        source: a finished run or a bundle, or its folder.
        out: the bundle's folder.
        macs: the most MACs; without any limit it is the recipe's own budget, and a static network is taken whole.
        limits: resource (`params`, `latency_ms`, …: the table in `grid/resources.py`) → the most allowed.
        table: predicts milliseconds, for a limit on `latency_ms`; of one batch of the table.
        method: `milp` (proven best) or `threshold`, to derive from usage.
        by: `usage`, the most used part; `kl`, the one whose edges change the outputs most when they are taken out
            (`removal_scores`); or `candidates`, the best of several on validation (`choose_best`). None takes
            candidates after a sandwich training, whose gates say nothing, and else usage.
        every_rate: reach every output that the network reaches; else rates of a pyramid may be dropped, and the
            head does without their maps.
        evaluated: measure the task's metric on validation, of the whole and of the part.
        overwrite: replace a bundle that is there.
        tuning: how long to train it on before it is saved, by whom it is taught, and how much one cut may take
            away: more is cut in several steps, with a share of the epochs after each.
        image_size: move the network to images of this size first, in pixels: the side of a square, (H, W), or a
            list of several, of which the one is taken whose best part is best on validation: as it is, or where
            `tuning` has five or more epochs after the first fifth of them, from which it goes on. What limits
            count is then of an image of that size; the recipe's own budget stays what it was. The bundle's recipe,
            and how pictures go in, become those of that size; objects of scenes that are made here shrink along.

    Raises:
        BudgetError: a limit is below the least possible, which the message names.
        GridError: the table was measured at another image size.
        BundleError: no such run, usage that was not measured, or `out` cannot be written.
        SpecError: a wish that would have no effect, or an image size that the grid or the data does not take.
        RoutespaceError: the extracted network differs from the supernet's part; nothing is saved then.
    """
    require_bundle_place(out, overwrite=overwrite)
    artifact = source if isinstance(source, Artifact) else load_artifact(source)
    wishes = Wishes(
        joined_limits(limits, macs),
        table=table,
        method=method,
        by=by,
        every_rate=every_rate,
        evaluated=evaluated,
        overwrite=overwrite,
        tuning=tuning,
        image_size=image_size,
    )
    return extract_as_wished(artifact, out, wishes)


def extract_as_wished(
    artifact: Artifact, out: Path | str, wishes: Wishes, watch: ExtractionWatch | None = None
) -> Extraction:
    """All steps of an extraction: image size, cuts, last choice, taking out; errors as those of `extract_bundle`.

    Args:
        artifact: a finished run or a bundle.
        out: the bundle's folder.
        wishes: how the part is chosen, and what becomes of it.
        watch: hears of each step.
    """
    require_bundle_place(out, overwrite=wishes.overwrite)
    require_tuning(artifact, wishes.tuning)
    taken = take_as_wished(artifact, wishes, watch or ExtractionWatch())
    return saved(taken.found, taken.artifact, out, overwrite=wishes.overwrite)


class Taken(NamedTuple):
    """What was taken out, and what it was taken out of.

    Attributes:
        found: the part, in memory.
        artifact: the network before the last cut, at the part's image size.
    """

    found: Extraction
    artifact: Artifact


def take_as_wished(
    artifact: Artifact,
    wishes: Wishes,
    watch: ExtractionWatch,
    *,
    origin: Artifact | None = None,
    whole: Score | None = None,
) -> Taken:
    """All steps of an extraction but the saving.

    Args:
        artifact: a finished run or a bundle, or what was left of one after a cut.
        wishes: how the part is chosen, and what becomes of it.
        watch: hears of each step.
        origin: the run or bundle itself, where the artifact was cut already.
        whole: its metric on validation, where it is known.
    """
    limits = wishes.limits_of(artifact)
    wishes.require_effect(artifact, limits)
    sized = _sized(artifact, limits, wishes, watch)
    with first_epochs(sized, wishes.tuning, watch) as begun:
        if begun.choice.tried:
            watch.sized(begun.choice)
        stage, part = _cut(begun.choice, limits, wishes, watch)
        watch.chosen(part)
        take = partial(
            take_chosen,
            stage.artifact,
            part,
            evaluated=wishes.evaluated,
            tuning=stage.tuning,
            begun=begun.folder,
            origin=artifact if origin is None else origin,
            whole=whole,
        )
        if stage.tuning is None:
            with watch.doing("extracting, verifying and evaluating"):
                found = take()
        else:
            with watch.training() as heard:
                found = take(**heard._asdict())
    return Taken(replace(found, limits=limits, tried=begun.choice.tried), stage.artifact)


def _cut(
    sized: SizeChoice, limits: Mapping[str, float], wishes: Wishes, watch: ExtractionWatch
) -> tuple[Stage, Architecture]:
    """All cuts but the last, and the part of the last one."""
    way, stage = way_in(sized.artifact, wishes.way(sized.artifact)), Stage(sized.artifact, None)
    if wishes.tuning is not None:
        with watch.training() as heard:
            stage = cut_down(
                sized.artifact, limits, wishes.tuning, by=way, every_rate=wishes.every_rate, **heard._asdict()
            )
    if sized.part is None or stage.cuts:
        return stage, _last_choice(stage.artifact, limits, way_in(stage.artifact, way), wishes, watch)
    return stage, sized.part


def _sized(artifact: Artifact, limits: Mapping[str, float], wishes: Wishes, watch: ExtractionWatch) -> SizeChoice:
    """The network at the image size that is wished, or at the best of several."""
    if wishes.image_size is None:
        return SizeChoice(artifact)
    with watch.doing("evaluating parts at the image size"):
        return choose_size(
            artifact,
            wishes.image_size,
            limits,
            way=way_in(artifact, wishes.way(artifact)),
            table=wishes.table,
            method=wishes.method,
            every_rate=wishes.every_rate,
        )


def _last_choice(
    artifact: Artifact, limits: Mapping[str, float], way: str, wishes: Wishes, watch: ExtractionWatch
) -> Architecture:
    """The part to take."""
    table, every_rate = wishes.table, wishes.every_rate
    if way != "candidates" or not limits:
        return choose_part(artifact, limits, way, table=table, method=wishes.method, every_rate=every_rate)
    with watch.doing("evaluating candidates"):
        best = choose_best(artifact, limits, table=table, every_rate=every_rate)
    watch.picked(best)
    return best.architecture
