"""SwinV2 against timm: the staircase path is timm's network at any size that timm takes."""

import math

import pytest
import timm
import torch

from routespace.errors import BundleError
from routespace.grid.architecture import Architecture
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec
from routespace.nn.families.swin_windows import Windows, position_table, unit, window_table
from routespace.nn.pretrained import load_timm_weights
from routespace.nn.routing.routes import Routes
from routespace.nn.task_net import TaskNet

NARROW = {"widths": (16, 32, 64, 128), "heads": (1, 2, 4, 8)}  # where nothing is compared with timm
TIMM_NAMES = {"t": "tiny", "s": "small", "b": "base"}


pytestmark = pytest.mark.usefixtures("weights_drawn_at_once")


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def shake(net: torch.nn.Module, seed: int = 0) -> None:
    """Weights that matter: fresh SwinV2 has zero norms, so that its blocks do nothing, and hardly any bias."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.ndim == 1 or "logit_scale" in name:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
            elif "cpb_mlp" in name:
                parameter *= 20


def timm_net(size: str, image_size=256) -> torch.nn.Module:
    torch.manual_seed(0)
    net = timm.create_model(f"swinv2_{TIMM_NAMES[size]}_window8_256", img_size=image_size).eval()
    shake(net)
    return net


def staircase(preset: str, **fields) -> TaskNet:
    grid = RoutingGrid(GridSpec.preset(preset, **fields))
    return TaskNet.classifier(Architecture.staircase(grid)).eval()


@torch.no_grad()
@pytest.mark.parametrize(
    ("size", "image"),
    [
        *(pytest.param(size, (256, 256), marks=pytest.mark.slow) for size in "tsb"),
        pytest.param("t", (224, 288), marks=pytest.mark.slow),
        ("t", (100, 132)),
        ("t", (32, 96)),
    ],
)
def test_staircase_is_timm(size, image):
    oracle = timm_net(size, image)
    net = staircase(f"swin_v2_{size}", image_size=image, outputs="pyramid")
    assert load_timm_weights(net, oracle.state_dict()) == []
    images = torch.randn(1, 3, *image, generator=torch.Generator().manual_seed(1))
    out = net(images, features=True)
    assert relative(out.logits, oracle(images)) < 1e-5
    maps = oracle.forward_intermediates(images, norm=True, intermediates_only=True)
    for ours, theirs in zip(out.features.values(), maps, strict=True):
        assert ours.shape == theirs.shape
        assert relative(ours, theirs) < 1e-5


@torch.no_grad()
def test_weights_of_one_size_serve_another():
    """The position bias is continuous: other map sizes, and windows clamped to them, need no new weights."""
    oracle = timm_net("t")
    net = staircase("swin_v2_t")
    load_timm_weights(net, oracle.state_dict())
    small = timm_net("t", (64, 128))
    small.load_state_dict(oracle.state_dict())
    images = torch.randn(2, 3, 64, 128)
    assert relative(net(images).logits, small(images)) < 1e-5


@torch.no_grad()
def test_images_that_patches_do_not_divide_are_padded_with_zeros():
    net = staircase("swin_v2_t", image_size=64, **NARROW)
    shake(net)
    images = torch.randn(1, 3, 61, 66)
    padded = torch.nn.functional.pad(images, (0, 2, 0, 3))
    assert torch.equal(net(images).logits, net(padded).logits)


@torch.no_grad()
def test_one_block_a_layer_contains_swin_t():
    """Shifted and plain windows alternate along the columns."""
    oracle = timm_net("t", 64)
    grid = RoutingGrid(GridSpec(layers=12, family="swin_v2", size="t", image_size=64))
    net = TaskNet.classifier(Architecture.staircase(grid, (2, 2, 6, 2))).eval()
    assert load_timm_weights(net, oracle.state_dict()) == []
    images = torch.randn(1, 3, 64, 64)
    assert relative(net(images).logits, oracle(images)) < 1e-5


@torch.no_grad()
def test_supernet_warm_start_contains_timm():
    oracle = timm_net("t", 64)
    grid = RoutingGrid(GridSpec.preset("dit_swin_v2_t", image_size=64))
    supernet = TaskNet.classifier(Architecture.full(grid)).eval()
    own = load_timm_weights(supernet, oracle.state_dict())
    assert own
    assert all(name.startswith("gates.") for name in own)
    images = torch.randn(1, 3, 64, 64)
    path = supernet.restrict(Architecture.staircase(grid))
    assert relative(path(images).logits, oracle(images)) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("image", [pytest.param((128, 128), marks=pytest.mark.slow), (100, 132)])
def test_a_window_for_each_rate(image):
    """Each rate computes what it computes in a grid that has its window everywhere."""
    windows = (16, 8, 4, 2)
    net = staircase("swin_v2_t", image_size=image, window=windows, **NARROW)
    shake(net)
    for rate, window in zip(net.spec.rates, windows, strict=True):
        same = staircase("swin_v2_t", image_size=image, window=window, **NARROW)
        same.load_state_dict(net.state_dict())
        hw = net.spec.map_size(rate)
        x = torch.randn(1, hw[0] * hw[1], net.spec.width(rate), generator=torch.Generator().manual_seed(rate))
        name = next(n for n in net.edges if n.endswith(f"r{rate:02d}_transformer"))
        assert torch.equal(net.edges[name](x, hw), same.edges[name](x, hw))
        images = torch.randn(1, 3, *image, generator=torch.Generator().manual_seed(1))
        assert relative(net(images).logits, same(images).logits) > 1e-3


@torch.no_grad()
def test_a_supernet_with_a_window_for_each_rate_is_routed():
    grid = RoutingGrid(GridSpec(layers=3, max_down=16, depths=2, family="swin_v2", size="t", window=(6, 4, 2),
                                image_size=(64, 80), num_classes=5))  # fmt: skip
    net = TaskNet.classifier(Architecture.full(grid)).eval()
    shake(net)
    images = torch.randn(2, 3, 64, 80)
    routes = Routes.random(net, images, keep=0.4, columns=0.6)
    dense = net(images, routes=routes).logits
    net.decide(execution="packed")
    assert relative(net(images, routes=routes).logits, dense) < 1e-4


def test_only_parameters_are_saved_under_timms_names():
    net = staircase("swin_v2_t", image_size=64)
    assert set(net.state_dict()) == {name for name, _ in net.named_parameters()}
    block = set(net.edges["l00_r04_transformer"].blocks[0].state_dict())
    assert block == set(timm_net("t", 64).layers[0].blocks[0].state_dict())


def test_weights_of_another_size_are_refused():
    with pytest.raises(BundleError, match="does not fit"):
        load_timm_weights(staircase("swin_v2_t", image_size=64, **NARROW), timm_net("t", 64).state_dict())


def test_a_shallower_grid_keeps_its_own_norm_and_head():
    net = staircase("swin_v2_t", image_size=64, layers=3, max_down=16, depths=(2, 2, 6), embed_layers=(1, 2))
    assert load_timm_weights(net, timm_net("t", 64).state_dict()) == ["outputs.r16", "head"]


def test_tables_made_at_inference_serve_training():
    net = staircase("swin_v2_t", image_size=(96, 64), **NARROW)
    images = torch.randn(1, 3, 96, 64)
    with torch.inference_mode():
        net(images)
    net.train()
    net(images).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_changed_position_weights_count_at_once():
    net = staircase("swin_v2_t", image_size=64, **NARROW)
    shake(net)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = net(images).logits
        for name, parameter in net.named_parameters():
            if "cpb_mlp.2" in name:
                parameter.data = parameter.data * 3
        assert not torch.allclose(before, net(images).logits)


@pytest.mark.slow
def test_exports_with_a_free_batch_size():
    spec = GridSpec(layers=2, max_down=8, depths=2, family="swin_v2", size="t", image_size=(72, 72))
    net = TaskNet.classifier(Architecture.staircase(RoutingGrid(spec))).eval()
    shake(net)

    images = torch.randn(2, 3, 72, 72)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(net.as_module(), (images,), dynamic_shapes=({0: batch},))
    more = torch.randn(5, 3, 72, 72)
    with torch.no_grad():
        assert relative(program.module()(more), net(more).logits) < 1e-5


@pytest.mark.parametrize("sides", [(8, 8), (4, 8), (1, 1), (7, 3)])
def test_positions_are_timms(sides):
    attention = timm.models.swin_transformer_v2.WindowAttention(8, sides, 2)
    ours = position_table(sides, torch.device("cpu"))
    assert torch.allclose(ours, attention.relative_coords_table.flatten(0, 2), atol=1e-6)
    pairs = window_table(Windows(sides, sides, (0, 0)), ours).pairs
    assert torch.equal(pairs, attention.relative_position_index.flatten())


@pytest.mark.parametrize(("hw", "window"), [((16, 16), 8), ((11, 20), 8), ((3, 9), 4), ((5, 5), 7), ((9, 9), 1)])
@pytest.mark.parametrize("shifted", [False, True])
def test_every_token_has_one_place(hw, window, shifted):
    windows = Windows.of(hw, window, shifted=shifted)
    table = window_table(windows, torch.empty(0))
    tokens = torch.arange(hw[0] * hw[1])
    assert torch.equal(table.tokens[table.places], tokens)
    real = torch.ones_like(table.tokens, dtype=torch.bool) if table.real is None else table.real
    assert torch.equal(table.tokens[real].sort().values, tokens)
    assert windows.number * windows.area == math.prod(windows.padded)


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
def test_unit_of_zero_is_zero(dtype):
    x = torch.stack((torch.zeros(4), torch.ones(4), torch.full((4,), 1e-3))).to(dtype)
    assert torch.allclose(unit(x).float(), torch.tensor([0.0, 0.5, 0.5])[:, None].expand(3, 4), atol=1e-2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_vectors_have_zero_gradients(dtype):
    x = torch.zeros(3, 4, dtype=dtype)
    x[1] = 0.5
    x.requires_grad_()
    (unit(x) * torch.arange(4)).sum().backward()
    assert not x.grad[0].any()
    assert x.grad[1].any()
    assert x.grad.isfinite().all()


def padded_net(window: int, image: int, *, routed: bool = False) -> TaskNet:
    """A network of which some windows are padded, with lively branches."""
    torch.manual_seed(0)
    numbers = {"widths": (16, 32), "heads": (1, 2), "mlp_ratios": (2.0, 2.0), "window": window}
    grid = RoutingGrid(
        GridSpec.parse({"layers": 2, "max_down": 8, "family": "swin_v2", "image_size": image, **numbers})
    )
    net = TaskNet.classifier(Architecture.full(grid) if routed else Architecture.staircase(grid))
    for name, parameter in net.named_parameters():
        if "norm" in name and name.endswith("weight"):
            torch.nn.init.ones_(parameter)
    return net


@pytest.mark.parametrize(("window", "image"), [(4, 64), (5, 64), (8, 72)])
def test_half_precision_trains_padded_windows(window, image):
    net = padded_net(window, image)
    with torch.autocast("cpu", dtype=torch.float16):
        net(torch.randn(2, 3, image, image)).logits.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("execution", ["dense", "packed", "auto"])
def test_half_precision_trains_invisible_tokens(execution):
    net, images = padded_net(5, 64, routed=True).eval(), torch.randn(2, 3, 64, 64)
    net.decide(execution=execution)
    routes = Routes.random(net, images, keep=0.5, columns=0.5)
    with torch.autocast("cpu", dtype=torch.float16):
        net(images, routes=routes).logits.float().square().mean().backward()
    grads = [p.grad for p in net.parameters() if p.grad is not None]
    assert len(grads) > 20
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("execution", ["dense", "packed"])
def test_double_precision(execution):
    net, images = padded_net(5, 64, routed=True).eval(), torch.randn(2, 3, 64, 64)
    net.decide(execution=execution)
    routes = Routes.random(net, images, keep=0.5)
    with torch.no_grad():
        single = net(images, routes=routes).logits
        double = net.double()(images.double(), routes=routes).logits
    assert double.dtype == torch.float64
    assert torch.allclose(single.double(), double, atol=1e-5)
