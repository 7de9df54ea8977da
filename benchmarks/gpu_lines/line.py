"""What a line of the table is: its setting, what it runs, and its rows.

A line builds its networks once and times several runs of them in turns. A row is one of these runs: its time, the
least time that its work could take on this card (`Work` over the ceilings), and a goal where there is one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec

Run = Callable[[], object]


@dataclass(frozen=True)
class Setting:
    """How everything is measured.

    Attributes:
        device: where.
        rehearse: tiny sizes: every line runs, and no number says anything.
        compiled: also compile; without it the lines start in seconds.
        rounds: turns of each run, after those that warm up.
        kernels: a file to which the kernels of each run are told; None for none.
    """

    device: torch.device
    rehearse: bool = False
    compiled: bool = True
    rounds: int = 9
    kernels: Path | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and images in inference, and of autocast in training."""
        return torch.bfloat16

    def batches(self, *batches: int) -> tuple[int, ...]:
        """The batch sizes to try, the first that fits; a rehearsal's are 2."""
        return (2,) if self.rehearse else batches

    def grid(self, preset: str = "pvt_v2_b2", **fields: Any) -> RoutingGrid:
        """A preset's grid; a rehearsal's is the smallest of its family, of small images."""
        if not self.rehearse:
            return RoutingGrid(GridSpec.preset(preset, **fields))
        small = {"pvt_v2_b2": ("pvt_v2_b0", 64), "dit_b0": ("dit_b0", 32), "swin_v2_t": ("swin_v2_t", 64)}
        name, side = small[preset]
        return RoutingGrid(GridSpec.preset(name, **fields | {"image_size": side}))

    def images(self, grid: RoutingGrid, batch: int) -> torch.Tensor:
        """(B, 3, H, W) random pixels, in float32 for training, where autocast rounds them."""
        return torch.randn(batch, grid.spec.in_channels, *grid.spec.image_size, device=self.device)


@dataclass(frozen=True)
class Work:
    """What a run has to do.

    Attributes:
        flops: floating-point operations, a multiply-add is two.
        bytes: what its matrix products, convolutions and attentions read and write, each once; all else is taken
            as done on the way.
    """

    flops: float
    bytes: float

    def scaled(self, factor: float) -> Work:
        """A share of it, or a multiple."""
        return Work(self.flops * factor, self.bytes * factor)


@dataclass(frozen=True)
class Ceilings:
    """What the card does at best, measured in the same process.

    Attributes:
        bytes_per_s: of a copy from the card's memory to itself, read and written.
        flops_per_s: of a large matrix product in bf16.
    """

    bytes_per_s: float
    flops_per_s: float

    def floors_ms(self, work: Work) -> tuple[float, float]:
        """The least milliseconds by bytes, and by operations."""
        return work.bytes / self.bytes_per_s * 1e3, work.flops / self.flops_per_s * 1e3


@dataclass
class Row:
    """One run.

    Attributes:
        name: what ran.
        ms: of one call, the median; None where it failed.
        batch: images of a call.
        work: of a call, where it is known.
        against: another row's name, whose time is divided by this one's.
        goal: what is aimed at: the least `speedup` against that row, or the least images a second.
        memory_mb: the most memory that a call adds to what stays (weights, images, an optimiser's state).
        numbers: whatever else was found.
        error: why there is no time.
    """

    name: str
    ms: float | None = None
    batch: int = 1
    work: Work | None = None
    against: str | None = None
    speedup: float | None = None
    goal: dict[str, float] = field(default_factory=dict)
    memory_mb: float | None = None
    numbers: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    @property
    def images_per_s(self) -> float | None:
        """Images a second."""
        return None if not self.ms else self.batch / self.ms * 1e3
