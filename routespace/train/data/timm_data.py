"""Datasets that timm's `create_dataset` makes: torchvision's and Hugging Face's."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any, NamedTuple

from PIL import Image
from timm.data.dataset_factory import create_dataset

from routespace.errors import DataError, MissingDependencyError
from routespace.picture_files import plain_name
from routespace.pictures import Colour, as_channels, quiet_pillow, read_picture
from routespace.train.data.catalogue import Entry, Listed, Split
from routespace.train.recipe.data import TimmSpec


class Position(NamedTuple):
    """A picture of a dataset: in which part, and its number there."""

    split: str
    number: int


class TimmReader:
    """Reads pictures from datasets.

    Args:
        name: of the whole, for messages.
        datasets: split → dataset of (PIL image, label).
    """

    def __init__(self, name: str, datasets: dict[str, Any]) -> None:
        self.name, self.datasets = name, datasets

    def read(self, place: Position, channels: int, *, background: Colour, at_least: int | None) -> Image.Image:
        """The picture at a position; raises DataError naming it."""
        called = f"{self.name}, {place.split}[{place.number}]"
        dataset = self.datasets[place.split]
        try:
            # timm's own items skip what cannot be read and give another picture's label; its reader does not.
            image = (dataset.reader if hasattr(dataset, "reader") else dataset)[place.number][0]
            if isinstance(image, Image.Image):
                with quiet_pillow():
                    return as_channels(image, channels, background=background)
        except Exception as error:  # whatever the dataset's own reader stumbles over
            raise DataError(f"{called}: cannot be read ({error!s:.120})") from error
        return read_picture(image, channels, background=background, at_least=at_least, name=called)

    def trouble(self, place: Position) -> str | None:
        """Always None: what lies in a packed dataset has been read when it was packed."""
        return None


class TimmCatalogue:
    """The pictures of a dataset.

    Args:
        spec: its name and what its parts are called.

    Raises:
        DataError: no name.
    """

    def __init__(self, spec: TimmSpec) -> None:
        if spec.name is None:
            raise DataError(
                "data.name: missing; give a dataset of timm's, such as torch/cifar10 or hfds/OWNER/NAME"
            )
        self.spec, self.name = spec, spec.name
        self.reader = TimmReader(spec.name, {})

    def part(self, split: Split, *, whole: bool = False) -> Listed | None:
        """What a part holds; see `Catalogue`. Its pictures' sides follow from their numbers."""
        called = {"train": self.spec.train_split, "val": self.spec.val_split, "test": self.spec.test_split}[split]
        if called is None:
            return None
        dataset = self._open(called)
        labels = _labels(dataset, self.spec)
        if min(labels, default=0) < 0:
            raise DataError(f"{self.name}, {called}: has pictures without a label; name another part of it")
        order = _names(dataset, self.spec, highest=max(labels, default=0))
        entries = [Entry(Position(called, i), order[label], str(i)) for i, label in enumerate(labels)]
        return Listed(f"{self.name}, {called}", entries, order=order)

    def _open(self, called: str) -> Any:
        if called not in self.reader.datasets:
            keys = {"input_key": self.spec.input_key, "target_key": self.spec.target_key}
            given: dict[str, Any] = {}
            if self.name.startswith("hfds/"):
                given = {key: value for key, value in keys.items() if value}
            try:
                with redirect_stdout(io.StringIO()):  # timm prints what to install, torchvision that it is there
                    self.reader.datasets[called] = create_dataset(
                        self.name, self.spec.root, split=called, download=self.spec.download, **given
                    )
            except ImportError as error:
                raise MissingDependencyError(
                    f"data.name: {self.name} needs another package ({error!s:.60}); "
                    f"pip install 'routespace[huggingface]'"
                ) from error
            except Exception as error:  # each library has its own; all mean that it is not there
                reason = " ".join(str(error).split())
                raise DataError(
                    f"{self.name}, {called}: cannot be opened in {self.spec.root} ({reason:.120}); check "
                    f"data.name, data.root and the names of its parts, or set data.download=true"
                ) from error
        return self.reader.datasets[called]


def _labels(dataset: Any, spec: TimmSpec) -> Sequence[int]:
    if hasattr(dataset, "reader"):  # Hugging Face's
        return [int(label) for label in dataset.reader.dataset[spec.target_key or "label"]]
    if hasattr(dataset, "targets"):  # most of torchvision's
        return [int(label) for label in dataset.targets]
    return [int(dataset[i][1]) for i in range(len(dataset))]


def _names(dataset: Any, spec: TimmSpec, *, highest: int) -> tuple[str, ...]:
    """Class names in the order of their numbers; the numbers themselves where the dataset has none."""
    if hasattr(dataset, "reader"):
        feature = dataset.reader.dataset.features.get(spec.target_key or "label")
        names = getattr(feature, "names", None)
    else:
        names = getattr(dataset, "classes", None)  # ImageNet's are tuples of synonyms
    if not names or len(names) <= highest:
        return tuple(map(str, range(highest + 1)))
    return tuple(plain_name(str(name[0] if isinstance(name, tuple) else name)) for name in names)
