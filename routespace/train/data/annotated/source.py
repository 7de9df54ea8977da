"""Annotated pictures as a source: parts, classes and what is told of them; see `Source`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from routespace.errors import DataError
from routespace.preprocess import Preprocess
from routespace.train.data.annotated.dataset import AnnotatedImages
from routespace.train.data.annotated.truth import AnnotatedPart, Annotations
from routespace.train.data.annotated.vary import Change, Resized, variation
from routespace.train.data.catalogue import Split, examples, hold_out
from routespace.train.data.quick_check import quick_check
from routespace.train.data.record import DataRecord, Summary, leaks
from routespace.train.recipe.annotated import AnnotatedSpec
from routespace.train.recipe.targets import BACKGROUND, IGNORE, Target

LABEL_MAPS = 30  # in which classes are looked for
QUICK = 4_000  # pictures looked at before a training: label maps are read as a whole


class Parts(NamedTuple):
    """What a training uses."""

    train: AnnotatedPart
    val: AnnotatedPart


class AnnotatedSource:
    """Train, validation and test pictures of a kind of annotations; see `Source`.

    Args:
        annotations: what there is.
        spec: the validation part and the variation.
        preprocess: how evaluation feeds the network; whatever its `fit`, nothing is cut off.
        size: (H, W) of the recipe's grid.
        seed: of the variation.
        target: what is asked of each picture.
        classes: names in output order of a network that exists; None takes those of the data.
        whole: data without parts is taken as a whole for whatever is asked.
    """

    fresh_each_epoch = False
    beside_training = False  # torchvision's transforms draw from the global generator

    def __init__(
        self,
        annotations: Annotations,
        spec: AnnotatedSpec,
        *,
        preprocess: Preprocess,
        size: tuple[int, int],
        seed: int,
        target: Target,
        classes: Sequence[str] | None = None,
        whole: bool = False,
    ) -> None:
        self.spec, self.size, self.seed, self.target, self.whole = spec, size, seed, target, whole
        self.annotations = annotations
        self.preprocess = preprocess.inside(multiple=preprocess.multiple)
        self._given = tuple(classes) if classes is not None else None
        self._found: dict[Split, AnnotatedPart | None] = {}

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Class names in output order."""
        if self._given is not None:
            return self._given
        return self._require("train", self._part("train") or self._part("test") or self._part("val")).classes

    def train(self) -> AnnotatedImages:
        """Training pictures, varied."""
        varied = variation(self.spec, self.preprocess, self.size, self.target)
        resize = None if self.target == "pixels" else Resized(self.preprocess, self.spec.shorter_sides)
        return self._dataset(self.parts.train, varied=varied, resize=resize)

    def val(self) -> AnnotatedImages:
        """Validation pictures: the data's own part, or those of the training part that are held out."""
        if self.whole and (part := self._part("val")) is not None:
            return self._dataset(part)
        return self._dataset(self.parts.val)

    def test(self) -> AnnotatedImages:
        """Test pictures, for `evaluate` alone; they are not even looked for before.

        Raises:
            DataError: there are none, or they have a class that is none of the network's.
        """
        return self._dataset(self._require("test", self._part("test")))

    @cached_property
    def parts(self) -> Parts:
        """Training and validation pictures; raises DataError when there are too few for both."""
        part, own = self._require("train", self._part("train")), self._part("val")
        for side in (part, own):
            if side is not None and not side.images:
                raise DataError(f"{side.where}: has no pictures; give a part with some")
        if own is not None:
            return Parts(part, own)
        trained, held = hold_out([image.entry() for image in part.images], self.spec.val_fraction)
        if not trained or not held:
            raise DataError(f"{part.where}: {len(part.images)} images are too few to train and validate with")
        sides = (replace(part, images=[entry.place for entry in side]) for side in (trained, held))
        return Parts(*sides)

    @property
    def summary(self) -> Summary:
        """What training is about to see: images, and the objects of each class."""
        sides = self.parts._asdict()
        counts = {}
        for side, part in sides.items():
            found = self.annotations.objects(part.images)
            counts[side] = {part.classes[label]: count for label, count in sorted(found.items())}
        warnings = dict.fromkeys(note for part in self.parts for note in part.notes)  # one file may be both
        seen, names = counts["train"], [name for name in self.parts.train.classes if name != BACKGROUND]
        if seen and (unseen := [name for name in names if name not in seen]):
            told = f"no training objects of {len(unseen)} of {len(names)} classes ({examples(unseen)})"
            warnings[told] = None
        warnings |= dict.fromkeys(leaks(*([image.place for image in part.images] for part in self.parts)))
        images = {side: len(part.images) for side, part in sides.items()}
        return Summary(counts, warnings=tuple(warnings), images=images, classes=len(self.parts.train.classes))

    def quick_check(self) -> tuple[str, ...]:
        """Look at training and validation pictures; see `Source`."""
        entries = [image.entry() for part in self.parts for image in part.images]
        where = self.spec.root or "PATH"
        found = quick_check(self.annotations, entries, where=where, skip_bad=self.spec.skip_bad, most=QUICK)
        self._require_objects()
        return (*found, *self._one_class())

    def _require_objects(self) -> None:
        """Raise DataError where there is no object to learn from, or to measure by."""
        for part, what in zip(self.parts, ("to learn from", "to measure by"), strict=True):
            if self.target != "pixels" and not self.annotations.objects(part.images, crowds=False):
                raise DataError(
                    f"{part.where}: {len(part.images)} images without any object {what} (crowds are none); give "
                    f"annotations of some, or other images"
                )

    def _one_class(self) -> tuple[str, ...]:
        """A line where label maps tell nothing apart, such as masks of 0 and 255, which counts for nothing."""
        part = self.parts.train
        if self.target != "pixels" or len(part.classes) == 1 or self.annotations.objects(part.images):
            return ()
        some, seen, left_px, all_px = part.images[:: -(-len(part.images) // LABEL_MAPS)], set[int](), 0, 0
        for image in some:
            with suppress(DataError):  # told by the check before, and left out
                pixels = self.annotations.truth(image).pixels
                assert pixels is not None
                there = np.bincount(pixels.ravel(), minlength=IGNORE + 1)
                seen.update(np.flatnonzero(there[:IGNORE]).tolist())
                left_px, all_px = left_px + int(there[IGNORE]), all_px + pixels.size
        if len(seen) > 1 or not all_px:
            return ()
        told = f"pixels of {part.classes[min(seen)]!r} alone" if seen else "no pixel of a class"
        return (
            f"{part.where}: {len(some)} label maps have {told} ({left_px / all_px:.0%} count for nothing); see "
            f"whether their numbers are the classes",
        )

    @cached_property
    def record(self) -> DataRecord:
        """What a run remembers of its pictures: their names and sides."""
        sides = self.parts._asdict()
        entries = {side: [image.entry() for image in part.images] for side, part in sides.items()}
        return DataRecord.of(entries, self.classes)

    def _part(self, split: Split) -> AnnotatedPart | None:
        """A part of the data, with `data.val=cut` in mind."""
        if split not in self._found:
            found = None
            if not (split == "val" and self.spec.val == "cut"):
                found = self.annotations.part(split, whole=self.whole)
            if found is None and split == "test" and self.spec.val == "cut":
                found = self.annotations.part("val")
            self._found[split] = found
        return self._found[split]

    def _require(self, split: Split, part: AnnotatedPart | None) -> AnnotatedPart:
        if part is not None:
            return part
        called = {"train": "training", "val": "validation", "test": "test"}[split]
        how = "; evaluate with --split val, name other data with --data, or set data.val=cut"
        raise DataError(
            f"{self.spec.root or 'data'}: no annotated {called} images{how if split == 'test' else ''}"
        )

    def _dataset(
        self, part: AnnotatedPart, varied: Change | None = None, resize: Resized | None = None
    ) -> AnnotatedImages:
        unknown = [name for name in part.classes if name not in self.classes]
        if unknown:
            raise DataError(
                f"{part.where}: class {unknown[0]!r} is none of the network's {len(self.classes)} "
                f"({examples(self.classes, most=10)}); rename it, or leave it out"
            )
        return AnnotatedImages(
            part.images,
            self.annotations,
            [self.classes.index(name) for name in part.classes],
            preprocess=self.preprocess,
            varied=varied,
            seed=self.seed,
            resize=resize,
            group=varied is not None and getattr(self.spec, "group", False),
        )
