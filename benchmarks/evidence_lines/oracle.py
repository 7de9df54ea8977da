"""A network whose gates know where the objects are: trained and measured with true routes.

Shape legend: B images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evidence_lines.clock import clock_of
from routespace.grid.leading import gated_rows
from routespace.grid.usage import EdgeUsage
from routespace.nn.route_net import RouteNet
from routespace.nn.routing.routes import Routes
from routespace.nn.task_net import TaskNet
from routespace.nn.usage import UsageMeter
from routespace.nn.weights import load_net, save_net
from routespace.train.controls import Known, knows_objects, oracle_routes, touched_tokens
from routespace.train.data.catalogue import Split
from routespace.train.data.rendered import EVAL_SEED
from routespace.train.data.scenes.source import ScenesDataset
from routespace.train.data.source import make_source
from routespace.train.macs import counted_macs
from routespace.train.optim import clipped_together, make_optimizer, make_schedule
from routespace.train.pretrained import load_pretrained
from routespace.train.recipe.recipe import Recipe

SIZED_SCENES = 200  # on which the pixels around a box are chosen
MOST_AROUND = 64  # pixels
KnownBatch = tuple[Tensor, Tensor, list[Mapping[str, Tensor]]]


def scenes_of(recipe: Recipe, split: Split) -> tuple[Any, int]:
    """The scenes of a split, with what is known of them, and how many there are."""
    source = make_source(recipe)
    assert knows_objects(source)
    count = {"train": source.spec.train_size, "val": source.spec.val_size, "test": source.spec.test_size}[split]
    return source.giving("masks").scenes(split, count, recipe.seed if split == "train" else EVAL_SEED), count


def batch_of(dataset: Any, indices: Sequence[int], device: torch.device) -> KnownBatch:
    """Images (B, C, H, W), labels (B,) and what is known of each image's objects."""
    if isinstance(dataset, ScenesDataset):
        images, labels, objects = dataset.known_batch(indices, device)
        return images, labels, [{"boxes": torch.from_numpy(known.boxes)} for known in objects]
    items = dataset.__getitems__(indices)
    largest = [int(known["labels"][(known["boxes"][:, 2] - known["boxes"][:, 0]).argmax()]) for _, known in items]
    images = torch.stack([image for image, _ in items]).to(device)
    return images, torch.tensor(largest, device=device), [known for _, known in items]


def held_out(recipe: Recipe, split: Split, device: torch.device, most: int | None = None) -> Iterator[KnownBatch]:
    """The batches of a split."""
    dataset, count = scenes_of(recipe, split)
    count, size = min(count, most or count), recipe.train.batch
    for begin in range(0, count, size):
        yield batch_of(dataset, range(begin, min(begin + size, count)), device)


def around_for(recipe: Recipe, net: TaskNet, macs: float) -> int:
    """Pixels around a box that take about so many MACs."""
    objects: list[Known] = [
        known for _, _, some in held_out(recipe, "val", torch.device("cpu"), SIZED_SCENES) for known in some
    ]
    size = recipe.grid.image_size

    def spent(around_px: int) -> float:
        usage = {}
        for row in gated_rows(net.architecture):
            shares = [
                touched_tokens(known, size, row.rate, around_px=around_px).float().mean() for known in objects
            ]
            usage[row.name] = EdgeUsage(float(torch.stack(shares).mean()), 1.0, 0.0)
        return counted_macs(net, usage)

    return min(range(0, MOST_AROUND, 2), key=lambda around: abs(spent(around) - macs))


def train_oracle(recipe: Recipe, folder: Path, macs: float) -> dict[str, Any]:
    """Train with true routes as the library trains: the same scenes, rates, clipping, and steps with all open.

    Args:
        recipe: of the last phase alone; `train.weights` is the first one's run.
        folder: where the network is written.
        macs: of one image, on average.
    """
    torch.manual_seed(recipe.seed)
    train, (dataset, count) = recipe.train, scenes_of(recipe, "train")
    device = torch.device(train.device if train.device != "auto" else "cpu")
    task = recipe.task.make(recipe.grid, train)
    net = TaskNet(RouteNet(recipe.architecture(), recipe.gates, execution=train.execution), task.head(recipe.grid))
    assert train.weights is not None
    assert train.clip_grad is not None
    load_pretrained(net, train.weights)
    around, net = around_for(recipe, net, macs), net.to(device)
    now = clock_of(device.type)
    steps, begin = count // train.batch, now()
    optimizer, net = make_optimizer(net, train), net.train()
    schedule = make_schedule(optimizer, train, steps)
    half = torch.autocast(device.type, torch.bfloat16, enabled=train.precision == "bf16")
    for done in range(train.epochs * steps):
        epoch, step = divmod(done, steps)
        dataset.set_epoch(epoch)
        schedule.step_update(done)
        indices = range(step * train.batch, (step + 1) * train.batch)
        images, labels, objects = batch_of(dataset, indices, device)
        whole = done < recipe.budget.open_frac * train.epochs * steps
        routes = Routes.full(net, images) if whole else oracle_routes(net, images, objects, around_px=around)
        with half:
            loss = task.loss(net(images, routes=routes).outputs, labels)
        loss.backward()
        for parameters in clipped_together(optimizer):
            torch.nn.utils.clip_grad_norm_(parameters, train.clip_grad)
        optimizer.step()
        optimizer.zero_grad()
    seconds = now() - begin
    (folder / "net").mkdir(parents=True, exist_ok=True)
    save_net(net.eval().cpu(), folder / "net")
    return {"own_s": seconds, "around_px": around, **oracle_accuracy(recipe, folder, "val", around)}


@torch.no_grad()
def oracle_accuracy(recipe: Recipe, folder: Path, split: Split, around_px: int) -> dict[str, float]:
    """Accuracy and counted MACs under true routes."""
    device = torch.device(recipe.train.device if recipe.train.device != "auto" else "cpu")
    net = load_net(folder / "net").to(device).eval().decide(execution="auto")
    right, images_seen, meter = 0, 0, UsageMeter()
    for images, labels, objects in held_out(recipe, split, device):
        output = net(images, routes=oracle_routes(net, images, objects, around_px=around_px))
        meter.update(output.routes, len(images))
        right, images_seen = right + int((output.logits.argmax(1) == labels).sum()), images_seen + len(images)
    return {"accuracy": right / images_seen, "counted_macs": counted_macs(net, meter.usage())}
