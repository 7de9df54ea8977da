"""Real speed of untrained networks, a coin choosing the tokens that are computed: with and without the head.

`large` is RetinaNet over B1 at the size of photographs, half of each row's tokens computed; `light` is a recipe's
network at the recipe's budget.
"""

from __future__ import annotations

from statistics import median
from typing import Any

import torch

from routespace.nn.route_net import RouteNet
from routespace.nn.running import now
from routespace.nn.task_net import TaskNet
from routespace.nn.usage import UsageMeter
from routespace.recipes import load_recipe
from routespace.train.macs import counted_macs
from routespace.train.recipe.recipe import Recipe
from routespace.train.shares import RowShares

ROUNDS = 9
A_COIN: dict[str, Any] = {"selection": "random", "source": "own", "opening": "threshold", "teach": "none"}


def large(px: int, keep: float = 0.5) -> dict[str, float]:
    """Times of a routed network over those of all tokens, and the same by MACs.

    Args:
        px: side of the image.
        keep: share of tokens that a coin computes.
    """
    wanted = {"grid.preset": "dit_b1", "grid.image_size": px, "routing": "depth"}
    recipe = load_recipe("dit_b2_coco_retinanet_1x").override(wanted)
    return {"px": px, "keep": keep, **timed(recipe, keep, images=1)}


def light(recipe: Recipe, images: int = 8) -> dict[str, float]:
    """The same of a recipe's network, with the share of tokens that meets its budget.

    Args:
        recipe: whose gates open shares.
        images: of a batch.
    """
    target = recipe.budget_macs()
    shares = RowShares.of(recipe, recipe.architecture(), target)
    assert shares is not None
    assert target is not None
    keep = (target - shares.fixed) / sum(shares.routed.values())
    return {"px": min(recipe.grid.image_size), "keep": keep, **timed(recipe, keep, images=images)}


@torch.inference_mode()
def timed(recipe: Recipe, keep: float, *, images: int) -> dict[str, float]:
    """Shares of the dense network's MACs and time, and milliseconds of a batch; one thread, all in turns."""
    torch.set_num_threads(1)
    gates = recipe.gates.model_copy(update=A_COIN | {"keep": keep})
    head = recipe.task.make(recipe.grid).head(recipe.grid)
    net = TaskNet(RouteNet(recipe.architecture(), gates, execution="packed"), head).eval()
    batch, whole = torch.randn(images, 3, *recipe.grid.image_size), net.architecture.opened()
    meter = UsageMeter()
    meter.update(net(batch).routes, images)
    taken: dict[str, list[float]] = {}
    for _ in range(ROUNDS + 1):
        for name, held, module in (
            ("backbone", None, net.backbone),
            ("backbone, all", whole, net.backbone),
            ("network", None, net),
            ("network, all", whole, net),
        ):
            with net.deciding_as(held=held, execution="dense" if held else "packed"):
                start = now(batch.device)
                module(batch)
                taken.setdefault(name, []).append(now(batch.device) - start)
    times = {name: median(some[1:]) for name, some in taken.items()}
    return {
        "macs": counted_macs(net, meter.usage()) / counted_macs(net, {}),
        "backbone": times["backbone"] / times["backbone, all"],
        "network": times["network"] / times["network, all"],
        **{f"{name} ms": 1e3 * seconds for name, seconds in times.items()},
    }
