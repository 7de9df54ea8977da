"""Evaluating a network on held-out images: the task's metric, cost both ways, speed, and what was computed, drawn.

Shapes: B images · C channels · H, W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from routespace.checked import checked
from routespace.draw.canvas import require_format
from routespace.draw.tokens import TokenRow, draw_rows, token_rows
from routespace.errors import SpecError
from routespace.grid.leading import gated_rows
from routespace.grid.usage import SizedUsage
from routespace.nn.cost import network_cost
from routespace.nn.heads.classify import Classifier
from routespace.nn.module import unwrap
from routespace.nn.running import as_input, evaluating
from routespace.nn.task_net import TaskNet
from routespace.train.controls import annotated_scenes, knows_objects, object_auc, scenes_with_objects
from routespace.train.data.loaders import Loaders, make_loaders
from routespace.train.data.skipping import Batches
from routespace.train.evaluate import evaluate, further
from routespace.train.macs import budgeted_cost, counted_macs
from routespace.train.recipe.recipe import Recipe
from routespace.train.tasks.by_class import ByClass
from routespace.train.tasks.kinds import task_of_head, task_spec_of
from routespace.workflow.timing import routed_times

Split = Literal["test", "val"]
TIMED_IMAGES = 32
OBJECT_IMAGES = 200  # on which gates are compared with the objects
PAINTED_IMAGES = 6


@checked
def evaluate_network(
    net: TaskNet,
    data: Recipe | Loaders,
    *,
    split: Split = "test",
    speed: bool = True,
    compiled: bool = False,
) -> dict[str, Any]:
    """Evaluate a network on held-out images; JSON data.

    Args:
        net: on the device that it shall run on, in a wrapper such as torch.compile's or not.
        data: the recipe of the images, or its loaders.
        split: `test`, or `val`: what training and search looked at.
        speed: also time a routed network against all of it computed.
        compiled: time it with compiled blocks.

    Returns:
        task; metric: the name of the task's, and under that name its value (accuracy 0…1);
        what else the task's meter tells, and `also` with its names; loss, images and images_per_s; params; macs
        (everything computed), counted_macs and expected_macs of one image of the grid's size, image_size, all of
        what a budget counts, and network_macs with the head of a dense task; where images have other sizes also
        as_fed, the means of what these took as they were: macs, counted_macs and network_macs (everything
        computed), and sizes, how many there are; usage; classes, where the task has any: name → what was found
        of it (images, accuracy and precision; objects and AP; pixels, accuracy and iou), and which other one it
        was most often taken_for; for images with one class each also confusion, class → answer → how many; for a
        routed network also speed, with the measured and counted ratio, and object_auc where it is known where the
        objects are: gated row → how well it tells their tokens.

    Raises:
        DataError: there are no such images, or one of them cannot be read.
        SpecError: another split, or a recipe whose task gives other targets than the network's.
    """
    net = unwrap(net, wanted=TaskNet)
    _require_targets(net, data if isinstance(data, Recipe) else data.recipe)
    data = make_loaders(data) if isinstance(data, Recipe) else data
    loader = split_loader(data, split)
    task = task_of_head(net.head, net.spec)
    metric = task.metric.name
    result = evaluate(net, loader, task=task, by_class=True)
    more = further(result, metric)
    cost = network_cost(net)
    whole = counted_macs(net, {})
    beside = cost.macs - whole  # of a head that no budget counts
    report = {
        "split": split,
        "images": result["images"],
        "task": task.name,
        "metric": metric,
        metric: result[metric],
        **more,
        "also": list(more),
        "loss": result["loss"],
        "params": cost.params,
        "macs": int(whole),
        "network_macs": int(cost.macs),
        "image_size": list(net.spec.image_size),
        **_as_fed(net, result["sizes"]),
        "counted_macs": result["counted_macs"],
        "expected_macs": result["expected_macs"],
        "images_per_s": result["images_per_s"],
        "usage": result["usage"],
        **_classes(result["by_class"], data.source.classes),
    }
    areas = _object_areas(net, data, require_split(split), count=min(OBJECT_IMAGES, result["images"]))
    if areas is not None:
        report["object_auc"] = areas
    if speed and not net.architecture.is_static:
        timed = beside - net.head.rest_macs(net.spec)  # of what a forward pass pays
        report["speed"] = {
            **_speed(net, _some(loader, TIMED_IMAGES), compiled=compiled),
            "counted_speedup": (whole + timed) / (result["counted_macs"] + timed),
        }
    return report


def _as_fed(net: TaskNet, sizes: Sequence[SizedUsage]) -> dict[str, Any]:
    """What is reported of images that are not of the grid's size: the MACs that they take as they are."""
    if all(part.size is None for part in sizes):
        return {}
    dense = [part._replace(usage={}) for part in sizes]
    images = sum(part.images for part in sizes)
    whole = sum(part.images * network_cost(net, image_size=part.size).macs for part in sizes) / images
    return {
        "as_fed": {
            "sizes": len(sizes),
            "macs": budgeted_cost(net, dense, as_fed=True).macs,
            "counted_macs": budgeted_cost(net, sizes, as_fed=True).macs,
            "network_macs": whole,
        }
    }


