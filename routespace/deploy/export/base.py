"""What a file format has to bring for networks to be exported to it. No torch: formats are known without it.

    export(net, "net.onnx")                 in write.py: by the file's ending, and checked
    load_exported("net.onnx")(images)       (N, C, H, W) → logits (N, classes)

A new format is one file with an `Exporter`, and one line in `EXPORTERS` (formats.py). Its file says what stands in
it about the network, takes any number of images, and gives the outputs by the head's names.

Shape legend: N images · C channels · H, W pixels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn
    from torch.export import ExportedProgram

Say = Callable[[str], None]  # is told what is being done, a few words at a time


def silent(_: str) -> None:
    """Tell nobody."""


class Trace(NamedTuple):
    """What torch.export makes of a graph, and how many seconds that took."""

    program: ExportedProgram
    seconds: float


@dataclass(frozen=True)
class Prepared:
    """A graph that is ready to be written: a network, or what it computes of regions.

    Attributes:
        module: in evaluation mode, dense; images → a tensor, or a tuple of several.
        names: of what it gives.
        images: (TRACED_BATCH, C, H, W) to trace it with; files take any number of images.
        step: their sides may be any multiple of so many pixels; None: those of `images`.
        least: steps of a side, at least.
        metadata: what the file shall tell about the network, key → text.
        fed: what the images are called.
        say: is told what is being done.
        kept: the trace of `module`, once there is one, for whatever other format is written.
    """

    module: nn.Module
    names: tuple[str, ...]
    images: Tensor
    metadata: Mapping[str, str]
    step: int | None = None
    least: int = 1
    fed: str = "images"
    say: Say = silent
    kept: list[Trace] = field(default_factory=list)

    def traced(self) -> Trace:
        """What torch.export makes of `module`, which is asked once."""
        from torch.export import export

        if not self.kept:
            begin = time.monotonic()
            program = export(self.module, (self.images,), dynamic_shapes=self.free())
            self.kept.append(Trace(program, time.monotonic() - begin))
        return self.kept[0]

    def free(self) -> tuple[dict[int, Any]]:
        """What is free in the shape of `images`, as torch.export takes it."""
        from torch.export import Dim

        shape: dict[int, Any] = {0: Dim("batch", min=1)}
        if self.step is not None:
            shape |= {2: self.step * Dim("rows", min=self.least), 3: self.step * Dim("columns", min=self.least)}
        return (shape,)


@dataclass(frozen=True)
class LoadedNet:
    """An exported network, to be called with images.

    Attributes:
        names: of the outputs.
        metadata: what the file tells about the network.
        run: images (N, C, H, W) → its outputs.
        batch: how many images it takes at once; None for any number. Ours take any, others' files may not.
        compute: the same as `run` with numpy's arrays, of a runtime that needs no torch.
        regions: what is computed of regions that its outputs tell, each from a file beside its own; of most
            networks there is none.
    """

    names: tuple[str, ...]
    metadata: Mapping[str, str]
    run: Callable[[Tensor], tuple[Tensor, ...]]
    batch: int | None = None
    compute: Callable[[np.ndarray], tuple[np.ndarray, ...]] | None = None
    regions: Mapping[str, LoadedNet] = field(default_factory=dict)

    def region_runs(self) -> dict[str, Callable[[Tensor], tuple[Tensor, ...]]]:
        """What computes its regions: name → (R, D, S, S) → the outputs."""
        return {name: loaded.run for name, loaded in self.regions.items()}

    def numbers(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        """(N, C, H, W) float32, normalised pixels → the outputs; where the runtime needs none, without torch."""
        if self.compute is not None:
            return self.compute(images)
        import torch

        return tuple(found.float().cpu().numpy() for found in self.run(torch.from_numpy(images)))

    def __call__(self, images: Tensor | np.ndarray) -> Tensor | tuple[Tensor, ...]:
        """(N, C, H, W) normalised pixels → the logits (N, classes), or a tuple where there are several outputs."""
        import torch

        found = self.run(torch.as_tensor(images))
        return found[0] if len(found) == 1 else found


class Load(Protocol):
    """How a file is read again."""

    def __call__(self, path: Path, device: str | None = None) -> LoadedNet:
        """The network in a file.

        Args:
            path: the file.
            device: where to run: `auto`, `cpu`, `cuda` or `cuda:1`; None for the runtime's own choice.

        Raises:
            SpecError: a device that the format's runtime does not compute on.
        """
        ...


@dataclass(frozen=True)
class Exporter:
    """A file format.

    Attributes:
        name: what it is called.
        suffix: of its files.
        needs: packages that writing needs, beyond those that are always there.
        runs_with: packages that reading needs.
        types: element types of the networks that it can hold, as torch calls them.
        write: makes the file and returns operator → how often it stands in the graph.
        load: reads it again.
    """

    name: str
    suffix: str
    needs: tuple[str, ...]
    runs_with: tuple[str, ...]
    types: tuple[str, ...]
    write: Callable[[Prepared, Path], Mapping[str, int]]
    load: Load
