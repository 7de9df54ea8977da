"""An extracted network is the supernet's part: outputs, keys, parameters and MACs, over random grids."""

import copy
import random

import pytest
import torch
from tiny_grid import TINY_GRID

from routespace.deploy.extract import extract
from routespace.deploy.verify import outputs, static_routes, verify
from routespace.errors import GridError
from routespace.grid.architecture import Architecture
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import RoutingGrid
from routespace.grid.sample import sample_static
from routespace.grid.spec import GridSpec
from routespace.nn.families.pvt_v2_block import PvtBlock
from routespace.nn.task_net import TaskNet

GRIDS, EACH = 20, 5


def random_grid(seed):
    rng = random.Random(seed)
    rates = rng.choice([1, 2, 3, 4])
    layers = rng.randint(1, 4)
    return RoutingGrid(
        GridSpec(
            layers=layers,
            max_down=4 << (rates - 1),
            depths=tuple(rng.choice([1, 2]) for _ in range(layers)),
            widths=(8, 16, 24, 32)[:rates],
            heads=(1, 2, 3, 4)[:rates],
            mlp_ratios=(2.0,) * rates,
            sr_ratios=(4, 2, 1, 1)[:rates],
            image_size=rng.choice([32, (40, 56)]),
            num_classes=rng.choice([0, 5]),
            outputs=rng.choice(["coarsest", "pyramid"]),
        )
    )


def random_supernet(grid, seed):
    rng = random.Random(seed)
    gates = GateSpec(rows=rng.choice(["token", "image", "window"]), columns=rng.choice(["token", "image"]))
    torch.manual_seed(seed)
    return TaskNet.classifier(Architecture.full(grid), gates).eval()


@pytest.mark.parametrize("grids", [GRIDS // 6, pytest.param(GRIDS, marks=pytest.mark.slow)])
def test_extracted_equals_the_supernet_over_random_architectures(grids):
    replayed = 0
    for seed in range(grids):
        grid = random_grid(seed)
        supernet = random_supernet(grid, seed)
        for architecture in sample_static(grid, EACH, seed=seed):
            report = verify(supernet, architecture, extract(supernet, architecture))
            assert report.ok, "\n".join([repr(architecture), *report.lines()])
            assert report.max_difference <= 1e-6
            assert report.keys[0] < report.keys[1]
            replayed += report.replay_difference is not None
    assert replayed > grids * EACH // 2  # the independent comparison is the common case


def test_verify_notices_a_changed_weight_a_foreign_key_and_shared_memory():
    grid = random_grid(3)
    supernet = random_supernet(grid, 3)
    architecture = sample_static(grid, 1, seed=3)[0]
    subnet = extract(supernet, architecture)
    with torch.no_grad():
        subnet.backbone.stem.proj.weight[0] *= 1.1  # one channel: what all have in common a norm would hide
    assert not verify(supernet, architecture, subnet).equal
    shared = verify(supernet, architecture, supernet.restrict(architecture))
    assert shared.equal
    assert shared.shared_weights
    assert not shared.ok
    foreign = extract(supernet, architecture)
    foreign.register_buffer("extra", torch.zeros(1))
    assert verify(supernet, architecture, foreign).foreign_keys == ("extra",)
    broken = extract(supernet, architecture)
    next(iter(broken.parameters())).data.fill_(float("nan"))
    assert not verify(supernet, architecture, broken).equal


def test_extract_keeps_type_mode_and_random_state_and_owns_its_weights():
    grid = random_grid(1)
    supernet = random_supernet(grid, 1).to(torch.float64).train()
    before = copy.deepcopy(supernet.state_dict())
    architecture = Architecture.staircase(grid)
    state = torch.get_rng_state()
    subnet = extract(supernet, architecture)
    assert torch.equal(torch.get_rng_state(), state)
    assert subnet.training
    assert subnet.gate_spec == supernet.gate_spec
    assert {tensor.dtype for tensor in subnet.state_dict().values()} == {torch.float64}
    assert all(parameter.requires_grad for parameter in subnet.parameters())
    with torch.no_grad():
        for parameter in subnet.parameters():
            parameter.add_(1)
    assert all(torch.equal(tensor, before[key]) for key, tensor in supernet.state_dict().items())


def test_a_part_is_trained_with_the_stochastic_depth_of_its_network():
    grid = RoutingGrid(GridSpec.parse(TINY_GRID))
    net = TaskNet.classifier(Architecture.full(grid), drop_path=0.4).train()
    part = Architecture.staircase(grid)
    rates = {name: one.drop_path for name, one in net.restrict(part).named_modules() if isinstance(one, PvtBlock)}
    small = extract(net, part)
    assert small.backbone.drop_path == 0.4 == max(rates.values())
    found = {name: one.drop_path for name, one in small.named_modules() if isinstance(one, PvtBlock)}
    assert found == rates
    again = extract(net.restrict(part), part)
    assert again.backbone.drop_path == 0.4


def test_extract_of_a_routed_part_keeps_its_gates():
    grid = RoutingGrid(GridSpec(layers=4, widths=(8, 16, 24, 32), heads=(1, 2, 3, 4), mlp_ratios=(2.0,) * 4,
                                sr_ratios=(4, 2, 1, 1), image_size=32, num_classes=3))  # fmt: skip
    supernet = random_supernet(grid, 0)
    architecture = Architecture.routed(grid, "depth")
    subnet = extract(supernet, architecture)
    assert len(subnet.gates) == 4
    report = verify(supernet, architecture, subnet)
    assert report.ok, report.lines()
    assert str(report).startswith("outputs      difference 0")
    assert report.replay_difference is None


def test_what_is_no_part_is_refused():
    grid, other = random_grid(1), random_grid(4)
    supernet = random_supernet(grid, 1)
    with pytest.raises(GridError, match="no part of"):
        extract(supernet, Architecture.staircase(other))
    subnet = extract(supernet, Architecture.staircase(grid))
    with pytest.raises(GridError, match="subnet: it is of architecture"):
        verify(supernet, Architecture.full(grid), subnet)


def test_routing_cannot_express_a_row_that_is_entered_again():
    spec = GridSpec(layers=3, max_down=16, widths=(8, 16, 24), heads=(1, 2, 3), mlp_ratios=(2.0,) * 3,
                    sr_ratios=(2, 1, 1), image_size=32, num_classes=3)  # fmt: skip
    grid = RoutingGrid(spec)
    supernet = random_supernet(grid, 0)
    early = ["l00_r04_patch_embed", "l00_r08_patch_embed", "l00_r16_transformer", "l01_r16_identity"]
    late = ["l00_r04_transformer", "l01_r04_patch_embed", "l01_r08_transformer", "l02_r08_patch_embed"]
    both = Architecture.static(spec, [*early, *late, "l02_r16_transformer"])  # row 8: left at column 0, again at 1
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert static_routes(supernet, both, images) is None
    assert verify(supernet, both, extract(supernet, both)).ok
    once = Architecture.static(spec, [*late, "l02_r16_transformer"])
    routes = static_routes(supernet, once, images)
    expected = outputs(supernet, images, routes)["logits"]
    assert torch.allclose(expected, outputs(supernet.restrict(once), images)["logits"], atol=1e-6)