def _classes(found: ByClass | None, names: Sequence[str]) -> dict[str, Any]:
    """What is reported of each class, as far as the task has any."""
    if found is None:
        return {}
    confusion = found.named_confusion(names)
    return {"classes": found.named(names)} | ({} if confusion is None else {"confusion": confusion})


def _object_areas(net: TaskNet, data: Loaders, split: Split, *, count: int) -> dict[str, float] | None:
    """Gated row → how well it tells objects' tokens; None where nothing is gated, or no object is known."""
    if not gated_rows(net.architecture):
        return None
    if knows_objects(data.source):
        return object_auc(net, scenes_with_objects(data.source, split, count))
    return object_auc(net, annotated_scenes(split_loader(data, split), count)) or None


def _some(loader: Batches, count: int) -> list[Tensor]:
    """The first images, a tensor for each size."""
    groups: dict[torch.Size, list[Tensor]] = {}
    left = count
    for images, _ in loader:
        groups.setdefault(images.shape[1:], []).append(images[:left])
        left -= min(left, len(images))
        if not left:
            break
    return [torch.cat(some) for some in groups.values()]


def _speed(net: TaskNet, images: Sequence[Tensor], *, compiled: bool) -> dict[str, Any]:
    """How long a batch of images takes, routed and with everything computed."""
    times = routed_times(net, images, compiled=compiled)
    return {
        "batch": sum(map(len, images)),
        "sizes": len(images),
        "device": str(next(net.parameters()).device),
        "compiled": compiled,
        "dense_ms": 1e3 * times["dense"],
        "routed_ms": 1e3 * times["routed"],
        "measured_speedup": times["dense"] / times["routed"],
    }


def _require_targets(net: TaskNet, recipe: Recipe) -> None:
    """Raise SpecError when the images of a recipe come with other targets than the network is measured by."""
    wanted, given = task_spec_of(net.head), recipe.task
    if given.target != wanted.target and (wanted.target, given.target) != ("objects", "masks"):
        raise SpecError(
            f"recipe: {recipe.name} gives {given.target} (task {given.kind!r}), and a network of task "
            f"{wanted.kind!r} is measured by {wanted.target}; give the recipe that it was trained with"
        )


def require_split(name: str) -> Split:
    """The name as a split that is held out; raises SpecError for others."""
    if name not in get_args(Split):
        raise SpecError(f"split: {name!r:.40} is not allowed; give {' or '.join(get_args(Split))}")
    return cast(Split, name)


def split_loader(data: Recipe | Loaders, split: str) -> Batches:
    """The batches of a held-out split.

    Raises:
        SpecError: another split.
        DataError: there are no such images.
    """
    loaders = make_loaders(data) if isinstance(data, Recipe) else data
    return loaders.test if require_split(split) == "test" else loaders.val


def require_paintable(net: TaskNet, path: Path) -> None:
    """Raise SpecError when nothing could be painted: a static network, or a file of another kind."""
    require_format(path)
    if net.architecture.is_static:
        raise SpecError("picture: the network is static and computes every token; give a routed one")


def paint_tokens(net: TaskNet, data: Recipe | Loaders, path: Path, *, split: Split = "test") -> Path:
    """Draw which tokens of the split's first images are computed; a classifier's with labels and answers.

    Args:
        net: a routed network.
        data: the recipe of the images, or its loaders.
        path: of the picture.
        split: `test` or `val`.

    Raises:
        SpecError: the network is static, or the file's ending names no format.
        BundleError: the file cannot be written.
    """
    require_paintable(net, path)
    loaders = make_loaders(data) if isinstance(data, Recipe) else data
    rows: list[TokenRow] = []
    for images, labels in split_loader(loaders, split):  # a batch has one size
        rows += _painted(net, loaders, images[: PAINTED_IMAGES - len(rows)], labels)
        if len(rows) == PAINTED_IMAGES:
            break
    return draw_rows(rows, path=path)


def _painted(net: TaskNet, loaders: Loaders, images: Tensor, labels: Any) -> list[TokenRow]:
    """What is drawn of images of one size."""
    with evaluating(net), torch.inference_mode():
        out = net(as_input(net, images))
    words: list[str] = []
    if net.head.kind == Classifier.kind:  # others' targets are no names
        names = loaders.source.classes
        pairs = zip(labels.tolist(), out.logits.argmax(1).tolist(), strict=False)
        words = [f"{names[label]} → {names[answer]}" for label, answer in pairs]
    shown = torch.from_numpy(loaders.source.preprocess.shown(images.numpy()))
    return token_rows(net.architecture, shown, out.routes, words)
