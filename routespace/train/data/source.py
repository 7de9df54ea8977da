"""Source: where a recipe's images come from, one for each kind of data.

    source = make_source(recipe)
    source.classes, source.summary.text
    source.train(), source.val(), source.test()          # datasets of (image, label)

A new kind is a spec in `train/recipe/`, a catalogue of its pictures, or its annotations, or a source of its own,
and a line in `SOURCES`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch.utils.data import Dataset

from routespace.errors import DataError, SpecError
from routespace.preprocess import Preprocess
from routespace.train.data.annotated.kinds import ANNOTATIONS
from routespace.train.data.annotated.source import AnnotatedSource
from routespace.train.data.annotated.truth import Annotations
from routespace.train.data.catalogue import Catalogue, examples
from routespace.train.data.digits_source import DigitsSource
from routespace.train.data.lookup import CATALOGUES
from routespace.train.data.pictures import PictureSource
from routespace.train.data.record import DataRecord, Summary
from routespace.train.data.scenes.source import ScenesSource
from routespace.train.data.timm_data import TimmCatalogue
from routespace.train.recipe.data import DigitsSpec, FilesSpec, TimmSpec
from routespace.train.recipe.data_kinds import LOCATIONS, absolute
from routespace.train.recipe.parts import SELF, TIMM
from routespace.train.recipe.recipe import Recipe
from routespace.train.recipe.scenes import ScenesSpec
from routespace.train.recipe.targets import Target


class Source(Protocol):
    """Where images and targets come from; a target is what the task asks for (`recipe/targets.py`).

    Attributes:
        preprocess: how evaluation feeds the network.
        fresh_each_epoch: training images are new in each epoch, so their order needs no shuffling.
        beside_training: items draw no numbers from global generators: they may be made in a thread.
    """

    preprocess: Preprocess
    fresh_each_epoch: bool
    beside_training: bool

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in the order of a network's outputs."""
        ...

    def train(self) -> Dataset[Any]:
        """Images (C, H, W) and targets to train with; it has `set_epoch`."""
        ...

    def val(self) -> Dataset[Any]:
        """Those to validate and calibrate with, the same in each epoch."""
        ...

    def test(self) -> Dataset[Any]:
        """Those for `evaluate` alone; nothing is looked for before it is called."""
        ...

    @property
    def summary(self) -> Summary:
        """What training is about to see."""
        ...

    def quick_check(self) -> tuple[str, ...]:
        """Look at each training and validation image for a moment: a line for each that cannot be read.

        Raises:
            DataError: more cannot be read than the recipe allows to leave out.
        """
        ...

    @property
    def record(self) -> DataRecord | None:
        """What a run remembers of its pictures; None where the recipe says it all."""
        ...


@dataclass(frozen=True)
class Wanted:
    """What a source is made for.

    Attributes:
        spec: the data section of a recipe.
        preprocess: how evaluation feeds the network.
        seed: of what training draws.
        classes: names in output order of a network that exists; None takes those of the training images.
        whole: data without parts is taken as a whole for whatever is asked.
        target: what it gives with an image.
        size: (H, W) of the recipe's grid.
    """

    spec: Any
    preprocess: Preprocess
    seed: int
    classes: tuple[str, ...] | None
    whole: bool
    target: Target
    size: tuple[int, int]


def _pictures(catalogue: Callable[[Any], Catalogue]) -> Callable[[Wanted], Source]:
    def make(wanted: Wanted) -> Source:
        return PictureSource(
            catalogue(wanted.spec),
            wanted.spec,
            preprocess=wanted.preprocess,
            seed=wanted.seed,
            classes=wanted.classes,
            whole=wanted.whole,
        )

    return make


def _rendered(kind: Callable[..., Source]) -> Callable[[Wanted], Source]:
    def make(wanted: Wanted) -> Source:
        source = kind(wanted.spec, wanted.preprocess, seed=wanted.seed, target=wanted.target)
        if wanted.classes not in (None, source.classes):
            own, named = examples(source.classes, most=10), examples(wanted.classes or (), most=10)
            raise DataError(
                f"data.kind: its classes ({own}) are not the network's ({named}); give images of those with --data"
            )
        return source

    return make


