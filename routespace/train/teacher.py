"""A teacher: a trained network that tells soft labels of the images that another one is trained on.

    teacher = make_teacher("runs/big", like=preprocess, classes=names, size=(64, 64), device=device)
    teacher(images)                        # (B, K) logits in the order of our classes

What it is fed with: the student's training images as they are after augmentation, brought to the teacher's own
normalisation and size. What it answers: its classes by name, where both sides have names; else by place.

Shape legend: B images · C channels · H, W pixels · K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from routespace.errors import DataError, RoutespaceError, SpecError
from routespace.nn.cost import network_cost
from routespace.nn.task_net import TaskNet, TaskOutput
from routespace.nn.weights import load_net
from routespace.preprocess import Preprocess, load_preprocess
from routespace.train.data.source import Source
from routespace.train.given_weights import TEACHER_HINT, missing, network_folder
from routespace.train.pretrained import timm_network
from routespace.train.recipe.parts import SELF, TIMM
from routespace.train.recipe.recipe import Recipe
from routespace.train.start import weights_digest

FLOPS_OF_A_MAC = 2  # torch counts the multiplication and the addition


@dataclass(frozen=True)
class Feeding:
    """How a student's images become a teacher's: x·factor + shift, then another size where there is one.

    Attributes:
        factor, shift: (1, C, 1, 1).
        size: height and width in pixels; None for the student's.
        zoom: of a teacher that takes pictures of any shape, how much larger it sees them than the student does;
            images keep their shape.
    """

    factor: Tensor
    shift: Tensor
    size: tuple[int, int] | None
    zoom: float = 1.0

    @classmethod
    def between(cls, ours: Preprocess, theirs: Preprocess, size: tuple[int, int], device: torch.device) -> Feeding:
        """From images of `size` that are normalised as ours are to those of a teacher.

        Raises:
            SpecError: images of other channels.
        """
        if ours.channels != theirs.channels:
            raise SpecError(
                f"it reads images of {theirs.channels} channels, the recipe has {ours.channels}; give another"
            )
        mean, std = (torch.tensor(part, device=device).view(1, -1, 1, 1) for part in (ours.mean, ours.std))
        their_mean, their_std = (
            torch.tensor(part, device=device).view(1, -1, 1, 1) for part in (theirs.mean, theirs.std)
        )
        numbers = std / their_std, (mean - their_mean) / their_std
        if theirs.fit == "inside":  # a greatest size: what is trained on are windows of pictures
            return cls(*numbers, None, min(theirs.size) / min(ours.size))
        return cls(*numbers, None if theirs.size == size else theirs.size)

    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, H, W) → the same images as the teacher wants them."""
        fed = images * self.factor + self.shift
        height, width = fed.shape[-2:]
        size = self.size or (round(height * self.zoom), round(width * self.zoom))
        if size == (height, width):
            return fed
        return F.interpolate(fed, size, mode="bilinear", antialias=True, align_corners=False)


class Teacher:
    """A trained network as a teacher. It is no module: nothing of it is trained, saved or put in another mode.

    Attributes:
        net: in evaluation mode, without gradients.
        line: on what it is and costs, for people.
        macs: MACs of one image, at most; what a teacher with gates skips is not taken off.
        size: (H, W) in pixels of the images that it wants; None where it takes those of any.
    """

    def __init__(
        self,
        net: nn.Module,
        feeding: Feeding,
        order: Tensor | None,
        *,
        line: str,
        macs: int,
        size: tuple[int, int] | None = None,
        pixels: bool = False,
    ) -> None:
        self.net, self.line, self.macs, self.size = net, line, macs, size
        self._feeding, self._order, self._pixels = feeding, order, pixels

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in the student's normalisation → logits (B, K), or (B, K, h, w), of its classes."""
        logits = logits_of(self.net(self._feeding(images)), pixels=self._pixels)
        return logits if self._order is None else logits.index_select(1, self._order)

    @cached_property
    def digest(self) -> str:
        """Of its weights: a run that goes on must have the same teacher."""
        return weights_digest(self.net)


def teacher_of(recipe: Recipe, source: Source, device: torch.device) -> Teacher | None:
    """The recipe's teacher from outside the network, where there is one; raises as `make_teacher`."""
    name = recipe.train.teacher
    if name is None or name == SELF:
        return None
    size = recipe.grid.image_size
    pixels = recipe.task.target == "pixels"
    return make_teacher(
        name, like=source.preprocess, classes=source.classes, size=size, device=device, pixels=pixels
    )


