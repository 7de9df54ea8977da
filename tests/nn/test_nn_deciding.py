"""What a forward pass needs to know to decide: where it comes from, and who may change it."""

import pytest
import torch

from routespace.deploy.counters import fvcore_macs, torch_macs
from routespace.deploy.extract import extract
from routespace.deploy.verify import static_routes, verify
from routespace.errors import GridError, SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec
from routespace.nn.families.base import Block, Stage
from routespace.nn.routing.routes import Routes
from routespace.nn.task_net import TaskNet
from routespace.nn.usage import measure_usage
from routespace.train.calibrate import calibrate_threshold
from routespace.train.evaluate import evaluate
from routespace.workflow.timing import routed_times

GRID = RoutingGrid(
    GridSpec.parse(
        {
            "layers": 2,
            "max_down": 8,
            "widths": (8, 16),
            "heads": (1, 2),
            "mlp_ratios": (2, 2),
            "sr_ratios": (2, 1),
            "image_size": 32,
            "num_classes": 5,
        }
    )
)


def make_net(**gates) -> TaskNet:
    torch.manual_seed(0)
    return TaskNet.classifier(Architecture.full(GRID), GateSpec(**gates))


def test_the_noise_of_the_spec_is_the_networks():
    """At 0 the decisions of training are those of inference, from the first pass on."""
    net = make_net(noise=0.0, openness=0.5).train()
    images = torch.randn(2, 3, 32, 32)
    first, second = net(images).routes, net(images).routes
    assert all(torch.equal(route.kept, second[name].kept) for name, route in first.items())
    noisy = make_net(noise=3.0, openness=0.5).train()
    first, second = noisy(images).routes, noisy(images).routes
    assert any(not torch.equal(route.kept, second[name].kept) for name, route in first.items())
    assert extract(noisy, noisy.architecture).deciding.noise == 3.0


def test_one_setter_that_checks():
    net = make_net()
    assert net.decide(execution="packed", noise=0.5, temperature=2.0) is net
    assert (net.execution, net.deciding.noise, net.deciding.temperature) == ("packed", 0.5, 2.0)
    before = net.deciding
    for changes, message in [
        ({"execution": "fast"}, "execution: 'fast' is not allowed; give one of dense, packed, auto"),
        ({"temperature": 0.0}, "temperature: 0.0 is not allowed; give a number above 0"),
        ({"noise": float("nan")}, "noise: nan is not allowed"),
    ]:
        with pytest.raises(SpecError, match=message):
            net.decide(**changes)
        assert net.deciding == before
    for name in ("execution", "gate_spec", "deciding"):
        with pytest.raises(AttributeError):
            setattr(net, name, getattr(net, name))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", "sigmoid"),
        ("rows", "image"),
        ("columns", "token"),
        ("window", 3),
        ("selection", "random"),
        ("capacity", True),
    ],
)
def test_gates_of_another_make_are_refused(field, value):
    """They need other modules than the network has: said in one line, not by a shape error further on."""
    net = make_net()
    with pytest.raises(SpecError, match=rf"gates\.{field}: .* does not fit; .*were made with"):
        net.decide(gates=GateSpec(**{field: value}))
    assert net.gate_spec == GateSpec()
    net.decide(gates=GateSpec(threshold=0.9, keys="kept", early_stop=True, relaxation="soft"))
    assert net.gate_spec.threshold == 0.9


def test_for_a_while():
    net = make_net()
    before = net.deciding
    with net.deciding_as(execution="packed", held=net.architecture.opened()) as same:
        assert same is net
        assert net.execution == "packed"
        with pytest.raises(RuntimeError, match="on the way"), net.deciding_as(noise=0.0):
            raise RuntimeError("on the way")
        assert net.deciding.noise == 1.0
    assert net.deciding is before


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("execution", ["dense", "packed"])
def test_held_gates_follow_an_architecture(execution, training):
    """They compute what the architecture's own network computes, whatever the gates' weights say."""
    net = make_net(openness=0.3).train(training).decide(execution=execution)
    images = torch.randn(3, 3, 32, 32)
    stairs = Architecture.staircase(GRID)
    for held in (stairs, net.architecture.opened()):
        with net.deciding_as(held=held):
            out = net(images)
        assert {name for name, route in out.routes.items() if route.kept.any()} == {
            name for name in held.edges if not name.endswith("identity")
        }
        assert all(route.kept.all() or not route.kept.any() for route in out.routes.values())
        assert torch.allclose(out.logits, net.restrict(held)(images).logits, atol=1e-5)
    other = RoutingGrid(GridSpec(layers=2, max_down=8, image_size=32))
    with pytest.raises(GridError, match=r"held: architecture .* is of another grid"):
        net.decide(held=Architecture.staircase(other))


