"""The smallest networks and recipes of dense tasks: those of `tiny_grid` with a pyramid of maps."""

import torch
from tiny_grid import TINY_GRID
from train_tiny import TINY

from routespace.grid.architecture import Architecture
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec
from routespace.nn.heads.kinds import make_head
from routespace.nn.route_net import RouteNet
from routespace.nn.task_net import TaskNet
from routespace.train.recipe.recipe import Recipe

PYRAMID_GRID = TINY_GRID | {"num_classes": 0, "outputs": "pyramid"}


def pyramid_grid(**changes: object) -> RoutingGrid:
    return RoutingGrid(GridSpec(**PYRAMID_GRID | changes))


def dense_net(kind: str, *, grid: RoutingGrid | None = None, gates: GateSpec | None = None, **settings) -> TaskNet:
    """The supernet of a grid under a fresh head; every choice is gated."""
    torch.manual_seed(0)
    grid = grid or pyramid_grid()
    head = make_head(grid.spec, {"kind": kind, **settings})
    return TaskNet(RouteNet(Architecture.full(grid), gates or GateSpec(openness=0.6)), head)


def surer(net: TaskNet) -> TaskNet:
    """The same network, a detector with scores that differ by more than rounding: fresh ones lie 1e-8 apart."""
    with torch.no_grad():
        for name, weight in net.head.named_parameters():
            if name.endswith(("cls_logits.weight", "cls_score.weight")):
                weight.mul_(100)
    return net


def dense(task: dict[str, object], **changes: object) -> Recipe:
    """The tiny recipe for a dense task; keywords write dots as two underscores."""
    data = TINY | {"grid": PYRAMID_GRID, "task": task}
    return Recipe.parse(data).override({key.replace("__", "."): value for key, value in changes.items()})


def target(size: tuple[int, int], boxes: list[list[float]], labels: list[int], **more: object) -> dict:
    """What is known of an image of (H, W) pixels."""
    made = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return {
        "boxes": made,
        "labels": torch.tensor(labels, dtype=torch.long),
        "crowd": torch.zeros(len(labels), dtype=torch.bool),
        "area": (made[:, 2:] - made[:, :2]).prod(1),
        "image_id": torch.tensor(0),
        "size": torch.tensor(size),
        "fed": torch.tensor(size),
        **more,
    }
