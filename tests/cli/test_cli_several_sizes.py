"""What is fed in several sizes: MACs have one meaning in every command, and all of it is drawn and timed."""

import json

import matplotlib.image
import pytest
import torch
from dense_tiny import PYRAMID_GRID, dense_net
from train_annotated import some_coco
from train_tiny import tiny

from routespace.deploy.counters import torch_macs
from routespace.deploy.predict.predictor import Predictor
from routespace.grid.usage import EdgeUsage, usage_to_json
from routespace.nn.weights import save_net
from routespace.preprocess import save_preprocess
from routespace.train.data.loaders import make_loaders
from routespace.train.evaluate import evaluate
from routespace.workflow.evaluation import evaluate_network, paint_tokens
from routespace.workflow.predicting import paint_predictions

FED = [(48, 64), (64, 48), (48, 48)]  # what pictures of 48 × 64, 64 × 48 and 40 × 40 px are fed at


@pytest.fixture(scope="module")
def loaders(tmp_path_factory):
    """Six pictures of three sizes."""
    root = tmp_path_factory.mktemp("coco")
    some_coco(root)
    some_coco(root, "val")
    data = {"kind": "coco", "root": str(root), "eval_size": [48, 64]}
    task = {"kind": "detect", "classes": 2, "width": 16}
    changes = {"grid": PYRAMID_GRID, "task": task, "data": data, "train.batch_size": 4, "routing": "depth"}
    return make_loaders(tiny().override(changes))


@pytest.fixture(scope="module")
def net():
    return dense_net("detect", classes=2, width=16).eval()


def test_what_is_evaluated_is_what_cost_tells_and_what_torch_counts(loaders, net, tmp_path, cli):
    report = evaluate_network(net, loaders, split="val", speed=False)
    found = evaluate(net, loaders.val)
    save_net(net, tmp_path)
    used = {name: EdgeUsage(**shares) for name, shares in found["usage"].items()}
    kept = usage_to_json(used, net.architecture.grid, found["sizes"])
    (tmp_path / "usage.json").write_text(json.dumps(kept))
    told = json.loads(cli("cost", tmp_path, "--json").assert_fine().out)
    assert told["measured_backbone"]["macs"] == pytest.approx(report["counted_macs"])
    assert told["backbone"]["macs"] == report["macs"] == torch_macs(net.backbone, 32, meta=False).macs
    assert told["macs"] == report["network_macs"] == torch_macs(net, 32, meta=False).macs
    again = json.loads(cli("cost", tmp_path, "--json", "--usage", tmp_path / "usage.json").assert_fine().out)
    assert again["macs"] == pytest.approx(told["measured"]["macs"])
    fed = report["as_fed"]
    assert fed["sizes"] == 3
    assert fed["macs"] == pytest.approx(sum(torch_macs(net.backbone, size, meta=False).macs for size in FED) / 3)
    assert fed["network_macs"] == pytest.approx(sum(torch_macs(net, size, meta=False).macs for size in FED) / 3)
    assert fed["counted_macs"] < fed["macs"]


def test_tokens_of_pictures_of_every_size_are_drawn(loaders, net, tmp_path):
    paint_tokens(net, loaders, tmp_path / "tokens.png", split="val")
    height, width = matplotlib.image.imread(tmp_path / "tokens.png").shape[:2]
    assert height > 2 * width  # six rows of three columns; those of one size would be two
    save_net(net, tmp_path)
    save_preprocess(tmp_path, loaders.source.preprocess, loaders.source.classes)
    pictures = [image.place for image in loaders.source.val().images]
    paint_predictions(Predictor(tmp_path), pictures, tmp_path / "seen.png")
    same = [matplotlib.image.imread(tmp_path / name) for name in ("tokens.png", "seen.png")]
    assert same[0].shape == same[1].shape


def test_pictures_of_every_size_are_timed(loaders, net):
    speed = evaluate_network(net, loaders, split="val")["speed"]
    assert (speed["batch"], speed["sizes"]) == (6, 3)
    assert torch.tensor([speed["dense_ms"], speed["routed_ms"]]).gt(0).all()
