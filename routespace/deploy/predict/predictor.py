"""Predictor: what is on these images, where are which objects, or what is each pixel of?

    predictor = Predictor("small")                # a run, a bundle, model.onnx or model.pt2
    found = predictor("photo.jpg")                # found.label, found.score
    for found in predictor("photos"):             # a folder, a list of paths, PIL images, arrays
        print(found.path, found.label, found.score)

Images are read and prepared by the very code of evaluation, so on a folder the share of right answers is what
`evaluate` says. Importing this needs no torch; a Predictor imports it when it is made.

Shape legend: N images · C channels · H, W pixels · K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from routespace.checked import checked
from routespace.deploy.predict.answers import Prediction, objects_from, pixels_from
from routespace.deploy.predict.batches import FedGroup, ReadBatch, read_batches
from routespace.deploy.predict.images import GivenImages, InputImages, Pixels, Several, gather
from routespace.deploy.predict.network import open_network
from routespace.errors import BundleError, DataError, SpecError
from routespace.grid.families.base import Family
from routespace.preprocess import Preprocess

if TYPE_CHECKING:
    import torch

__all__ = ["BATCH_SIZE", "LEAST_SCORE", "TOP", "Prediction", "Predictor"]

BATCH_SIZE = 32
TOP = 5
LEAST_SCORE = 0.3  # of objects that are told: detectors give many that are worth little


class Predictor:
    """A trained network that tells what is on images: classes, objects or the class of each pixel, by its task.

    A routed network computes what its gates decide; an exported file computes everything.

    Args:
        path: a finished run, a bundle, or an exported file (.onnx, .pt2).
        device: where to run: `auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:1`; None for `auto`.
        batch_size: images that are run at once. A file that takes another number at once gets that.
        workers: processes that read images; with 0 this one does.
        preprocess, classes: how images go in, and the names of the outputs in their order, for a network that does
            not tell; without names its outputs are numbered.
        families: block families of your own that it may be made of.
        least_score: of the objects that are told, 0…1.

    Attributes:
        path, batch_size, workers, preprocess, classes: as given, or as the network tells.
        net: the network itself; None for an exported file.
        answers: what it tells of an image: `classes`, `objects` or `pixels`.

    Raises:
        BundleError: no finished run, no bundle, a damaged file, or one that does not tell how images go in.
        SpecError: a file of no known format, no such device, no network with a task, or another number of classes.
        MissingDependencyError: the format needs a package that is not installed.
    """

    @checked
    def __init__(
        self,
        path: Path | str,
        device: str | torch.device | None = None,
        batch_size: int = BATCH_SIZE,
        *,
        workers: int = 0,
        preprocess: Preprocess | None = None,
        classes: Sequence[str] = (),
        families: Iterable[Family] = (),
        least_score: float = LEAST_SCORE,
    ) -> None:
        for name, number, least in (("batch_size", batch_size, 1), ("workers", workers, 0)):
            if number < least:
                raise SpecError(f"{name}: {number} is not allowed; give {least} or more")
        if not 0 <= least_score <= 1:
            raise SpecError(f"least_score: {least_score} is not allowed; give 0 to 1")
        place = None if device is None else str(device)
        found = open_network(path, device=place, families=families, fed=preprocess is not None)
        told_preprocess, told_classes = found.told or (None, ())
        fed = preprocess or told_preprocess
        assert fed is not None  # it was opened
        self.path = Path(path)
        self.preprocess = fed
        self.classes = tuple(classes) or told_classes
        self.batch_size, self.workers = found.batch or batch_size, workers
        self.net, self.least_score = found.net, least_score
        self.answers, self._open = found.answers, found

    @overload
    def __call__(self, images: Pixels, *, top: int | None = ...) -> Prediction: ...
    @overload
    def __call__(self, images: GivenImages, *, top: int | None = ...) -> Any: ...  # a folder's are several
    @overload
    def __call__(self, images: Several, *, top: int | None = ...) -> list[Prediction]: ...
    def __call__(self, images: GivenImages | Iterable[GivenImages], *, top: int | None = TOP) -> Any:
        """Name what is on images.

        Args:
            images: an image: a path, a PIL image, an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8, a
                tensor (C, H, W) of uint8, or an open binary file; or a folder (its pictures at any depth, by
                name), or several of these.
            top: how many classes of a classifier to name; None for all.

        Returns:
            The Prediction of one image: of a detector FoundObjects, of pixel classes PixelClasses, in pixels of
            the picture itself. A list of them for a folder or several.

        Raises:
            DataError: an image cannot be read or fed, or a folder has none; see `stream` to leave out such images.
            SpecError: something else was given.
        """
        pictures = gather(images)
        found = list(self.stream(pictures, top=top))
        return found[0] if pictures.single else found

    def stream(
        self,
        images: GivenImages | Iterable[GivenImages] | InputImages,
        *,
        top: int | None = TOP,
        unreadable: Callable[[DataError], None] | None = None,
    ) -> Iterator[Prediction]:
        """Predictions one by one, batch after batch: for more images than shall be kept in memory.

        Args:
            images, top: as for a call.
            unreadable: is called with the error of each image that cannot be read, or that is fed at a size which
                an exported file does not take; it is then left out. Without it the error is raised.

        Raises:
            DataError, SpecError: as for a call.
        """
        if top is not None and top < 1:
            raise SpecError(f"top: {top} is not allowed; give 1 or more")
        pictures = images if isinstance(images, InputImages) else gather(images)
        for batch in read_batches(pictures.items, self.preprocess, self.batch_size, workers=self.workers):
            for error in batch.unreadable:
                if unreadable is None:
                    raise error
                unreadable(error)
            yield from self._answers(batch, top, unreadable)

    def _answers(
        self, batch: ReadBatch, top: int | None, unreadable: Callable[[DataError], None] | None
    ) -> list[Prediction]:
        """What is said about the images of a batch, in their order."""
        found: dict[int, Prediction] = {}
        for group in batch.groups:
            why = None if self._open.misfit is None else self._open.misfit(_fed_size(group))
            if why is not None:
                for place in group.places:
                    error = DataError(f"{batch.paths[place] or 'image'}: {why}")
                    if unreadable is None:
                        raise error
                    unreadable(error)
                continue
            paths = [batch.paths[place] for place in group.places]
            sizes = [batch.sizes[place] for place in group.places]
            answers = self._of_group(group, paths, sizes, top)
            found.update(zip(group.places, answers, strict=True))
        return [found[place] for place in sorted(found)]

    def _of_group(
        self, group: FedGroup, paths: list[str | None], sizes: list[tuple[int, int]], top: int | None
    ) -> list[Prediction]:
        """What is said about images that are fed in one size."""
        names = self.classes
        if self.answers == "classes":
            rows = self.logits(group.images)
            return [self._named(path, row, top) for path, row in zip(paths, rows, strict=True)]
        raw = self._raw(group.images)
        if self.answers == "pixels":
            (logits,) = raw
            each = zip(paths, sizes, logits, strict=True)
            return [pixels_from(path, size, one, names) for path, size, one in each]
        assert self._open.decode is not None
        fed = [_fed_size(group)] * len(paths)
        objects = self._open.decode(raw, fed, sizes)
        return [
            objects_from(path, size, one, names, self.least_score)
            for path, size, one in zip(paths, sizes, objects, strict=True)
        ]

    def _raw(self, images: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """(N, C, H, W) → the network's tensors, (N, …) each.

        Raises:
            BundleError: the network gives no finite numbers.
        """
        count, fixed = len(images), self._open.batch
        if fixed is not None and count < fixed:
            images = np.concatenate([images, np.repeat(images[-1:], fixed - count, axis=0)])
        found = tuple(part[:count] for part in self._open.run(images))
        if not all(np.isfinite(part).all() for part in found):
            raise BundleError(f"{self.path}: gives numbers that are not finite; its weights are of no use")
        return found

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, C, H, W) as `preprocess` gives them → (N, K) of a classifier, in the order of `classes`.

        Raises:
            BundleError: the network gives no finite numbers.
            SpecError: no classifier, images that do not fit, or another number of classes than there are names.
        """
        if self.answers != "classes":
            raise SpecError(f"{self.path}: tells {self.answers}, no classes of images; call it instead")
        count = len(images)
        (found,) = self._raw(images)
        if found.ndim != 2 or len(found) != count or (self.classes and found.shape[1] != len(self.classes)):
            shape = tuple(found.shape)
            raise SpecError(
                f"{self.path}: gives {shape} for {count} images and {len(self.classes)} class names; give a "
                f"classifier, and a name for each of its outputs"
            )
        return found

    def _named(self, path: str | None, logits: NDArray[np.float32], top: int | None) -> Prediction:
        best = np.argsort(-logits, kind="stable")[:top]
        shares = np.exp(logits.astype(np.float64) - logits.max())
        shares /= shares.sum()
        names = tuple(self.classes[i] if self.classes else str(i) for i in best)
        return Prediction(path, names, tuple(float(shares[i]) for i in best))


def _fed_size(group: FedGroup) -> tuple[int, int]:
    """(H, W) in which the images of a group are fed."""
    height, width = group.images.shape[2:]
    return height, width
