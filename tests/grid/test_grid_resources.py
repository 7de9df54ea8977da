"""Resources: one line in one table, and limits, costs, `select` and `derive` know it."""

import numpy as np
import pytest
from grid_strategies import every

from routespace.deploy.derive import derive
from routespace.errors import BudgetError
from routespace.grid.architecture import Architecture
from routespace.grid.cost import architecture_cost, batch_cost, bits_of
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import RoutingGrid
from routespace.grid.prices import CostTable, cost_table
from routespace.grid.resources import RESOURCES, Resource, Terms
from routespace.grid.select import select
from routespace.grid.spec import GridSpec
from routespace.grid.usage import EdgeUsage

SPEC = {"layers": 2, "max_down": 8, "widths": [8, 16], "heads": [1, 2], "mlp_ratios": [2, 2], "sr_ratios": [2, 1],
        "image_size": 32, "num_classes": 3}  # fmt: skip
GRID = RoutingGrid(GridSpec.parse(SPEC))
MAC_UJ, BYTE_UJ = 4.6e-6, 1.6e-4


def energy(edge, gate):
    """What arithmetic and memory take together: not in whole numbers."""
    return Terms(
        0,
        MAC_UJ * edge.fixed_macs + BYTE_UJ * edge.fixed_bytes,
        MAC_UJ * edge.routed_macs + BYTE_UJ * edge.routed_bytes,
        MAC_UJ * gate.macs + BYTE_UJ * gate.bytes,
    )


@pytest.fixture
def energy_uj(monkeypatch):
    monkeypatch.setitem(RESOURCES, "energy_uj", Resource("energy", "µJ", energy))
    cost_table.cache_clear()


def expected(cost):
    return MAC_UJ * cost.macs + BYTE_UJ * cost.bytes


@pytest.mark.usefixtures("energy_uj")
def test_costs_follow_with_gates_usage_and_groups():
    full = Architecture.full(GRID)
    usage = {name: EdgeUsage(0.5, 0.75, 0.25) for name in full.gated_edges if "identity" not in name}
    for gates, used in ((None, None), (GateSpec(), None), (GateSpec(), usage)):
        cost = architecture_cost(full, gates=gates, usage=used)
        assert cost.totals["energy_uj"] == pytest.approx(expected(cost))
        for by in ("edge", "kind"):
            for group in cost.grouped(by).values():
                assert group["energy_uj"] == pytest.approx(MAC_UJ * group["macs"] + BYTE_UJ * group["bytes"])


@pytest.mark.usefixtures("energy_uj")
def test_many_architectures_at_once_are_priced_alike():
    legal = list(every(GRID))
    bits = np.stack([bits_of(architecture) for architecture in legal])
    found = batch_cost(GRID, bits, what="energy_uj")
    assert found == pytest.approx([expected(architecture_cost(architecture)) for architecture in legal])
    assert batch_cost(GRID, bits).dtype == np.int64
    assert CostTable(GRID).prices("energy_uj").dtype == np.float64


@pytest.mark.usefixtures("energy_uj")
def test_limits_of_select_and_derive_follow():
    legal = list(every(GRID))
    by_energy = sorted(expected(architecture_cost(architecture)) for architecture in legal)
    scores = {name: 1.0 for name in GRID.edges if name.endswith("transformer")}
    for limit in (by_energy[0], by_energy[len(by_energy) // 2], by_energy[-1]):
        limits = {"energy_uj": limit * (1 + 1e-9)}
        within = [a for a in legal if expected(architecture_cost(a)) <= limits["energy_uj"]]
        most = max(sum(scores.get(name, 0) for name in a.edges) for a in within)
        for found in (select(GRID, scores, limits=limits), derive(Architecture.full(GRID), {}, limits=limits)):
            assert expected(architecture_cost(found)) <= limits["energy_uj"]
            assert sum(scores.get(name, 0) for name in found.edges) == most
    with pytest.raises(BudgetError, match=r"energy_uj: .* µJ is not enough; the least possible here is"):
        select(GRID, scores, limits={"energy_uj": by_energy[0] / 2})
    both = {"energy_uj": by_energy[-1], "macs": architecture_cost(Architecture.staircase(GRID)).macs}
    assert architecture_cost(select(GRID, scores, limits=both)).macs <= both["macs"]
