"""TaskNet: a backbone and a head, images in and a task's outputs out.

    net = TaskNet.classifier(Architecture.full(grid))    # every choice gated: the supernet
    out = net(images)                                    # out.logits, out.routes
    small = net.restrict(architecture)                   # the same weights, another part of the grid

Keys of the state dict: `backbone.*` (those of RouteNet) and `head.*`. Weights that were saved when both were one
module (`stem.*`, `edges.*`, …, `head.*`) load as well.

Shape legend: B images · K classes · C channels · H, W pixels, or of a rate's map.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, Self, Unpack

import torch
from torch import Tensor, nn

from routespace.checked import checked
from routespace.errors import SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.gate_spec import GateSpec
from routespace.grid.spec import GridSpec
from routespace.nn.heads.base import Head, Maps
from routespace.nn.heads.classify import Classifier
from routespace.nn.module import PlainModule
from routespace.nn.route_net import RouteNet, RouteOutput
from routespace.nn.routing.deciding import Changes, Deciding, Execution
from routespace.nn.routing.places import GatePlaces
from routespace.nn.routing.routes import Routes
from routespace.nn.trees import register_namedtuple
from routespace.nn.views import view_of

BACKBONE, HEAD = "backbone.", "head."
LOGITS_NDIM = 2  # of a classifier's; those of pixels have four


class TaskOutput(NamedTuple):
    """What a forward pass returns.

    Attributes:
        outputs: the head's: (B, K) logits of a classifier, (B, K, h, w) of pixels, what a detector found.
        features: rate → (B, C, H, W) of each output map, when asked for; else None.
        routes: every decision that was taken; cost is computed from it.
    """

    outputs: Any
    features: dict[int, Tensor] | None
    routes: Routes

    @property
    def logits(self) -> Tensor:
        """(B, K) of a classifier; raises SpecError where the network is none."""
        if not isinstance(self.outputs, Tensor) or self.outputs.ndim != LOGITS_NDIM:
            raise SpecError("logits: this network has no classifier; what its head gives is in `outputs`")
        return self.outputs


register_namedtuple(TaskOutput, "routespace.TaskOutput")


class TaskNet(nn.Module):
    """A network for a task.

    Args:
        backbone: images → maps and routes.
        head: maps → the task's outputs; where the architecture never reaches a rate, what is left of it without.
    """

    backbone: RouteNet
    head: Head

    @checked
    def __init__(self, backbone: RouteNet, head: Head) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head_over(head, backbone.architecture.output_rates)
        self.register_load_state_dict_pre_hook(_from_flat_keys)  # type: ignore[no-untyped-call]  # torch's
        self.training = backbone.training
        self.head.train(backbone.training)

    @classmethod
    @checked
    def classifier(
        cls,
        architecture: Architecture,
        gates: GateSpec | None = None,
        *,
        execution: Execution = "dense",
        drop_path: float = 0.0,
    ) -> TaskNet:
        """A backbone with the classifier of its spec's `num_classes`; arguments are those of RouteNet.

        With 0 classes the outputs are the maps themselves.
        """
        backbone = RouteNet(architecture, gates, execution=execution, drop_path=drop_path)
        kind = Classifier if architecture.spec.num_classes else Maps
        with torch.inference_mode(False):
            return cls(backbone, kind.build(architecture.spec, {}))

    def forward(self, images: Tensor, *, routes: Routes | None = None, features: bool = False) -> TaskOutput:
        """Run the network.

        Args:
            images: (B, in_channels, H, W) normalised pixels. Any size that the coarsest rate fits in.
            routes: decisions to replay instead of asking the gates.
            features: also return each output map.

        Raises:
            SpecError: images that do not fit, or routes of other images.
        """
        output = self.backbone(images, routes=routes)
        head = self.head if routes is not None or self.deciding.held is None else self._head_over(output)
        return TaskOutput(head(output), output.maps if features else None, output.routes)

    def _head_over(self, output: RouteOutput) -> Head:
        """The head of the maps that there are: held gates may leave some out."""
        return head_over(self.head, tuple(output.maps))

    def as_module(self, output: Literal["logits", "outputs", "features"] = "outputs") -> PlainModule:
        """A plain module over the same weights: images → a tensor or a tuple of tensors.

        It is what torch.export, torch.onnx.export, torch.jit.trace, fvcore and Grad-CAM take. It computes in the
        network's own mode and execution; exporters and tracers want `eval()` and `dense`.

        Args:
            output: `outputs`, what the head gives: one tensor, or a tuple of several. `logits`, the same of a
                classifier. `features`, a tuple of the maps (B, C, H, W), fine to coarse.

        Raises:
            SpecError: another name, or `logits` of a network without a classifier.
        """
        if output == "features":
            return self.backbone.as_module()
        if output not in ("logits", "outputs"):
            raise SpecError(f"output: {output!r:.40} is not known; give logits, outputs or features")
        if output == "logits" and self.head.names != ("logits",):
            raise SpecError(f"output: this network gives {', '.join(self.head.names)}, no logits; give outputs")
        return PlainModule(self, self.head.names, several=False)

    def tensors(self, output: TaskOutput) -> tuple[Tensor, ...]:
        """What `forward` returned as tensors, one for each of the head's names."""
        return self.head.tensors(output.outputs)

    @property
    def architecture(self) -> Architecture:
        """What exists, and what is gated."""
        return self.backbone.architecture

    @property
    def spec(self) -> GridSpec:
        """The grid's spec."""
        return self.backbone.spec

    @property
    def edges(self) -> nn.ModuleDict:
        """Edge name → its module."""
        return self.backbone.edges

    @property
    def gates(self) -> nn.ModuleDict:
        """Edge name → its gate."""
        return self.backbone.gates

    @property
    def deciding(self) -> Deciding:
        """How gates decide, and how what they decide is computed; `decide` changes it."""
        return self.backbone.deciding

    def decide(self, **changes: Unpack[Changes]) -> Self:
        """`RouteNet.decide` of the backbone; returns self."""
        self.backbone.decide(**changes)
        return self

    @contextmanager
    def deciding_as(self, **changes: Unpack[Changes]) -> Iterator[Self]:
        """`RouteNet.deciding_as` of the backbone."""
        with self.backbone.deciding_as(**changes):
            yield self

    @property
    def gate_spec(self) -> GateSpec:
        """How the gated edges decide."""
        return self.backbone.gate_spec

    @property
    def execution(self) -> Execution:
        """`dense`, `packed` or `auto`."""
        return self.backbone.execution

    @property
    def compiled(self) -> bool:
        """Whether some blocks run compiled."""
        return self.backbone.compiled

    def update_gate_ema(self) -> None:
        """`RouteNet.update_gate_ema` of the backbone: call it after each optimiser step."""
        self.backbone.update_gate_ema()

    def compile_blocks(self, on: bool = True) -> TaskNet:
        """`RouteNet.compile_blocks` of the backbone; returns self."""
        self.backbone.compile_blocks(on)
        return self

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """`RouteNet.set_grad_checkpointing` of the backbone."""
        self.backbone.set_grad_checkpointing(enable)

    @checked
    def restrict(self, architecture: Architecture) -> TaskNet:
        """A TaskNet over the same weights, head included, for a part of this one's architecture.

        Raises:
            GridError: `architecture` is not a part of this network's.
        """
        part = TaskNet(self.backbone.restrict(architecture), view_of(self.head))
        part.training, part.head = self.training, head_over(view_of(self.head), architecture.output_rates)
        return part

    def gate_places(self, image_size: tuple[int, int] | torch.Size) -> Mapping[str, GatePlaces]:
        """Edge name → where its gate decides, for images of (H, W) pixels."""
        return self.backbone.gate_places(image_size)


