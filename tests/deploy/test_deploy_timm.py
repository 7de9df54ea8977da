"""A static network as timm's tools see it: created, fed, cut, grouped and re-headed by timm itself."""

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from routespace import (
    Architecture,
    BundleError,
    Card,
    GridSpec,
    RoutingGrid,
    SpecError,
    TaskNet,
    as_timm,
    save_bundle,
)
from routespace.preprocess import Preprocess, save_preprocess

FIELDS = {"layers": 2, "max_down": 8, "widths": (8, 16), "heads": (1, 2), "mlp_ratios": (2.0, 2.0),
          "sr_ratios": (2, 1), "image_size": 32, "num_classes": 3, "outputs": "pyramid"}  # fmt: skip


def make_net(architecture=Architecture.staircase, **changes):
    torch.manual_seed(0)
    return TaskNet.classifier(architecture(RoutingGrid(GridSpec.parse(FIELDS | changes)))).eval()


@pytest.fixture(scope="module")
def net():
    return make_net()


@pytest.fixture(scope="module")
def bundle(net, tmp_path_factory):
    folder = tmp_path_factory.mktemp("timm") / "small"
    save_bundle(net, folder, Card.of(net))
    save_preprocess(folder, Preprocess(size=(32, 40), crop_pct=0.8, interpolation="bilinear"), ["a", "b", "c"])
    return folder


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))


def test_it_computes_what_the_network_computes(net, images):
    model = as_timm(net)
    assert torch.equal(model(images), net(images).logits)
    assert torch.equal(model.forward_head(model.forward_features(images)), model(images))
    coarsest, maps = model.forward_intermediates(images)
    wanted = net(images, features=True).features
    assert all(torch.equal(one, wanted[rate]) for one, rate in zip(maps, (4, 8), strict=True))
    assert torch.equal(coarsest, wanted[8])
    assert {name for name, _ in model.named_parameters()} == {name for name, _ in net.named_parameters()}
    assert model.load_state_dict(net.state_dict()).missing_keys == []
    assert model.head.weight is net.head.weight


def test_timm_creates_it_from_a_bundle(net, bundle, images):
    model = timm.create_model("routespace", bundle=bundle, pretrained=True).eval()
    assert torch.equal(model(images), net(images).logits)
    assert (model.num_classes, model.num_features, model.in_chans) == (3, 16, 3)
    torch.manual_seed(5)
    fresh = timm.create_model("routespace", bundle=bundle).eval()
    assert not torch.allclose(fresh(images), model(images))
    other = timm.create_model("routespace", bundle=bundle, pretrained=True, num_classes=7).eval()
    assert other(images).shape == (2, 7)
    assert torch.equal(other.forward_features(images), model.forward_features(images))
    bare = timm.create_model("routespace", bundle=bundle, pretrained=True, num_classes=0, global_pool="").eval()
    assert bare(images).shape == (2, 16, 4, 6)


def test_timm_takes_its_features(net, bundle, images):
    pyramid = timm.create_model("routespace", bundle=bundle, pretrained=True, features_only=True).eval()
    assert (pyramid.feature_info.channels(), pyramid.feature_info.reduction()) == ([8, 16], [4, 8])
    wanted = net(images, features=True).features
    assert all(torch.equal(one, wanted[rate]) for one, rate in zip(pyramid(images), (4, 8), strict=True))
    last = timm.create_model("routespace", bundle=bundle, pretrained=True, features_only=True, out_indices=(1,))
    assert last.feature_info.channels() == [16]


def test_timm_knows_how_pictures_go_in(bundle):
    model = timm.create_model("routespace", bundle=bundle, pretrained=True)
    config = timm.data.resolve_model_data_config(model)
    assert (config["input_size"], config["crop_pct"], config["interpolation"]) == ((3, 32, 40), 0.8, "bilinear")
    assert model.pretrained_cfg["label_names"] == ["a", "b", "c"]


def test_layers_learn_more_slowly_towards_the_stem(net):
    model = as_timm(net)
    groups = param_groups_layer_decay(model, weight_decay=0.1, layer_decay=0.5)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    scale = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    assert scale.keys() == set(names.values())
    assert scale["head.weight"] == 1
    stem = [value for name, value in scale.items() if name.startswith("backbone.stem")]
    first = [value for name, value in scale.items() if name.startswith("backbone.edges.l00")]
    second = [value for name, value in scale.items() if name.startswith("backbone.edges.l01")]
    assert max(stem) < min(first) <= max(first) < min(second) < 1


def test_a_new_head_is_trained_like_any_module(net, images):
    model = as_timm(make_net()).train()
    model.reset_classifier(5)
    model.set_grad_checkpointing()
    assert isinstance(model.get_classifier(), nn.Linear)
    model(images).square().sum().backward()
    assert all(parameter.grad is not None for name, parameter in model.named_parameters() if "r04" not in name)


def test_what_timm_cannot_have_is_refused(net, bundle, tmp_path):
    with pytest.raises(SpecError, match="gates"):
        as_timm(make_net(Architecture.full))
    with pytest.raises(SpecError, match="global_pool"):
        as_timm(net).reset_classifier(3, "")
    with pytest.raises(SpecError, match="in_chans: 1"):
        timm.create_model("routespace", bundle=bundle, in_chans=1)
    with pytest.raises(SpecError, match="pretrained_cfg"):
        timm.create_model("routespace.tag", bundle=bundle)
    with pytest.raises(SpecError, match="act_layer"):
        timm.create_model("routespace", bundle=bundle, act_layer="gelu")
    with pytest.raises(BundleError):
        timm.create_model("routespace", bundle=tmp_path / "none")
    assert as_timm(net.backbone)(torch.randn(1, 3, 32, 32)).shape == (1, 16)
    assert as_timm(make_net(in_channels=7)).pretrained_cfg["input_size"] == (7, 32, 32)