def _annotated(annotations: Callable[[Any, Target], Annotations]) -> Callable[[Wanted], Source]:
    def make(wanted: Wanted) -> Source:
        return AnnotatedSource(
            annotations(wanted.spec, wanted.target),
            wanted.spec,
            preprocess=wanted.preprocess,
            size=wanted.size,
            seed=wanted.seed,
            target=wanted.target,
            classes=wanted.classes,
            whole=wanted.whole,
        )

    return make


SOURCES: dict[type, Callable[[Wanted], Source]] = {
    DigitsSpec: _rendered(DigitsSource),
    **{spec: _pictures(catalogue) for spec, catalogue in CATALOGUES.items()},
    TimmSpec: _pictures(TimmCatalogue),
    ScenesSpec: _rendered(ScenesSource),
    **{spec: _annotated(annotations) for spec, annotations in ANNOTATIONS.items()},
}


def make_source(
    recipe: Recipe,
    *,
    preprocess: Preprocess | None = None,
    classes: Sequence[str] | None = None,
    whole: bool = False,
) -> Source:
    """The source of a recipe's data.

    Args:
        recipe: its data, image size, channels, classes and seed.
        preprocess: how a network that exists was fed, in place of the recipe's.
        classes: its class names in output order: pictures are then labelled by name, and the training pictures
            need not be there to be evaluated.
        whole: pictures without train, val and test are taken as a whole for whatever is asked.

    Raises:
        DataError: the data is missing, damaged, or has another number of classes than the recipe's grid.
        SpecError: `classes` are not as many as the grid's.
    """
    wanted = Wanted(
        recipe.data,
        preprocess or recipe.preprocess,
        recipe.seed,
        tuple(classes) if classes else None,
        whole,
        recipe.task.target,
        recipe.grid.image_size,
    )
    source = SOURCES[type(recipe.data)](wanted)
    count, field = recipe.num_classes, recipe.task.classes_field
    if classes and len(classes) != count:
        raise SpecError(f"classes: {len(classes)} names for {count} outputs; give one for each")
    if len(source.classes) != count:
        where = recipe.data.root if isinstance(recipe.data, FilesSpec) else recipe.data.kind
        raise DataError(
            f"{field}: {count}, but {where} has {len(source.classes)} classes "
            f"({examples(source.classes, most=6)}); set {field}={len(source.classes)}"
        )
    return source


def count_classes(recipe: Recipe) -> int:
    """Classes of a recipe's data, whatever its grid says.

    Raises:
        DataError: the data is missing or damaged.
    """
    return len(class_names(recipe))


def class_names(recipe: Recipe) -> tuple[str, ...]:
    """Names of the classes of a recipe's data, whatever its grid says, in the order of a new network's outputs.

    Raises:
        DataError: the data is missing or damaged.
    """
    target, size = recipe.task.target, recipe.grid.image_size
    wanted = Wanted(recipe.data, recipe.preprocess, recipe.seed, None, whole=False, target=target, size=size)
    return tuple(SOURCES[type(recipe.data)](wanted).classes)


def scenes_of(recipe: Recipe, target: Target) -> Source:
    """The source of a recipe's scenes with another target than its task's.

    Raises:
        DataError: cut-outs or photographs are missing.
        SpecError: they do not fit the image size.
    """
    size = recipe.grid.image_size
    wanted = Wanted(recipe.data, recipe.preprocess, recipe.seed, None, whole=False, target=target, size=size)
    return SOURCES[type(recipe.data)](wanted)


def located(recipe: Recipe) -> Recipe:
    """The recipe with absolute paths of its data, pretrained weights and teacher, which work from every folder."""
    data, weights, teacher = recipe.data, recipe.train.weights, recipe.train.teacher
    paths = {f"data.{name}": getattr(data, name) for name in LOCATIONS if name in type(data).model_fields}
    if weights is not None and not weights.startswith(TIMM):
        recipe = recipe.override({"train.weights": absolute(weights), "train.start": recipe.train.start})
    if teacher is not None and teacher != SELF and not teacher.startswith(TIMM):
        paths["train.teacher"] = teacher
    changes = {name: absolute(path) for name, path in paths.items() if path is not None}
    return recipe.override(changes) if changes else recipe
