"""Packed and automatic execution against the dense reference: outputs to 1e-4, gradients to 1e-3."""

import pytest
import torch
from modes import assert_modes_agree, with_lively_gates
from modes import settled_noise as noise_that_is_settled
from thinning import thinned
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from routespace.grid.architecture import Architecture
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec
from routespace.nn.families.packing_costs import PackingCosts
from routespace.nn.kernels.depthwise import Expansion, Layout, expand, gather_depthwise, scatter_depthwise, taps_of
from routespace.nn.packing.keep import KeptTokens
from routespace.nn.packing.ragged import chunks_of, ragged_attention
from routespace.nn.routing.routes import EdgeRoute, Routes
from routespace.nn.task_net import TaskNet

GRANULARITIES = ("layer", "image", "token", "window")
FAMILIES = {
    "pvt_v2": {"mlp_ratios": (4, 2), "sr_ratios": (2, 1), "image_size": 32},
    "swin_v2": {"mlp_ratios": (2, 2), "window": 4, "image_size": 32},
}
LAST_EDGE = "l01_r08_transformer"


def small_net(drop_path: float = 0.0, layers: int = 2, family: str = "pvt_v2", **gates) -> TaskNet:
    torch.manual_seed(0)
    fields = {"layers": layers, "max_down": 8, "family": family, "widths": (16, 32), "heads": (1, 2)}
    spec = GridSpec.parse(fields | FAMILIES[family] | {"num_classes": 5, "outputs": "pyramid"})
    net = TaskNet.classifier(Architecture.full(RoutingGrid(spec)), GateSpec(**gates), drop_path=drop_path)
    if family == "swin_v2":  # its branches start at zero, and no value's bias would show at padding
        with torch.no_grad():
            for parameter in net.parameters():
                parameter += 0.3 * torch.randn_like(parameter)
    return net


@pytest.fixture(params=list(FAMILIES))
def family(request) -> str:
    return request.param


@pytest.mark.parametrize(
    *thinned(
        family=list(FAMILIES),
        rows=GRANULARITIES,
        columns=GRANULARITIES,
        keys=["all", "kept"],
        early_stop=[False, True],
    )
)
def test_every_granularity(family, rows, columns, keys, early_stop):
    net = small_net(family=family, rows=rows, columns=columns, keys=keys, early_stop=early_stop).eval()
    for batch, keep, down, size in [(1, 0.5, 1.0, (32, 32)), (3, 0.3, 0.4, (33, 44)), (2, 0.0, 0.0, (32, 40))]:
        images = torch.randn(batch, 3, *size)
        assert_modes_agree(net, images, Routes.random(net, images, keep=keep, columns=down, seed=batch))


@pytest.mark.parametrize("execution", ["dense", "packed"])
@pytest.mark.parametrize("gates", [{}, {"keys": "kept"}, {"early_stop": True}, {"capacity": True}])
def test_images_and_channels_in_parts_change_nothing(monkeypatch, family, execution, gates):
    net = small_net(family=family, **gates).eval()
    net.decide(execution=execution)
    images = torch.randn(5, 3, 36, 40)
    with torch.no_grad():
        whole = net(images)
        monkeypatch.setattr("routespace.nn.families.parts.TOKENS_AT_ONCE", 180)  # two images of 9 × 10 tokens
        monkeypatch.setattr("routespace.nn.families.pvt_v2_layers.BYTES_AT_ONCE", 1)
        monkeypatch.setattr("routespace.nn.families.pvt_v2_layers.LEAST_GROUP", 16)
        parts = net(images)
    assert (parts.logits - whole.logits).abs().max() < 1e-5
    for name, route in whole.routes.items():
        assert torch.equal(route.kept, parts.routes[name].kept)


@torch.no_grad()
def test_an_empty_batch_and_layers_that_others_look_at():
    net = small_net().eval()
    assert net(torch.randn(0, 3, 32, 32)).logits.shape == (0, 5)
    images, seen = torch.randn(2, 3, 32, 32), []
    before = net(images).logits
    mlp = net.edges["l00_r04_transformer"].blocks[0].mlp
    mlp.fc1.register_forward_hook(lambda *_: seen.append(1))
    static = net.restrict(net.architecture.opened())
    static(images)
    assert seen  # a hook is called, as on any module
    mlp.fc2 = torch.nn.Sequential(mlp.fc2, torch.nn.Linear(16, 16))
    assert not torch.allclose(net(images).logits, before)


