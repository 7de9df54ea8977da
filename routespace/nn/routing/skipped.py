"""The cheap path for tokens that a row's gate skips, in the two ways that rows are computed.

Shape legend: B images · N tokens of a map · P = N, or 1 where a mask is about whole images · n skipped tokens of
the whole batch · C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from routespace.grid.gate_spec import GateSpec
from routespace.grid.skipped import hidden_width
from routespace.nn.packing.keep import kept_rows
from routespace.nn.packing.rows import take


class SkippedPath(nn.Module):
    """What is added to a skipped token: a LayerNorm and one or two linear layers, nothing at first.

    Args:
        spec: which of them, `linear` or `mlp`.
        width: C.
    """

    def __init__(self, spec: GateSpec, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        hidden = hidden_width(width)
        with torch.random.fork_rng(devices=[]):  # the other weights begin as they do without a path
            self.first = nn.Linear(width, hidden) if spec.skipped == "mlp" else None
            self.last = nn.Linear(width if self.first is None else hidden, width)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(…, C) → (…, C), what is to be added."""
        x = self.norm(x)
        added: Tensor = self.last(x if self.first is None else F.gelu(self.first(x)))
        return added


def add_masked(path: nn.Module, y: Tensor, skipped: Tensor) -> Tensor:
    """(B, N, C) with the path's result added at the skipped tokens; computed for all. The reference.

    Args:
        path: a SkippedPath.
        y: a row's result, which has its input at the skipped tokens.
        skipped: (B, P) bool.
    """
    added = path(y).to(y.dtype)
    return torch.where(skipped.unsqueeze(-1), y + added, y)


def add_packed(path: nn.Module, y: Tensor, skipped: Tensor, per_image: int | None = None) -> Tensor:
    """The same, computed for the skipped tokens alone.

    Args:
        path, y, skipped: as above.
        per_image: skipped tokens of every image, where the host knows that they are equal in number.
    """
    if per_image == 0:
        return y
    whole_images = skipped.shape[1] == 1
    flat = y if whole_images else y.flatten(0, 1)  # (B, N, C) by images, or (B·N, C) by tokens
    rows = kept_rows(skipped, None if whole_images else per_image)
    if not torch.compiler.is_exporting() and not rows.shape[0]:
        return y
    return flat.index_add(0, rows, path(take(flat, rows)).to(y.dtype)).view_as(y)
