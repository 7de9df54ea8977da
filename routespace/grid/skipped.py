"""The cheap path for skipped tokens (`gates.skipped`): what it is, and what it costs.

A token that a row's gate skips becomes x + f(LayerNorm(x)), with weights that are the row's own, for a small
share of a block's MACs. f is a linear layer, as in DynamicSwin, or two with a GELU between them; the last starts
at zero.
"""

from __future__ import annotations

from typing import NamedTuple

from routespace.grid.families.base import FLOAT_BYTES, norm_params
from routespace.grid.gate_spec import GateSpec


class SkippedCost(NamedTuple):
    """What the cheap path of one row costs for one image when every token is skipped; nothing without a path."""

    params: int
    macs: int
    bytes: int


NO_PATH = SkippedCost(0, 0, 0)


def skipped_cost(gates: GateSpec, width: int, tokens: int) -> SkippedCost:
    """The price of a gated row's cheap path.

    Args:
        gates: whether there is one.
        width: channels of the row's map.
        tokens: of the map.
    """
    if gates.skipped == "identity":
        return NO_PATH
    hidden = hidden_width(width)
    layers = [(width, hidden), (hidden, width)] if gates.skipped == "mlp" else [(width, width)]
    weights = sum(read * made for read, made in layers)
    params = norm_params(width) + weights + sum(made for _, made in layers)
    moved = 2 * width + sum(read + made for read, made in layers)
    return SkippedCost(params, tokens * weights, FLOAT_BYTES * (params + tokens * moved))


def hidden_width(width: int) -> int:
    """Channels between the two layers of an `mlp`: about as many MACs as one layer from all channels to all."""
    return max(1, width // 2)
