"""Every way of computing agrees for every architecture: open, gated and mixed, any gates, masks and batch size."""

from dataclasses import dataclass

import pytest
import torch
from grid.grid_strategies import gate_specs, mixed_architectures
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from modes import (
    assert_alone_is_among_others,
    assert_close,
    assert_modes_agree,
    assert_same_routes,
    assert_same_usage,
    outputs,
    random_routes,
    settled_noise,
    with_lively_gates,
)
from thinning import thinned

from routespace.errors import DataError, GridError
from routespace.grid.architecture import Architecture
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import RoutingGrid
from routespace.grid.leading import check_map
from routespace.grid.spec import GridSpec
from routespace.nn.routing.routes import EdgeRoute, Routes
from routespace.nn.task_net import TaskNet
from routespace.nn.usage import UsageMeter, measure_usage

FAMILIES = {"pvt_v2": {"sr_ratios": (2, 1, 1)}, "swin_v2": {"window": 4}}
SIZES = ((32, 32), (33, 44), (40, 24))  # maps that divide, that do not, and that are no squares
SHARES = (0.0, 0.3, 0.8, 1.0)
MODES = ("dense", "packed", "auto")


def grid_of(family: str, rates: int = 3, layers: int = 3, outputs: str = "coarsest") -> RoutingGrid:
    per_rate = {"widths": (8, 16, 16), "heads": (1, 2, 2), "mlp_ratios": (2, 2, 2)} | FAMILIES[family]
    cut = {name: value[:rates] if isinstance(value, tuple) else value for name, value in per_rate.items()}
    fields = {"layers": layers, "max_down": 2 << rates, "family": family, "outputs": outputs}
    return RoutingGrid(GridSpec.parse(fields | cut | {"image_size": 32, "num_classes": 5}))


def network(architecture: Architecture, gates: GateSpec, seed: int = 0) -> TaskNet:
    """Random weights; SwinV2's branches do not start at zero, or nothing would be compared."""
    torch.manual_seed(seed)
    net = TaskNet.classifier(architecture, gates)
    if architecture.spec.family == "swin_v2":
        with torch.no_grad():
            for parameter in net.parameters():
                parameter += 0.2 * torch.randn_like(parameter)
    return with_lively_gates(net)


@dataclass(frozen=True)
class Case:
    """A network and its images, told in few words when a test fails."""

    architecture: Architecture
    gates: GateSpec
    seed: int
    batch: int
    size: tuple[int, int]

    def __repr__(self) -> str:
        spec, gates = self.architecture.spec, self.gates.model_dump(exclude_defaults=True)
        return (
            f"{spec.family} {spec.outputs} {dict(self.architecture.edges)} {gates} "
            f"seed {self.seed} batch {self.batch} size {self.size}"
        )

    def net(self) -> TaskNet:
        return network(self.architecture, self.gates, self.seed).eval()

    def images(self) -> torch.Tensor:
        return torch.randn(self.batch, 3, *self.size, generator=torch.Generator().manual_seed(self.seed))


def that_fit(architecture: Architecture, gates: GateSpec) -> GateSpec:
    """The same gates; with sources of their own where no row can lead the others."""
    try:
        check_map(architecture, gates)
    except GridError:
        return gates.model_copy(update={"source": "own"})
    return gates


@st.composite
def cases(draw, *, random: bool):
    """Any architecture of a small grid, any gates, images of 0, 1 or several."""
    family, outputs = draw(st.sampled_from(list(FAMILIES))), draw(st.sampled_from(["coarsest", "pyramid"]))
    grid = grid_of(family, draw(st.integers(2, 3)), draw(st.integers(1, 3)), outputs)
    architecture = draw(mixed_architectures(grid))
    assume(grid.spec.rates[-1] in architecture.output_rates)  # which the classifier reads
    gates = that_fit(architecture, draw(gate_specs(random=random)))
    return Case(
        architecture,
        gates,
        draw(st.integers(0, 99)),
        draw(st.sampled_from([2, 3, 1, 0])),
        draw(st.sampled_from(SIZES)),
    )


def check_given_masks(case: Case) -> None:
    net, images = case.net(), case.images()
    routes = random_routes(net, images, SHARES, case.seed)
    assert_modes_agree(net, images, routes)
    assert_same_usage(net, images, routes)
    assert_alone_is_among_others(net, images, routes, MODES)


def check_own_decisions(case: Case, training: bool) -> None:
    net, images = case.net(), case.images()
    with settled_noise():
        net.train(training)
        assert_modes_agree(net, images, None)
        assert_same_usage(net, images, None)
    assert_alone_is_among_others(net.eval(), images, None, MODES)


