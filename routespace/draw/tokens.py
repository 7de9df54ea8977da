"""Which tokens a routed network computed: one row an image, one column a downsampling rate.

    draw_tokens(net.architecture, images, net(normalised).routes, path="tokens.png")
    draw_rows(rows, path="tokens.png")            # of `token_rows`, for images of several sizes

A rate's picture is the image, bright where its transformer edges computed the token and dark where they passed it
on; the number below is the share of tokens computed.

Shape legend: B images · H, W pixels · h, w tokens of a map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from routespace.draw.canvas import save_figure
from routespace.errors import SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.spec import map_size
from routespace.nn.routing.routes import Routes

MOST_IMAGES = 12
DARK = 0.12  # brightness of a token that no edge computed
SIDE_INCHES = 1.5
TITLE = "Tokens computed"
LINE_CHARS = 24  # of a word below a picture, as wide as that
BETWEEN = " → "  # two names, which stand one below the other where they are long


def computed_share(architecture: Architecture, routes: Routes, rate: int, hw: tuple[int, int]) -> NDArray[Any]:
    """(B, h, w): the share of a rate's transformer edges that computed each token.

    Args:
        architecture: of the network that routed; an edge of it that is not in `routes` computed everything.
        routes: of one forward pass.
        rate: one at which the architecture has transformer edges.
        hw: height and width of the rate's map.
    """
    edges = _transformers(architecture, rate)
    batch = next(iter(routes.values())).kept.shape[0]
    total = np.zeros((batch, *hw))
    for name in edges:
        if name not in routes:
            total += 1
            continue
        kept = routes[name].kept.detach().cpu().numpy()
        total += kept.reshape(batch, 1, 1) if kept.shape[1] == 1 else kept.reshape(batch, *hw)
    return total / len(edges)


class TokenRow(NamedTuple):
    """What was computed of one image.

    Attributes:
        picture: (H, W, 3) floats in 0…1, as it is to be seen.
        shares: rate → (h, w) share of the rate's transformer edges that computed each token.
        label: a word below the picture.
    """

    picture: NDArray[Any]
    shares: Mapping[int, NDArray[Any]]
    label: str = ""


def token_rows(
    architecture: Architecture, images: Tensor, routes: Routes, labels: Sequence[str] = ()
) -> list[TokenRow]:
    """What was computed of each image of a batch; batches of several sizes make one picture by `draw_rows`.

    Args:
        architecture: of the network that routed.
        images: (B, 1, 3 or 4, H, W) floats in 0…1, grey, RGB or RGBA, as they are to be seen.
        routes: of the network's pass over the same images.
        labels: a word for each image.

    Raises:
        SpecError: no routed edges, or other images than the routes'.
    """
    if not routes:
        raise SpecError("routes: none to draw; the network computes every token, give one with gates")
    if len(images) != len(next(iter(routes.values())).kept):
        routed = len(next(iter(routes.values())).kept)
        raise SpecError(f"images: {len(images)} given, but {routed} were routed; give the same batch")
    height, width = images.shape[-2:]
    shares = {
        rate: computed_share(architecture, routes, rate, map_size((height, width), rate))
        for rate in architecture.spec.rates
        if _transformers(architecture, rate)
    }
    pictures = _rgb(images.detach().cpu().permute(0, 2, 3, 1).clamp(0, 1).numpy())
    words = [*labels, *[""] * (len(pictures) - len(labels))]
    return [
        TokenRow(picture, {rate: share[row] for rate, share in shares.items()}, words[row])
        for row, picture in enumerate(pictures)
    ]


def draw_tokens(
    architecture: Architecture,
    images: Tensor,
    routes: Routes,
    *,
    path: Path | str,
    labels: Sequence[str] = (),
    title: str = TITLE,
) -> Path:
    """Draw what was computed of each image of a batch at each rate; the first twelve are drawn.

    Args:
        architecture, images, routes, labels: as for `token_rows`.
        path: where to; the ending chooses the format.
        title: above the picture.

    Raises:
        SpecError: no routed edges, other images than the routes', or a path with an unknown ending.
        BundleError: the file cannot be written.
    """
    return draw_rows(token_rows(architecture, images, routes, labels)[:MOST_IMAGES], path=path, title=title)


def draw_rows(rows: Sequence[TokenRow], *, path: Path | str, title: str = TITLE) -> Path:
    """Draw what was computed of images of any sizes, one below the other.

    Args:
        rows: of one network, at least one.
        path: where to; the ending chooses the format.
        title: above the picture.

    Raises:
        SpecError: a path with an unknown ending.
        BundleError: the file cannot be written.
    """
    rates = list(rows[0].shares)
    size = (SIDE_INCHES * (1 + len(rates)), (SIDE_INCHES + 0.25) * len(rows) + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(rows), 1 + len(rates), squeeze=False)
    figure.suptitle(title, fontsize=10)
    for axes, row in zip(grid, rows, strict=True):
        height, width = row.picture.shape[:2]
        _show(axes[0], row.picture, row.label)
        for place, rate in zip(axes[1:], rates, strict=True):
            light = row.shares[rate].repeat(rate, 0).repeat(rate, 1)[:height, :width, None]
            _show(place, row.picture * (DARK + (1 - DARK) * light), f"{row.shares[rate].mean():.0%}")
    for place, rate in zip(grid[0, 1:], rates, strict=True):
        place.set_title(f"1/{rate}", fontsize=9)
    return save_figure(figure, path)


def _rgb(pictures: NDArray[Any]) -> NDArray[Any]:
    """(B, H, W, 1, 3 or 4) → (B, H, W, 3): what is transparent shows white."""
    if pictures.shape[-1] == 4:
        alpha = pictures[..., 3:]
        seen: NDArray[Any] = pictures[..., :3] * alpha + (1 - alpha)
        return seen
    return pictures.repeat(3, axis=-1) if pictures.shape[-1] == 1 else pictures


def _transformers(architecture: Architecture, rate: int) -> list[str]:
    edges = (architecture.grid.edges[name] for name in architecture.edges)
    return [edge.name for edge in edges if edge.kind == "transformer" and edge.rate == rate]


def fitted(label: str) -> str:
    """A word below a picture that does not reach into the next one: long names in two lines, and shortened."""
    if len(label) <= LINE_CHARS:
        return label
    first, arrow, second = label.partition(BETWEEN)
    lines = [first, arrow.lstrip() + second] if arrow else [first]
    half = LINE_CHARS // 2
    return "\n".join(x if len(x) <= LINE_CHARS else f"{x[: half - 1]}…{x[-half:]}" for x in lines)


def _show(axes: Axes, picture: NDArray[Any], label: str) -> None:
    axes.imshow(picture, interpolation="nearest")
    axes.set(xticks=[], yticks=[], xlabel=fitted(label))
    axes.xaxis.label.set_fontsize(8)
    axes.xaxis.label.set_parse_math(False)  # a name may hold dollars
