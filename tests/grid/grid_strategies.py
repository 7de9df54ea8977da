"""Random small grids, and every architecture of a small grid by brute force. Shared by the grid's tests."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from hypothesis import assume
from hypothesis import strategies as st

from routespace.errors import GridError
from routespace.grid.architecture import Architecture
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec


@st.composite
def specs(draw: Any, max_layers: int = 5, max_rates: int = 4) -> GridSpec:
    """A GridSpec whose grid exists."""
    layers = draw(st.integers(1, max_layers))
    max_down = 4 << draw(st.integers(0, max_rates - 1))
    columns = st.lists(st.integers(0, layers), unique=True, min_size=1).map(sorted).map(tuple)
    depth = st.integers(1, 4)
    # Sides that are not square and that the rates do not divide; 32 is the least that b-sizes can reduce.
    side = st.integers(max(32, max_down), 200)
    spec = GridSpec(
        layers=layers,
        max_down=max_down,
        depths=draw(depth | st.lists(depth, min_size=layers, max_size=layers).map(tuple)),
        embed_layers=draw(st.just("all") | columns),
        size=draw(st.sampled_from(["b0", "b2", "b5"])),
        outputs=draw(st.sampled_from(["coarsest", "pyramid"])),
        image_size=(draw(side), draw(side)),
        num_classes=draw(st.integers(0, 20)),
    )
    try:
        RoutingGrid(spec)
    except GridError:
        assume(False)
    return spec


def grids(max_layers: int = 5, max_rates: int = 4) -> st.SearchStrategy[RoutingGrid]:
    """A small RoutingGrid."""
    return specs(max_layers, max_rates).map(RoutingGrid)


def every(grid: RoutingGrid, *, gated: bool = False, every_rate: bool = True) -> Iterator[Architecture]:
    """Every legal architecture (static ones only, unless gated), by trying every assignment of states.

    Those that never reach an output only where `every_rate` is False.
    """
    choices: list[list[dict[str, str]]] = []
    for name, edge in grid.edges.items():
        if edge.kind == "transformer":
            states: list[dict[str, str]] = [{}, {name: "open"}, {edge.partner: "open"}]
            choices.append(states + ([{name: "gated", edge.partner: "gated"}] if gated else []))
        elif edge.kind == "patch_embed":
            choices.append([{}, {name: "open"}] + ([{name: "gated"}] if gated else []))
    for combination in itertools.product(*choices):
        edges = {name: state for part in combination for name, state in part.items()}
        try:
            found = Architecture(grid.spec, edges)
        except GridError:
            continue
        if not (every_rate and found.missing_rates):
            yield found


def paths(grid: RoutingGrid) -> list[tuple[str, ...]]:
    """Every single path from the stem to any output, as edge names."""
    found: list[tuple[str, ...]] = []

    def walk(node: tuple[int, int], taken: tuple[str, ...]) -> None:
        if node in grid.outputs:
            found.append(taken)
        for edge in grid.edges.values():
            if edge.source == node:
                walk(edge.target, (*taken, edge.name))

    walk(grid.stem, ())
    return found


@st.composite
def mixed_architectures(draw: Any, grid: RoutingGrid) -> Architecture:
    """Any legal architecture of a grid: every row and patch embedding absent, open or gated, dead ends removed."""
    edges: dict[str, str] = {}
    for name, edge in grid.edges.items():
        if edge.kind == "transformer":
            row = draw(st.sampled_from(["gated", "gated", "transformer", "identity", "absent"]))
            states = {name: row == "transformer", edge.partner: row == "identity"}
            edges |= {key: "open" for key, there in states.items() if there}
            edges |= {key: "gated" for key in states if row == "gated"}
        elif edge.kind == "patch_embed":
            state = draw(st.sampled_from(["gated", "gated", "open", "absent"]))
            edges |= {} if state == "absent" else {name: state}
    try:
        return Architecture.cleaned(grid.spec, edges)
    except GridError:
        assume(False)
        raise


@st.composite
def gate_specs(draw: Any, *, random: bool = True) -> GateSpec:
    """A GateSpec of any kind; `random` False leaves out the selection that tosses a coin."""
    granularity = st.sampled_from(["token", "window", "image", "layer"])
    rows, columns = draw(granularity), draw(granularity)
    kind = draw(st.sampled_from(["gumbel", "sigmoid", "tanh"]))
    relaxation = draw(st.sampled_from(["straight_through", "soft"]))
    choices = ["learned", "learned", *(["random"] if random else []), *(["attention"] if rows == "token" else [])]
    selection = draw(st.sampled_from(choices))
    ranked = rows == "token" and kind != "tanh" and relaxation != "soft" and selection != "random"
    seeing = draw(seeing_gates()) if rows == "token" and kind != "tanh" and selection == "learned" else {}
    share = "opening" in seeing
    return GateSpec(
        **seeing,
        kind=kind,
        rows=rows,
        columns=columns,
        relaxation=relaxation,
        selection=selection,
        keep=draw(st.sampled_from([0.2, 0.5, 0.9])),
        capacity=ranked and not share and draw(st.booleans()),
        keys=draw(st.sampled_from(["all", "kept"])),
        early_stop=not share and draw(st.booleans()),
        skipped="identity" if relaxation == "soft" else draw(st.sampled_from(["identity", "linear", "mlp"])),
        openness=0.5,
    )


@st.composite
def seeing_gates(draw: Any) -> dict[str, Any]:
    """What rows that decide token by token may have beside the rest; sometimes nothing."""
    fields = {"source": ["map"], "context": [3, 5], "smooth": [3], "opening": ["share"], "teach": ["dense"]}
    given = {name: draw(st.sampled_from(values)) for name, values in fields.items() if draw(st.booleans())}
    if given.get("source") == "map" and "context" not in given:
        given |= draw(st.sampled_from([{}, {"scout": 1}, {"scout": 3, "scout_width": 5, "scout_square": 4}]))
    return given
