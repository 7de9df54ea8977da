"""Controls: tokens that touch objects, true routes, and areas under the curve."""

import numpy as np
import pytest
import torch
from dense_tiny import dense, dense_net, target
from sklearn.metrics import roc_auc_score
from train_tiny import tiny

from routespace.errors import SpecError
from routespace.grid.leading import gated_rows
from routespace.nn.routing.routes import EdgeRoute, Routes
from routespace.nn.task_net import TaskNet
from routespace.train.controls import (
    annotated_scenes,
    knows_objects,
    object_auc,
    oracle_routes,
    scenes_with_objects,
    touched_tokens,
)
from routespace.train.data.loaders import make_loaders
from routespace.train.data.source import make_source
from routespace.workflow.evaluation import evaluate_network

RECIPE = {"routing": "depth", "data.val_size": 40, "gates": {"noise": 0.0}}


def recipe(**changes):
    return tiny().override(RECIPE | {name.replace("__", "."): value for name, value in changes.items()})


def net_of(recipe):
    torch.manual_seed(0)
    return TaskNet.classifier(recipe.architecture(), recipe.gates).eval()


def test_tokens_that_touch_a_box_or_a_mask():
    known = {"boxes": torch.tensor([[6.0, 9.0, 9.0, 12.0]]), "masks": torch.zeros(1, 24, 40, dtype=torch.bool)}
    known["masks"][0, 9:12, 6:9] = True
    found = touched_tokens(known, (24, 40), 4, around_px=0).view(6, 10)
    wanted = torch.zeros(6, 10, dtype=torch.bool)
    wanted[2, 1:3] = True  # rows 8 to 11, columns 4 to 11
    assert torch.equal(found, wanted)
    assert torch.equal(touched_tokens(known, (24, 40), 4, around_px=0, by="masks").view(6, 10), wanted)
    wider = touched_tokens(known, (24, 40), 4, around_px=2)
    assert torch.equal(wider, touched_tokens(known, (24, 40), 4, around_px=2, by="masks"))
    assert wider.view(6, 10)[1:4, 1:3].all()
    assert wider.sum() == 6
    odd = touched_tokens(known, (21, 37), 8, by="boxes")
    assert odd.shape == (3 * 5,)
    two = {"boxes": torch.tensor([[0.0, 0, 4, 4], [36, 20, 40, 24]])}
    assert touched_tokens(two, (24, 40), 8, around_px=0).nonzero().flatten().tolist() == [0, 14]
    assert not touched_tokens({"boxes": torch.zeros(0, 4)}, (24, 40), 8).any()


def test_scenes_come_as_they_are_validated_with_what_is_known_of_them():
    given = recipe()
    source = make_source(given)
    assert knows_objects(source)
    (images, objects), *_ = scenes_with_objects(source, "val", 20)
    seen, labels = next(iter(make_loaders(given).val))
    assert torch.equal(images[:16], seen[:16])
    assert [int(known["labels"][0]) for known in objects[:16]] == labels[:16].tolist()
    assert objects[0]["masks"].shape == (1, 32, 32)
    assert source.target == "label"


@pytest.mark.parametrize("execution", ["dense", "packed"])
def test_an_oracle_computes_what_touches_an_object(execution):
    net = net_of(recipe()).decide(execution=execution)
    (images, objects), *_ = scenes_with_objects(make_source(recipe()), "val", 8)
    routes = net(images, routes=oracle_routes(net, images, objects)).routes
    for row in gated_rows(net.architecture):
        wanted = torch.stack([touched_tokens(known, (32, 32), row.rate) for known in objects])
        assert torch.equal(routes[row.name].kept, wanted)
        assert 0 < wanted.float().mean() < 1


def test_areas_are_those_of_scikit_learn_and_one_for_who_knows():
    net = net_of(recipe())
    scenes = list(scenes_with_objects(make_source(recipe()), "val", 30))
    found = object_auc(net, scenes)
    with torch.no_grad():
        routes = net(torch.cat([images for images, _ in scenes])).routes
    objects = [known for _, some in scenes for known in some]
    for row in gated_rows(net.architecture):
        true = torch.stack([touched_tokens(known, (32, 32), row.rate) for known in objects])
        assert found[row.name] == pytest.approx(roc_auc_score(true.flatten(), routes[row.name].chance.flatten()))

    def knowing(images):
        """The network's forward pass, if its gates knew."""
        true = oracle_routes(net, images, objects[: len(images)])
        edges = {name: EdgeRoute(r.kept, r.counted, r.kept.float()) for name, r in true.items()}
        return type("Output", (), {"routes": Routes(edges)})

    net.forward = knowing
    assert set(object_auc(net, scenes[:1]).values()) == {1.0}


def test_a_report_tells_the_areas_where_objects_are_known():
    given = recipe()
    report = evaluate_network(net_of(given), given, split="val", speed=False)
    assert set(report["object_auc"]) == {row.name for row in gated_rows(given.architecture())}
    assert all(0 <= area <= 1 for area in report["object_auc"].values())
    static = recipe(routing="static", budget__ratio=None)
    assert "object_auc" not in evaluate_network(net_of(static), static, split="val", speed=False)
    images = recipe(gates={"rows": "image"})
    assert evaluate_network(net_of(images), images, split="val", speed=False)["object_auc"] == {}


def test_areas_are_known_of_annotated_images_of_several_sizes():
    net = dense_net("detect", classes=3, width=32)
    known = [target((32, 32), [[4, 4, 20, 20]], [0]), target((48, 40), [[0, 0, 12, 40], [20, 8, 40, 30]], [1, 2])]
    batches = [(torch.randn(1, 3, *one["fed"].tolist()), [one]) for one in known]
    found = object_auc(net, annotated_scenes(batches, 2))
    assert set(found) == {row.name for row in gated_rows(net.architecture)}
    first = object_auc(net, batches[:1])
    assert object_auc(net, annotated_scenes(batches, 1)) == first
    assert first != found
    assert list(annotated_scenes([(torch.zeros(2, 3, 32, 32), torch.zeros(2))], 2)) == []


def test_a_coin_finds_nothing():
    given = recipe(gates={"selection": "random", "keep": 0.5}, data__val_size=100)
    found = object_auc(net_of(given), scenes_with_objects(make_source(given), "val", 100))
    assert np.allclose(list(found.values()), 0.5)  # it says the same chance of every token


def test_a_network_is_measured_by_its_own_targets():
    net = dense_net("instance", classes=10, width=16)
    with pytest.raises(SpecError, match=r"task 'detect'.*and a network of task 'instance' is measured by masks"):
        evaluate_network(net, dense({"kind": "detect", "classes": 10}), split="val")


def test_rows_without_a_difference_to_find_are_left_out():
    net = dense_net("detect", classes=3, width=32)
    everywhere = target((32, 32), [[0, 0, 32, 32]], [0])
    for known in (everywhere, target((32, 32), [], [])):
        assert object_auc(net, [(torch.randn(1, 3, 32, 32), [known])]) == {}
