"""Painting predictions: which tokens of one's own images a routed network computed.

Shapes: B images · C channels · H, W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from routespace.deploy.predict.batches import read_batches
from routespace.deploy.predict.images import GivenImages, InputImages, gather
from routespace.deploy.predict.predictor import Predictor
from routespace.draw.tokens import MOST_IMAGES, TokenRow, draw_rows, token_rows
from routespace.errors import DataError, SpecError
from routespace.nn.running import as_input
from routespace.nn.task_net import TaskNet
from routespace.workflow.evaluation import require_paintable


def paint_predictions(
    predictor: Predictor, images: GivenImages | Iterable[GivenImages] | InputImages, path: Path
) -> Path:
    """Draw which tokens of the first twelve readable images are computed, and what a classifier said.

    Args:
        predictor: of a routed network.
        images: what a Predictor takes.
        path: of the picture.

    Raises:
        SpecError: an exported file, a static network, or a picture of another kind.
        DataError: no image can be read.
        BundleError: the file cannot be written.
    """
    net = predictor.net
    if net is None:
        raise SpecError("picture: an exported file computes every token; give the run or bundle")
    require_paintable(net, path)
    meant = images if isinstance(images, InputImages) else gather(images)
    rows: list[TokenRow] = []
    for batch in read_batches(meant.items, predictor.preprocess, MOST_IMAGES):
        found: dict[int, TokenRow] = {}
        for group in batch.groups:  # of one size each
            found.update(zip(group.places, _painted(predictor, net, group.images), strict=True))
        rows += [found[place] for place in sorted(found)]
        if len(rows) >= MOST_IMAGES:  # a folder may hold many more
            break
    if not rows:
        raise DataError("picture: none of the images can be read")
    return draw_rows(rows[:MOST_IMAGES], path=path)


def _painted(predictor: Predictor, net: TaskNet, images: NDArray[np.float32]) -> list[TokenRow]:
    """What is drawn of images (B, C, H, W), and what a classifier said."""
    with torch.inference_mode():
        out = net(as_input(net, torch.from_numpy(images)))
    words: list[str] = []
    if predictor.answers == "classes":
        best = out.logits.softmax(1).float().max(1)
        names = predictor.classes
        words = [
            f"{names[number] if names else number} {score:.0%}"
            for number, score in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
    seen = torch.from_numpy(predictor.preprocess.shown(images))
    return token_rows(net.architecture, seen, out.routes, words)
