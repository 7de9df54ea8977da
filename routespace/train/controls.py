"""Where objects are, as a control of what gates do: true routes, and how well gates tell objects from the rest.

    for images, objects in scenes_with_objects(source, "val", 200):
        touched = [touched_tokens(known, net.spec.image_size, 4) for known in objects]
    net(images, routes=oracle_routes(net, objects))       # computes what touches an object, and nothing else
    object_auc(net, scenes_with_objects(source, "val", 200))

True routes tell a network where to look, so what it reaches with them is a ceiling and no rival.

Shape legend: B images · N tokens of a map · M objects of an image · C channels · H, W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import binary_auroc

from routespace.checked import checked
from routespace.errors import SpecError
from routespace.grid.leading import gated_rows
from routespace.grid.spec import map_size
from routespace.nn.module import unwrap
from routespace.nn.routing.routes import EdgeRoute, Routes
from routespace.nn.running import as_input, evaluating
from routespace.nn.task_net import TaskNet
from routespace.train.data.catalogue import Split
from routespace.train.data.rendered import EVAL_SEED, RenderedSource
from routespace.train.data.source import Source
from routespace.train.tasks.batches import pair

AROUND_PX = 2  # pixels around an object's box that count as its own: blocks read a little beyond a token
AT_A_TIME = 50  # scenes
SHAPES, SIDES = {"boxes": 2, "masks": 3}, 4  # dimensions of what is known of objects; numbers of a box

Known = Mapping[
    str, Tensor
]  # what is known of an image's objects: boxes (M, 4), and masks (M, H, W) where there are


def touched_tokens(
    known: Known, image_size: tuple[int, int], rate: int, *, around_px: int = AROUND_PX, by: str = "boxes"
) -> Tensor:
    """(N,) bool: the tokens of a rate that touch an object.

    Args:
        known: `boxes` (M, 4), left, top, right, bottom in pixels; with `by` masks, `masks` (M, H, W).
        image_size: height and width in pixels.
        rate: pixels of a token's side.
        around_px: pixels around a box, or a mask, that belong to it.
        by: `boxes` or `masks`.
    """
    height, width = map_size(image_size, rate)
    if by == "masks":
        seen = known["masks"].any(0).float()[None, None]
        side = 2 * around_px + 1
        wider = F.max_pool2d(seen, side, 1, around_px)
        padded = F.pad(wider, (0, width * rate - image_size[1], 0, height * rate - image_size[0]))
        return F.max_pool2d(padded, rate).flatten() > 0
    boxes = known["boxes"].float()
    down, across = (torch.arange(side, device=boxes.device) * rate for side in (height, width))
    left, top, right, bottom = boxes[:, :, None].unbind(1)
    rows = (down + rate > top - around_px) & (down < bottom + around_px)
    columns = (across + rate > left - around_px) & (across < right + around_px)
    return (rows[:, :, None] & columns[:, None, :]).any(0).flatten()


def check_known(objects: Any, images: int, by: str) -> None:
    """Raise SpecError unless each image's objects are known, as `touched_tokens` reads them."""
    if by not in SHAPES:
        raise SpecError(f"by: {by!r:.40} is not known; give {' or '.join(SHAPES)}")
    if not isinstance(objects, Sequence) or len(objects) != images:
        count = len(objects) if isinstance(objects, Sequence) else f"a {type(objects).__name__}"
        raise SpecError(f"objects: {count} for {images} images; give a list with what is known of each image")
    for place, known in enumerate(objects):
        part = known.get(by) if isinstance(known, Mapping) else None
        form = tuple(part.shape) if isinstance(part, Tensor) else None
        if form is None or len(form) != SHAPES[by] or (by == "boxes" and form[1] != SIDES):
            wanted = "a tensor (M, 4) of left, top, right, bottom" if by == "boxes" else "a tensor (M, H, W)"
            raise SpecError(f"objects.{place}.{by}: {form or 'nothing'} was given; give {wanted}")


