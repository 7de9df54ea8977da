"""The steps of `routespace extract`, with what is shown meanwhile: image size, cuts, last choice, taking out."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from routespace.deploy.latency.table import LatencyTable
    from routespace.grid.architecture import Architecture
    from routespace.workflow.artifacts import Artifact
    from routespace.workflow.cutting import Stage
    from routespace.workflow.extraction import Extraction
    from routespace.workflow.fine_tuning import FineTuning
    from routespace.workflow.sizing import SizeChoice


def choose_part(
    found: Artifact,
    sizes: Sequence[tuple[int, int]],
    limits: Mapping[str, float],
    by: str | None,
    *,
    tuning: FineTuning | None,
    table: LatencyTable | None,
    method: str,
    every_rate: bool,
) -> tuple[Stage, Architecture]:
    """What is left before the last cut, and the part to take of it."""
    sized = _move(found, sizes, limits, by, table=table, method=method, every_rate=every_rate)
    stage = _make_cuts(sized.artifact, limits, by, tuning, every_rate=every_rate)
    if sized.part is not None and not stage.cuts:
        return stage, sized.part
    return stage, _choose_last(stage, limits, by, table=table, method=method, every_rate=every_rate)


def _move(
    found: Artifact,
    sizes: Sequence[tuple[int, int]],
    limits: Mapping[str, float],
    by: str | None,
    *,
    table: LatencyTable | None,
    method: str,
    every_rate: bool,
) -> SizeChoice:
    """The network at the image size that was asked for, or at the best of several, with a line on each."""
    from routespace.cli.render import amount
    from routespace.cli.status import busy
    from routespace.train.tasks.kinds import task_of_head
    from routespace.workflow.extraction import usual_choice
    from routespace.workflow.sizing import SizeChoice, choose_size

    if not sizes:
        return SizeChoice(found)
    way = by or usual_choice(found)
    with busy("comparing image sizes" if len(sizes) > 1 else "moving to another image size"):
        best = choose_size(found, list(sizes), limits, way=way, table=table, method=method, every_rate=every_rate)
    text = task_of_head(found.net.head, found.net.spec).metric.text
    for each in best.tried:
        if each.score is None or each.macs is None:
            print(f"{each.text}: nothing fits ({each.why_not})")
        else:
            chosen = ", chosen" if each.image_size == best.artifact.net.spec.image_size else ""
            print(f"{each.text}: {text(each.score)} on validation at {amount('macs', each.macs)}{chosen}")
    if best.tried:
        print(flush=True)
    return best


def _make_cuts(
    found: Artifact,
    limits: Mapping[str, float],
    by: str | None,
    tuning: FineTuning | None,
    *,
    every_rate: bool,
) -> Stage:
    """All cuts but the last, with progress."""
    from routespace.cli.watch import watching
    from routespace.train.stopping import TrainingStoppedError
    from routespace.workflow.cutting import Stage, cut_down
    from routespace.workflow.extraction import usual_choice

    if tuning is None:
        return Stage(found, None)
    with watching("fine-tuning ") as news:
        try:
            by = by or usual_choice(found)
            return cut_down(found, limits, tuning, by=by, every_rate=every_rate, progress=news, tell=news.say)
        except TrainingStoppedError as error:
            raise KeyboardInterrupt("interrupted; nothing was saved") from error


def _choose_last(
    stage: Stage,
    limits: Mapping[str, float],
    by: str | None,
    *,
    table: LatencyTable | None,
    method: str,
    every_rate: bool,
) -> Architecture:
    """The part to take; of candidates a line on how it was found."""
    from routespace.cli.status import busy
    from routespace.train.tasks.kinds import task_of_head
    from routespace.workflow.choosing import choose_best, choose_part
    from routespace.workflow.extraction import usual_choice

    found = stage.artifact
    way = stage.way(by or usual_choice(found))
    if way != "candidates" or not limits:
        return choose_part(found, limits, way, table=table, method=method, every_rate=every_rate)
    with busy("evaluating candidates"):
        best = choose_best(found, limits, table=table, every_rate=every_rate)
    text = task_of_head(found.net.head, found.net.spec).metric.text
    each = ", ".join(f"{origin} {text(score)}" for origin, score in best.scores.items())
    print(f"best of {best.candidates} candidates on validation: {text(best.score)} (best by origin: {each})\n")
    return best.architecture


def take_out(
    stage: Stage, chosen: Architecture, folder: Path, *, origin: Artifact, evaluate: bool, overwrite: bool
) -> Extraction:
    """Extract, verify, evaluate, fine-tune and save, with progress."""
    from routespace.cli.status import busy
    from routespace.cli.watch import watching
    from routespace.train.stopping import TrainingStoppedError
    from routespace.workflow.extraction import extract_chosen

    if stage.tuning is None:
        with busy("extracting, verifying and evaluating"):
            return extract_chosen(
                stage.artifact, chosen, folder, evaluated=evaluate, overwrite=overwrite, origin=origin
            )
    with watching("fine-tuning ") as news:
        try:
            return extract_chosen(
                stage.artifact,
                chosen,
                folder,
                evaluated=evaluate,
                overwrite=overwrite,
                tuning=stage.tuning,
                progress=news,
                tell=news.say,
                origin=origin,
            )
        except TrainingStoppedError as error:
            raise KeyboardInterrupt("interrupted; nothing was saved") from error
