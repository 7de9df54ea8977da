"""Parts of the cost model: additivity, gates, usage, batches and bad input."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from grid_strategies import grids
from hypothesis import given, settings
from hypothesis import strategies as st

from routespace.deploy.derive import derive
from routespace.errors import GridError, RoutespaceError, SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.cost import architecture_cost, batch_cost, bits_of
from routespace.grid.families.base import EdgeCost
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import Edge, RoutingGrid
from routespace.grid.prices import CostTable, edge_cost, gate_cost
from routespace.grid.resources import NO_GATE, RESOURCES, GateCost
from routespace.grid.sample import sample_static
from routespace.grid.spec import GridSpec
from routespace.grid.usage import EdgeUsage, usage_from_json, usage_to_json

MACS = RESOURCES["macs"]
GRID = RoutingGrid(GridSpec(layers=3, size="b0", max_down=16, outputs="pyramid", num_classes=10))


@given(grids(), st.integers(0, 99))
def test_totals_are_the_sum_of_the_parts(grid: RoutingGrid, seed: int) -> None:
    for architecture in (Architecture.full(grid), *sample_static(grid, 2, seed=seed)):
        gates = GateSpec(rows="window", columns="token")
        cost = architecture_cost(architecture, gates=gates)
        parts = [cost.stem, *cost.edges.values(), *cost.gates.values(), *cost.outputs.values(), cost.head]
        for what in ("params", "macs", "bytes"):
            assert getattr(cost, what) == sum(getattr(part, what) for part in parts)
            for by in ("edge", "layer", "rate", "kind"):
                groups = cost.grouped(by)
                constant = sum(getattr(part, what) for part in (cost.stem, *cost.outputs.values(), cost.head))
                assert sum(group[what] for group in groups.values()) + constant == getattr(cost, what)


@given(grids(), st.integers(0, 99))
def test_batch_equals_one_by_one(grid: RoutingGrid, seed: int) -> None:
    found = sample_static(grid, 5, seed=seed)
    bits = np.stack([bits_of(architecture) for architecture in found])
    for what in ("params", "macs", "bytes"):
        totals = batch_cost(grid, bits, what=what)
        assert totals.dtype == np.int64
        assert totals.tolist() == [getattr(architecture_cost(a), what) for a in found]


def test_batch_is_exact_beyond_float64_and_refuses_beyond_int64() -> None:
    wide = {"layers": 1, "max_down": 4, "heads": [1], "mlp_ratios": [4.0], "sr_ratios": [1]}
    grid = RoutingGrid(GridSpec.parse(wide | {"widths": [4093], "image_size": 4099, "depths": 50}))
    bits = np.array([[True, False]])
    assert (
        batch_cost(grid, bits)[0]
        == architecture_cost(Architecture(grid.spec, {"l00_r04_transformer": "open"})).macs
    )
    assert batch_cost(grid, bits)[0] > 1 << 53
    huge = RoutingGrid(GridSpec.parse(wide | {"widths": [60001], "image_size": 16384, "depths": 50}))
    with pytest.raises(GridError, match=r"2\^63"):
        batch_cost(huge, bits)


def test_empty_and_wrong_batches() -> None:
    assert batch_cost(GRID, np.zeros((0, len(GRID.edges)), dtype=bool)).shape == (0,)
    for bits in (
        np.zeros((2, 3), dtype=bool),
        np.zeros(len(GRID.edges), dtype=bool),
        np.zeros((1, len(GRID.edges))),
    ):
        with pytest.raises(SpecError, match="bits"):
            batch_cost(GRID, bits)
    with pytest.raises(SpecError, match="what"):
        batch_cost(GRID, np.zeros((1, len(GRID.edges)), dtype=bool), what="flops")  # type: ignore[arg-type]


def test_transformer_edges_count_their_depth() -> None:
    spec = GridSpec(layers=2, depths=(1, 3), size="b0")
    one, three = (edge_cost(spec, Edge(layer, 8, "transformer")) for layer in (0, 1))
    assert three == EdgeCost(*(3 * number for number in one))
    assert edge_cost(spec, Edge(0, 8, "identity")) == EdgeCost(0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("gates", "row_macs", "column_macs"),
    [
        (GateSpec(), 2 * 32 * 56 * 56, 2 * 32),
        (GateSpec(kind="sigmoid", columns="token"), 32 * 56 * 56, 32 * 28 * 28),
        (GateSpec(rows="image", columns="window", window=3), 2 * 32, 2 * 32 * 10 * 10),
        (GateSpec(rows="window", columns="layer", window=5), 2 * 32 * 12 * 12, 0),
        (GateSpec(selection="random"), 0, 2 * 32),
    ],
)
def test_gates_by_hand(gates: GateSpec, row_macs: int, column_macs: int) -> None:
    spec = GridSpec(layers=4, size="b0")  # 56×56 tokens of width 32 at rate 4, 28×28 at rate 8
    assert gate_cost(spec, Edge(0, 4, "transformer"), gates).macs == row_macs
    assert gate_cost(spec, Edge(0, 4, "patch_embed"), gates).macs == column_macs


def test_only_gated_edges_have_gates_and_a_row_has_one() -> None:
    full = Architecture.full(GRID)
    gates = architecture_cost(full, gates=GateSpec()).gates
    assert set(gates) == {name for name, edge in GRID.edges.items() if edge.kind != "identity"}
    assert architecture_cost(full).gates == {}
    assert architecture_cost(Architecture.staircase(GRID), gates=GateSpec()).gates == {}


def test_another_image_size_changes_macs_only() -> None:
    full = Architecture.full(GRID)
    small, large = (architecture_cost(full, image_size=side) for side in ((64, 96), 256))
    assert small.params == large.params
    assert small.macs < large.macs
    assert architecture_cost(full, image_size=224) == architecture_cost(full)
    with pytest.raises(SpecError, match="image_size"):
        architecture_cost(full, image_size=8)
    assert CostTable(GRID, 64).spec.image_size == (64, 64)


def test_usage_formula_on_numbers_and_tensors() -> None:
    cost = EdgeCost(5, 100, 1000, 0, 0)
    gate = GateCost(3, 8, 0)
    assert MACS.used(EdgeUsage(), cost) == MACS.whole(cost) == 1100
    assert MACS.used(EdgeUsage(0.5, 0.75, 0.25), cost, gate) == 0.5 * 1000 + 0.75 * 100 + 0.25 * 8
    params = RESOURCES["params"].used(EdgeUsage(0.5, 0.75, 0.25), cost, gate)
    assert params == 8
    assert isinstance(params, int)  # weights are there, used or not
    tokens = torch.tensor(0.5, requires_grad=True)
    MACS.used(EdgeUsage(tokens, 1, 1), cost).backward()
    assert tokens.grad == 1000


@given(st.data())
def test_usage_scales_edges(data: st.DataObject) -> None:
    share = st.floats(0, 1)
    usage = data.draw(
        st.dictionaries(st.sampled_from(list(GRID.edges)), st.builds(EdgeUsage, share, share, share, share))
    )
    full = Architecture.full(GRID)
    gates = GateSpec(skipped=data.draw(st.sampled_from(["identity", "linear", "mlp"])))
    cost, whole = (architecture_cost(full, gates=gates, usage=u) for u in (usage, {}))
    assert cost.params == whole.params
    assert cost.macs <= whole.macs or gates.skipped != "identity"
    saved = sum(
        MACS.whole(c, g) - MACS.used(usage[n], c, g)
        for n, c in whole.edges.items()
        for g in [whole.gates.get(n, NO_GATE)]
        if n in usage
    )
    assert math.isclose(whole.macs - cost.macs, saved, rel_tol=1e-9, abs_tol=1e-3)
    assert usage_from_json(json.loads(json.dumps(usage_to_json(usage, GRID))), GRID) == usage


BAD_SHARES = [-0.1, 1.1, math.nan, math.inf, "1", True, None, [1]]


@pytest.mark.parametrize("value", BAD_SHARES)
def test_bad_usage_names_the_edge(value: object) -> None:
    name = next(iter(GRID.edges))
    with pytest.raises(SpecError, match=f"{name}.tokens"):
        usage_from_json({"format": "routespace.usage/1", "edges": {name: {"tokens": value}}}, GRID)


@pytest.mark.parametrize("part", EdgeUsage._fields)
@pytest.mark.parametrize("share", [-1, -0.1, 1.1, 2, math.nan, math.inf, 10**400, True, "all", None, np.ones(2)])
def test_a_share_that_is_none_is_refused(part: str, share: object) -> None:
    full, name = Architecture.full(GRID), next(iter(GRID.edges))
    usage = {name: EdgeUsage(**{part: share})}
    for call in (
        lambda: architecture_cost(full, usage=usage),
        lambda: derive(full, usage, macs=1e12),
        lambda: usage_to_json(usage, GRID),
    ):
        with pytest.raises(SpecError, match=rf"usage\.{name}\.{part}: .* is no share; give a number from 0 to 1"):
            call()


@pytest.mark.parametrize("share", [0, 1, 0.5, np.float32(0.1), np.float64(1), torch.tensor(0.25)])
def test_any_kind_of_number_is_a_share(share: Any) -> None:
    full, name = Architecture.full(GRID), next(iter(GRID.edges))
    assert float(architecture_cost(full, usage={name: EdgeUsage(share)}).macs) > 0


def test_usage_is_made_of_shares() -> None:
    with pytest.raises(SpecError, match="give an EdgeUsage"):
        architecture_cost(Architecture.full(GRID), usage={next(iter(GRID.edges)): 0.5})  # type: ignore[dict-item]


def test_usage_of_another_grid_is_refused() -> None:
    data = {"format": "routespace.usage/1", "edges": {"l77_r04_transformer": {}}}
    with pytest.raises(SpecError, match="l77_r04_transformer"):
        usage_from_json(data, GRID)
    with pytest.raises(SpecError, match="l77_r04_transformer"):
        architecture_cost(Architecture.full(GRID), usage={"l77_r04_transformer": EdgeUsage()})


def test_a_usage_file_knows_its_grid_though_the_names_of_edges_coincide() -> None:
    wider = RoutingGrid(GridSpec.parse(GRID.spec.model_dump(exclude_none=True) | {"image_size": 256}))
    assert set(wider.edges) == set(GRID.edges)
    name = next(iter(GRID.edges))
    data = usage_to_json({name: EdgeUsage(0.5)}, GRID)
    with pytest.raises(GridError, match=f"measured on grid {GRID.hash}, not on {wider.hash}"):
        usage_from_json(data, wider)
    older = {key: value for key, value in data.items() if key != "grid"}  # as files were before they said it
    assert usage_from_json(older, wider) == usage_from_json(data, GRID)
    with pytest.raises(SpecError, match="l77_r04_transformer"):
        usage_to_json({"l77_r04_transformer": EdgeUsage()}, GRID)


def test_usage_files_tell_of_skipped_tokens_where_there_are_any() -> None:
    plain, path = list(GRID.edges)[:2]
    usage = {plain: EdgeUsage(0.5), path: EdgeUsage(0.25, 1.0, 1.0, 0.75)}
    data = usage_to_json(usage, GRID)
    assert set(data["edges"][plain]) == {"tokens", "images", "asked"}  # as files were before there were paths
    assert usage_from_json(data, GRID) == usage


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*GRID.edges, "edges", "tokens", "images", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=75)
@given(
    JSON | st.fixed_dictionaries({"format": st.just("routespace.usage/1"), "edges": JSON}, optional={"grid": JSON})
)
def test_fuzz_usage_files(data: object) -> None:
    try:
        read = usage_from_json(data, GRID)
    except RoutespaceError:
        return
    assert all(0 <= share <= 1 for usage in read.values() for share in usage)
