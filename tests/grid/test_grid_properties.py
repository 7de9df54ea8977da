"""GridSpec, RoutingGrid and Architecture over random specs: reachability, order, round trips, bad input."""

from __future__ import annotations

import json
import subprocess
import sys

import networkx as nx
import pytest
from grid_strategies import grids, specs
from hypothesis import given, settings
from hypothesis import strategies as st

from routespace.errors import GridError, RoutespaceError
from routespace.grid.architecture import Architecture
from routespace.grid.graph import KINDS, Edge, RoutingGrid, live_edges
from routespace.grid.sample import sample_static
from routespace.grid.spec import GridSpec


@given(grids())
def test_every_edge_lies_on_a_way_from_stem_to_an_output(grid: RoutingGrid) -> None:
    ends = set(grid.outputs)
    from_stem = nx.descendants(grid.graph, grid.stem) | {grid.stem}
    for edge in grid.edges.values():
        assert edge.source in from_stem
        assert ends & (nx.descendants(grid.graph, edge.target) | {edge.target})
    assert set(grid.graph.nodes) == {grid.stem} | {edge.target for edge in grid.edges.values()}


@given(grids())
def test_order_is_one_and_executable(grid: RoutingGrid) -> None:
    edges = list(grid.edges.values())
    assert [(e.layer, e.rate, KINDS.index(e.kind)) for e in edges] == sorted(e.order for e in edges)
    left = set()
    for edge in edges:  # nothing enters a node after something has left it
        assert edge.target not in left
        left.add(edge.source)
    assert [Edge.parse(name) for name in grid.edges] == edges


@given(grids())
def test_removed_nodes_are_counted(grid: RoutingGrid) -> None:
    assert grid.removed_nodes + len(grid.nodes) == (grid.spec.layers + 1) * len(grid.spec.rates)


@given(grids(), st.integers(0, 2**32 - 1))
def test_json_round_trips(grid: RoutingGrid, seed: int) -> None:
    again = RoutingGrid.from_json(json.loads(json.dumps(grid.to_json())))
    assert again == grid
    assert list(again.edges) == list(grid.edges)
    for architecture in (Architecture.full(grid), *sample_static(grid, 1, seed=seed)):
        read = Architecture.from_json(json.loads(json.dumps(architecture.to_json())))
        assert read == architecture
        assert dict(read.edges) == dict(architecture.edges)


@given(grids(), st.data())
def test_cleaned_keeps_exactly_the_live_edges(grid: RoutingGrid, data: st.DataObject) -> None:
    names = data.draw(st.sets(st.sampled_from(list(grid.edges))))
    kept = {n for n in names if grid.edges[n].kind != "identity" or grid.edges[n].partner not in names}
    live = {edge.name for edge in live_edges([grid.edges[n] for n in kept], grid.stem, grid.outputs)}
    reached = {grid.edges[name].target for name in live}
    if not reached.intersection(grid.outputs):
        with pytest.raises(GridError, match="not reached"):
            Architecture.static(grid.spec, kept)
        return
    architecture = Architecture.static(grid.spec, kept)
    assert set(architecture.edges) == live
    assert architecture.is_static
    assert architecture.outputs == tuple(node for node in grid.outputs if node in reached)
    assert sorted(architecture.output_rates + architecture.missing_rates) == list(grid.spec.output_rates)


@given(specs(max_rates=4))
def test_hash_is_equal_for_size_and_explicit_widths(spec: GridSpec) -> None:
    shape = spec.shape
    explicit = GridSpec.parse(
        spec.model_dump(exclude={"size"}, exclude_none=True)
        | {
            "widths": shape.widths,
            "heads": shape.heads,
            "mlp_ratios": shape.mlp_ratios,
            **shape.own,
        }
        | {
            "depths": [spec.depth(layer) for layer in range(spec.layers)],
            "embed_layers": sorted(spec.embed_columns),
        }
    )
    assert explicit.hash == spec.hash
    assert RoutingGrid(explicit) == RoutingGrid(spec)
    assert Architecture.full(RoutingGrid(explicit)).hash == Architecture.full(RoutingGrid(spec)).hash


