"""What a training takes of the memory, told before it starts; and the largest batch that fits.

need = recipe_need(recipe, architecture)     bytes, by what they are for; nothing is computed
need.of_batch(64), need.most_images(free_memory(device))
chosen_batch(need, free, images=…)           what `train.batch_size: auto` takes

What a pass keeps for its backward pass is not guessed: the network runs on tensors without content, and what
autograd would keep is added up. Gates are open then: the most that they can ask for. One pass tells what is kept
for each image and what for the whole batch, since its batch has more images than the latter has bytes.

Shape legend: B images · C channels · H, W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from routespace.errors import SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.gate_spec import GateSpec
from routespace.memory import bytes_text, free_bytes
from routespace.nn.drawing import undrawn
from routespace.nn.families.base import Stage
from routespace.nn.route_net import RouteNet
from routespace.nn.task_net import TaskNet, WithRest
from routespace.train.recipe.parts import TrainSpec
from routespace.train.recipe.recipe import Recipe
from routespace.train.tasks.base import Task

MARGIN = 0.25  # of the free memory is left alone: buffers of libraries, the data's workers, fragments
MOST_IMAGES = 1024  # of a step: beyond it batches gain no speed, and learning suffers
LEAST_STEPS = 8  # of an epoch, as far as the images go
MOMENTS = 2  # that AdamW keeps of each learned number
WORKING_MAPS = 5  # of the largest kept one's size: gradients that a backward pass holds at a time
MANY_IMAGES = 1 << 30  # what is kept once for a batch has fewer bytes; one image's may have eight times as many
UNCOUNTING = {"routespace", "torch", "torchvision", "segmentation_models_pytorch"}  # no module loops over images


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes that a training takes in one process.

    Attributes:
        weights: parameters and buffers.
        gradients: of what is learned.
        optimiser: AdamW's moments.
        average: the moving average of the weights (`train.ema_decay`).
        shared: kept for the backward pass once for a whole batch: copies of weights in lower precision, tables.
        activations_per_image: kept for the backward pass, for each image of a batch; where edges are computed
            again (`train.grad_checkpointing`), with what the largest of them needs then.
        working_per_image: what the backward pass holds at a time beside that.
    """

    weights: int
    gradients: int
    optimiser: int
    average: int
    shared: int
    activations_per_image: int
    working_per_image: int

    @property
    def fixed(self) -> int:
        """What a batch of any size takes."""
        return self.weights + self.gradients + self.optimiser + self.average + self.shared

    @property
    def per_image(self) -> int:
        """What each image of a batch takes."""
        return self.activations_per_image + self.working_per_image

    def of_batch(self, images: int) -> int:
        """Bytes of a training with batches of so many images."""
        return self.fixed + images * self.per_image

    def most_images(self, free: int) -> int:
        """The largest batch that fits into `free` bytes, of which a quarter stays free."""
        return max(0, int((1 - MARGIN) * free - self.fixed) // self.per_image)

    def text(self, batch: int | None = None, free: int | None = None) -> str:
        """One line for people.

        Args:
            batch: images of a step, in one process.
            free: bytes that are free.
        """
        kept = sum((self.optimiser, self.average))
        line = (
            f"weights {bytes_text(self.weights)}, gradients {bytes_text(self.gradients)}, optimiser "
            f"{bytes_text(kept)}, {bytes_text(self.per_image)} for each image"
        )
        if batch is not None:
            line += f"; {bytes_text(self.of_batch(batch))} with batches of {batch}"
        if free is not None:
            line += f"; {bytes_text(free)} are free, for batches of up to {self.most_images(free)}"
        return line


def recipe_need(
    recipe: Recipe,
    architecture: Architecture,
    *,
    size: tuple[int, int] | None = None,
    device: str = "cpu",
    processes: int = 1,
) -> MemoryNeed:
    """What training an architecture by a recipe takes; see `training_need`."""
    task = recipe.task.make(recipe.grid, recipe.train)
    return training_need(
        architecture,
        recipe.train,
        gates=recipe.gates,
        task=task,
        size=size,
        device=device,
        processes=processes,
    )


def training_need(
    architecture: Architecture,
    spec: TrainSpec,
    *,
    gates: GateSpec | None = None,
    task: Task | None = None,
    size: tuple[int, int] | None = None,
    device: str = "cpu",
    processes: int = 1,
) -> MemoryNeed:
    """What training a network takes, in each process.

    Args:
        architecture: of the network.
        spec: precision, checkpointing, moving average.
        gates: how its gated edges decide; the default without it.
        task: whose head stands on it; a classifier without it.
        size: (H, W) of the pictures; the grid's own without it.
        device: kind of device that it will be trained on.
        processes: that train together; each keeps a second copy of the gradients if there are several.

    Raises:
        SpecError: what a pass takes depends on the content of its images.
    """
    with torch.device("meta"), undrawn():
        # Packed execution with everything kept takes the same, but looks at its masks.
        backbone = RouteNet(architecture, gates, execution="dense", drop_path=spec.drop_path)
        head = TaskNet.classifier(architecture, gates).head if task is None else task.head(architecture.spec)
        net = TaskNet(backbone, head).train()
    weights = sum(_bytes(tensor) for tensor in (*net.parameters(), *net.buffers()))
    learned = sum(_bytes(parameter) for parameter in net.parameters() if parameter.requires_grad)
    low = spec.precision != "no"
    hw = architecture.spec.image_size if size is None else size
    kept = whole = _kept(net, device, hw=hw, low=low)
    again = 0  # what an edge that is computed again keeps, and as much for its gradients
    if spec.grad_checkpointing:
        net.set_grad_checkpointing()
        kept, again = _kept(net, device, hw=hw, low=low), 2 * whole.largest_stage
    return MemoryNeed(
        weights=weights,
        gradients=learned * (2 if processes > 1 else 1),
        optimiser=MOMENTS * learned,
        average=weights if spec.ema_decay else 0,
        shared=kept.shared,
        activations_per_image=kept.each + again,
        working_per_image=WORKING_MAPS * whole.largest,
    )


@dataclass
class Kept:
    """What a forward pass keeps for its backward pass, in bytes.

    Attributes:
        each: for each image.
        shared: once for a whole batch.
        largest: of the largest tensor of one image.
        largest_stage: of the transformer edge that keeps most of one image.
    """

    each: int = 0
    shared: int = 0
    largest: int = 0
    largest_stage: int = 0


def _kept(net: TaskNet, device: str, *, hw: tuple[int, int], low: bool) -> Kept:
    """What a pass keeps: by one pass of many images, or by two of few where somebody's module may count them."""
    if all(type(part).__module__.partition(".")[0] in UNCOUNTING for part in net.modules()):
        return _pass(net, MANY_IMAGES, device, hw=hw, low=low, unit=MANY_IMAGES)
    one, two = (_pass(net, images, device, hw=hw, low=low, unit=1) for images in (1, 2))
    each = two.each - one.each
    return replace(one, each=each, shared=one.each - each)


def _pass(net: TaskNet, images: int, device: str, *, hw: tuple[int, int], low: bool, unit: int) -> Kept:
    """What a forward pass of some images keeps, found on tensors without content.

    Of each tensor's bytes a multiple of `unit` is taken for the images', and the remainder for the batch's.
    """
    found = Kept()
    held: dict[int, Tensor] = {}  # one tensor of each storage, so that no other takes its address
    starts: dict[nn.Module, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in held:
            held[storage._cdata] = tensor
            each, shared = divmod(storage.nbytes(), unit)
            found.each += each
            found.shared += shared
            found.largest = max(found.largest, each + shared)
        return tensor

    def begin(stage: nn.Module, _: object) -> None:
        starts[stage] = found.each + found.shared

    def end(stage: nn.Module, *_: object) -> None:
        found.largest_stage = max(found.largest_stage, found.each + found.shared - starts[stage])

    stages = [part for part in net.modules() if isinstance(part, Stage)]
    handles = [stage.register_forward_pre_hook(begin) for stage in stages]
    handles += [stage.register_forward_hook(end) for stage in stages]
    try:
        with torch.random.fork_rng(devices=[]), FakeTensorMode(), torch.enable_grad():
            run = WithRest(net)
            state = {name: _like(tensor, device) for name, tensor in _tensors(run)}
            held.update((tensor.untyped_storage()._cdata, tensor) for tensor in state.values())
            shape = images, net.spec.in_channels, *hw
            batch = torch.empty(shape, device=device)
            with (
                torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept),
                torch.autocast(device, dtype=torch.bfloat16, enabled=low),
            ):
                functional_call(run, state, (batch,))
    except (RuntimeError, NotImplementedError) as error:
        raise SpecError(
            f"memory: what this network takes cannot be told beforehand ({str(error).splitlines()[0]:.80}); "
            f"give train.batch_size as a number"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return found


def _tensors(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from net.named_parameters()
    yield from net.named_buffers()


def _like(tensor: Tensor, device: str) -> Tensor:
    """A tensor without content on a device, with the shape, layout and type of another."""
    made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    return made.requires_grad_(tensor.requires_grad)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def free_memory(device: torch.device, processes: int = 1) -> int | None:
    """Bytes that a training may take: of a GPU its own, of a CPU this process's share; None where nobody knows.

    Args:
        device: of the training.
        processes: that train together on this machine.
    """
    if device.type != "cuda":
        free = free_bytes()
        return None if free is None else free // processes
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def chosen_batch(
    need: MemoryNeed, free: int | None, *, images: int, processes: int = 1, even: bool = False
) -> int:
    """What `train.batch_size: auto` takes: images of a step, all processes together.

    For each process it is the largest power of two that fits; that leaves an epoch LEAST_STEPS steps, as far as
    there are images for that; and of which all processes together take at most MOST_IMAGES. A power of two is the
    same on machines that have about the same memory.

    Args:
        need: of one process.
        free: bytes that a process may take; None where nobody knows.
        images: to train with.
        processes: that train together.
        even: each process needs an even number, as mixup does.

    Raises:
        SpecError: not one image fits, or there are too few of them.
    """
    least = 2 if even else 1
    fit = MOST_IMAGES if free is None else need.most_images(free)
    if fit < least:
        assert free is not None
        raise SpecError(
            f"train.batch_size: not even a batch of {least} fits: it takes {bytes_text(need.of_batch(least))}, "
            f"and of the {bytes_text(free)} that are free a quarter is left alone; set "
            f"train.grad_checkpointing=true, or take a smaller grid or image"
        )
    each = max(least, min(fit, MOST_IMAGES // processes, images // LEAST_STEPS // processes))
    return processes * (1 << (each.bit_length() - 1))
