"""From a trained supernet to a small network in a folder of its own: choose, extract, verify, evaluate, save.

extract_bundle("runs/first", "small", macs=12_000_000)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from routespace import file_names
from routespace.deploy.bundle import Card, Provenance, save_bundle
from routespace.deploy.derive import derive
from routespace.deploy.extract import extract
from routespace.deploy.folder import require_bundle_place
from routespace.deploy.latency.table import LatencyTable
from routespace.deploy.verify import VerifyReport, verify
from routespace.errors import BundleError, RoutespaceError, SpecError
from routespace.files import json_text
from routespace.grid.architecture import Architecture
from routespace.grid.resources import joined_limits
from routespace.nn.task_net import TaskNet
from routespace.preprocess import preprocess_to_json
from routespace.train.data.loaders import make_loaders
from routespace.train.evaluate import evaluate
from routespace.train.recipe.recipe import Recipe
from routespace.train.tasks.kinds import task_of_head
from routespace.workflow.artifacts import Artifact, load_artifact


@dataclass(frozen=True)
class Extraction:
    """What was extracted, and how it was found to be.

    Attributes:
        net: the small network, in evaluation mode.
        card: of the bundle.
        max_difference: largest difference of outputs to the part that it was taken from.
        accuracy_whole, accuracy: on validation (0…1), of the network it came from and of itself; None when not
            evaluated.
        images: that were evaluated.
    """

    net: TaskNet
    card: Card
    max_difference: float
    accuracy_whole: float | None = None
    accuracy: float | None = None
    images: int = 0


def extract_bundle(
    source: Artifact | Path | str,
    out: Path | str,
    *,
    macs: float | None = None,
    limits: Mapping[str, float] | None = None,
    table: LatencyTable | None = None,
    method: str = "milp",
    evaluated: bool = True,
    overwrite: bool = False,
) -> Extraction:
    """Take the most used part under a limit out of a trained supernet, verify it, and save it as a bundle.

    Args:
        source: a finished run or a bundle, or its folder.
        out: the bundle's folder.
        macs: the most MACs; without any limit it is the recipe's own budget, and a static network is taken whole.
        limits: resource (`params`, `latency_ms`, …: the table in `grid/resources.py`) → the most allowed.
        table: predicts milliseconds, for a limit on `latency_ms`; of one batch of the table.
        method: `milp` (proven best) or `threshold`.
        evaluated: measure the accuracy on validation, of the whole and of the part.
        overwrite: replace a bundle that is there.

    Raises:
        BudgetError: a limit is below the least possible, which the message names.
        BundleError: no such run, usage that was not measured, or `out` cannot be written.
        RoutespaceError: the extracted network differs from the supernet's part; nothing is saved then.
    """
    require_bundle_place(out, overwrite=overwrite)
    artifact = source if isinstance(source, Artifact) else load_artifact(source)
    wanted: dict[str, float] = joined_limits(limits, macs)
    own = None if wanted else own_limit(artifact)
    chosen = choose(artifact, wanted if own is None else {"macs": own}, table=table, method=method)
    return extract_chosen(artifact, chosen, out, evaluated=evaluated, overwrite=overwrite)


def own_limit(artifact: Artifact) -> int | None:
    """The most MACs by the recipe's own budget; None for a static network, which is taken whole.

    Raises:
        SpecError: a gated network whose recipe has no budget.
    """
    if artifact.net.architecture.is_static:
        return None
    limit = artifact.require_recipe().budget_macs()
    if limit is None:
        raise SpecError("macs: the recipe has no budget; say how much may be kept with --macs 12M or --ratio 0.5")
    return limit


def choose(
    artifact: Artifact,
    limits: Mapping[str, float],
    *,
    table: LatencyTable | None = None,
    method: str = "milp",
) -> Architecture:
    """The static architecture that keeps what the run used most; the whole one without any limit.

    Args:
        artifact: a run or bundle.
        limits: resource → the most allowed.
        table: predicts milliseconds, for a limit on `latency_ms`.
        method: `milp` (proven best) or `threshold`.

    Raises:
        BudgetError: a limit is below the least possible, which the message names.
        BundleError: a gated network whose usage was not measured.
    """
    architecture = artifact.net.architecture
    if not limits:
        return architecture
    usage = artifact.usage
    if usage is None and not architecture.is_static:
        raise BundleError(f"{artifact.folder}: has no usage.json; train the run to its end, or run it again")
    return derive(architecture, usage or {}, limits=limits, table=table, method=cast(Any, method))


def extract_chosen(
    artifact: Artifact,
    chosen: Architecture,
    out: Path | str,
    *,
    evaluated: bool = True,
    overwrite: bool = False,
) -> Extraction:
    """Extract, verify, evaluate on validation and save. The test split is for `evaluate` alone.

    Args:
        artifact: where the weights come from.
        chosen: a static part of its architecture.
        out: the bundle's folder.
        evaluated: measure the accuracy of the whole and of the part.
        overwrite: replace a bundle that is there.

    Raises:
        BundleError: `out` holds something else, or cannot be written.
        RoutespaceError: the extracted network differs from the supernet's part; nothing is saved then.
    """
    require_bundle_place(out, overwrite=overwrite)
    small = extract(artifact.net, chosen).eval()
    report = _verified(artifact.net, chosen, small)
    found = _measured(artifact, small) if evaluated else Measured()
    card = save_bundle(small, out, _card(artifact, small, found), overwrite=overwrite, texts=_papers(artifact))
    return Extraction(small, card, report.max_difference, found.whole, found.part, found.images)


def _verified(net: TaskNet, chosen: Architecture, small: TaskNet) -> VerifyReport:
    """The report on an extraction, made on a CPU: a GPU may choose other sums for the same layer.

    Raises:
        RoutespaceError: the extracted network is not the part.
    """
    report = verify(net, chosen, small, device="cpu")
    if not report.ok:
        raise RoutespaceError("verify: the extracted network differs: " + "; ".join(report.lines()))
    return report


class Measured(NamedTuple):
    """The task's metric of a network and of its part on validation images, how many these are, and which."""

    whole: float | None = None
    part: float | None = None
    images: int = 0
    on: str | None = None


