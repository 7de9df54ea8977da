"""What counts as weights: modules, wrapped and not; state dicts, checkpoints; timm's and the authors' names."""

import re

import pytest
import timm
import torch
from thinning import thinned
from timm.models import adapt_input_conv, pvt_v2, swin_transformer_v2
from torch import nn

from routespace.errors import BundleError, SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec
from routespace.nn.checkpoints import adapted_input
from routespace.nn.drawing import undrawn
from routespace.nn.pretrained import load_network_weights, load_timm_weights
from routespace.nn.task_net import TaskNet

pytestmark = pytest.mark.usefixtures("weights_drawn_at_once")
MODELS = {"pvt_v2": "pvt_v2_b0", "swin_v2": "swinv2_tiny_window8_256"}
IMAGE = 64


def oracle(family: str = "pvt_v2", **options) -> nn.Module:
    torch.manual_seed(0)
    size = {"img_size": IMAGE} if family == "swin_v2" else {}
    return timm.create_model(MODELS[family], **size, **options).eval()


def ours(family: str = "pvt_v2", **fields) -> TaskNet:
    preset = {"pvt_v2": "pvt_v2_b0", "swin_v2": "swin_v2_t"}[family]
    spec = GridSpec.preset(preset, image_size=IMAGE, num_classes=10, **fields)
    with undrawn():
        return TaskNet.classifier(Architecture.staircase(RoutingGrid(spec))).eval()


@torch.no_grad()
def assert_same(net: TaskNet, model: nn.Module, channels: int = 3) -> None:
    images = torch.randn(1, channels, IMAGE, IMAGE)
    assert torch.allclose(net(images).logits, model(images), atol=1e-5)


def prefixed(prefix: str, model: nn.Module) -> dict[str, torch.Tensor]:
    return {prefix + key: tensor for key, tensor in model.state_dict().items()}


