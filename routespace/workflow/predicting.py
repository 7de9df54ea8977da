"""Painting predictions: which tokens of one's own images a routed network computed.

Shapes: B images · C channels · H, W pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from routespace.deploy.predict.batches import read_batches
from routespace.deploy.predict.images import GivenImages, InputImages, gather
from routespace.deploy.predict.predictor import Predictor
from routespace.draw.tokens import MOST_IMAGES, draw_tokens
from routespace.errors import DataError, SpecError
from routespace.nn.running import as_input
from routespace.workflow.evaluation import require_paintable


def paint_predictions(
    predictor: Predictor, images: GivenImages | Iterable[GivenImages] | InputImages, path: Path
) -> Path:
    """Draw which tokens of the first twelve readable images of one size are computed, and what a classifier said.

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
    batches = read_batches(meant.items, predictor.preprocess, MOST_IMAGES)
    groups = (group for batch in batches for group in batch.groups)
    found: list[np.ndarray] = []
    for image in itertools.chain.from_iterable(group.images for group in groups):
        if not found or image.shape == found[0].shape:  # one picture has one size
            found.append(image)
        if len(found) == MOST_IMAGES:  # a folder may hold many more
            break
    if not found:
        raise DataError("picture: none of the images can be read")
    shown = torch.from_numpy(np.stack(found))
    with torch.inference_mode():
        out = net(as_input(net, shown))
    words: list[str] = []
    if predictor.answers == "classes":
        best = out.logits.softmax(1).float().max(1)
        names = predictor.classes
        words = [
            f"{names[number] if names else number} {score:.0%}"
            for number, score in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
    seen = torch.from_numpy(predictor.preprocess.shown(shown.numpy()))
    return draw_tokens(net.architecture, seen, out.routes, path=path, labels=words)
