"""TaskNet against timm: the staircase path is timm's PVTv2, exactly."""

import pytest
import timm
import torch

from routespace.errors import BundleError, GridError, SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec
from routespace.nn.pretrained import load_timm_weights
from routespace.nn.task_net import TaskNet

pytestmark = pytest.mark.usefixtures("weights_drawn_at_once")


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def timm_net(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name).eval()


@torch.no_grad()
@pytest.mark.parametrize("size", [(224, 224), (160, 256)])
@pytest.mark.parametrize(
    "name", ["b0", "b1", *(pytest.param(f"b{large}", marks=pytest.mark.slow) for large in (2, 3, 4, 5))]
)
def test_staircase_is_timm(name, size):
    oracle = timm_net(f"pvt_v2_{name}")
    spec = GridSpec.preset(f"pvt_v2_{name}", image_size=size, outputs="pyramid")
    net = TaskNet.classifier(Architecture.staircase(RoutingGrid(spec))).eval()
    assert load_timm_weights(net, oracle.state_dict()) == []
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    out = net(images, features=True)
    assert relative(out.logits, oracle(images)) < 1e-5
    maps = oracle.forward_intermediates(images, intermediates_only=True)
    assert list(out.features) == [4, 8, 16, 32]
    for ours, theirs in zip(out.features.values(), maps, strict=True):
        assert ours.shape == theirs.shape
        assert relative(ours, theirs) < 1e-5


@pytest.mark.slow  # of smaller ones it is shown above
@torch.no_grad()
def test_b2_is_a_path_of_the_24_layer_grid():
    oracle = timm_net("pvt_v2_b2")
    grid = RoutingGrid(GridSpec(layers=24, max_down=32, size="b2"))
    path = Architecture.staircase(grid, (3, 4, 6, 3))
    net = TaskNet.classifier(path).eval()
    load_timm_weights(net, oracle.state_dict())
    images = torch.randn(2, 3, 224, 224)
    assert relative(net(images).logits, oracle(images)) < 1e-5
    assert sum(p.numel() for p in net.parameters()) == 25_362_856


@torch.no_grad()
def test_supernet_warm_start_contains_timm():
    oracle = timm_net("pvt_v2_b0")
    grid = RoutingGrid(GridSpec.preset("dit_b0"))
    supernet = TaskNet.classifier(Architecture.full(grid)).eval()
    own = load_timm_weights(supernet, oracle.state_dict())
    assert own
    assert all(name.startswith("gates.") for name in own)
    images = torch.randn(1, 3, 224, 224)
    path = supernet.restrict(Architecture.staircase(grid))
    assert relative(path(images).logits, oracle(images)) < 1e-5


def test_weights_of_another_size_are_refused():
    net = TaskNet.classifier(Architecture.staircase(RoutingGrid(GridSpec.preset("pvt_v2_b1"))))
    with pytest.raises(BundleError, match="does not fit"):
        load_timm_weights(net, timm_net("pvt_v2_b0").state_dict())


def test_other_classes_keep_their_own_head():
    net = TaskNet.classifier(Architecture.staircase(RoutingGrid(GridSpec.preset("pvt_v2_b0", num_classes=7))))
    assert load_timm_weights(net, timm_net("pvt_v2_b0").state_dict()) == ["head"]


def small_grid(**changes) -> RoutingGrid:
    return RoutingGrid(GridSpec.parse({"layers": 3, "size": "b0", "image_size": 64, "num_classes": 5} | changes))


@torch.no_grad()
def test_restriction_shares_weights():
    grid = small_grid()
    supernet = TaskNet.classifier(Architecture.full(grid)).eval()
    path = supernet.restrict(Architecture.staircase(grid))
    assert set(path.state_dict()) < set(supernet.state_dict())
    images = torch.randn(1, 3, 64, 64)
    before = path(images).logits
    for weight in supernet.backbone.stem.parameters():
        weight.mul_(2).add_(0.1)
    assert not torch.equal(before, path(images).logits)


def test_restriction_to_another_grid_is_refused():
    net = TaskNet.classifier(Architecture.full(small_grid()))
    with pytest.raises(GridError, match="no part"):
        net.restrict(Architecture.full(small_grid(layers=4)))
    path = TaskNet.classifier(Architecture.staircase(small_grid()))
    with pytest.raises(GridError, match="gates only where"):
        path.restrict(Architecture.full(small_grid()))


@torch.no_grad()
@pytest.mark.parametrize("size", [(33, 64), (97, 131), (32, 32)])
def test_odd_image_sizes(size):
    net = TaskNet.classifier(Architecture.full(small_grid(outputs="pyramid", sr_ratios=(2, 2, 1, 1)))).eval()
    out = net(torch.randn(2, 3, *size), features=True)
    assert out.logits.shape == (2, 5)
    for rate, features in out.features.items():
        assert features.shape[-2:] == (-(-size[0] // rate), -(-size[1] // rate))


@pytest.mark.parametrize("shape", [(1, 4, 64, 64), (1, 3, 16, 64)])
def test_images_that_do_not_fit(shape):
    with pytest.raises(SpecError, match="does not fit"):
        TaskNet.classifier(Architecture.full(small_grid()))(torch.randn(shape))
