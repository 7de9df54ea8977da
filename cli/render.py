"""What the commands print: numbers with units, tables, and grids drawn with box characters.

1/4  ●══●══●══●        a node for each layer and rate; ══ is a row (transformer or identity),
     ┃  ┃  ┃  ┃        ┃ a patch embedding to the next coarser rate
1/8  ·  ●══●══●        · is a node that no path uses
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from routespace.grid.architecture import Architecture
    from routespace.grid.graph import RoutingGrid

NARROWEST, WIDEST = 2, 9  # columns of the terminal for one layer
LABEL = 5  # of the longest common rate, 1/32, and a space; 24 layers then fit 80 columns
DEFAULT_WIDTH = 100  # where output goes to a file
UNLIMITED = 10_000
ROWS = {"choice": "═", "transformer": "━", "identity": "─", "none": " "}


def console(width: int | None = None) -> Console:
    """A console for stdout as it is now, as wide as the terminal or as asked for."""
    width = width or shutil.get_terminal_size((DEFAULT_WIDTH, 24)).columns
    return Console(width=max(width, 40), highlight=False, soft_wrap=False)


def giga(macs: float) -> str:
    """MACs as GMACs, with four digits."""
    return f"{macs / 1e9:.4g} G" if macs >= 1e8 else f"{macs / 1e6:.4g} M"


def mega(count: float) -> str:
    """A count in millions or thousands."""
    return f"{count / 1e6:.4g} M" if count >= 1e5 else f"{count / 1e3:.4g} K"


def amount(resource: str, number: float) -> str:
    """An amount of a resource of `grid/resources.py`, with its unit where the column's name does not tell it."""
    from routespace.grid.resources import RESOURCES

    unit = RESOURCES[resource].unit
    if unit == "bytes":
        return f"{number / 1e6:,.1f} MB"
    known = {"MACs": giga, "parameters": mega}
    return known[unit](number) if unit in known else f"{number:.4g} {unit}"


def percent(share: float | None) -> str:
    """A share as a percentage with one digit."""
    return "–" if share is None else f"{100 * share:.1f} %"


def log10(count: int) -> float:
    """Logarithm of an integer of any length."""
    if count <= 0:
        return -math.inf
    shift = max(0, count.bit_length() - 64)
    return math.log10(count >> shift) + shift * math.log10(2)


def big(count: int) -> str:
    """A count that may have hundreds of digits: 5, 54 962, 4.41e53."""
    if count < 10**7:
        return f"{count:,}".replace(",", " ")
    exponent, rest = divmod(log10(count), 1)
    return f"{10**rest:.2f}e{int(exponent)}"


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    title: str | None = None,
    *,
    left: Sequence[str] = (),
) -> None:
    """Print a table: the first column and those in `left` to the left, the others to the right.

    Nothing is cut, for people type what they read: in a narrow terminal the columns stand closer together, and
    what is wider still is left to the terminal to wrap.
    """
    if title is not None:  # by itself: a table's own title is broken at the table's width
        print(title)
    frame = Table(box=None, pad_edge=False, header_style="bold")
    for i, column in enumerate(columns):
        frame.add_column(column, justify="left" if i == 0 or column in left else "right", no_wrap=True)
    for row in rows:  # as Text: what stands in brackets is part of a name
        frame.add_row(*(Text("–" if cell is None else str(cell)) for cell in row))
    screen, unlimited = console(), console(UNLIMITED)
    if unlimited.measure(frame).maximum > screen.width:
        frame.padding = (0, 1, 0, 0)
    console(max(screen.width, unlimited.measure(frame).maximum)).print(frame)


def pairs(rows: Iterable[tuple[str, object]]) -> None:
    """Print names and values, one pair a line."""
    listed = [(name, value) for name, value in rows if value is not None]
    width = max(len(name) for name, _ in listed)
    for name, value in listed:
        print(f"{name:<{width}}  {value}")


def draw(grid: RoutingGrid, architecture: Architecture | None = None) -> str:
    """A grid, or one architecture in it, as text: rates from top to bottom, layers from left to right.

    Args:
        grid: the grid.
        architecture: marks which edges exist and which are open; without it every row is a choice.
    """
    spec = grid.spec
    width = shutil.get_terminal_size((DEFAULT_WIDTH, 24)).columns
    label = max(LABEL, len(f"1/{spec.max_down} "))
    step = max(NARROWEST, min(WIDEST, (width - label - 1) // spec.layers))
    columns = list(range(min(spec.layers + 1, (width - label - 1) // step + 1)))
    lines = []
    for rate in spec.rates:
        lines.append(f"{f'1/{rate}':<{label}}" + _row(grid, architecture, rate, columns, step))
        if rate != spec.max_down:
            lines.append(" " * label + _downs(grid, architecture, rate, columns, step))
    if len(columns) <= spec.layers:
        lines.append(f"{'':<{label}}… {spec.layers + 1 - len(columns)} more columns to the right")
    return "\n".join(line[:width].rstrip() for line in lines)


def legend(architecture: Architecture | None = None) -> str:
    """What the characters of `draw` mean."""
    if architecture is None:
        return "● node  ══ transformer or identity  ┃ patch embedding  ▣ output  · unused node"
    return "━━ transformer  ── identity  ══ gated row  ┃ patch embedding  ┆ gated one  ▣ output"


def _row(grid: RoutingGrid, architecture: Architecture | None, rate: int, columns: list[int], step: int) -> str:
    outputs, cells = set(grid.outputs), []
    used = _used_nodes(grid, architecture)
    for column in columns:
        node = (column, rate)
        mark = "·" if node not in used else ("▣" if node in outputs else "●")
        cells.append(mark + _row_mark(grid, architecture, column, rate) * (step - 1))
    return "".join(cells)


def _row_mark(grid: RoutingGrid, architecture: Architecture | None, column: int, rate: int) -> str:
    names = [f"l{column:02d}_r{rate:02d}_{kind}" for kind in ("transformer", "identity")]
    if architecture is None:
        return ROWS["choice" if names[0] in grid.edges else "none"]
    states = [architecture.edges.get(name) for name in names]
    if "gated" in states:
        return ROWS["choice"]
    return ROWS["transformer" if states[0] else "identity" if states[1] else "none"]


def _downs(grid: RoutingGrid, architecture: Architecture | None, rate: int, columns: list[int], step: int) -> str:
    cells = []
    for column in columns:
        name = f"l{column:02d}_r{rate:02d}_patch_embed"
        there = name in (grid.edges if architecture is None else architecture.edges)
        gated = architecture is not None and architecture.edges.get(name) == "gated"
        cells.append(("┆" if gated else "┃" if there else " ").ljust(step))
    return "".join(cells)


def _used_nodes(grid: RoutingGrid, architecture: Architecture | None) -> set[tuple[int, int]]:
    if architecture is None:
        return set(grid.nodes)
    edges = [grid.edges[name] for name in architecture.edges]
    return {edge.source for edge in edges} | {edge.target for edge in edges} | {grid.stem}
