"""From usage to a static architecture under a MACs limit."""

import itertools
import random

import pytest
import torch

from routespace.deploy.derive import derive, usage_scores
from routespace.deploy.latency.profiling import profile
from routespace.deploy.latency.table import predict
from routespace.errors import BudgetError, DataError, GridError, SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.cost import architecture_cost
from routespace.grid.count import least_macs, most_macs
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec
from routespace.grid.usage import EdgeUsage
from routespace.nn.task_net import TaskNet
from routespace.nn.usage import measure_usage

SPEC = GridSpec(layers=3, max_down=16, widths=(8, 16, 24), heads=(1, 2, 3), mlp_ratios=(2.0,) * 3,
                sr_ratios=(4, 2, 1), image_size=32, num_classes=3)  # fmt: skip
GRID = RoutingGrid(SPEC)


def random_usage(seed, architecture):
    rng = random.Random(seed)
    decided = (name for name in architecture.edges if not name.endswith("identity"))
    return {name: EdgeUsage(share := rng.random(), min(1, share * 1.2), 1) for name in decided}


def limits():
    low, high = least_macs(GRID), most_macs(GRID)
    return [low, *(low + (high - low) * k // 7 for k in range(1, 7)), high, 2 * high]


@pytest.mark.parametrize("method", ["milp", "threshold"])
def test_the_limit_holds_exactly_and_more_room_is_worth_more(method):
    full = Architecture.full(GRID)
    for seed in range(4):
        usage = random_usage(seed, full)
        scores, worth = usage_scores(full, usage), []
        for macs in limits():
            if macs < most_macs(GRID) // 2 and method == "threshold":
                continue  # its own least is above the grid's
            found = derive(full, usage, macs=macs, method=method)
            assert found.is_static
            assert full.contains(found)
            assert architecture_cost(found).macs <= macs
            worth.append(sum(scores[name] for name in found.edges))
        assert len(worth) >= 4
        if method == "milp":
            assert all(a <= b + 1e-9 for a, b in itertools.pairwise(worth))


def test_a_latency_limit_holds_alone_and_beside_macs():
    table = profile(GRID, rounds=3, subnets=0, clock="cpu")
    full = Architecture.full(GRID)
    usage = random_usage(3, full)
    slow = derive(full, usage, macs=2 * most_macs(GRID))
    most_ms = 0.7 * predict(table, slow)
    quick = derive(full, usage, limits={"latency_ms": most_ms}, table=table)
    assert predict(table, quick) <= most_ms
    both = derive(full, usage, macs=limits()[3], limits={"latency_ms": most_ms}, table=table)
    assert predict(table, both) <= most_ms
    assert architecture_cost(both).macs <= limits()[3]
    with pytest.raises(BudgetError, match="latency_ms"):
        derive(full, usage, limits={"latency_ms": 1e-6}, table=table)
    for given in ({}, {"limits": {}}, {"limits": {"latency_ms": 1.0}}, {"macs": 10**9, "table": table}):
        with pytest.raises(SpecError):
            derive(full, usage, **given)
    with pytest.raises(SpecError, match="threshold"):
        derive(full, usage, limits={"macs": 10**9, "latency_ms": 1.0}, table=table, method="threshold")
    other = RoutingGrid(GridSpec.parse(SPEC.model_dump(exclude_none=True) | {"layers": 4}))
    with pytest.raises(GridError, match="latency table"):
        derive(Architecture.full(other), {}, limits={"latency_ms": 1.0}, table=table)


def test_threshold_keeps_what_is_used_most():
    full = Architecture.full(GRID)
    usage = random_usage(5, full)
    found = derive(full, usage, macs=limits()[4], method="threshold")
    live_rows = [n for n in found.edges if not n.endswith("patch_embed")]
    kept = [usage[n].tokens for n in live_rows if n.endswith("transformer")]
    dropped = [usage[n.replace("identity", "transformer")].tokens for n in live_rows if n.endswith("identity")]
    assert not dropped or not kept or max(dropped) < min(kept)


def test_full_usage_and_room_keep_every_transformer_edge():
    full = Architecture.full(GRID)
    for method in ("milp", "threshold"):
        found = derive(full, {}, macs=most_macs(GRID), method=method)
        assert architecture_cost(found).macs == most_macs(GRID)


def test_a_rarely_taken_patch_embedding_stays_out_though_there_is_room():
    full = Architecture.full(GRID)
    usage = {name: EdgeUsage(0.5, 1, 1) for name in full.edges if name.endswith("transformer")}
    usage |= {name: EdgeUsage(0.05, 0.05, 1) for name in full.edges if name.endswith("patch_embed")}
    usage |= {name: EdgeUsage(0.95, 0.95, 1) for name in ("l01_r04_patch_embed", "l02_r08_patch_embed")}
    found = derive(full, usage, macs=most_macs(GRID))
    embeds = {name for name in found.edges if name.endswith("patch_embed")}
    assert embeds == {"l01_r04_patch_embed", "l02_r08_patch_embed"}


def test_only_edges_of_the_architecture_are_candidates():
    routed = Architecture.routed(GRID, "depth")
    for method in ("milp", "threshold"):
        found = derive(routed, random_usage(2, routed), macs=least_macs(GRID) * 2, method=method)
        assert routed.contains(found)


@pytest.mark.parametrize("method", ["milp", "threshold"])
def test_an_impossible_limit_names_the_least_possible(method):
    with pytest.raises(BudgetError, match=str(least_macs(GRID))):
        derive(Architecture.full(GRID), {}, macs=least_macs(GRID) - 1, method=method)


def test_bad_arguments():
    full = Architecture.full(GRID)
    with pytest.raises(SpecError, match="method: 'best'"):
        derive(full, {}, macs=10**9, method="best")
    with pytest.raises(SpecError, match="usage: 'nowhere'"):
        derive(full, {"nowhere": EdgeUsage()}, macs=10**9)
    with pytest.raises(SpecError, match="'threshold' goes by usage"):
        derive(full, {}, macs=10**9, method="threshold", scores={})


def test_usage_is_the_average_over_images_and_modes_are_restored():
    torch.manual_seed(0)
    net = TaskNet.classifier(Architecture.full(GRID), GateSpec(openness=0.5)).train()
    images = torch.randn(5, 3, 32, 32)
    usage = measure_usage(net, [(images[:4], torch.zeros(4)), (images[4:], torch.zeros(1))])
    assert net.training
    one_by_one = [measure_usage(net, [images[i : i + 1]]) for i in range(5)]
    assert usage
    for name, shares in usage.items():
        for field in EdgeUsage._fields:
            mean = sum(getattr(single[name], field) for single in one_by_one) / 5
            assert getattr(shares, field) == pytest.approx(mean, abs=1e-6)
            assert isinstance(getattr(shares, field), float)
    with pytest.raises(DataError, match="no images"):
        measure_usage(net, [])
