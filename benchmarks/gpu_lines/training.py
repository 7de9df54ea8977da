"""Lines of training: a path, routed paths, and the whole supernet with soft gates."""

from __future__ import annotations

from itertools import cycle

import timm
import torch

from gpu_lines.clock import is_fatal, measure, release
from gpu_lines.inference import against, fastest, rows_of
from gpu_lines.line import Row, Run, Setting, Work
from gpu_lines.nets import COUNTED, KEEPS, TIMM, counted_share, draws, training
from gpu_lines.work import work_of
from routespace import Architecture, GateSpec, GridSpec, Routes, RoutingGrid, TaskNet

PATH_BATCHES = (256, 128)
PATH_IMAGES_PER_S, SUPERNET_IMAGES_PER_S = 4500.0, 650.0
SUPERNET_LAYERS = 24
PLAIN_BATCHES, CHECKPOINTED_BATCHES = (64, 48, 32, 16), (128, 64)


def step(
    net: TaskNet,
    setting: Setting,
    batch: int,
    *,
    routes: list[Routes] | None = None,
    optimised: bool = True,
    recorded: bool = False,
) -> Run:
    """A training step of a batch, in turn with each of the given decisions; or recorded, with the gates' own."""
    images, turn = setting.images(net.architecture.grid, batch), cycle(routes or [None])

    def forward(x: torch.Tensor) -> torch.Tensor:
        return net(x, routes=next(turn)).logits

    return training(net, forward, images, setting, optimised=optimised, recorded=recorded)


def step_work(net: TaskNet, setting: Setting, batch: int) -> Work:
    """The work of a step of a network that computes everything, without the optimiser's."""
    run = step(net, setting, COUNTED, optimised=False)
    return work_of(run, net, counted=COUNTED, batch=batch, training=True)


def path(setting: Setting) -> list[Row]:
    """PVTv2-b2: eager and compiled, timm's, and routed at known shares."""
    grid = setting.grid()
    (batch, *_) = setting.batches(*PATH_BATCHES)
    base = TaskNet.classifier(Architecture.staircase(grid)).to(setting.device).train()
    work = step_work(base, setting, batch)
    theirs = timm.create_model(TIMM["pvt_v2"][setting.rehearse]).to(setting.device).train()
    images = setting.images(grid, batch)
    alone = TaskNet.classifier(base.architecture).to(setting.device).train()  # its gradients stay where they are
    runs = {
        "train dense, graph": step(alone, setting, batch, recorded=True),
        "train dense eager": step(base, setting, batch),
        "train timm eager": training(theirs, theirs, images, setting),
    }
    if setting.compiled:
        again = TaskNet.classifier(base.architecture).to(setting.device).train().compile_blocks()
        runs["train dense compiled"] = step(again, setting, batch)
    masked = TaskNet.classifier(Architecture.routed(grid, "depth"), GateSpec()).to(setting.device).train()
    runs["train masked, graph"] = step(masked, setting, batch, recorded=True)
    works = dict.fromkeys(runs, work)
    for keep in KEEPS:
        net = TaskNet.classifier(Architecture.routed(grid, "depth"), GateSpec(), execution="packed")
        net = net.to(setting.device).train().compile_blocks(setting.compiled)
        routes, name = draws(net, images, keep), f"train packed, keep {keep}"
        runs[name] = step(net, setting, batch, routes=routes)
        works[name] = work.scaled(counted_share(net, routes))
    rows = rows_of(runs, setting, batch=batch, works=works)
    best = fastest(rows, ["train dense, graph", "train dense eager", "train dense compiled"])
    for name in ("train dense, graph", "train masked, graph", "train dense eager", "train dense compiled"):
        against(rows, name, "train timm eager")
    if best:
        rows[best].goal["images_per_s"] = PATH_IMAGES_PER_S
    for keep in KEEPS:
        against(rows, f"train packed, keep {keep}", best)
    return list(rows.values())


def supernet(setting: Setting) -> list[Row]:
    """A grid of 24 layers and four rates in b2's widths, every edge computed and scaled by its soft gate."""
    layers, size, side = (3, "b0", 64) if setting.rehearse else (SUPERNET_LAYERS, "b2", 224)
    grid = RoutingGrid(GridSpec(layers=layers, max_down=32, size=size, image_size=side))
    # `auto` finds that everything is kept and runs whole blocks, which the reference mode would mask.
    gates = GateSpec(relaxation="soft", columns="token")
    net = TaskNet.classifier(Architecture.full(grid), gates, execution="auto").to(setting.device).train()
    work = step_work(net, setting, 1)
    net.compile_blocks(setting.compiled)
    found = []
    lines = (
        ("supernet, graph", False, True, PLAIN_BATCHES),
        ("supernet", False, False, PLAIN_BATCHES),
        ("supernet, checkpointed", True, False, CHECKPOINTED_BATCHES),
    )
    for name, checkpointed, recorded, batches in lines:
        net.set_grad_checkpointing(checkpointed)
        row = _first_that_fits(name, net, setting, setting.batches(*batches), recorded=recorded)
        row.work = work.scaled(row.batch)
        row.goal["images_per_s"] = SUPERNET_IMAGES_PER_S
        found.append(row)
    return found


def _first_that_fits(
    name: str, net: TaskNet, setting: Setting, batches: tuple[int, ...], *, recorded: bool
) -> Row:
    """The row of the first batch size that the device has room for."""
    row = Row(name)
    for batch in batches:
        try:
            took = measure({name: step(net, setting, batch, recorded=recorded)}, setting)[name]
        except torch.cuda.OutOfMemoryError as error:
            if is_fatal(error):
                raise
            release()
            continue
        row = Row(name, took.ms, batch, memory_mb=took.memory_mb, error=took.error)
        if took.error is None or "OutOfMemory" not in took.error:
            break
        net.zero_grad(set_to_none=True)
        release()
    return row
