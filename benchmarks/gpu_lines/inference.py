"""Lines of inference: dense against timm, routed against dense, graphs for small batches, SwinV2's windows."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from gpu_lines.clock import measure, recorded
from gpu_lines.line import Row, Run, Setting, Work
from gpu_lines.nets import (
    KEEPS,
    counted_share,
    draws,
    inference,
    inference_work,
    plain,
    routed,
    running,
    timms,
)
from routespace import GateSpec, TaskNet

DENSE_BATCH = 512
ROUTED_GOALS = {0.5: 1.6, 0.25: 2.6}
DENSE_GOAL, DENSE_IMAGES_PER_S = 1.15, 18_000.0
GRAPH_BATCHES = (8, 1)
SWIN_BATCH, SWIN_WINDOW = 256, 8


def rows_of(runs: dict[str, Run], setting: Setting, *, batch: int, works: dict[str, Work]) -> dict[str, Row]:
    """Time runs of a batch."""
    return {
        name: Row(name, took.ms, batch, works.get(name), memory_mb=took.memory_mb, error=took.error)
        for name, took in measure(runs, setting).items()
    }


def against(rows: dict[str, Row], name: str, other: str | None, least: float | None = None) -> None:
    """Tell a row's speed-up over another one, and the least that is aimed at."""
    row, base = rows.get(name), rows.get(other or "")
    if row is None:
        return
    row.against = other
    if base is not None and base.ms and row.ms:
        row.speedup = base.ms / row.ms
    if least is not None:
        row.goal["speedup"] = least


def fastest(rows: dict[str, Row], names: Iterator[str] | list[str]) -> str | None:
    """The name of the fastest of some rows."""
    took = {name: rows[name].ms for name in names if name in rows and rows[name].ms}
    return min(took, key=lambda name: took[name] or 0.0) if took else None


def dense(setting: Setting) -> list[Row]:
    """PVTv2-b2 against timm's, both compiled and both not."""
    grid, (batch,) = setting.grid(), setting.batches(DENSE_BATCH)
    ours, theirs = plain(grid, setting), timms(grid, setting)
    images = setting.images(grid, batch).to(setting.dtype)
    last = images.contiguous(memory_format=torch.channels_last)
    runs = {
        "dense eager": running(ours, images, compiled=False),
        "timm eager": inference(lambda: theirs(images)),
    }
    if setting.compiled:
        called = torch.compile(theirs)
        runs |= {
            "dense compiled": running(ours, images, compiled=True),
            "dense compiled, channels-last images": running(ours, last, compiled=True),
            "timm compiled": inference(lambda: called(images)),
        }
    work = inference_work(ours, setting, batch)
    rows = rows_of(runs, setting, batch=batch, works=dict.fromkeys(runs, work))
    against(rows, "dense eager", "timm eager")
    for name in ("dense compiled", "dense compiled, channels-last images"):
        against(rows, name, "timm compiled", DENSE_GOAL)
        if name in rows:
            rows[name].goal["images_per_s"] = DENSE_IMAGES_PER_S
    return list(rows.values())


def whole(setting: Setting) -> list[Row]:
    """The static network compiled as a whole, as `torch.compile(net)` does it, against its compiled blocks."""
    grid, (batch,) = setting.grid(), setting.batches(DENSE_BATCH)
    net = plain(grid, setting)
    images = setting.images(grid, batch).to(setting.dtype)
    runs = {"dense": running(net, images, compiled=setting.compiled)}
    if setting.compiled:
        called = torch.compile(net.as_module())
        runs["dense, compiled whole"] = inference(lambda: called(images))
    rows = rows_of(runs, setting, batch=batch, works=dict.fromkeys(runs, inference_work(net, setting, batch)))
    against(rows, "dense, compiled whole", "dense")
    return list(rows.values())