@pytest.mark.parametrize("layer", ["fc1", "dwconv", "fc2"])
def test_packed_blocks_hear_replaced_layers(layer):
    """Adapters that someone puts around a layer count in every mode, as do their gradients."""
    net = small_net()

    class Around(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.gain = inner, torch.nn.Parameter(torch.tensor(1.7))

        def forward(self, x):
            return self.gain * self.inner(x)

    for stage in net.edges.values():
        for block in getattr(stage, "blocks", ()):
            setattr(block.mlp, layer, Around(getattr(block.mlp, layer)))
    images = torch.randn(3, 3, 32, 32)
    assert_modes_agree(net, images, Routes.random(net, images, keep=0.5))


def test_packed_blocks_hear_other_convolutions_and_no_biases():
    net = small_net()
    for stage in net.edges.values():
        for block in getattr(stage, "blocks", ()):
            hidden = block.mlp.fc1.out_features
            block.mlp.fc1 = torch.nn.Linear(block.mlp.fc1.in_features, hidden, bias=False)
            block.mlp.dwconv = torch.nn.Conv2d(hidden, hidden, 3, dilation=2, padding=2, groups=hidden)
    images = torch.randn(3, 3, 32, 32)
    assert_modes_agree(net, images, Routes.random(net, images, keep=0.5))


def masks(batch: int, tokens: int) -> dict[str, torch.Tensor]:
    one = torch.zeros(batch, tokens, dtype=torch.bool)
    one[:, tokens // 2] = True
    ragged = torch.rand(batch, tokens) < torch.linspace(0, 1, batch)[:, None]
    lone = torch.zeros(batch, tokens, dtype=torch.bool)
    lone[batch - 1, 0] = True
    full = torch.ones(batch, tokens, dtype=torch.bool)
    return {"empty": ~full, "full": full, "single": one, "ragged": ragged, "lone": lone}


@pytest.mark.parametrize(
    *thinned(
        family=list(FAMILIES),
        mask=["empty", "full", "single", "ragged", "lone"],
        batch=[1, 2, 16],
        keys=["all", "kept"],
    )
)
def test_every_mask(family, mask, batch, keys):
    net = small_net(family=family, keys=keys).eval()
    images = torch.randn(batch, 3, 32, 36)
    routes = dict(Routes.full(net, images))
    for name in routes:
        if name.endswith("transformer"):
            kept = masks(batch, routes[name].kept.shape[1])[mask]
            routes[name] = EdgeRoute(kept, kept.float())
    assert_modes_agree(net, images, Routes(routes))


@pytest.fixture
def settled_noise():
    with noise_that_is_settled():
        yield


@pytest.mark.usefixtures("settled_noise")
@pytest.mark.parametrize(
    *thinned(
        family=list(FAMILIES),
        kind=["gumbel", "sigmoid", "tanh"],
        relaxed=[("straight_through", True), ("soft", True), ("straight_through", False)],
        rows=GRANULARITIES,
    ),
    ids=str,
)
def test_every_gate_kind_with_its_own_decisions(family, kind, relaxed, rows):
    relaxation, training = relaxed
    net = small_net(family=family, kind=kind, rows=rows, columns=rows, relaxation=relaxation).train(training)
    assert_modes_agree(with_lively_gates(net), torch.randn(3, 3, 33, 44), Routes({}))


class Waits(TorchDispatchMode):
    """Counts what waits for a device: sizes and numbers that the host asks for."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        asks = (torch.ops.aten.nonzero, torch.ops.aten._local_scalar_dense, torch.ops.aten.masked_select)
        self.count += func.overloadpacket in asks
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    *thinned(family=list(FAMILIES), execution=["packed", "auto"], rows=GRANULARITIES, columns=GRANULARITIES)
)
def test_soft_gates_compute_everything_and_nothing_waits(family, execution, rows, columns):
    net = small_net(family=family, rows=rows, columns=columns, relaxation="soft").train()
    for gate in net.gates.values():
        torch.nn.init.constant_(gate.bias, -200.0)  # probabilities that round to nothing
    net.decide(execution=execution)
    with Waits() as waits:
        out = net(torch.randn(2, 3, 33, 44))
    assert waits.count == 0
    assert all(bool(route.kept.all()) for route in out.routes.values())
    out.logits.square().sum().backward()


SELECTIONS = [
    {"selection": "attention", "keep": 0.4},
    {"selection": "entropy", "keep": 0.4},
    {"selection": "attention", "capacity": True, "keep": 0.4},
    {"capacity": True, "keep": 0.4},
    {"capacity": True, "keep": 0.7, "kind": "sigmoid"},
    {"early_stop": True},
]


@pytest.mark.usefixtures("settled_noise")
@pytest.mark.parametrize(
    *thinned(
        family=list(FAMILIES),
        training=[True, False],
        more=[{"columns": "image", "keys": "kept"}, {"columns": "token", "keys": "all"}],
        gates=SELECTIONS,
    ),
    ids=str,
)
def test_every_selection_with_its_own_decisions(family, training, more, gates):
    net = small_net(family=family, **more, **gates).train(training)
    assert_modes_agree(with_lively_gates(net), torch.randn(3, 3, 33, 44), Routes({}))


def test_stochastic_depth_draws_alike(family):
    net = small_net(family=family, drop_path=0.5).train()
    images = torch.randn(4, 3, 32, 32)
    assert_modes_agree(net, images, Routes.random(net, images, keep=0.5, seed=3))


def test_packed_backward_in_double_precision():
    torch.manual_seed(0)
    kept = torch.rand(2, 12) < 0.6
    keep = KeptTokens(kept, (3, 4))
    layout = Layout(keep.rows, keep.order, (2, 3, 4))
    shapes = [(len(keep.rows), 3), (5, 3), (5,), (5, 1, 3, 3), (5,)]
    rows, *weights = (torch.randn(shape, dtype=torch.double, requires_grad=True) for shape in shapes)
    assert torch.autograd.gradcheck(lambda x, *w: expand(x, Expansion(*w), layout), (rows, *weights))
    hidden = torch.randn(len(keep.rows), 5, dtype=torch.double, requires_grad=True)
    kernel, offset = weights[2:]

    def gathered(hidden, kernel, offset):
        padded = torch.cat((hidden, torch.zeros_like(hidden[:1])))
        return gather_depthwise(padded, taps_of(kernel), offset, keep.neighbours)

    assert torch.autograd.gradcheck(gathered, (hidden, kernel, offset))

    def conv(maps):
        return torch.nn.functional.conv2d(maps, kernel, offset, padding=1, groups=5)

    assert torch.allclose(gathered(hidden, kernel, offset), scatter_depthwise(hidden, conv, layout), atol=1e-12)


def test_expansion_follows_autocast():
    keep = KeptTokens(torch.rand(2, 16) < 0.5, (4, 4))
    fc, conv = torch.nn.Linear(8, 16), torch.nn.Conv2d(16, 16, 3, padding=1, groups=16)
    rows = torch.randn(len(keep.rows), 8)
    with torch.autocast("cpu", torch.bfloat16):
        weights = Expansion(fc.weight, fc.bias, conv.weight, conv.bias)
        got = expand(rows, weights, Layout(keep.rows, keep.order, (2, 4, 4)))
        assert got.dtype == torch.bfloat16
        got.float().sum().backward()
    assert fc.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("lengths", [(4, 4, 4), (5, 1, 4), (9, 1, 1), (0, 3, 2), (900, 3, 0, 60, 420) * 4])
@pytest.mark.parametrize(("heads", "grad"), [(2, True), (1, True), (1, False)])
def test_ragged_attention_equals_each_image_alone(lengths, heads, grad):
    kept = torch.arange(900)[None, :] < torch.tensor(lengths)[:, None]
    keep = KeptTokens(kept, (30, 30))
    queries = torch.randn(sum(lengths), heads, 4)
    keys, values = torch.randn(2, len(lengths), heads, 5, 4)
    with torch.set_grad_enabled(grad):
        got = ragged_attention(queries, keys, values, keep).split(lengths)
    for image, part in enumerate(queries.split(lengths)):
        scores = torch.einsum("qhd,hmd->hqm", part, keys[image]) / 4**0.5
        want = torch.einsum("hqm,hmd->qhd", scores.softmax(-1), values[image]).flatten(1)
        assert torch.allclose(got[image], want, atol=1e-6)


def test_chunks_hold_each_image_apart():
    kept = torch.arange(900)[None, :] < torch.tensor([900, 3, 0, 420])[:, None]
    keep, length = KeptTokens(kept, (30, 30)), 113
    chunks = chunks_of(keep, length)
    assert (chunks.slots.diff() > 0).all()
    assert torch.equal(chunks.images[chunks.slots // length], keep.images)
    assert chunks.images.tolist() == [0] * 8 + [1] + [3] * 4


@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("batch", [1, 3])
def test_neighbour_table_against_unfold(batch, share):
    kept = torch.rand(batch, 15) < share
    keep = KeptTokens(kept, (3, 5))
    values = torch.randn(batch, 15) * kept
    want = F.unfold(values.view(batch, 1, 3, 5), 3, padding=1).transpose(1, 2).reshape(-1, 9)[keep.rows]
    packed = torch.cat([values.flatten()[keep.rows], torch.zeros(1)])
    assert torch.equal(packed[keep.neighbours].t(), want)


def test_one_image_has_equal_counts():
    """Its queries are a batch as they are, and its compiled step needs no table of slots."""
    keep = KeptTokens(torch.rand(1, 15) < 0.6, (3, 5))
    assert keep.tables.slots is None
    assert keep.tables.per_image == len(keep.rows)
    queries, keys, values = torch.randn(len(keep.rows), 2, 4), *torch.randn(2, 1, 2, 5, 4)
    found = ragged_attention(queries, keys, values, keep.tables)
    assert torch.allclose(found, ragged_attention(queries, keys, values, keep), atol=1e-6)
    assert KeptTokens(torch.rand(2, 15) < 0.6, (3, 5)).tables.slots is not None


def count_calls(net: TaskNet) -> dict[str, list[int]]:
    """Edge name → batch sizes that its blocks were called with, filled while the net runs."""
    calls: dict[str, list[int]] = {name: [] for name in net.edges}
    for name, module in net.edges.items():
        module.register_forward_pre_hook(lambda _, args, name=name: calls[name].append(args[0].shape[0]))
    return calls


@torch.no_grad()
def test_nodes_that_nobody_reaches_are_not_computed():
    net = small_net(rows="image").eval()
    net.decide(execution="packed")
    images = torch.randn(4, 3, 32, 32)
    routes = Routes.random(net, images, keep=1.0, columns=0.0)  # forced down at the last chance alone
    gates = []
    for name, gate in net.gates.items():
        gate.register_forward_pre_hook(lambda *_, name=name: gates.append(name))
    calls = count_calls(net)
    out = net(images, routes=routes)
    assert {name for name, sizes in calls.items() if sizes} == {
        "l00_r04_transformer",
        "l01_r04_transformer",
        "l02_r04_patch_embed",
    }
    assert not out.routes[LAST_EDGE].asked.any()
    assert not out.routes[LAST_EDGE].kept.any()
    net(images, routes=Routes({k: v for k, v in routes.items() if "r08" not in k}))
    assert gates == []  # what is not replayed would ask its gate, but nobody is there


@torch.no_grad()
def test_images_that_skip_an_edge_are_not_in_its_batch():
    net = small_net(rows="image").eval()
    net.decide(execution="packed")
    images = torch.randn(4, 3, 32, 32)
    routes = dict(Routes.full(net, images))
    kept = torch.tensor([[True], [False], [False], [True]])
    routes["l01_r04_transformer"] = EdgeRoute(kept, kept.float())
    calls = count_calls(net)
    net(images, routes=Routes(routes))
    assert calls["l01_r04_transformer"] == [2]
    assert calls["l00_r04_transformer"] == [4]


@torch.no_grad()
@pytest.mark.parametrize(
    ("keep", "calls_cost", "masked"),
    [
        (0.5, 0, False),
        (0.95, 0, True),
        (1.0, 0, False),
        (0.5, 10**6, True),
        (1.0, 10**6, False),
        (0.0, 10**6, False),
    ],
)
def test_auto_packs_where_that_pays(keep, calls_cost, masked, monkeypatch):
    costs = PackingCosts(channels=100, calls=calls_cost, moves=0.2)  # on small maps calls take more than tokens
    net = small_net().eval()
    images = torch.randn(4, 3, 64, 64)
    routes = Routes.random(net, images, keep=keep)
    calls = []
    block = type(next(iter(net.edges["l00_r04_transformer"].blocks)))
    monkeypatch.setattr(block, "packing_costs", costs)
    plain = block.masked
    monkeypatch.setattr(block, "masked", lambda *args: (calls.append(1), plain(*args))[1])
    net.decide(execution="auto")
    net(images, routes=routes)
    assert bool(calls) == masked


@torch.no_grad()
def test_inputs_are_not_written_to(family):
    """Blocks may write into their map without autograd, but never into a node that others still read."""
    net = small_net(family=family).eval()
    images = torch.randn(2, 3, 32, 32)
    routes = Routes.random(net, images, keep=0.5)
    seen = []
    net.backbone.stem.register_forward_hook(lambda *args: seen.append((args[2], args[2].clone())))
    net.decide(execution="packed")
    net(images, routes=routes)
    assert torch.equal(*seen[0])


def test_second_derivatives_of_packed_layers_are_refused():
    """Their backward pass is written by hand: better none than one without its parts."""
    keep = KeptTokens(torch.rand(2, 16) < 0.6, (4, 4))
    rows = torch.randn(len(keep.rows), 3, requires_grad=True)
    weights = Expansion(torch.randn(5, 3), torch.randn(5), torch.randn(5, 1, 3, 3), torch.randn(5))
    hidden = expand(rows, weights, Layout(keep.rows, keep.order, (2, 4, 4)))
    (grad,) = torch.autograd.grad(hidden.square().sum(), rows, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.square().sum().backward()