@checked
def oracle_routes(
    net: TaskNet, images: Tensor, objects: Sequence[Known], *, by: str = "boxes", around_px: int = AROUND_PX
) -> Routes:
    """Decisions that compute, in each gated row, the tokens that touch an object; gated ways down are open.

    Other tokens take the cheap path where the network's gates have one.

    Args:
        net: whose gates are replaced; in a wrapper such as torch.compile's or not.
        images: (B, C, H, W), for their size and device.
        objects: what is known of each.
        by, around_px: as in `touched_tokens`.

    Raises:
        SpecError: `around_px` is negative, `by` is another word, or the objects are not those of the images.
    """
    if around_px < 0:
        raise SpecError(f"around_px: {around_px} is not allowed; give pixels, 0 or more")
    check_known(objects, len(images), by)
    net, size = unwrap(net, wanted=TaskNet), (images.shape[-2], images.shape[-1])
    routes = dict(Routes.full(net, images))
    made: dict[int, Tensor] = {}
    for row in gated_rows(net.architecture):
        if row.rate not in made:
            tokens = [touched_tokens(known, size, row.rate, around_px=around_px, by=by) for known in objects]
            made[row.rate] = torch.stack(tokens).to(images.device)
        routes[row.name] = EdgeRoute.of(made[row.rate], path=net.gate_spec.skipped != "identity")
    return Routes(routes)


@checked
@torch.no_grad()
def object_auc(
    net: TaskNet, scenes: Iterable[tuple[Tensor, Sequence[Known]]], *, by: str = "boxes"
) -> dict[str, float]:
    """Gated row → area under the curve of its decisions against the tokens that touch an object.

    0.5 is what a coin reaches, 1 a gate that knows every object. Rows that decide about whole images, or that are
    open for every token of every image alike, are left out; so are those of which every token touches an object,
    or none.

    Args:
        net: in a wrapper or not, on whatever device; it is left in the mode in which it came.
        scenes: images (B, C, H, W) and what is known of each.
        by: `boxes` or `masks`.

    Raises:
        SpecError: `by` is another word, or objects are not those of their images.
    """
    net = unwrap(net, wanted=TaskNet)
    rows = gated_rows(net.architecture)
    said: dict[str, list[Tensor]] = {row.name: [] for row in rows}
    true: dict[str, list[Tensor]] = {row.name: [] for row in rows}
    with evaluating(net), net.deciding_as(held=None, shares=None):
        for scene in scenes:
            images, objects = pair(scene)
            check_known(objects, len(images), by)
            routes = net(as_input(net, images)).routes
            size = (images.shape[-2], images.shape[-1])
            for row in rows:
                chance = routes[row.name].chance if row.name in routes else None
                tokens = torch.stack([touched_tokens(known, size, row.rate, by=by) for known in objects]).cpu()
                if chance is not None and chance.shape == tokens.shape:
                    said[row.name].append(chance.float().cpu().flatten())  # maps of several sizes
                    true[row.name].append(tokens.flatten())
    touched = {name: torch.cat(tokens) for name, tokens in true.items() if tokens}
    return {
        name: float(binary_auroc(torch.cat(said[name]).double(), tokens.int()))
        for name, tokens in touched.items()
        if tokens.any() and not tokens.all()
    }


def annotated_scenes(batches: Iterable[tuple[Tensor, Any]], count: int) -> Iterator[tuple[Tensor, list[Any]]]:
    """The first images of held-out batches with what is known of their objects; none where targets are others.

    Args:
        batches: images (B, C, H, W) of one size and their targets.
        count: how many.
    """
    for images, targets in batches:
        if count <= 0 or not (isinstance(targets, list) and all(_is_known(one) for one in targets)):
            return
        yield images[:count], targets[:count]
        count -= len(images)


def _is_known(target: Any) -> bool:
    """Whether a target tells objects; pixels of pictures of several sizes come as a list, too."""
    return isinstance(target, Mapping) and "boxes" in target


def knows_objects(source: Source) -> TypeGuard[RenderedSource]:
    """Whether a source can tell where the objects of its images are."""
    return isinstance(source, RenderedSource)


def scenes_with_objects(source: RenderedSource, split: Split, count: int) -> Iterator[tuple[Tensor, list[Any]]]:
    """The first images of a split, normalised as they are fed, with boxes and masks of their objects.

    Args:
        source: of scenes; see `knows_objects`.
        split: `val` or `test`.
        count: how many.
    """
    dataset: Any = source.giving("masks").scenes(split, count, EVAL_SEED)
    for begin in range(0, count, AT_A_TIME):
        items = dataset.__getitems__(range(begin, min(begin + AT_A_TIME, count)))
        yield torch.stack([image for image, _ in items]), [objects for _, objects in items]
