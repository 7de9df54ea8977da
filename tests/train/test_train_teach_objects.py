"""Gates that annotations teach where objects are (`gates.teach: objects`).

Shape legend: B images · N tokens of a map · H, W pixels.
"""

from functools import partial

import pytest
import torch
from accelerate import Accelerator
from dense_tiny import dense, dense_net, target
from torch.nn import functional as F
from train_tiny import tiny

from routespace.errors import SpecError
from routespace.grid.gate_spec import GateSpec
from routespace.nn.task_net import TaskNet
from routespace.train.controls import object_auc, scenes_with_objects, touched_tokens
from routespace.train.data.skipping import Group
from routespace.train.data.source import make_source
from routespace.train.run import train_recipe
from routespace.train.teaching import GateTeacher

DETECT = {"kind": "detect", "classes": 10, "width": 16}
BOXES = {  # of two groups of images, the second one's larger
    (32, 32): [[[2, 2, 10, 9]], []],
    (48, 32): [[[20, 30, 31, 44], [0, 0, 5, 5]]],
}


def groups() -> list[Group]:
    generator = torch.Generator().manual_seed(1)
    return [
        Group(
            torch.randn(len(images), 3, *size, generator=generator),
            [target(size, boxes, [1] * len(boxes)) for boxes in images],
        )
        for size, images in BOXES.items()
    ]


def net_of(**gates) -> TaskNet:
    net = dense_net("detect", classes=3, width=16, gates=GateSpec(teach="objects", **gates))
    return net.train().decide(held=net.architecture.opened())


@pytest.mark.parametrize("seeing", [{"context": 3}, {"source": "map"}, {"source": "map", "scout": 2}])
def test_labels_are_the_tokens_that_touch_a_box_in_groups_of_every_size(seeing):
    net, batch = net_of(**seeing), groups()
    taught = {n: gate for n, gate in net.gates.items() if gate.group == 1 and gate.learned}
    assert len(taught) == (1 if "source" in seeing else len([e for e in net.edges if "transformer" in e]))
    seen: dict[str, list] = {name: [] for name in taught}
    for name in taught:
        net.edges[name].register_forward_hook(
            lambda _, inputs, y, name=name: seen[name].append((inputs[0].detach(), inputs[1]))
        )
    teacher = GateTeacher(net)
    with teacher.watching(batch, on=True):
        for group in batch:
            net(group.images)
    teacher.teach(Accelerator(cpu=True))
    rates = {name: net.architecture.grid.edges[name].rate for name in taught}
    for name, gate in taught.items():
        margins, labels = [], []
        for (x, hw), group in zip(seen[name], batch, strict=True):
            margins.append(gate.margins(x, hw).flatten())
            size = group.images.shape[-2:]
            labels += [touched_tokens(known, size, rates[name]) for known in group.targets]
        labels = torch.cat(labels).float()
        assert 0 < labels.mean() < 1
        loss = F.binary_cross_entropy_with_logits(torch.cat(margins), labels)
        weights = list(gate.parameters())
        for weight, wanted in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            assert torch.allclose(weight.grad, wanted, atol=1e-7)
    others = {name for name, weight in net.named_parameters() if weight.grad is not None}
    assert all(name.startswith("backbone.gates") for name in others)


def test_what_gates_decide_gives_their_weights_no_other_gradient():
    net, batch = net_of(source="map"), groups()
    net.decide(held=None)
    out = net(batch[0].images)
    torch.stack(list(out.outputs.losses(batch[0].targets).values())).sum().backward()
    gates = [weight.grad for name, weight in net.named_parameters() if "gates" in name and "transformer" in name]
    assert gates
    assert all(gradient is None or not gradient.any() for gradient in gates)


def test_a_detectors_map_finds_objects_after_a_short_training(tmp_path):
    recipe = dense(
        DETECT,
        routing="depth",
        gates={"source": "map", "opening": "share", "teach": "objects", "noise": 0.0},
        budget={"ratio": 0.8, "open_frac": 0.6, "settle_frac": 0.3},
        grid__image_size=64,
        data__train_size=96,
        data__val_size=24,
        data__digit_px=[14, 24],
        train__batch_size=8,
        train__epochs=2,
        train__gate_lr=3e-2,
    )
    found = train_recipe(recipe, tmp_path / "run")
    assert found.metrics["epochs"] == 2
    scenes = scenes_with_objects(make_source(recipe), "val", 24)
    assert min(object_auc(found.net, scenes).values()) > 0.65


@pytest.mark.parametrize("task", ["classify", "semantic"])
def test_tasks_that_read_no_boxes_are_told_so(task):
    make = tiny if task == "classify" else partial(dense, {"kind": "semantic", "classes": 11, "channels": 16})
    with pytest.raises(SpecError, match=rf"gates\.teach: 'objects' .* task '{task}' does not read; give 'dense'"):
        make(routing="depth", gates={"source": "map", "teach": "objects"})


def test_nobody_can_be_taught_who_is_never_held_open(tmp_path):
    recipe = dense(DETECT, routing="depth", gates={"teach": "objects"}, budget={"ratio": 0.8, "open_frac": 0.0})
    with pytest.raises(SpecError, match=r"'objects' teaches while all gates are held open.*open_frac is 0"):
        train_recipe(recipe, tmp_path / "run")
