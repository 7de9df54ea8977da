"""Heads of pixel classes: segmentation_models_pytorch tells their numbers, torch's counter their price."""

import pytest
import torch
from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder
from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
from torchvision.ops import FeaturePyramidNetwork

from routespace.deploy.counters import torch_macs
from routespace.errors import SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec
from routespace.nn.cost import network_cost
from routespace.nn.heads.kinds import head_data, make_head
from routespace.nn.heads.pixel_decoders import SemanticFpn, UperNet
from routespace.nn.heads.semantic import PixelClassifier
from routespace.nn.route_net import RouteNet
from routespace.nn.task_net import TaskNet
from routespace.nn.weights import load_net, save_net

WIDTHS = 8, 16, 24, 32


def pyramid_spec(rates=4):
    shape = {"widths": WIDTHS, "heads": (1, 1, 1, 2), "mlp_ratios": (2, 2, 2, 2), "sr_ratios": (4, 2, 2, 1)}
    cut = {name: numbers[:rates] for name, numbers in shape.items()}
    return GridSpec(layers=2, max_down=2 << rates, outputs="pyramid", num_classes=0, image_size=64, **cut)


def network(decoder, rates=4, channels=64):
    torch.manual_seed(0)
    spec = pyramid_spec(rates)
    head = make_head(spec, {"kind": "semantic", "classes": 5, "decoder": decoder, "channels": channels})
    return TaskNet(RouteNet(Architecture.full(RoutingGrid(spec))), head).eval()


def maps(size=(64, 96), rates=4):
    torch.manual_seed(1)
    return [
        torch.randn(2, width, -(-size[0] // (4 << level)), -(-size[1] // (4 << level)))
        for level, width in enumerate(WIDTHS[:rates])
    ]


def test_with_four_rates_semantic_fpn_is_the_librarys_decoder():
    theirs = FPNDecoder([3, 3, *WIDTHS], pyramid_channels=64, segmentation_channels=32).eval()
    ours = SemanticFpn(WIDTHS, 64).eval()
    laterals = theirs.p2.skip_conv, theirs.p3.skip_conv, theirs.p4.skip_conv, theirs.p5
    for mine, other in zip(ours.laterals, laterals, strict=True):
        mine.load_state_dict(other.state_dict())
    for mine, other in zip(ours.branches, reversed(theirs.seg_blocks), strict=True):
        mine.load_state_dict(other.state_dict())
    features = maps()
    with torch.no_grad():
        torch.testing.assert_close(ours(features), theirs(features))
        assert ours(maps((63, 70))).shape == (2, 32, 16, 18)  # of odd sizes, which theirs refuses


def test_a_smoothed_semantic_fpn_is_torchvisions_pyramid_under_the_librarys_branches():
    theirs = FeaturePyramidNetwork(list(WIDTHS), 64).eval()
    ours, plain = SemanticFpn(WIDTHS, 64, smoothed=True).eval(), SemanticFpn(WIDTHS, 64).eval()
    for mine, other in zip(ours.laterals, theirs.inner_blocks, strict=True):
        mine.load_state_dict(other[0].state_dict())
    for mine, other in zip(ours.smooth, theirs.layer_blocks, strict=True):
        mine.load_state_dict(other[0].state_dict())
    ours.branches.load_state_dict(plain.branches.state_dict())
    features = maps()
    with torch.no_grad():
        levels = theirs({str(place): x for place, x in enumerate(features)}).values()
        wanted = sum(branch(level) for branch, level in zip(plain.branches, levels, strict=True))
        torch.testing.assert_close(ours(features), wanted)


def test_upernet_is_the_librarys_decoder_but_for_its_norms():
    ours = UperNet(WIDTHS, 64).eval()
    theirs = UPerNetDecoder((3, 3, *WIDTHS), decoder_channels=64)
    for name, module in list(theirs.named_modules()):
        if isinstance(module, torch.nn.BatchNorm2d):
            parent, _, last = name.rpartition(".")
            setattr(theirs.get_submodule(parent), last, torch.nn.GroupNorm(4, 64))
    theirs.load_state_dict(ours.decoder.state_dict())
    features = maps()
    with torch.no_grad():
        torch.testing.assert_close(ours(features), theirs([features[0], features[0], *features]))


@pytest.mark.parametrize("decoder", ["semantic_fpn", "semantic_fpn_3x3", "upernet"])
@pytest.mark.parametrize(("rates", "channels"), [(1, 64), (2, 64), (4, 64), (4, 16), (4, 48)])
def test_the_head_is_built_of_the_rates_that_there_are_and_priced_to_the_last_mac(decoder, rates, channels):
    net = network(decoder, rates, channels)
    for size in ((64, 64), (72, 100), (65, 33)) if channels == 16 else ((72, 100),):
        with torch.no_grad():
            out = net(torch.randn(2, 3, *size)).outputs
        assert out.shape == (2, 5, -(-size[0] // 4), -(-size[1] // 4))
        counted, told = torch_macs(net, size, meta=False), network_cost(net, image_size=size)
        assert (counted.macs, counted.unknown) == (told.macs, {})
        assert told.params == sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize("decoder", ["semantic_fpn", "semantic_fpn_3x3", "upernet"])
def test_one_image_alone_trains_every_weight_and_its_numbers_are_its_own(decoder):
    net = network(decoder)
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(net(images).outputs[1:2], net(images[1:2]).outputs, atol=1e-5, rtol=1e-5)
    net.train()(images[:1]).outputs.square().sum().backward()
    assert all(parameter.grad is not None for parameter in net.head.parameters())


def test_a_saved_head_comes_back(tmp_path):
    net = network("upernet", 2)
    (tmp_path / "net").mkdir()
    save_net(net, tmp_path / "net")
    images = torch.randn(1, 3, 64, 64)
    again = load_net(tmp_path / "net")
    assert head_data(again.head) == {"kind": "semantic", "classes": 5, "decoder": "upernet", "channels": 64}
    assert torch.equal(again.eval()(images).outputs, net(images).outputs)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": 0}, r"task\.classes: 0 classes of pixels cannot be told apart"),
        (
            {"decoder": "unet"},
            r"task\.decoder: 'unet' is not known; give one of semantic_fpn, semantic_",
        ),
        ({"channels": 100}, r"task\.channels: 100 is not allowed; give a multiple of 16"),
    ],
)
def test_settings_that_are_not_allowed_are_one_line(settings, message):
    with pytest.raises(SpecError, match=message):
        PixelClassifier.build(pyramid_spec(), {"classes": 5, **settings})


@pytest.mark.parametrize("decoder", ["semantic_fpn", "semantic_fpn_3x3", "upernet"])
@pytest.mark.parametrize("channels", [16, 64])
def test_one_image_of_one_coarse_token_is_taken(decoder, channels):
    net = network(decoder, channels=channels).train()
    logits = net(torch.randn(1, 3, 32, 32)).outputs
    assert logits.shape == (1, 5, 8, 8)
    logits.sum().backward()
    assert all(part.grad.isfinite().all() for part in net.head.parameters())
