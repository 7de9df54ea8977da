"""Cutting in steps: what is more than one cut can take away is taken in several, with a fine-tuning after each.

    stage = cut_down(artifact, {"macs": 12_000_000}, FineTuning(epochs=6), by="candidates")
    stage.artifact, stage.tuning                # to make the last cut from, and to fine-tune it with

Cuts are equal shares of what is left. Each choice is made inside the part before, whose weights have learned to do
without the rest; the teacher stays the network that everything began with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from routespace.deploy.derive import derive
from routespace.deploy.extract import extract
from routespace.grid.architecture import Architecture, State
from routespace.grid.gate_spec import GateSpec
from routespace.nn.route_net import RouteNet
from routespace.nn.task_net import TaskNet
from routespace.nn.views import view_of
from routespace.train.macs import counted_macs
from routespace.train.progress import Progress
from routespace.workflow.artifacts import Artifact
from routespace.workflow.choosing import choose_part
from routespace.workflow.fine_tuning import FineTuning, fine_tune

NEARLY = 1e-9  # a last cut of exactly the most is one cut


@dataclass(frozen=True)
class Stage:
    """Where the last cut starts from.

    Attributes:
        artifact: what is left, with its choices; the given one where one cut does it.
        tuning: of the last part.
        cuts: that were made before.
    """

    artifact: Artifact
    tuning: FineTuning | None
    cuts: int = 0


def way_in(artifact: Artifact, wanted: str) -> str:
    """How to choose a part: after a cut there are choices whose usage nobody measured."""
    unmeasured = artifact.usage == {} and not artifact.net.architecture.is_static
    return "kl" if unmeasured and wanted == "usage" else wanted


def cut_limits(macs: float, wanted: float, tuning: FineTuning) -> list[float]:
    """The most MACs after each cut, the wanted ones last; never more cuts than epochs to fine-tune in.

    Args:
        macs: of the network as it is.
        wanted: after the last cut.
        tuning: the largest share that one cut takes away, and the epochs.
    """
    if wanted >= macs or tuning.most_cut == 1:
        return [wanted]
    count = math.ceil(math.log(wanted / macs) / math.log(1 - tuning.most_cut) - NEARLY)
    count = max(1, min(count, tuning.epochs))
    return [macs * (wanted / macs) ** (number / count) for number in range(1, count)] + [wanted]


def cut_down(
    artifact: Artifact,
    limits: Mapping[str, float],
    tuning: FineTuning | None,
    *,
    by: str,
    every_rate: bool = True,
    progress: Callable[[Progress], None] | None = None,
    tell: Callable[[str], None] | None = None,
) -> Stage:
    """Make all cuts but the last.

    Args:
        artifact: a run or bundle.
        limits: of the last part; only `macs` is cut in steps.
        tuning: how long all parts together are trained, by whom they are taught, and the most that a cut takes.
        by, every_rate: how parts are chosen, as in `extract_bundle`.
        progress, tell: of the fine-tunings, as in `train_recipe`; `tell` also hears of each cut.

    Raises:
        BudgetError: nothing fits.
        TrainingStoppedError: a signal came.
        RoutespaceError: as `train_recipe`.
    """
    whole = artifact.net.architecture
    if tuning is None or "macs" not in limits or whole.is_static:
        return Stage(artifact, tuning)
    # It tells when nothing fits, before anything is trained.
    derive(whole, {}, limits={"macs": limits["macs"]}, every_rate=every_rate)
    most = cut_limits(counted_macs(artifact.net, artifact.usage or {}), limits["macs"], tuning)
    spent, stage = 0, Stage(artifact, tuning)
    for number, macs in enumerate(most[:-1]):
        chosen = choose_part(
            stage.artifact,
            {"macs": macs},
            way_in(stage.artifact, by),
            least_macs=limits["macs"],
            every_rate=every_rate,
        )
        epochs = round(tuning.epochs * (number + 1) / len(most)) - spent
        spent += epochs
        if tell is not None:
            left_macs = counted_macs(artifact.net.restrict(chosen), {})
            tell(f"cut {number + 1} of {len(most)}: {left_macs / 1e6:.4g} MMACs are left, epochs: {epochs}")
        small = extract(stage.artifact.net, chosen)
        tuned = fine_tune(artifact, small, replace(tuning, epochs=epochs), progress=progress, tell=tell).net
        left = left_over(artifact, tuned, whole)
        stage = Stage(left, replace(tuning, epochs=tuning.epochs - spent), number + 1)
    return stage


def left_over(artifact: Artifact, small: TaskNet, whole: Architecture) -> Artifact:
    """What is left after a cut, for the next one: the artifact with a part of it, which has its choices again."""
    return replace(artifact, net=with_choices(small, whole), usage={})


def with_choices(small: TaskNet, whole: Architecture) -> TaskNet:
    """A static part with its weights, in which every edge that `whole` may do without is a choice again.

    Of a static whole any block may be passed; its ways down stay.
    """
    edges: dict[str, State] = {}
    for name in small.architecture.edges:
        edge, partner = whole.grid.edges[name], whole.grid.edges[name].partner
        block = edge.kind == "transformer"
        chosen = block if whole.is_static else whole.edges.get(name) == "gated" and (block or partner is None)
        edges[name] = "gated" if chosen else "open"
        if chosen and partner is not None:
            edges[partner] = "gated"
    with torch.random.fork_rng([]):
        backbone = RouteNet(Architecture(small.spec, edges), GateSpec())
    net = TaskNet(backbone, view_of(small.head))
    net.load_state_dict(small.state_dict(), strict=False)  # gates are new: nobody asks them
    return net.eval()
