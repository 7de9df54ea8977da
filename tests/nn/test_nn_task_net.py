"""TaskNet: a backbone and a head; weights of the time when both were one module load as they did."""

import copy
import io
from pathlib import Path

import pytest
import torch
from tiny_grid import TINY_GRID
from torch.nn import functional as F

from routespace.deploy.bundle import Card, load_bundle, save_bundle
from routespace.deploy.extract import extract
from routespace.deploy.verify import verify
from routespace.errors import BundleError, SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec
from routespace.nn.cost import network_cost
from routespace.nn.heads.classify import Classifier
from routespace.nn.route_net import RouteNet
from routespace.nn.routing.routes import EdgeRoute, Routes
from routespace.nn.task_net import TaskNet
from routespace.nn.usage import measure_usage
from routespace.nn.weights import load_net, save_net

OLD_BUNDLE = Path(__file__).parents[1] / "deploy" / "data" / "format_1"
OLD_LOGITS = [  # of the network in OLD_BUNDLE, by the version that wrote it
    [-0.08019541949033737, 0.06144597381353378, -0.17356355488300323],
    [-0.03292332962155342, -0.06303555518388748, -0.1566835641860962],
]


def tiny(**changes) -> TaskNet:
    torch.manual_seed(0)
    grid = RoutingGrid(GridSpec(**TINY_GRID | changes))
    return TaskNet.classifier(Architecture.full(grid), GateSpec(openness=0.5)).eval()


def flat(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key.removeprefix("backbone."): value for key, value in state.items()}


def test_a_bundle_of_the_first_format_loads_and_computes_what_it_did():
    net = load_bundle(OLD_BUNDLE).net
    images = torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(net(images).logits, torch.tensor(OLD_LOGITS), atol=1e-6)


@pytest.mark.parametrize("wrap", [lambda net: net, lambda net: torch.nn.Sequential(net)], ids=["alone", "inside"])
def test_flat_keys_of_old_load_strictly(wrap):
    net, other = tiny(), wrap(tiny())
    prefix = "0." if isinstance(other, torch.nn.Sequential) else ""
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    given = {prefix + key: value for key, value in flat(net.state_dict()).items()}
    before = list(given)
    other.load_state_dict(given, strict=True)
    assert list(given) == before
    for mine, theirs in zip(other.parameters(), net.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({key: value for key, value in given.items() if "head." not in key})


def test_copies_and_pickles_keep_the_old_keys_way():
    net = tiny()
    stream = io.BytesIO()
    torch.save(net, stream)
    stream.seek(0)
    for twin in (copy.deepcopy(net), torch.load(stream, weights_only=False)):
        twin.load_state_dict(flat(net.state_dict()))
        images = torch.randn(2, 3, 32, 32)
        assert torch.equal(twin(images).logits, net(images).logits)


def test_the_classifier_leaves_out_what_nobody_sent():
    net = tiny()
    images = torch.randn(2, 3, 32, 32)
    routes = dict(Routes.full(net, images))
    last = max(name for name in routes if name.endswith("patch_embed") and not name.startswith("l00"))
    for name, route in routes.items():
        if name.endswith("patch_embed"):
            kept = torch.zeros(2, net.gate_places((32, 32))[name].decisions, dtype=torch.bool)
            kept[:, : max(1, kept.shape[1] // 2)] = name == last or name.startswith("l00")
            kept = net.gate_places((32, 32))[name].spread(kept)
            routes[name] = EdgeRoute(kept, kept.float(), route.chance)
    output = net.backbone(images, routes=Routes(routes))
    coarsest = output.maps[net.spec.max_down].flatten(2)
    there = output.there[net.spec.max_down]
    mask = torch.ones_like(coarsest[:, 0], dtype=torch.bool) if there is None else there
    for image in range(2):
        pooled = coarsest[image][:, mask[image]].mean(1)
        wanted = F.linear(pooled, net.head.weight, net.head.bias)
        assert torch.allclose(net.head(output)[image], wanted, atol=1e-6)


def test_a_network_without_classes_gives_its_maps(tmp_path):
    net = tiny(num_classes=0)
    images = torch.randn(2, 3, 32, 32)
    out = net(images, features=True)
    assert list(out.outputs) == list(net.spec.output_rates) == list(out.features)
    with pytest.raises(SpecError, match="no classifier"):
        _ = out.logits
    save_net(net, tmp_path)
    again = load_net(tmp_path).eval()(images).outputs
    assert all(torch.equal(again[rate], out.outputs[rate]) for rate in again)


def test_a_bare_backbone_is_measured_extracted_verified_and_saved(tmp_path):
    net = RouteNet(Architecture.full(RoutingGrid(GridSpec(**TINY_GRID)))).eval()
    images = torch.randn(2, 3, 32, 32)
    assert measure_usage(net, [images])
    part = Architecture.staircase(net.architecture.grid)
    small = extract(net, part)
    assert type(small) is RouteNet
    report = verify(net, part, small)
    assert report.ok, report.lines()
    cost = network_cost(small)
    assert cost.params == sum(p.numel() for p in small.parameters())
    save_bundle(small, tmp_path / "bare", Card.of(small))
    loaded = load_bundle(tmp_path / "bare").net
    assert torch.equal(loaded(images).outputs[net.spec.max_down], small(images).maps[net.spec.max_down])


def test_restriction_and_extraction_take_the_head_along():
    net = tiny()
    part = Architecture.staircase(net.architecture.grid)
    shared, own = net.restrict(part), extract(net, part)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(shared(images).logits, own(images).logits)
    assert all(a is b for a, b in zip(shared.head.parameters(), net.head.parameters(), strict=True))
    assert own.head.weight.data_ptr() != net.head.weight.data_ptr()


def test_a_foreign_head_is_refused_before_anything_is_written(tmp_path):
    net = tiny()
    net.head = torch.nn.Linear(4, 3)
    with pytest.raises(BundleError, match="a Linear cannot be loaded again; give one of classify, maps"):
        save_net(net, tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_unknown_head_is_one_line(tmp_path):
    save_net(tiny(), tmp_path)
    path = tmp_path / "network.json"
    path.write_text(path.read_text().replace('"classify"', '"segment"'))
    with pytest.raises(BundleError, match=r"head.kind: 'segment' is not known; this version knows classify"):
        load_net(tmp_path)


def test_a_classifier_needs_classes():
    with pytest.raises(SpecError, match="0 classes"):
        Classifier.build(GridSpec(**TINY_GRID | {"num_classes": 0}), {})