FORMS = {
    "module": lambda m: m,
    "DataParallel": nn.DataParallel,
    "compiled": lambda m: torch.compile(m, backend="eager"),
    "state dict": lambda m: m.state_dict(),
    "DDP's": lambda m: prefixed("module.", m),
    "compiled one's": lambda m: prefixed("_orig_mod.", m),
    "both": lambda m: prefixed("module._orig_mod.", m),
    "checkpoint": lambda m: {"epoch": 3, "state_dict": prefixed("module.", m), "optimizer": {"lr": 1}},
    "Swin's": lambda m: {"model": m.state_dict(), "epoch": torch.tensor(3)},
    "averaged": lambda m: {"model": oracle(num_classes=10).state_dict(), "model_ema": m.state_dict()},
    "timm's average": lambda m: {"state_dict": {}, "state_dict_ema": m.state_dict()},
    "module in a checkpoint": lambda m: {"model": m},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
def test_every_form_of_weights(form):
    model, net = oracle(num_classes=10), ours()
    with torch.no_grad():
        model.head.bias.add_(1)
    assert load_timm_weights(net, form(model)) == []
    assert_same(net, model)


def test_a_wrapped_network_is_filled():
    model, net = oracle(num_classes=10), ours()
    assert load_timm_weights(nn.DataParallel(net), model) == []
    assert_same(net, model)


NO_WEIGHTS = {
    "empty": ({}, r"no weights of pvt_v2 in it \(it holds no tensors\)"),
    "no tensors": ({"epoch": 3}, r"no weights of pvt_v2 in it \(it holds no tensors\)"),
    "resnet18": (None, r"no weights of pvt_v2 in it \(keys: conv1.weight, bn1.weight, bn1.bias, …\)"),
    "a part": ({"stages.0.blocks.0.norm1.weight": torch.ones(32)}, "1 stages for rates"),
}


@pytest.mark.parametrize(("weights", "told"), NO_WEIGHTS.values(), ids=list(NO_WEIGHTS))
def test_other_weights_are_refused_in_one_line(weights, told):
    with pytest.raises(BundleError, match=told) as caught:
        load_timm_weights(ours(), timm.create_model("resnet18") if weights is None else weights)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", MODELS)
def test_half_a_network_is_refused(family):
    state = {k: v for k, v in oracle(family).state_dict().items() if "downsample" not in k}
    with pytest.raises(BundleError, match=r"a part of a swin_v2 network|l01_r04_patch_embed does not fit"):
        load_timm_weights(ours(family), state)


def of_other_last_blocks(state):
    return {
        key: tensor[:-1] if key == "stages.3.blocks.1.mlp.fc2.bias" else tensor for key, tensor in state.items()
    }


LATE = {
    "a shape": (of_other_last_blocks, r"l03_r32_transformer does not fit .*\(255,\), it needs \(256,\)"),
    "an output norm": (
        lambda s: {k: v for k, v in s.items() if k != "stages.3.norm.bias"},
        "rate 32 .*missing",
    ),
    "half a head": (lambda s: {k: v for k, v in s.items() if k != "head.bias"}, r"head .*bias is missing"),
    "no values": (lambda s: {**s, "head.bias": s["head.bias"].to("meta")}, "head lie on the meta device"),
}


@pytest.mark.parametrize(("change", "told"), LATE.values(), ids=list(LATE))
def test_what_does_not_fit_at_its_end_changes_nothing(change, told):
    net, state = ours(), oracle(num_classes=10).state_dict()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(BundleError, match=told):
        load_timm_weights(net, change(state))
    after = net.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.parametrize("what", ["edges", "skips", "head"])
def test_another_network_of_ours_is_loaded_whole_or_not_at_all(what):
    grid = RoutingGrid(GridSpec.preset("pvt_v2_b0", image_size=IMAGE, num_classes=10))
    nets = [TaskNet.classifier(Architecture.full(grid), GateSpec(skipped="linear")) for _ in range(2)]
    part = nets[1].head if what == "head" else getattr(nets[1].backbone, what)
    module = [each for each in part.modules() if list(each.parameters(recurse=False))][-1]
    before = {name: tensor.clone() for name, tensor in nets[0].state_dict().items()}
    module.register_buffer("more", torch.zeros(1))
    with pytest.raises(BundleError, match=r"more .*it knows no such weight"):
        load_network_weights(*nets)
    assert all(torch.equal(tensor, before[name]) for name, tensor in nets[0].state_dict().items())


@pytest.mark.parametrize(("weights", "told"), [("b0.pth", "'b0.pth'"), (None, "None"), ([1], "a list")])
def test_what_is_no_weights_at_all_is_refused(weights, told):
    with pytest.raises(SpecError, match=f"weights: {told} was given; give a Module or a mapping"):
        load_timm_weights(ours(), weights)


@pytest.mark.parametrize(("family", "kept"), [("pvt_v2", ["head"]), ("swin_v2", ["outputs.r32", "head"])])
def test_networks_of_features_alone_have_all_but_a_head(family, kept):
    model, net = oracle(family, features_only=True), ours(family, outputs="pyramid")
    assert load_timm_weights(net, model) == kept
    images = torch.randn(1, 3, IMAGE, IMAGE)
    with torch.no_grad():
        maps, wanted = net(images, features=True).features, model(images)
    if family == "swin_v2":  # the last map is normed here, and (B, H, W, C) is timm's layout of them
        maps, wanted = dict(list(maps.items())[:-1]), [x.permute(0, 3, 1, 2) for x in wanted[:-1]]
    for found, other in zip(maps.values(), wanted, strict=True):
        assert torch.allclose(found, other, atol=1e-5)


@pytest.mark.parametrize(*thinned(family=list(MODELS), channels=[1, 2, 4, 6]))
def test_other_channels_are_adapted_as_timm_does(family, channels):
    model, net = oracle(family, num_classes=10), ours(family, in_channels=channels)
    load_timm_weights(net, model)
    conv = model.patch_embed.proj
    adapted = nn.Conv2d(channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding)
    adapted.weight, adapted.bias = nn.Parameter(adapt_input_conv(channels, conv.weight.detach())), conv.bias
    model.patch_embed.proj = adapted
    assert_same(net, model, channels)


def test_adapted_kernels_keep_their_type_and_sum():
    weight = torch.randn(5, 3, 2, 2, dtype=torch.float16)
    found = adapted_input(weight, 6)
    assert found.dtype == torch.float16
    assert torch.allclose(found.float().sum(1), weight.float().sum(1), atol=1e-2)


def authors_pvt(key: str) -> str:
    """The authors' name of a tensor of timm's PVTv2."""
    key = re.sub(r"stages\.(\d)\.downsample", lambda m: f"patch_embed{int(m[1]) + 1}", key)
    key = re.sub(r"stages\.(\d)\.blocks", lambda m: f"block{int(m[1]) + 1}", key)
    key = re.sub(r"^stages\.(\d)\.norm", lambda m: f"norm{int(m[1]) + 1}", key)
    return key.replace("patch_embed.", "patch_embed1.").replace(".dwconv.", ".dwconv.dwconv.")


def authors_swin(key: str) -> str:
    """The authors' name of a tensor of timm's SwinV2."""
    key = re.sub(r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", key)
    return key.replace("head.fc.", "head.")


def test_the_authors_names_of_pvt_v2():
    model, net = oracle(num_classes=10), ours()
    state = {authors_pvt(key): tensor for key, tensor in model.state_dict().items()}
    assert "patch_embed1.proj.weight" in state
    assert set(pvt_v2.checkpoint_filter_fn(state, model)) == set(model.state_dict())  # timm takes them for such
    assert load_timm_weights(net, state) == []
    assert_same(net, model)


def test_the_authors_names_of_swin_v2():
    model, net = oracle("swin_v2", num_classes=10), ours("swin_v2")
    state = {authors_swin(key): tensor for key, tensor in model.state_dict().items()}
    state["layers.0.blocks.1.attn_mask"] = state["layers.0.blocks.0.attn.relative_coords_table"] = torch.zeros(1)
    assert set(swin_transformer_v2.checkpoint_filter_fn(state, model)) == set(model.state_dict())
    assert load_timm_weights(net, {"model": state}) == []
    assert_same(net, model)


def tuned_swin(window: int, before: int) -> nn.Module:
    """timm's SwinV2 that was trained in windows of `before` first, with lively branches."""
    torch.manual_seed(0)
    sizes = {"img_size": 8 * window, "embed_dim": 48, "depths": (2, 2), "num_heads": (3, 6), "num_classes": 7}
    net = swin_transformer_v2.SwinTransformerV2(
        patch_size=4, window_size=window, pretrained_window_sizes=(before, before), **sizes
    ).eval()
    for name, parameter in net.named_parameters():
        if "norm" in name and name.endswith("weight"):
            nn.init.ones_(parameter)
        elif parameter.ndim > 1 and "logit" not in name:
            nn.init.normal_(parameter, std=0.2)
    return net


def swin_of(window: int, **own) -> TaskNet:
    numbers = {"widths": (48, 96), "heads": (3, 6), "mlp_ratios": (4.0, 4.0), "window": window, "depths": 2}
    spec = GridSpec.parse(
        {"layers": 2, "max_down": 8, "family": "swin_v2", "image_size": 8 * window, "num_classes": 7}
        | numbers
        | own
    )
    return TaskNet.classifier(Architecture.staircase(RoutingGrid(spec))).eval()


WINDOWS = [(8, 0, {}), (8, 4, {"pretrained_window": 4}), (16, 12, {"pretrained_window": (12, 12)})]


@pytest.mark.parametrize(("window", "before", "own"), WINDOWS)
@pytest.mark.parametrize("form", ["module", "state dict"])
def test_weights_that_were_tuned_in_other_windows_are_exact(window, before, own, form):
    model, net = tuned_swin(window, before), swin_of(window, **own)
    assert load_timm_weights(net, model if form == "module" else model.state_dict()) == []
    images = torch.randn(2, 3, 8 * window, 8 * window)
    with torch.no_grad():
        assert torch.allclose(net(images).logits, model(images), atol=1e-5)


@pytest.mark.parametrize(
    ("window", "before", "ours", "own", "told"),
    [
        (8, 4, 8, {}, r"at rates \[4, 8\] .* pretrained_window=\[4, 4\]"),
        (8, 0, 8, {"pretrained_window": (8, 4)}, r"at rates \[8\] .* pretrained_window=\[0, 8\]"),
        (8, 0, 16, {}, r"pretrained_window=\[8, 8\]"),
    ],
)
def test_a_module_of_other_windows_is_refused(window, before, ours, own, told):
    with pytest.raises(BundleError, match=told):
        load_timm_weights(swin_of(ours, **own), tuned_swin(window, before))


def test_a_module_of_smaller_windows_starts_larger_ones():
    net = swin_of(16, pretrained_window=8)
    assert load_timm_weights(net, tuned_swin(8, 0)) == []
