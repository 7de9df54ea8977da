"""Images in batches, read here or by other processes; what cannot be read comes as an error beside them.

Shapes: C channels · H, W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from routespace.deploy.predict.images import InputImage, read
from routespace.errors import DataError
from routespace.preprocess import Preprocess

Read = tuple[str | None, NDArray[np.float32] | str]  # path, and the image or why it cannot be read


class ReadBatch(NamedTuple):
    """Images that were read.

    Attributes:
        paths: where they lie.
        images: the same, (C, H, W) each.
        unreadable: of the others.
    """

    paths: list[str | None]
    images: list[NDArray[np.float32]]
    unreadable: list[DataError]


def read_batches(
    items: Sequence[InputImage], preprocess: Preprocess, size: int, *, workers: int = 0
) -> Iterator[ReadBatch]:
    """Read images in their order.

    Args:
        items: what to read.
        preprocess: how.
        size: images of a batch; fewer where some cannot be read, and at the end.
        workers: processes that read; with 0 this one does.
    """
    reader = ImageReader(items, preprocess)
    for found in _by_processes(reader, size, workers) if workers else _here(reader, size):
        good = [(path, image) for path, image in found if not isinstance(image, str)]
        bad = [DataError(image) for _, image in found if isinstance(image, str)]
        yield ReadBatch([path for path, _ in good], [image for _, image in good], bad)


class ImageReader:
    """Reads images by their numbers, and raises nothing; it travels to other processes.

    Args:
        items: what to read.
        preprocess: how.
    """

    def __init__(self, items: Sequence[InputImage], preprocess: Preprocess) -> None:
        self.items, self.preprocess = items, preprocess

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Read:
        item = self.items[index]
        try:
            return item.path, read(item, self.preprocess)
        except DataError as error:  # an exception of another process arrives as a whole traceback
            return item.path, str(error)


def _here(reader: ImageReader, size: int) -> Iterator[list[Read]]:
    for start in range(0, len(reader), size):
        yield [reader[i] for i in range(start, min(start + size, len(reader)))]


def _by_processes(reader: Any, size: int, workers: int) -> Iterator[list[Read]]:
    import torch
    from torch.utils.data import DataLoader

    yield from DataLoader(
        reader, batch_size=size, num_workers=workers, collate_fn=list, generator=torch.Generator()
    )
