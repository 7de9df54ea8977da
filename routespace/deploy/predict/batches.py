"""Images in batches, read here or by other processes; what cannot be read comes as an error beside them.

Shape legend: N images · C channels · H, W pixels.
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
Packed = tuple[list[str | None], NDArray[np.float32], list[str]]  # paths, their images, and about the others


class ReadBatch(NamedTuple):
    """Images that were read.

    Attributes:
        paths: where they lie.
        images: the same, (N, C, H, W); without C, H and W when there are none.
        unreadable: of the others.
    """

    paths: list[str | None]
    images: NDArray[np.float32]
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
    for paths, images, unreadable in _by_processes(reader, size, workers) if workers else _here(reader, size):
        yield ReadBatch(paths, images, [DataError(word) for word in unreadable])


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


def _packed(found: Sequence[Read]) -> Packed:
    good = [(path, image) for path, image in found if not isinstance(image, str)]
    images = np.stack([image for _, image in good]) if good else np.empty(0, np.float32)
    return [path for path, _ in good], images, [word for _, word in found if isinstance(word, str)]


def _here(reader: ImageReader, size: int) -> Iterator[Packed]:
    for start in range(0, len(reader), size):
        yield _packed([reader[i] for i in range(start, min(start + size, len(reader)))])


def _by_processes(reader: Any, size: int, workers: int) -> Iterator[Packed]:
    import torch
    from torch.utils.data import DataLoader

    loader: DataLoader[Any] = DataLoader(
        reader, batch_size=size, num_workers=workers, collate_fn=_shared, generator=torch.Generator()
    )
    for paths, images, unreadable in loader:
        yield paths, images.numpy(), unreadable


def _shared(found: Sequence[Read]) -> tuple[list[str | None], Any, list[str]]:
    """The images as a tensor: those travel between processes without being copied."""
    import torch

    paths, images, unreadable = _packed(found)
    return paths, torch.from_numpy(images), unreadable