def test_different_grids_have_different_hashes() -> None:
    base = {"layers": 4, "size": "b0"}
    others = [{"layers": 5}, {"size": "b1"}, {"depths": 2}, {"image_size": 256}, {"outputs": "pyramid"}]
    hashes = {GridSpec.parse(base | other).hash for other in [{}, *others, {"num_classes": 10}]}
    assert len(hashes) == len(others) + 2


def test_hash_is_stable_across_processes() -> None:
    code = (
        "from routespace.grid.architecture import Architecture as A;"
        "from routespace.grid.graph import RoutingGrid as G;"
        "from routespace.grid.spec import GridSpec as S;"
        "g = G(S.preset('dit_b2')); print(g.hash, A.full(g).hash, A.staircase(g).hash, list(g.edges))"
    )
    seeds = ("0", "1")
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in seeds
    }
    assert len(outputs) == 1


def test_grid_file_with_another_spec_is_refused() -> None:
    data = RoutingGrid(GridSpec(layers=2, size="b0")).to_json()
    data["spec"]["depths"] = 3  # the edges stay the same, the grid does not
    with pytest.raises(GridError, match=r"do not follow"):
        RoutingGrid.from_json(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
# The same rubbish, but under the names that are read, and mixed with values that are right.
RIGHT = {
    "layers": st.integers(1, 6),
    "max_down": st.sampled_from([4, 8, 16, 32, 64]),
    "depths": st.integers(1, 3),
    "embed_layers": st.just("all") | st.lists(st.integers(-1, 7), max_size=4),
    "family": st.sampled_from(["pvt_v2", "swin_v2", ".x:y", ":", "os:path", "routespace.errors:SpecError"]),
    "size": st.sampled_from(["b0", "b2", "t", "zz"]),
    "widths": st.lists(st.integers(-1, 64), max_size=5),
    "heads": st.lists(st.integers(0, 8), max_size=5),
    "mlp_ratios": st.lists(st.floats(), max_size=5),
    "sr_ratios": st.lists(st.integers(0, 9), max_size=5),
    "window": st.integers(0, 9),
    "outputs": st.sampled_from(["coarsest", "pyramid"]),
    "image_size": st.integers(1, 99) | st.lists(st.integers(1, 99), max_size=3),
    "in_channels": st.integers(0, 5),
    "num_classes": st.integers(-1, 10),
}
SPEC_DATA = JSON | st.fixed_dictionaries({}, optional={k: v | v | JSON for k, v in RIGHT.items()})


def _one_line(error: RoutespaceError) -> None:
    assert "\n" not in str(error).strip()
    assert ":" in str(error)


@settings(max_examples=200)
@given(SPEC_DATA)
def test_fuzz_grid_spec(data: object) -> None:
    try:
        GridSpec.parse(data)
    except RoutespaceError as error:
        _one_line(error)


EDGES = JSON | st.dictionaries(
    st.sampled_from(list(RoutingGrid(GridSpec(layers=2, size="b0", max_down=8)).edges)) | st.text(max_size=20),
    st.sampled_from(["open", "gated"]) | JSON,
    max_size=6,
)
FILE = st.fixed_dictionaries(
    {"format": st.sampled_from(["routespace.grid/1", "routespace.architecture/1"]) | JSON},
    optional={
        "spec": SPEC_DATA | st.just({"layers": 2, "size": "b0", "max_down": 8}),
        "edges": EDGES,
        "hash": JSON,
    },
)


@settings(max_examples=200)
@given(JSON | FILE)
def test_fuzz_files(data: object) -> None:
    for reader in (RoutingGrid.from_json, Architecture.from_json):
        try:
            reader(data)
        except RoutespaceError as error:
            _one_line(error)
