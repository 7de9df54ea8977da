"""Images in batches, read here or by other processes; what cannot be read comes as an error beside them.

The images of a batch that are fed in one size are a group: they are computed together, and nothing is padded.

Shape legend: N images · C channels · H, W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from routespace.deploy.predict.images import FedImage, InputImage, read
from routespace.errors import DataError, SpecError
from routespace.preprocess import Preprocess

Read = tuple[str | None, FedImage | str]  # path, and the image or why it cannot be read


class FedGroup(NamedTuple):
    """Images of a batch that have one size.

    Attributes:
        places: (N,) where in the batch they stand.
        images: (N, C, H, W).
    """

    places: list[int]
    images: NDArray[np.float32]


class Packed(NamedTuple):
    """What travels between processes: paths and (H, W) of pictures, their groups, and about the others."""

    paths: list[str | None]
    sizes: list[tuple[int, int]]
    groups: list[FedGroup]
    unreadable: list[str]


class ReadBatch(NamedTuple):
    """Images that were read.

    Attributes:
        paths: where they lie.
        sizes: (H, W) of the pictures themselves, as `FedImage` has them.
        groups: the images, by the size in which they are fed.
        unreadable: of the others.
    """

    paths: list[str | None]
    sizes: list[tuple[int, int]]
    groups: list[FedGroup]
    unreadable: list[DataError]

    @property
    def images(self) -> NDArray[np.float32]:
        """(N, C, H, W) where all are fed in one size; without C, H and W when there are none.

        Raises:
            SpecError: there are several sizes, so that they are no array.
        """
        if len(self.groups) > 1:
            sizes = ", ".join(str(group.images.shape[2:]) for group in self.groups)
            raise SpecError(f"images: are fed in several sizes ({sizes}); take them group by group")
        return self.groups[0].images if self.groups else np.empty(0, np.float32)


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
        unreadable = [DataError(word) for word in found.unreadable]
        yield ReadBatch(found.paths, found.sizes, found.groups, unreadable)


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
    shapes: dict[tuple[int, ...], list[int]] = {}
    for place, (_, image) in enumerate(good):
        shapes.setdefault(image.numbers.shape, []).append(place)
    groups = [FedGroup(some, np.stack([good[place][1].numbers for place in some])) for some in shapes.values()]
    unreadable = [word for _, word in found if isinstance(word, str)]
    return Packed([path for path, _ in good], [image.size for _, image in good], groups, unreadable)


def _here(reader: ImageReader, size: int) -> Iterator[Packed]:
    for start in range(0, len(reader), size):
        yield _packed([reader[i] for i in range(start, min(start + size, len(reader)))])


def _by_processes(reader: Any, size: int, workers: int) -> Iterator[Packed]:
    import torch
    from torch.utils.data import DataLoader

    loader: DataLoader[Any] = DataLoader(
        reader, batch_size=size, num_workers=workers, collate_fn=_shared, generator=torch.Generator()
    )
    for found, images in loader:
        groups = [FedGroup(one.places, some.numpy()) for one, some in zip(found.groups, images, strict=True)]
        yield found._replace(groups=groups)


def _shared(found: Sequence[Read]) -> tuple[Packed, list[Any]]:
    """The images as tensors: those travel between processes without being copied."""
    import torch

    packed = _packed(found)
    images = [torch.from_numpy(group.images) for group in packed.groups]
    empty = np.empty(0, np.float32)
    return packed._replace(groups=[group._replace(images=empty) for group in packed.groups]), images
