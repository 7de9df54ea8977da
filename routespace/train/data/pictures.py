"""Pictures as datasets: from a catalogue's entries to (image, label).

An item is a pure function of (seed, epoch, index): augmentation draws from its own seeded generators, so a resumed
run, another number of workers or of processes sees the same images.

Shapes: C channels · H, W image rows and columns in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.utils.data import Dataset

from routespace.errors import DataError
from routespace.preprocess import Preprocess
from routespace.train.data.augment import Transform, augmentation, needed_px, seeded
from routespace.train.data.catalogue import (
    Catalogue,
    Entry,
    Listed,
    Reader,
    Split,
    hold_out,
    too_few_classes,
    too_few_images,
    why_unknown,
)
from routespace.train.data.quick_check import quick_check
from routespace.train.data.record import DataRecord, Summary, summarise
from routespace.train.recipe.data import PicturesSpec


class Pictures(Dataset[tuple[Tensor, int]]):
    """Some pictures as (image (C, H, W) float normalised, label).

    Args:
        entries: where they lie, and their classes.
        labels: class → label.
        reader: reads them.
        preprocess: how evaluation feeds the network.
        spec: how training varies them; None as in evaluation.
        seed: of the augmentation.

    Raises:
        DataError: by an item, that its picture cannot be read.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        labels: Mapping[str, int],
        reader: Reader,
        *,
        preprocess: Preprocess,
        spec: PicturesSpec | None = None,
        seed: int = 0,
    ) -> None:
        self.items = [(entry.place, labels[entry.name]) for entry in entries]
        self.reader, self.preprocess, self.seed = reader, preprocess, seed
        self.varied: Transform | None = None
        self.at_least = preprocess.needed_px
        if spec is not None:
            self.varied, self.at_least = augmentation(spec, preprocess), needed_px(spec, preprocess)
        # Shared memory: a persistent worker holds a copy of this object that a plain int would not reach.
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Choose the augmentation's draws."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        place, label = self.items[index]
        fed = self.preprocess
        image = self.reader.read(place, fed.channels, background=fed.background, at_least=self.at_least)
        if self.varied is None:
            return torch.from_numpy(fed(image)), label
        with seeded(self.seed, int(self._epoch), index):
            return self.varied(image), label


class PictureSource:
    """Train, validation and test pictures of a catalogue; see `Source`.

    Args:
        catalogue: which pictures there are.
        spec: the validation part and the augmentation.
        preprocess: how evaluation feeds the network.
        seed: of the augmentation.
        classes: names in output order of a network that exists; None takes those of the training pictures.
        whole: data without parts is taken as a whole for whatever is asked, not for training alone.
    """

    fresh_each_epoch = False
    beside_training = False  # timm's augmentation draws from the global generators

    def __init__(
        self,
        catalogue: Catalogue,
        spec: PicturesSpec,
        *,
        preprocess: Preprocess,
        seed: int,
        classes: Sequence[str] | None = None,
        whole: bool = False,
    ) -> None:
        self.catalogue, self.spec, self.preprocess, self.seed = catalogue, spec, preprocess, seed
        self.whole = whole
        self._given = tuple(classes) if classes is not None else None

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Class names in output order; raises DataError when there are fewer than two."""
        if self._given is not None:
            return self._given
        listed = self._listed("train") or self._listed("test") or self._listed("val")
        if listed is None:
            raise self._no("train")
        refused = too_few_classes(listed)
        if refused is not None:
            raise DataError(refused)
        return listed.classes

    def train(self) -> Pictures:
        """Training pictures, augmented."""
        return self._dataset(self.parts["train"], spec=self.spec)

    def val(self) -> Pictures:
        """Validation pictures: the data's own part, or those of the training part that are held out."""
        if self.whole and (listed := self._listed("val")) is not None:
            return self._dataset(listed.entries)
        return self._dataset(self.parts["val"])

    def test(self) -> Pictures:
        """Test pictures, for `evaluate` alone; they are not even looked for before.

        Raises:
            DataError: there are none, or they hold a class that is none of the network's.
        """
        listed = self._listed("test")
        if listed is None:
            raise self._no("test")
        return self._dataset(listed.entries)

    @cached_property
    def parts(self) -> dict[str, Sequence[Entry]]:
        """Training and validation pictures; raises DataError when there are too few for both."""
        listed, own = self._listed("train"), self._listed("val")
        if listed is None:
            raise self._no("train")
        if own is not None:
            return {"train": self._known(listed.entries), "val": self._known(own.entries)}
        trained, held = hold_out(self._known(listed.entries), self.spec.val_fraction)
        refused = too_few_images(listed, trained, held)
        if refused is not None:
            raise DataError(refused)
        return {"train": trained, "val": held}

    @property
    def summary(self) -> Summary:
        """What training is about to see."""
        found = [listed for split in ("train", "val") if (listed := self._listed(split)) is not None]
        left_out: dict[str, int] = {}
        for listed in found:
            for kind, count in listed.left_out.items():
                left_out[kind] = left_out.get(kind, 0) + count
        return summarise(self.parts, self.classes, left_out)

    def quick_check(self) -> tuple[str, ...]:
        """Read the headers of training and validation pictures; see `Source`."""
        entries = [entry for part in self.parts.values() for entry in part]
        where = self.spec.root or "PATH"
        return quick_check(self.catalogue.reader, entries, where=where, skip_bad=self.spec.skip_bad)

    @cached_property
    def record(self) -> DataRecord:
        """What a run remembers of its pictures."""
        return DataRecord.of(self.parts, self.classes)

    def _listed(self, split: Split) -> Listed | None:
        if split not in self._found:
            self._found[split] = self.catalogue.part(split, whole=self.whole)
        return self._found[split]

    @cached_property
    def _found(self) -> dict[Split, Listed | None]:
        return {}

    def _known(self, entries: Sequence[Entry]) -> Sequence[Entry]:
        """The entries; raises DataError when a class is none of the network's."""
        refused = why_unknown(entries, self.classes)
        if refused is not None:
            raise DataError(refused)
        return entries

    def _dataset(self, entries: Sequence[Entry], spec: PicturesSpec | None = None) -> Pictures:
        labels = {name: label for label, name in enumerate(self.classes)}
        return Pictures(
            self._known(entries),
            labels,
            self.catalogue.reader,
            preprocess=self.preprocess,
            spec=spec,
            seed=self.seed,
        )

    def _whole(self) -> str:
        """Which folder `--data` takes as a whole, where there are training images; for a message."""
        layout = getattr(self.catalogue, "layout", None)
        return f" (such as {layout.train})" if layout is not None and layout.train is not None else ""

    def _no(self, split: Split) -> DataError:
        where = self.spec.root or "data"
        how = {
            "train": "put them into train/<class>/, or all of them into <class>/",
            "val": "put them into val/<class>/",
            "test": f"put them into test/<class>/, or evaluate others with --data{self._whole()} or --split val",
        }
        called = {"train": "training", "val": "validation", "test": "test"}[split]
        return DataError(f"{where}: no {called} images; {how[split]}")
