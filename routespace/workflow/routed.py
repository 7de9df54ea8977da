"""The routed network as something to take home: the trained network with its gates, at the budget that is wished.

    extract_routed("runs/first", "routed")                       as it was trained and calibrated
    extract_routed("runs/first", "routed", macs=12_000_000)      its threshold calibrated again, to other MACs

Every edge, gate and weight is the network's. All that another budget moves is the gates' threshold, on validation
images; a fine-tuning teaches weights and gates at that budget, and calibrates once more.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from routespace.checked import checked
from routespace.deploy.bundle import Card
from routespace.deploy.extract import extract
from routespace.deploy.folder import require_bundle_place
from routespace.deploy.scores import Score
from routespace.errors import BudgetError, SpecError
from routespace.grid.resources import joined_limits
from routespace.grid.usage import EdgeUsage, usage_to_json
from routespace.nn.task_net import TaskNet
from routespace.train.calibrate import Calibration, calibrate_threshold
from routespace.train.data.loaders import Loaders
from routespace.train.macs import closed_macs, counted_macs, open_macs
from routespace.train.run import RunResult
from routespace.train.tasks.kinds import task_of_head
from routespace.workflow.artifacts import Artifact, load_artifact
from routespace.workflow.fine_tuning import AT_ONCE, FineTuning, fine_tune, require_tuning
from routespace.workflow.history import with_score
from routespace.workflow.scoring import Seen, card_scores, decides_alike, seen, tuned_score
from routespace.workflow.taking import Extraction, provenance_of, saved, verified
from routespace.workflow.wishes import ExtractionWatch


@checked
def extract_routed(
    source: Artifact | Path | str,
    out: Path | str,
    *,
    macs: float | None = None,
    image_size: tuple[int, int] | int | None = None,
    evaluated: bool = True,
    overwrite: bool = False,
    tuning: FineTuning | None = None,
    watch: ExtractionWatch | None = None,
) -> Extraction:
    """Take a trained network as it routes, verify it, and save it as a bundle.

    The bundle's recipe has the budget that was wished, so that a training that starts from it meets that, too.

    Args:
        source: a finished run or a bundle, or its folder; its network has gates.
        out: the bundle's folder.
        macs: the most MACs of one image, on average of validation images: the gates' threshold is calibrated to
            that. None leaves it as it was calibrated.
        image_size: move the network to images of this size first, in pixels: the side of a square, or (H, W).
            Without `macs` its threshold is then calibrated to the recipe's own budget at that size.
        evaluated: measure the task's metric and MACs on validation, of the network as it was and as it is taken.
        overwrite: replace a bundle that is there.
        tuning: how long to train it on before it is saved, and by whom it is taught.
        watch: hears of each step.

    Returns:
        What was taken: `card.counted_macs` is what one image takes, and `usage` tells of each edge.

    Raises:
        BudgetError: MACs that the gates cannot keep to; the message names what they can.
        SpecError: a static network, gates that nobody taught, or an image size that the grid or the data does not
            take.
        BundleError: no such run, or `out` cannot be written.
        TrainingStoppedError: a signal came while it was fine-tuned; nothing is saved.
        RoutespaceError: it differs from the network that it was taken from; nothing is saved then.
    """
    joined_limits(None, macs)  # it tells what is no number
    require_bundle_place(out, overwrite=overwrite)
    watch = watch or ExtractionWatch()
    origin = source if isinstance(source, Artifact) else load_artifact(source)
    _require_routable(origin, tuning)
    artifact = origin if image_size is None else origin.resized(image_size)
    if macs is None and artifact is not origin and artifact.recipe is not None:
        macs = artifact.recipe.budget_macs()
    net, found, limits = extract(artifact.net, artifact.net.architecture).eval(), None, dict[str, float]()
    budgeted = artifact
    if macs is not None:
        budget = {"budget.macs": round(macs), "budget.calibrate": True}
        budgeted, limits = replace(artifact, recipe=artifact.require_recipe().override(budget)), {"macs": macs}
    require_tuning(budgeted, tuning, gated=True)
    if macs is not None:
        with watch.doing("calibrating"):
            found = _calibrated(artifact, net, macs)
    watch.chosen(net.architecture)
    with watch.doing("verifying and evaluating"):
        report = verified(artifact.net, net.architecture, net)
        metric = task_of_head(net.head, net.spec).metric.name
        own = seen("extracted", net, artifact.held_out(), metric) if evaluated else None
        whole = None if own is None else _whole(origin, net, own, metric)
    taken = Extraction(net, _card(origin, net, own, whole, found), report.max_difference, metric, limits=limits)
    if own is not None and whole is not None:
        score, images = own.score.value, own.score.images or 0
        taken = replace(taken, score_whole=whole.value, score=score, images=images, usage=_usage(net, own))
    if tuning is not None:
        with watch.training() as heard:
            result = fine_tune(budgeted, net, tuning, **heard._asdict())
        taken = _tuned(taken, result, origin, budgeted, artifact.held_out())
    return saved(taken, budgeted, out, overwrite=overwrite)


def _require_routable(artifact: Artifact, tuning: FineTuning | None) -> None:
    """Raise SpecError for a network that does not route, and for a wish that has no effect on one that does."""
    net, recipe = artifact.net, artifact.recipe
    if net.architecture.is_static:
        raise SpecError(
            f"routed: {artifact.folder} has no gates, it is a static network; leave --routed out (extract_bundle)"
        )
    if recipe is not None and recipe.train.mode == "sandwich":
        raise SpecError(
            "routed: a sandwich training teaches no gates, so that they choose nothing; leave --routed out "
            "(extract_bundle), and the best static part is taken"
        )
    if tuning is not None and tuning.most_cut != AT_ONCE:
        raise SpecError("cut: the routed network is taken whole, nothing is cut away; leave it out")


def _calibrated(artifact: Artifact, net: TaskNet, macs: float) -> Calibration:
    """Move a network's threshold until it keeps to its MACs on validation images.

    Raises:
        BudgetError: it cannot.
    """
    least, most = (limit(net.architecture, net.gate_spec) for limit in (closed_macs, open_macs))
    if macs < least:
        raise BudgetError(
            f"macs: {macs / 1e6:.4g} MMACs is impossible; with every gate closed the network still takes "
            f"{least / 1e6:.4g} MMACs: give more, or leave --routed out for the best static part"
        )
    if macs > most:
        raise BudgetError(
            f"macs: {macs / 1e6:.4g} MMACs leaves nothing to save; with every gate open the network takes "
            f"{most / 1e6:.4g} MMACs: give less"
        )
    found = calibrate_threshold(net, artifact.held_out().calibration, macs, at_most=True)
    if found.macs > macs:
        raise BudgetError(f"macs: the gates cannot keep to {macs / 1e6:.4g} MMACs ({found.note}); give more")
    return found


def _whole(origin: Artifact, net: TaskNet, own: Seen, metric: str) -> Score:
    """The score of the network as it was; of one that is taken as it is it is the same."""
    if decides_alike(net, origin.net):
        return own.score.model_copy(update={"stage": "before_extraction"})
    return seen("before_extraction", origin.net, origin.held_out(), metric).score


def _card(
    origin: Artifact, net: TaskNet, own: Seen | None, whole: Score | None, found: Calibration | None
) -> Card:
    """The card of a network that was taken, which says that it is routed, and what that takes."""
    scores = card_scores(origin, net, whole, None if own is None else own.score)
    macs = None if own is None else own.found["counted_macs"]
    card = Card.of(net, scores=scores, counted_macs=macs, provenance=provenance_of(origin))
    return card.model_copy(update={"remarks": (*_remarks(net, own, found), *card.remarks)})


def _remarks(net: TaskNet, own: Seen | None, found: Calibration | None) -> list[str]:
    """That it is routed, and what one image takes; and where it is far within its budget, why."""
    line = f"routed: its gates decide what is computed, {_places(net)}"
    if own is not None:
        macs, most = own.found["counted_macs"], counted_macs(net, {})
        line += f"; {macs / 1e6:.4g} of {most / 1e6:.4g} MMACs on average of {own.score.images} validation images"
    return [line, *([f"budget: {found.note}"] if found is not None and found.note else [])]


def _places(net: TaskNet) -> str:
    """What gates decide for: `for each token and each image`."""
    gates, kinds = net.gate_spec, {name.rpartition("_")[2] for name in net.gates}
    found = [gates.rows] * ("transformer" in kinds) + [gates.columns] * ("embed" in kinds)
    return "for " + " and ".join(dict.fromkeys(f"each {kind}" for kind in found))


def _usage(net: TaskNet, own: Seen) -> dict[str, object]:
    """JSON data of usage.json."""
    used = {name: EdgeUsage(**shares) for name, shares in own.found["usage"].items()}
    return usage_to_json(used, net.architecture.grid, own.found["sizes"])


def _tuned(
    taken: Extraction, result: RunResult, origin: Artifact, budgeted: Artifact, images: Loaders
) -> Extraction:
    """What was taken, after its fine-tuning, which calibrated its gates; measured once more for its usage.

    A training meets its budget from either side. Where that is above what was wished, gates close a little more.
    """
    net, tuned, most = result.net, dict(result.metrics), taken.limits.get("macs")
    if most is not None and tuned["counted_macs"] > most:
        tuned["calibration"] = asdict(calibrate_threshold(net, images.calibration, most, at_most=True))
    own = seen("fine_tuned", net, images, taken.metric)
    tuned |= {name: own.found[name] for name in (taken.metric, "loss", "counted_macs")}
    tuned["counted_ratio"] = tuned["counted_macs"] / tuned["base_macs"]
    scores = with_score(taken.card.scores, tuned_score(budgeted, tuned))
    missed = tuned["calibration"] is not None and not tuned["calibration"]["met"]
    note = [f"budget: missed after the fine-tuning; {tuned['calibration']['note']}"] if missed else []
    card = Card.of(net, scores=scores, counted_macs=own.found["counted_macs"], provenance=provenance_of(origin))
    card = card.model_copy(update={"remarks": (*_remarks(net, own, None), *note, *card.remarks)})
    return replace(taken, net=net, card=card, tuned=tuned, usage=_usage(net, own))
