"""Pictures that cannot be read: named, left out and counted, in loader processes too.

A loader process that raises shows its whole traceback; so an unreadable picture comes back as a word about it
beside the images of its batch, and is dealt with where the batches are read.

In training another picture takes its place, so that batches keep their size; otherwise it is missing.

A batch is dealt out into groups of images of one size: nothing is ever padded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from routespace.errors import DataError, warn

MOST_TRIES = 20  # pictures tried in place of an unreadable one


class Group(NamedTuple):
    """Images of a batch that have one size.

    Attributes:
        images: (B, C, H, W).
        targets: labels (B,), one tensor where those of the images are of one shape, else a list of B.
    """

    images: Tensor
    targets: Any


class Sample(NamedTuple):
    """An image and its target, or None; and a word about each picture that could not be read."""

    item: tuple[Tensor, Any] | None
    unreadable: tuple[str, ...]


class Guarded(Dataset[Sample]):
    """A dataset whose items never raise `DataError`.

    Args:
        dataset: of (image, label).
        replace: take the next picture that can be read instead.
    """

    def __init__(self, dataset: Dataset[Any], *, replace: bool) -> None:
        self.dataset, self.replace = dataset, replace

    def __len__(self) -> int:
        return len(cast(Sized, self.dataset))

    def __getitem__(self, index: int) -> Sample:
        unreadable: list[str] = []
        for attempt in range(MOST_TRIES if self.replace else 1):
            try:
                return Sample(self.dataset[(index + attempt) % len(self)], tuple(unreadable))
            except DataError as error:
                unreadable.append(str(error))
        return Sample(None, tuple(unreadable))

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """A whole batch; datasets that make one at once are asked for it."""
        if hasattr(self.dataset, "__getitems__"):
            return [Sample(item, ()) for item in self.dataset.__getitems__(indices)]
        return [self[index] for index in indices]


def collate(samples: Sequence[Sample]) -> tuple[tuple[Group, ...], tuple[str, ...]]:
    """The groups of a batch, none where no picture could be read; and a word for each that could not."""
    items = [sample.item for sample in samples if sample.item is not None]
    return grouped(items), tuple(word for sample in samples for word in sample.unreadable)


def grouped(items: Sequence[tuple[Tensor, Any]]) -> tuple[Group, ...]:
    """Images (C, H, W) and their targets → a group for each size, in the order in which sizes first come."""
    sizes: dict[torch.Size, list[tuple[Tensor, Any]]] = {}
    for image, target in items:
        sizes.setdefault(image.shape, []).append((image, target))
    return tuple(
        Group(torch.stack([image for image, _ in some]), _together([target for _, target in some]))
        for some in sizes.values()
    )


def _together(targets: list[Any]) -> Any:
    """Numbers as (B,), tensors of one shape as (B, …), everything else as a list."""
    if isinstance(targets[0], int):
        return torch.tensor(targets)
    if isinstance(targets[0], Tensor) and len({target.shape for target in targets}) == 1:
        return torch.stack(targets)
    return targets


class Skipped:
    """The pictures that were left out.

    Args:
        most: how many may be (`data.skip_bad`).
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._told: set[str] = set()

    def tell(self, word: str) -> None:
        """Name a picture in a warning, once; raises DataError when it is one too many."""
        if word in self._told:
            return
        self._told.add(word)
        if len(self._told) > self.most:
            more = f"; it is one more than data.skip_bad={self.most}" if self.most else ""
            raise DataError(f"{word}{more}")
        warn(f"{word}; left out ({len(self._told)} of at most {self.most})")


class Steps(Iterable[tuple[Group, ...]]):
    """The batches of a loader, without what cannot be read: the groups of each.

    Args:
        loader: of `collate`'s pairs.
        skipped: counts what is left out.

    Raises:
        DataError: while iterating: more cannot be read than may be left out.
    """

    def __init__(self, loader: DataLoader[Any], skipped: Skipped) -> None:
        self.loader, self.skipped = loader, skipped

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Group, ...]]:
        for groups, unreadable in self.loader:
            for word in unreadable:
                self.skipped.tell(word)
            if groups:
                yield groups


class Batches(Iterable[Group]):
    """Held-out images: groups of one size, one after the other. Arguments and errors are those of `Steps`."""

    def __init__(self, loader: DataLoader[Any], skipped: Skipped) -> None:
        self.steps = Steps(loader, skipped)

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[Group]:
        for groups in self.steps:
            yield from groups
