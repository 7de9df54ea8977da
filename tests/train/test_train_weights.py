"""`train.weights`: a training that starts from a pretrained network."""

import logging
import os
import signal

import pytest
import safetensors.torch
import timm
import torch
from dense_tiny import dense_net
from train_tiny import tiny

from routespace.deploy.bundle import Card, save_bundle
from routespace.errors import BundleError, RoutespaceError, SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec
from routespace.nn.heads.classify import Classifier
from routespace.nn.pretrained import load_timm_weights
from routespace.nn.task_net import TaskNet
from routespace.nn.weights import save_net
from routespace.train.pretrained import load_pretrained
from routespace.train.recipe.recipe import Recipe
from routespace.train.run import train_recipe
from routespace.train.stopping import TrainingStoppedError

pytestmark = pytest.mark.usefixtures("weights_drawn_at_once")
IMAGE = 64
NOTHING = {"train.epochs": 0, "train.warmup_epochs": 0, "budget.ratio": None}
NAMES = {"dit_b0": "pvt_v2_b0", "dit_swin_v2_t": "swinv2_tiny_window8_256"}


def oracle(name="pvt_v2_b0", **changes):
    """timm's network with random weights, drawn the same in every test."""
    torch.manual_seed(3)
    sizes = {"img_size": IMAGE} if "swin" in name else {}
    return timm.create_model(name, pretrained=False, **{"num_classes": 10, **sizes, **changes}).eval()


def supernet(preset="dit_b0", **fields):
    grid = RoutingGrid(GridSpec.preset(preset, **{"image_size": IMAGE, "num_classes": 10, **fields}))
    torch.manual_seed(5)
    return TaskNet.classifier(Architecture.full(grid)).eval()


def recipe_of(preset="dit_b0", **changes):
    """A recipe that trains nothing on a preset's grid."""
    grid = {"grid": {"preset": preset, "image_size": IMAGE, "num_classes": 10}}
    return tiny(data__train_size=16, data__val_size=4, data__test_size=4).override(grid | NOTHING | changes)


@pytest.mark.parametrize(
    ("preset", "name"),
    [pytest.param(*pair, marks=pytest.mark.slow if "swin" in pair[0] else ()) for pair in NAMES.items()],
    ids=list(NAMES),
)
def test_the_staircase_starts_as_the_pretrained_network(preset, name, tmp_path):
    model = oracle(name)
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    lines = []
    recipe = recipe_of(preset, **{"train.weights": str(tmp_path / "w.pth")})
    net = train_recipe(recipe, tmp_path / "run", tell=lines.append).net
    images = torch.randn(2, 3, IMAGE, IMAGE)
    with torch.no_grad():
        wanted, found = model(images), net(images)  # its gates are closed but for the staircase's
    torch.testing.assert_close(found.logits, wanted, atol=1e-5, rtol=1e-4)
    assert [line for line in lines if line.startswith("weights: ")] == [
        f"weights: {tmp_path / 'w.pth'}, {millions:.3g} M parameters; new: gates"
    ]


def test_edges_off_the_staircase_take_the_blocks_of_their_rate():
    net = supernet()
    before = net.edges["l01_r04_transformer"].blocks[0].attn.q.weight.clone()
    model = oracle()
    load_timm_weights(net, model)
    weight = net.edges["l01_r04_transformer"].blocks[0].attn.q.weight
    assert not torch.equal(weight, before)
    torch.testing.assert_close(weight, model.stages[0].blocks[0].attn.q.weight)


def test_a_detectors_maps_begin_as_those_of_the_pretrained_network(tmp_path):
    model = oracle(num_classes=1000)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    grid = RoutingGrid(GridSpec.preset("dit_b0", image_size=IMAGE, num_classes=0, outputs="pyramid"))
    net = dense_net("detect", grid=grid, **DENSE["detect"]).eval()
    assert load_pretrained(net, str(tmp_path / "w.pth")).endswith("; new: gates, head")
    x = torch.randn(2, 3, IMAGE, IMAGE)
    with torch.no_grad():
        maps = net.backbone.restrict(Architecture.staircase(grid))(x).maps
        x = model.patch_embed(x)
        for rate, stage in zip((4, 8, 16, 32), model.stages, strict=True):
            x = stage(x)
            torch.testing.assert_close(maps[rate], x, atol=1e-4, rtol=1e-4)


