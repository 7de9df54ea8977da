"""What routes mean: forced descent, early stopping, per-token scaling, replay, reach, what gates are asked."""

import pytest
import torch
from modes import assert_replays

from routespace.errors import GridError, SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec
from routespace.nn.routing.routes import EdgeRoute, Routes
from routespace.nn.task_net import TaskNet

SIZE = 32


def small_net(layers: int = 2, outputs: str = "coarsest", **gates) -> TaskNet:
    torch.manual_seed(0)
    spec = GridSpec.parse(
        {
            "layers": layers,
            "max_down": 16,
            "widths": (8, 16, 16),
            "heads": (1, 2, 2),
            "mlp_ratios": (2, 2, 2),
            "sr_ratios": (2, 1, 1),
            "image_size": SIZE,
            "num_classes": 5,
            "outputs": outputs,
        }
    )
    return TaskNet.classifier(Architecture.full(RoutingGrid(spec)), GateSpec(**gates))


def close_gates(net: TaskNet, ending: str = "") -> None:
    """Gates that never open, at inference and in training."""
    for name, gate in net.gates.items():
        if name.endswith(ending):
            bias = torch.tensor([-50.0, 50.0])
            for part in (gate.bias.data, gate.ema_bias):
                part.copy_(bias)


@pytest.mark.parametrize("execution", ["dense", "packed", "auto"])
@pytest.mark.parametrize("columns", ["image", "token", "layer", "window"])
@pytest.mark.parametrize("training", [False, True])
def test_an_image_that_would_miss_the_output_is_sent_down(execution, columns, training):
    net = small_net(columns=columns).train(training)
    net.decide(execution=execution)
    close_gates(net)
    images = torch.randn(3, 3, SIZE, SIZE)
    out = net(images)
    taken = {name for name, route in out.routes.items() if route.kept.any()}
    assert taken == {"l02_r04_patch_embed", "l02_r08_patch_embed"}
    assert all(out.routes[name].kept.all() for name in taken)
    assert not torch.allclose(out.logits[0], out.logits[1], atol=1e-6)
    path = ["l00_r04_identity", "l01_r04_identity", *taken]
    static = net.restrict(Architecture.static(net.spec, path))
    assert torch.allclose(static(images).logits, out.logits, atol=1e-5)


def test_only_stranded_images_are_forced():
    net = small_net().eval()
    images = torch.randn(2, 3, SIZE, SIZE)
    routes = {k: EdgeRoute(r.kept & False, r.counted * 0) for k, r in Routes.full(net, images).items()}
    early = torch.tensor([[True], [False]])
    routes["l00_r04_patch_embed"] = EdgeRoute(early, early.float())
    taken = net(images, routes=Routes(routes)).routes
    assert taken["l02_r04_patch_embed"].kept.tolist() == [[False], [True]]
    assert taken["l02_r08_patch_embed"].kept.tolist() == [[True], [True]]


def test_every_output_of_a_pyramid_is_reached():
    net = small_net(outputs="pyramid").eval()
    close_gates(net)
    out = net(torch.randn(2, 3, SIZE, SIZE), features=True)
    assert all(maps.abs().sum() > 0 for maps in out.features.values())


def stopping_routes(net: TaskNet, images: torch.Tensor) -> Routes:
    """Everything kept, but for the left half of the finest map in the first layer."""
    routes = dict(Routes.full(net, images))
    left = torch.arange(8).repeat(8) < 4
    kept = (~left).expand(len(images), -1)
    routes["l00_r04_transformer"] = EdgeRoute(kept, kept.float())
    return Routes(routes)


@pytest.mark.parametrize("execution", ["dense", "packed"])
def test_a_stopped_token_stays_stopped_in_its_row(execution):
    images = torch.randn(2, 3, SIZE, SIZE)
    for early_stop in (True, False):
        net = small_net(early_stop=early_stop).eval()
        net.decide(execution=execution)
        routes = stopping_routes(net, images)
        taken = net(images, routes=routes).routes
        first, second = taken["l00_r04_transformer"].kept, taken["l01_r04_transformer"]
        assert torch.equal(second.kept, first if early_stop else torch.ones_like(first))
        assert torch.equal(second.asked, first if early_stop else torch.ones_like(first))


def test_a_patch_embedding_refreshes_stopped_tokens():
    net = small_net(early_stop=True).eval()
    images = torch.randn(2, 3, SIZE, SIZE)
    routes = {k: EdgeRoute(r.kept, r.counted) for k, r in Routes.full(net, images).items()}
    nothing = torch.zeros_like(routes["l00_r08_transformer"].kept)
    routes["l00_r08_transformer"] = EdgeRoute(nothing, nothing.float())
    taken = net(images, routes=Routes(routes)).routes
    assert taken["l01_r08_transformer"].kept.all()  # l01_r04_patch_embed brought every token anew
    some = torch.tensor([[True], [False]])
    routes["l01_r04_patch_embed"] = EdgeRoute(some, some.float())
    taken = net(images, routes=Routes(routes)).routes
    assert taken["l01_r08_transformer"].kept.all(1).tolist() == [True, False]
    assert not taken["l01_r08_transformer"].kept[1].any()