def some(examples: int):
    calm = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    return settings(max_examples=examples, deadline=None, suppress_health_check=calm)


@some(8)
@given(cases(random=True))
def test_modes_agree_on_given_masks(case):
    check_given_masks(case)


@some(8)
@given(cases(random=False), st.booleans())
def test_modes_agree_on_their_own_decisions(case, training):
    check_own_decisions(case, training)


@pytest.mark.slow
@some(600)
@given(cases(random=True))
def test_modes_agree_on_more_given_masks(case):
    check_given_masks(case)


@pytest.mark.slow
@some(600)
@given(cases(random=False), st.booleans())
def test_modes_agree_on_more_decisions_of_their_own(case, training):
    check_own_decisions(case, training)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_an_open_row_computes_what_has_stopped(family):
    """A gated row that stops every token, then an open one: nobody asks whether its tokens have stopped."""
    grid = grid_of(family, rates=2, layers=2)
    edges = {"l00_r04_patch_embed": "gated", "l01_r08_transformer": "open"}
    edges |= dict.fromkeys(["l00_r08_transformer", "l00_r08_identity"], "gated")
    net = network(Architecture(grid.spec, edges), GateSpec(early_stop=True)).eval()
    images = torch.randn(2, 3, 32, 32)
    for stopped in (torch.zeros(2, 16), torch.tensor([[0.0], [1.0]]).expand(2, 16)):
        routes = Routes({"l00_r08_transformer": EdgeRoute(stopped > 0, stopped)})
        assert_modes_agree(net, images, routes)
        assert_same_usage(net, images, routes)
        assert_alone_is_among_others(net, images, routes, MODES)
        assert net(images, routes=routes).routes["l01_r08_transformer"].kept.all()


GATES = [{}, {"columns": "token", "capacity": True}, {"early_stop": True}]


@pytest.mark.parametrize(
    *thinned(family=list(FAMILIES), gates=GATES, mode=list(MODES), training=[False, True]), ids=str
)
def test_a_batch_of_nothing(family, gates, mode, training):
    """Filters, cascades and detectors make such batches: an answer of no rows, in every mode."""
    grid = grid_of(family, outputs="pyramid")
    net = network(Architecture.full(grid), GateSpec(**gates)).train(training)
    net.decide(execution=mode)
    out = net(torch.empty(0, 3, 33, 44), features=True)
    assert out.logits.shape == (0, 5)
    assert {rate: tuple(x.shape) for rate, x in out.features.items()} == {
        4: (0, 8, 9, 11),
        8: (0, 16, 5, 6),
        16: (0, 16, 3, 3),
    }
    assert all(route.kept.shape[0] == 0 for route in out.routes.values())
    out.logits.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in net.parameters())
    assert all(float(share) == 0 for usage in out.routes.detach().usage().values() for share in usage)
    with torch.no_grad():
        assert net(torch.empty(0, 3, 33, 44), routes=out.routes.detach()).logits.shape == (0, 5)


def test_usage_of_no_images():
    """A batch of nothing changes no average; a meter that has seen nothing knows of no edge."""
    net = network(Architecture.full(grid_of("pvt_v2")), GateSpec()).eval()
    images = torch.randn(3, 3, 32, 32)
    alone, mixed = UsageMeter(), UsageMeter()
    with torch.no_grad():
        nothing, something = net(images[:0]).routes, net(images).routes
    mixed.update(nothing, 0)
    assert mixed.usage() == {}
    alone.update(something, 3)
    mixed.update(something, 3)
    mixed.update(nothing, 0)
    assert mixed.usage() == alone.usage()
    with pytest.raises(DataError, match="no images"):
        measure_usage(net, [images[:0]])


@pytest.mark.slow
@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_compiled_blocks_agree(data):
    """Few examples of one size: each new shape takes the compiler seconds."""
    architecture = data.draw(mixed_architectures(grid_of("pvt_v2", rates=2, layers=2)))
    net = network(architecture, that_fit(architecture, data.draw(gate_specs(random=False)))).eval()
    images = torch.randn(data.draw(st.sampled_from([0, 1, 3])), 3, 32, 32)
    with torch.no_grad():
        expected, taken = outputs(net, images, None)
        for mode in MODES:
            values, routes = outputs(net.decide(execution=mode).compile_blocks(), images, None)
            assert_close(expected, values)
            assert_same_routes(taken, routes)