def test_timm_by_name(monkeypatch):
    model, net = oracle(num_classes=1000), supernet()
    head = net.head.weight.clone()
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: model if pretrained else None)
    told = load_pretrained(net, "timm:pvt_v2_b0")
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert told == f"weights: timm:pvt_v2_b0, {millions:.3g} M parameters; new: gates, head (10 classes)"
    assert torch.equal(net.head.weight, head)
    torch.testing.assert_close(
        net.edges["l00_r04_transformer"].state_dict()["blocks.0.mlp.fc1.weight"],
        model.stages[0].blocks[0].mlp.fc1.weight,
    )


def test_timm_without_a_network_says_so_once(monkeypatch, tmp_path, caplog):
    def create(name, pretrained):
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s")
        raise ConnectionError("[Errno -2] Name or service not known\nmore")

    monkeypatch.setattr(timm, "create_model", create)
    told = r"train.weights: timm:pvt_v2_b0: cannot be fetched \(.*not known\); .* give a file"
    with pytest.raises(BundleError, match=told) as caught:
        train_recipe(recipe_of(**{"train.weights": "timm:pvt_v2_b0"}), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
    assert "Retrying" not in caplog.text


def test_what_is_no_weights_is_refused_in_one_line(tmp_path):
    (tmp_path / "broken.pth").write_bytes(b"no pickle")
    (tmp_path / "broken.safetensors").write_bytes(b"none")
    torch.save([1, 2], tmp_path / "list.pth")
    other, net = timm.create_model("resnet18"), supernet()
    torch.save(other, tmp_path / "module.pth")  # a pickle that would run code
    torch.save(other.state_dict(), tmp_path / "other.pth")
    torch.save(oracle("pvt_v2_b1").state_dict(), tmp_path / "wide.pth")
    (tmp_path / "empty").mkdir()
    cases = {
        "timm:nosuch": "timm knows no network of that name",
        str(tmp_path / "nosuch.pth"): "does not exist; give timm:NAME, a file",
        str(tmp_path / "empty"): "has no network; give",
        str(tmp_path / "broken.pth"): "cannot be read",
        str(tmp_path / "broken.safetensors"): "cannot be read",
        str(tmp_path / "list.pth"): "holds a list",
        str(tmp_path / "module.pth"): "cannot be read",
        str(tmp_path / "other.pth"): "no weights of pvt_v2 in it",
        str(tmp_path / "wide.pth"): "does not fit",
    }
    for source, told in cases.items():
        with pytest.raises(RoutespaceError, match=told) as caught:
            load_pretrained(net, source)
        assert str(caught.value).startswith("train.weights: "), source
        assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A bundle of the supernet with random weights, for 20 classes at another image size."""
    folder = tmp_path_factory.mktemp("weights") / "bundle"
    net = supernet(image_size=96, num_classes=20)
    save_bundle(net, folder, Card.of(net))
    return folder, net


def test_a_bundle_of_the_same_grid_fills_each_edge(bundle):
    folder, given = bundle
    net = supernet()
    told = load_pretrained(net, str(folder))
    assert told.endswith("M parameters; new: gates, head (10 classes)")
    for name, edge in net.edges.items():
        for key, tensor in edge.state_dict().items():
            assert torch.equal(tensor, given.edges[name].state_dict()[key]), name
    assert isinstance(net.head, Classifier)
    assert load_pretrained(net, str(folder / "model.safetensors")).startswith(f"weights: {folder}")


def test_a_bundle_of_the_plain_network_fills_the_grid(tmp_path):
    plain = TaskNet.classifier(
        Architecture.staircase(RoutingGrid(GridSpec.preset("pvt_v2_b0", image_size=IMAGE, num_classes=10)))
    ).eval()
    save_bundle(plain, tmp_path / "plain", Card.of(plain))
    net = supernet()
    load_pretrained(net, str(tmp_path / "plain"))
    stairs = net.restrict(Architecture.staircase(net.architecture.grid))
    images = torch.randn(2, 3, IMAGE, IMAGE)
    with torch.no_grad():
        torch.testing.assert_close(stairs(images).logits, plain(images).logits, atol=1e-5, rtol=1e-4)


DENSE = {
    "detect": {"classes": 3, "width": 16, "convs": 1},
    "instance": {"classes": 3, "width": 16, "proposals": 20},
    "semantic": {"classes": 3, "channels": 16},
}


def given_to(task, seed=1):
    """A network of the tiny grid for a task, with weights of its own everywhere."""
    net = TaskNet.classifier(tiny().architecture()) if task == "classify" else dense_net(task, **DENSE[task])
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return net


@pytest.mark.parametrize("mine", ["classify", *DENSE])
@pytest.mark.parametrize("given", ["classify", *DENSE])
def test_the_backbone_goes_from_any_task_to_any_other(mine, given, tmp_path):
    """A classifier has the last map alone, and of the others' last layer what leads there."""
    net, other = given_to(mine), given_to(given, seed=2)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    save_net(other, tmp_path)
    told = load_pretrained(net, str(tmp_path))
    now, theirs = net.state_dict(), other.state_dict()
    same_head = mine == given == "classify"
    for name, tensor in now.items():
        new = ".gates." in name or (name.startswith("head.") and not same_head) or ".outputs." in name
        if new and not (".outputs." in name and name in theirs):
            assert torch.equal(tensor, before[name]), name
        elif name in theirs:
            assert torch.equal(tensor, theirs[name]), name
        else:  # an edge that the given network lacks takes a block of its rate
            assert any(torch.equal(tensor, found) for found in theirs.values()), name
    outputs = ", outputs (rate 4)" if given == "classify" != mine else ""
    head = "" if same_head else ", head (10 classes)" if mine == "classify" else ", head"
    assert told.endswith(f"M parameters; new: gates{outputs}{head}")


def test_a_safetensors_file(tmp_path):
    model, net = oracle(), supernet()
    safetensors.torch.save_file(model.state_dict(), tmp_path / "w.safetensors")
    assert load_pretrained(net, str(tmp_path / "w.safetensors")).endswith("; new: gates")
    torch.testing.assert_close(net.head.weight, model.head.weight)


def test_pretrained_weights_start_on_the_staircase_unless_told_otherwise():
    assert tiny().train.start == "open"
    assert tiny(train__weights="w.pth").train.start == "staircase"
    assert tiny(train__weights="w.pth", train__start="open").train.start == "open"
    assert tiny(train__weights="w.pth", gates__kind="tanh").train.start == "open"
    data = tiny().to_data()
    data["train"] = {"weights": "timm:pvt_v2_b0"}
    recipe = Recipe.parse(data)
    assert recipe.train.start == "staircase"
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert tiny(train__weights="a/w.pth").hash == tiny(train__weights="b/w.pth").hash != tiny().hash


def test_a_run_from_weights_is_resumed_without_them(tmp_path):
    """The file may be gone by then: the checkpoint has everything."""
    source, net = tmp_path / "source", TaskNet.classifier(tiny().architecture(), tiny().gates)
    source.mkdir()
    save_net(net, source)
    again = tiny(train__epochs=2, data__train_size=32, data__val_size=16, train__weights=str(source))
    whole = train_recipe(again, tmp_path / "whole")

    def stop(progress):
        if progress.epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(TrainingStoppedError):
        train_recipe(again, tmp_path / "part", progress=stop)
    source.rename(tmp_path / "moved")
    resumed = train_recipe(again, tmp_path / "part", resume=True)
    for key, tensor in whole.net.state_dict().items():
        assert torch.equal(tensor, resumed.net.state_dict()[key]), key
    with pytest.raises(SpecError, match="does not exist"):
        train_recipe(again, tmp_path / "new")
