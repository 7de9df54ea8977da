"""Where a routed network looks: how well its map finds objects, and what it computes of small and of large ones.

Shape legend: B images · N tokens of a map · M objects of an image.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean
from typing import Any

import torch

from routespace.grid.leading import gated_rows
from routespace.nn.task_net import TaskNet
from routespace.train.controls import object_auc, scenes_with_objects, touched_tokens
from routespace.train.data.rendered import RenderedSource
from routespace.train.data.source import make_source
from routespace.train.recipe.recipe import Recipe

LOOKED_AT = 200
THIRDS = ("smallest third", "middle third", "largest third")


def looked_at(net: TaskNet, recipe: Recipe) -> dict[str, Any]:
    """AUC of each gated row against the objects' boxes, and `usage_by_size`, on validation scenes."""
    source = make_source(recipe)
    assert isinstance(source, RenderedSource)
    count = min(LOOKED_AT, recipe.data.model_dump()["val_size"])
    scenes = list(scenes_with_objects(source, "val", count))
    return {"auc": object_auc(net, scenes), "usage_by_size": usage_by_size(net, scenes)}


@torch.no_grad()
def usage_by_size(net: TaskNet, scenes: list[tuple[torch.Tensor, list[Any]]]) -> dict[str, dict[str, float]]:
    """Rate → share of tokens computed of small, middle and large objects, and of what is none of them."""
    sides = torch.cat([longer_sides(known) for _, objects in scenes for known in objects]).sort().values
    bounds = sides[[len(sides) // 3, 2 * len(sides) // 3]]
    sums: dict[tuple[int, str], list[float]] = {}
    rows, size = gated_rows(net.architecture), net.spec.image_size
    for images, objects in scenes:
        routes = net.eval()(images).routes
        for row in rows:
            kept = routes[row.name].kept.float().expand(len(images), -1)
            for tokens, known in zip(kept, objects, strict=True):
                touched = torch.zeros(len(tokens), dtype=torch.bool)
                for n, side in enumerate(longer_sides(known)):
                    its = touched_tokens({"boxes": known["boxes"][n : n + 1]}, size, row.rate, around_px=0)
                    sums.setdefault((row.rate, THIRDS[int((side > bounds).sum())]), []).append(
                        float(tokens[its].mean())
                    )
                    touched |= its
                if not touched.all():
                    sums.setdefault((row.rate, "no object"), []).append(float(tokens[~touched].mean()))
    rates = sorted({rate for rate, _ in sums})
    return {
        str(rate): {what: mean(sums[rate, what]) for what in (*THIRDS, "no object") if (rate, what) in sums}
        for rate in rates
    }


def longer_sides(known: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """(M,) pixels."""
    boxes = known["boxes"]
    return (boxes[:, 2:] - boxes[:, :2]).max(1).values