def _measured(artifact: Artifact, small: TaskNet) -> Measured:
    loaders = make_loaders(artifact.require_recipe())
    metric = task_of_head(small.head.kind, small.spec).metric.name
    whole = evaluate(artifact.net, loaders.val, expected=False)
    same = small.architecture == artifact.net.architecture
    part = whole if same else evaluate(small, loaders.val, expected=False)
    record = loaders.source.record
    listed = "" if record is None else f", data {record.digest}"
    on = f"{part['images']} validation images of {loaders.recipe.data.kind}{listed}"
    return Measured(whole[metric], part[metric], part["images"], on)


def _papers(artifact: Artifact) -> dict[str, str]:
    """What a bundle keeps beside its network: how images go in, and the recipe that tells of its data."""
    papers = {}
    if artifact.recipe is not None:
        papers[file_names.RECIPE] = artifact.recipe.to_yaml()
    if artifact.preprocess is not None:
        data = preprocess_to_json(artifact.preprocess, artifact.classes or ())
        papers[file_names.PREPROCESS] = json_text(data) + "\n"
    return papers


def _card(artifact: Artifact, small: TaskNet, found: Measured) -> Card:
    """The bundle's card: of a part its accuracy before fine-tuning, of what was trained as it is the final one."""
    earlier = artifact.card
    whole = small.architecture == artifact.net.architecture
    trained = whole and (earlier is None or earlier.accuracy_after is not None)
    before = earlier.accuracy_before if trained and earlier is not None else None
    return Card.of(
        small,
        accuracy_before=before if trained else found.part,
        accuracy_after=found.part if trained else None,
        accuracy_on=found.on,
        provenance=_provenance(artifact),
    )


def _provenance(artifact: Artifact) -> Provenance:
    recipe: Recipe | None = artifact.recipe
    return Provenance(
        recipe=recipe.name if recipe else None,
        recipe_hash=recipe.hash if recipe else None,
        run=str(artifact.folder),
        parent=artifact.net.architecture.hash,
    )
