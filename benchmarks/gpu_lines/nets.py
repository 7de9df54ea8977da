"""The networks that the lines run, and what a call of them is."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle

import timm
import torch

from gpu_lines.line import Run, Setting, Work
from gpu_lines.work import work_of
from routespace import Architecture, GateSpec, Routes, RoutingGrid, TaskNet, architecture_cost
from routespace.grid.usage import EdgeUsage
from routespace.train.recording import SAME, CudaTape

COUNTED = 2  # images that work is counted with
DRAWS = 3  # different decisions that a routed run goes through
KEEPS = (0.5, 0.25)
TIMM = {"pvt_v2": ("pvt_v2_b2", "pvt_v2_b0"), "swin_v2": ("swinv2_tiny_window8_256",) * 2}
FIRST_CLASS, LEARNING_RATE = 0, 1e-4


def plain(grid: RoutingGrid, setting: Setting) -> TaskNet:
    """The staircase without gates, in half precision, for inference."""
    return TaskNet.classifier(Architecture.staircase(grid)).eval().to(setting.device, setting.dtype)


def routed(grid: RoutingGrid, setting: Setting, gates: GateSpec) -> TaskNet:
    """The staircase with gated rows, computed packed, in half precision, for inference."""
    net = TaskNet.classifier(Architecture.routed(grid, "depth"), gates, execution="packed")
    return net.eval().to(setting.device, setting.dtype)


def timms(grid: RoutingGrid, setting: Setting) -> torch.nn.Module:
    """timm's network of the same size, in half precision, for inference."""
    name = TIMM[grid.spec.family.name][setting.rehearse]
    sized = {"img_size": grid.spec.image_size} if grid.spec.family.name == "swin_v2" else {}
    return timm.create_model(name, **sized).eval().to(setting.device, setting.dtype)


def inference(call: Callable[[], object]) -> Run:
    """A call without gradients."""

    def run() -> object:
        with torch.inference_mode():
            return call()

    return run


def running(net: TaskNet, images: torch.Tensor, *, compiled: bool, routes: list[Routes] | None = None) -> Run:
    """Inference of a batch, in turn with each of the given decisions."""
    view = net.restrict(net.architecture)  # over the same weights, with compiled blocks or without them
    if compiled:
        view.compile_blocks()
    turn = cycle(routes or [None])
    return inference(lambda: view(images, routes=next(turn)).logits)


def draws(net: TaskNet, images: torch.Tensor, keep: float) -> list[Routes]:
    """Random decisions at a known share, as different images would bring them."""
    return [Routes.random(net, images, keep=keep, seed=seed) for seed in range(DRAWS)]


def counted_share(net: TaskNet, routes: list[Routes]) -> float:
    """The share of a network's MACs that decisions pay for, by the cost model."""
    shares = []
    for one in routes:
        usage = {name: EdgeUsage(*map(float, used)) for name, used in one.usage().items()}
        shares.append(float(architecture_cost(net.architecture, usage=usage).macs))
    whole = float(architecture_cost(net.architecture.opened()).macs)
    return sum(shares) / len(shares) / whole


def inference_work(net: TaskNet, setting: Setting, batch: int) -> Work:
    """The work of a batch with everything computed."""
    images = setting.images(net.architecture.grid, COUNTED).to(setting.dtype)
    return work_of(running(net, images, compiled=False), net, counted=COUNTED, batch=batch)


def training(
    net: torch.nn.Module,
    forward: Callable[[torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    setting: Setting,
    *,
    optimised: bool = True,
    recorded: bool = False,
) -> Run:
    """A whole training step: forward in autocast, cross-entropy, backward, AdamW; gradients as a graph or not."""
    targets = torch.full((len(images),), FIRST_CLASS, device=setting.device)
    fused = setting.device.type == "cuda"
    optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, fused=fused) if optimised else None

    def gradients() -> torch.Tensor:
        net.zero_grad(set_to_none=True)
        with torch.autocast(setting.device.type, setting.dtype):
            loss = torch.nn.functional.cross_entropy(forward(images).float(), targets)
        loss.backward()
        return loss.detach()

    compute = replayed(gradients, setting.device) if recorded else gradients

    def run() -> object:
        loss = compute()
        if optimizer is not None:
            optimizer.step()
        return loss

    return run


def replayed(gradients: Callable[[], torch.Tensor], device: torch.device) -> Callable[[], torch.Tensor]:
    """The same as a CUDA graph, recorded at the first call as training does it; on a CPU itself."""
    if device.type != "cuda":
        return gradients
    tape, made = CudaTape(device), list[tuple[torch.Tensor, Callable[[], None]]]()

    def call() -> torch.Tensor:
        if not made:
            for _ in range(SAME):
                tape.live(gradients)
            made.append(tape.record(gradients))
        loss, replay = made[0]
        replay()
        return loss

    return call
