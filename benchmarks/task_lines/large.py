"""Real speed at the size of photographs: RetinaNet over B1, untrained, half of the tokens of each row computed."""

from __future__ import annotations

from statistics import median

import torch

from routespace.nn.route_net import RouteNet
from routespace.nn.running import now
from routespace.nn.task_net import TaskNet
from routespace.nn.usage import UsageMeter
from routespace.recipes import load_recipe
from routespace.train.macs import counted_macs

ROUNDS = 9


@torch.inference_mode()
def large(px: int, keep: float = 0.5) -> dict[str, float]:
    """Times of a routed network over those of all tokens, and the same by MACs.

    Args:
        px: side of the image.
        keep: share of tokens that a coin computes.
    """
    torch.set_num_threads(1)
    wanted = {"grid.preset": "dit_b1", "grid.image_size": px, "routing": "depth"}
    recipe = load_recipe("dit_b2_coco_retinanet_1x").override(wanted)
    gates = recipe.gates.model_copy(update={"selection": "random", "keep": keep})
    net = TaskNet(
        RouteNet(recipe.architecture(), gates, execution="packed"), recipe.task.make(recipe.grid).head(recipe.grid)
    )
    net.eval()
    images, whole = torch.randn(1, 3, px, px), net.architecture.opened()
    meter = UsageMeter()
    meter.update(net(images).routes, 1)
    taken: dict[str, list[float]] = {}
    for _ in range(ROUNDS + 1):
        for name, held, module in (
            ("backbone", None, net.backbone),
            ("backbone, all", whole, net.backbone),
            ("network", None, net),
            ("network, all", whole, net),
        ):
            with net.deciding_as(held=held, execution="dense" if held else "packed"):
                start = now(images.device)
                module(images)
                taken.setdefault(name, []).append(now(images.device) - start)
    times = {name: median(some[1:]) for name, some in taken.items()}
    return {
        "px": px,
        "keep": keep,
        "macs": counted_macs(net, meter.usage()) / counted_macs(net, {}),
        "backbone": times["backbone"] / times["backbone, all"],
        "network": times["network"] / times["network, all"],
        **{f"{name} ms": 1e3 * seconds for name, seconds in times.items()},
    }