def test_decisions_are_made_on_the_device_of_the_images():
    net = make_net()
    places = net.gate_places((32, 32))
    made = Routes.following(Architecture.staircase(GRID), places, images=2, device="meta")
    assert made.keys() == net.gates.keys()
    assert {route.kept.device.type for route in made.values()} == {"meta"}
    routes = static_routes(net, Architecture.staircase(GRID), torch.empty(2, 3, 32, 32, device="meta"))
    assert {route.counted.device.type for route in routes.values()} == {"meta"}


def modes_of(net: torch.nn.Module) -> list[bool]:
    return [module.training for module in net.modules()]


def settings_of(net: TaskNet) -> tuple:
    blocks = [module for module in net.modules() if isinstance(module, Block)]
    stages = [module for module in net.modules() if isinstance(module, Stage)]
    return (
        net.deciding,
        modes_of(net),
        [block.compiled for block in blocks],
        [stage.grad_checkpointing for stage in stages],
    )


def test_a_part_has_settings_of_its_own_and_the_same_weights():
    net = make_net().train()
    net.backbone.stem.eval()  # frozen, as some do
    before = settings_of(net)
    part = net.restrict(Architecture.staircase(GRID))
    assert not part.backbone.stem.training
    assert part.training
    part.eval().compile_blocks().decide(execution="packed", noise=0.0)
    part.set_grad_checkpointing()
    assert part.compiled
    assert settings_of(net) == before
    assert all(a is b for a, b in zip(part.head.parameters(), net.head.parameters(), strict=True))
    mine, theirs = dict(part.named_parameters()), dict(net.named_parameters())
    assert all(tensor is theirs[name] for name, tensor in mine.items())
    net.double()  # what takes the place of the weights is shared, too
    assert part(torch.randn(1, 3, 32, 32, dtype=torch.double)).logits.dtype == torch.double
    seen = []
    net.edges["l00_r04_transformer"].register_forward_hook(lambda *_: seen.append(1))
    part.double()(torch.randn(1, 3, 32, 32, dtype=torch.double))
    assert seen
    with torch.no_grad():
        net.head.weight.zero_()
    assert not part(torch.randn(1, 3, 32, 32, dtype=torch.double)).logits.any()


def broken(*_: object) -> None:
    raise RuntimeError("no more images")


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize(
    "use",
    [
        lambda net, batches: measure_usage(net, batches),
        lambda net, batches: evaluate(net, batches),
        lambda net, batches: calibrate_threshold(net, batches, 1e6),
        lambda net, batches: verify(net, net.architecture, extract(net, net.architecture)),
        lambda net, batches: torch_macs(net, meta=False),
        lambda net, batches: fvcore_macs(net),
        lambda net, batches: routed_times(net, torch.randn(1, 3, 32, 32), rounds=1),
    ],
    ids=["usage", "evaluate", "calibrate", "verify", "torch", "fvcore", "times"],
)
def test_who_looks_at_a_network_leaves_it_as_it_was(use, fails):
    """Also a frozen part of it in its mode, and also where it breaks off."""
    net = make_net().train().decide(execution="packed", held=Architecture.staircase(GRID))
    net.backbone.stem.eval()
    before = settings_of(net)
    if fails:
        net.backbone.outputs["r08"].register_forward_hook(broken)
    batches = [(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))]
    if fails:
        with pytest.raises(RuntimeError, match="no more images"):
            use(net, batches)
    else:
        use(net, batches)
    deciding, *others = settings_of(net)
    assert others == list(before[1:])
    assert deciding.changed(gates=before[0].gates) == before[0]  # calibration writes a threshold …
    assert not fails or deciding == before[0]  # … when it has ended well


@pytest.mark.parametrize("execution", ["packed", "auto"])
def test_counters_count_every_token_whatever_gates_decide(execution):
    """A routed part of a network that computes packed is still the network that its cost was promised of."""
    net = make_net(openness=0.3).eval().decide(execution=execution)
    report = verify(net, net.architecture, extract(net, net.architecture))
    assert report.ok, report.lines()
    assert torch_macs(net, meta=False).macs == torch_macs(net).macs == fvcore_macs(net).macs == report.macs[0]