def logits_of(output: Any, *, pixels: bool = False) -> Tensor:
    """(B, K), or (B, K, h, w) of pixels, of whatever a network gave; raises SpecError for anything else."""
    found = output.outputs if isinstance(output, TaskOutput) else output
    if not isinstance(found, Tensor) or found.ndim != (4 if pixels else 2):
        what, wanted = ("pixels", "a network of task 'semantic'") if pixels else ("classes", "a classifier")
        raise SpecError(f"it gives no logits of {what}; give {wanted}")
    return found


def make_teacher(
    source: str,
    *,
    like: Preprocess,
    classes: Sequence[str],
    size: tuple[int, int],
    device: torch.device,
    pixels: bool = False,
) -> Teacher:
    """Load a teacher.

    Args:
        source: `timm:NAME`, or the folder of a run or bundle.
        like: how the student's images are normalised.
        classes: the student's, in the order of its outputs.
        size: height and width of its training images.
        device: where both compute.
        pixels: it has to tell classes of pixels.

    Raises:
        SpecError: no such network, none that tells classes, other channels, or other classes than ours, without
            names.
        BundleError: it cannot be read or fetched.
        DataError: it does not know one of the classes.
    """
    try:
        net, theirs, names = _timm(source) if source.startswith(TIMM) else _folder(Path(source).expanduser())
        net = net.eval().requires_grad_(False).to(device)
        if theirs is None:  # saved before networks kept theirs
            theirs = like if like.fit == "inside" else like.model_copy(update={"size": size})
        feeding = Feeding.between(like, theirs, size, device)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            blank = feeding(torch.zeros(1, len(like.mean), *size, device=device))
            outputs = logits_of(net(blank), pixels=pixels).shape[1]
        fed = blank.shape[-2], blank.shape[-1]
        order = _order(classes, names, outputs)
    except RoutespaceError as error:
        raise type(error)(f"train.teacher: {source}: {error}") from error
    macs = counter.get_total_flops() // FLOPS_OF_A_MAC
    if isinstance(net, TaskNet):
        macs = int(network_cost(net, image_size=fed).macs)
    by = "classes by place, as it has no names" if names is None else "classes by name"
    shown = f"{fed[0]}x{fed[1]} px"
    line = f"teacher: {source}, {macs / 1e6:.4g} MMACs an image of {shown} on top of the network's own; {by}"
    index = None if order is None else torch.tensor(order, device=device)
    own_size = None if theirs.fit == "inside" else fed
    return Teacher(net, feeding, index, line=line, macs=macs, size=own_size, pixels=pixels)


Loaded = tuple[nn.Module, Preprocess | None, tuple[str, ...] | None]


def _timm(source: str) -> Loaded:
    net = timm_network(source)
    config: dict[str, Any] = getattr(net, "pretrained_cfg", {})
    channels, height, width = config.get("input_size", (3, 224, 224))
    fed = {"size": (height, width), "channels": channels, "mean": config.get("mean"), "std": config.get("std")}
    return net, Preprocess.parse(fed), None


def _folder(path: Path) -> Loaded:
    place = network_folder(path)
    if place is None:
        raise SpecError(f"{missing(path)}; {TEACHER_HINT}")
    net = load_net(place)
    own = path if path.is_dir() else path.parent
    found = load_preprocess(own) or load_preprocess(own.parent)
    if found is None:
        return net, None, None
    preprocess, names = found
    return net, preprocess, names or None


def _order(classes: Sequence[str], names: Sequence[str] | None, outputs: int) -> list[int] | None:
    """The teacher's output for each class of ours; None where they are in the same order."""
    if names is None:
        if outputs != len(classes):
            raise SpecError(f"it tells {outputs} classes without names, the data has {len(classes)}; give another")
        return None
    unknown = [name for name in classes if name not in names]
    if unknown:
        raise DataError(
            f"it does not know the class {unknown[0]!r:.60} ({len(unknown)} of {len(classes)} are unknown); give "
            f"a teacher of these classes"
        )
    order = [names.index(name) for name in classes]
    return None if order == list(range(outputs)) else order