def routing(setting: Setting, batch: int = DENSE_BATCH) -> list[Row]:
    """PVTv2-b2 with gated rows and known shares of tokens, against the same one dense and compiled."""
    grid, (batch,) = setting.grid(), setting.batches(batch)
    base, net = plain(grid, setting), routed(grid, setting, GateSpec())
    images = setting.images(grid, batch).to(setting.dtype)
    runs = {"dense eager": running(base, images, compiled=False)}
    if setting.compiled:
        runs["dense compiled"] = running(base, images, compiled=True)
    work = inference_work(base, setting, batch)
    works = dict.fromkeys(runs, work)
    for keep in KEEPS:
        routes = draws(net, images, keep)
        made = {f"packed eager, keep {keep}": running(net, images, compiled=False, routes=routes)}
        if setting.compiled:
            made[f"packed compiled, keep {keep}"] = running(net, images, compiled=True, routes=routes)
        runs |= made
        works |= dict.fromkeys(made, work.scaled(counted_share(net, routes)))
    rows = rows_of(runs, setting, batch=batch, works=works)
    best = fastest(rows, ["dense eager", "dense compiled"])
    for keep in KEEPS:
        for how in ("eager", "compiled"):
            against(rows, f"packed {how}, keep {keep}", best, ROUTED_GOALS[keep])
    return list(rows.values())


def graphs(setting: Setting) -> list[Row]:
    """Small batches as CUDA graphs: `capacity` keeps equal shares of each image, decided inside the graph."""
    found: list[Row] = []
    for batch in setting.batches(*GRAPH_BATCHES):
        grid = setting.grid()
        base, images = plain(grid, setting), setting.images(grid, batch).to(setting.dtype)
        nets = {f"capacity {keep}": routed(grid, setting, GateSpec(capacity=True, keep=keep)) for keep in KEEPS}
        runs: dict[str, Run] = {f"dense, no graph, B={batch}": running(base, images, compiled=False)}
        for how in ("eager", "compiled")[: 1 + setting.compiled]:
            for name, net in {"dense": base, **nets}.items():
                runs[f"{name} {how}, graph, B={batch}"] = _lazily_recorded(net, images, how, setting)
        work = inference_work(base, setting, batch)
        dense_names = [name for name in runs if name.startswith("dense")]
        rows = rows_of(runs, setting, batch=batch, works=dict.fromkeys(dense_names, work))
        best = fastest(rows, dense_names)
        for name in runs:
            if name.startswith("capacity"):
                against(rows, name, best, 1.0)
        found += rows.values()
    return found


def _lazily_recorded(net: TaskNet, images: torch.Tensor, how: str, setting: Setting) -> Run:
    """A graph that is recorded at the first call, so that one that cannot be does not stop the others."""
    made: list[Run] = []

    def run() -> object:
        if not made:
            made.append(recorded(running(net, images, compiled=how == "compiled"), setting.device))
        return made[0]()

    return run


def swin(setting: Setting) -> list[Row]:
    """SwinV2-T whose windows are kept or skipped, against the same one dense, and timm's."""
    grid, (batch,) = setting.grid("swin_v2_t"), setting.batches(SWIN_BATCH)
    gates = GateSpec(rows="window", window=SWIN_WINDOW)
    base, net, theirs = plain(grid, setting), routed(grid, setting, gates), timms(grid, setting)
    images = setting.images(grid, batch).to(setting.dtype)
    runs = {
        "swin_v2 dense": running(base, images, compiled=False),
        "swin_v2 timm": inference(lambda: theirs(images)),
    }
    work = inference_work(base, setting, batch)
    works = dict.fromkeys(runs, work)
    for keep in KEEPS:
        routes = draws(net, images, keep)
        runs[f"swin_v2 packed, keep {keep}"] = running(net, images, compiled=False, routes=routes)
        works[f"swin_v2 packed, keep {keep}"] = work.scaled(counted_share(net, routes))
    rows = rows_of(runs, setting, batch=batch, works=works)
    for name in rows:
        against(rows, name, "swin_v2 dense" if "packed" in name else "swin_v2 timm")
    return list(rows.values())