class WithRest(nn.Module):
    """A network with what its task computes from its outputs (`Head.rest`), as counters run it.

    Args:
        net: the network, or any module, of which nothing more is known.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> tuple[Any, Any]:
        """Images → the network's output, and the rest."""
        output = self.net(images)
        return output, self.net.head.rest(output.outputs) if isinstance(self.net, TaskNet) else None


AnyNet = RouteNet | TaskNet


def backbone_of(net: AnyNet) -> RouteNet:
    """The backbone of a network, or the backbone that it is."""
    return net.backbone if isinstance(net, TaskNet) else net


def as_task_net(net: AnyNet) -> TaskNet:
    """The network itself; a bare backbone as one whose outputs are its maps, over the same weights."""
    return net if isinstance(net, TaskNet) else TaskNet(net, Maps(net.architecture.output_rates))


def head_over(head: Head, rates: Sequence[int]) -> Head:
    """What is left of a head over the maps of some rates; see `Head.over`. A module of one's own stays whole."""
    return head.over(rates) if isinstance(head, Head) else head


def present_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with the keys of today; those of a network that was saved as one module are renamed."""
    renamed = dict(state)
    _from_flat_keys(None, renamed, "")
    return renamed


def _from_flat_keys(net: nn.Module | None, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Rename the keys of a network that was saved before backbone and head were two modules, in place."""
    own = [key for key in state if key.startswith(prefix)]
    if any(key.startswith(prefix + BACKBONE) for key in own):
        return
    for key in own:
        name = key.removeprefix(prefix)
        if not name.startswith(HEAD):
            state[prefix + BACKBONE + name] = state.pop(key)