def test_a_row_whose_tokens_have_all_stopped_asks_no_gate():
    net = small_net(layers=3, early_stop=True).eval()
    net.decide(execution="packed")
    images = torch.randn(2, 3, SIZE, SIZE)
    nothing = torch.zeros(2, 64, dtype=torch.bool)
    routes = Routes({"l00_r04_transformer": EdgeRoute(nothing, nothing.float())})
    asked = []
    for name, gate in net.gates.items():
        gate.register_forward_pre_hook(lambda *_, name=name: asked.append(name))
    taken = net(images, routes=routes).routes
    rows = {f"l0{layer}_r04_transformer" for layer in (1, 2)}
    assert not rows & set(asked)
    assert "l01_r04_patch_embed" in asked  # stopped tokens may still go down
    for name in rows:
        assert not taken[name].asked.any()
        assert not taken[name].kept.any()


def test_a_coarse_node_holds_only_the_groups_that_went_down():
    net = small_net(columns="token", rows="image").eval()
    images = torch.randn(2, 3, SIZE, SIZE)
    routes = {k: EdgeRoute(r.kept & False, r.counted * 0) for k, r in Routes.full(net, images).items()}
    groups = torch.zeros(2, 16, dtype=torch.bool)
    groups[:, [0, 5]] = True
    routes["l00_r04_patch_embed"] = EdgeRoute(groups, groups.float())
    everything = torch.ones(2, 1, dtype=torch.bool)
    routes["l00_r08_transformer"] = EdgeRoute(everything, everything.float())
    taken = net(images, routes=Routes(routes)).routes
    assert torch.equal(taken["l00_r08_transformer"].kept, groups)
    usage = taken["l00_r08_transformer"].usage()
    assert usage.tokens == pytest.approx(2 / 16)
    coarsest = taken["l02_r08_patch_embed"].kept.view(2, 2, 2)
    assert coarsest.tolist() == [[[True, False], [False, False]]] * 2  # groups 0 and 5 share one 2×2 square


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("execution", ["dense", "packed"])
@pytest.mark.parametrize(
    "gates", [{}, {"kind": "tanh", "openness": 0.3}, {"kind": "sigmoid", "relaxation": "soft"}, {"rows": "window"}]
)
def test_recorded_decisions_replay_to_the_same_output(gates, execution, training):
    net = small_net(columns="token", **gates).train(training)
    net.decide(execution=execution)
    images = torch.randn(3, 3, SIZE, SIZE)
    assert_replays(net, images, atol=1e-6)


def test_routes_of_other_images_are_refused():
    net = small_net().eval()
    routes = Routes.random(net, torch.randn(2, 3, SIZE, SIZE), keep=0.5)
    with pytest.raises(SpecError, match=r"\(2, 1\); these images need \(3, 1\) or \(3, 16\)"):
        net(torch.randn(3, 3, SIZE, SIZE), routes=routes)
    with pytest.raises(SpecError, match="these images need"):
        net(torch.randn(2, 3, SIZE + 8, SIZE), routes=routes)
    with pytest.raises(SpecError, match="not an edge"):
        net(torch.randn(2, 3, SIZE, SIZE), routes=Routes({"l99": next(iter(routes.values()))}))


def test_full_routes_equal_everything_open():
    net = small_net().eval()
    images = torch.randn(2, 3, SIZE, SIZE)
    opened = Architecture(net.spec, {n: "open" for n in net.architecture.edges if not n.endswith("identity")})
    everything = net(images, routes=Routes.full(net, images)).logits
    assert torch.allclose(net.restrict(opened)(images).logits, everything, atol=1e-5)


def test_random_routes_are_reproducible_and_keep_their_share():
    net = small_net()
    images = torch.randn(16, 3, SIZE, SIZE)
    first, second = (Routes.random(net, images, keep=0.3, columns=0.6, seed=7) for _ in range(2))
    assert all(torch.equal(first[name].kept, second[name].kept) for name in first)
    rows = torch.cat([r.kept.flatten() for n, r in first.items() if n.endswith("transformer")])
    assert rows.float().mean().item() == pytest.approx(0.3, abs=0.03)
    with pytest.raises(GridError, match="between 0 and 1"):
        Routes.random(net, images, keep=1.5)


def test_every_gate_gets_a_gradient_from_what_was_counted():
    net = small_net(columns="token", openness=0.5).train()
    out = net(torch.randn(4, 3, SIZE, SIZE))
    sum(usage.tokens for usage in out.routes.usage().values()).backward()
    assert all(gate.bias.grad is not None and gate.bias.grad.abs().sum() > 0 for gate in net.gates.values())


@pytest.mark.parametrize("keys", ["all", "kept"])
def test_the_host_asks_once_how_many_tokens_replayed_decisions_keep(monkeypatch, keys):
    """Of all rows together, where decisions are about tokens that are all there; an image may keep none."""
    torch.manual_seed(0)
    net = small_net(layers=4, rows="token", columns="layer", keys=keys).eval()
    net = net.restrict(Architecture.routed(net.architecture.grid, "depth"))
    images = torch.randn(3, 3, SIZE, SIZE)
    drawn = Routes.random(net, images, keep=0.5)
    name = next(iter(drawn))
    nothing = torch.zeros_like(drawn[name].kept[:1])
    routes = Routes({**drawn, name: EdgeRoute.of(torch.cat((nothing, drawn[name].kept[1:])))})
    assert routes.lengths() == {name: route.kept.sum(1).tolist() for name, route in routes.items()}
    asked, tolist = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda x: asked.append(x.shape) or tolist(x))
    with torch.no_grad():
        want = net(images, routes=routes).logits
        assert asked == []
        for execution in ("packed", "auto"):
            with net.deciding_as(execution=execution):
                torch.testing.assert_close(net(images, routes=routes).logits, want, rtol=1e-4, atol=1e-4)
            assert asked == [(len(routes), 3)]
            asked.clear()
