"""Where a recipe's images come from: one spec for each kind of data, told apart by `data.kind`.

    digits      scenes rendered here, nothing to download
    folder      ROOT/train|val|test/<class>/…, or ROOT/<class>/…
    csv         a table of paths and labels
    webdataset  .tar shards on this machine
    timm        Hugging Face and torchvision datasets, through timm's `create_dataset`
    scenes      cut-outs composed onto photographs (`scenes.py`)
    coco, voc   boxes and masks of objects (`coco.py`, `voc.py`)
    segmentation, cityscapes    a class for each pixel (`segmentation.py`)

A new kind is a spec here, a member of `DATA_SPECS` in `data_kinds.py`, and its source in `train/data/source.py`.
Reading one imports no torch.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from routespace.preprocess import Interpolation, Preprocess
from routespace.train.recipe.augment import check_augment
from routespace.train.recipe.parts import AtLeast0, Natural, Section, Share, Whole
from routespace.train.recipe.targets import RENDERED, Target

__all__ = [
    "CsvSpec",
    "DigitsSpec",
    "FilesSpec",
    "FolderSpec",
    "Normalised",
    "PicturesSpec",
    "TimmSpec",
    "WebDatasetSpec",
]

DIGIT_CLASSES = 10
MIN_DIGIT_PX = 8
Fraction = Annotated[float, Field(gt=0, lt=1)]
Byte = Annotated[int, Field(ge=0, le=255)]


class Normalised(Section):
    """What all kinds have.

    Args:
        workers: loader processes; 0 renders digits in a thread beside the training.
        mean, std: of each channel for values in 0…1; None for ImageNet's.
    """

    targets: ClassVar[tuple[Target, ...]] = ("label",)  # what it can give with an image

    workers: Whole = 0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def preprocess(self, size: tuple[int, int], channels: int) -> Preprocess:
        """How evaluation feeds a network that reads (channels, *size); raises SpecError when it cannot be."""
        given = {"mean": self.mean, "std": self.std}
        return Preprocess.parse({"size": size, "channels": channels, "crop_pct": 1.0, **given}, name="data")

    def check(self, size: tuple[int, int], *, channels: int, classes: int, target: Target) -> None:
        """Raise ValueError unless the data fits a network of that image size, channels and classes."""
        if target not in self.targets:
            kind, given = self.model_dump()["kind"], " or ".join(self.targets)
            raise ValueError(f"data.kind: {kind!r} gives {given}, and the task asks for {target}; give another")
        _ = self.preprocess(size, channels)


class DigitsSpec(Normalised):
    """Scenes with handwritten digits, rendered as asked for.

    Args:
        train_size, val_size, test_size: scenes; those of train are fresh in each epoch.
        digit_px: least and greatest side of a digit.
        digits_per_scene: least and greatest number; the label is the largest's.
    """

    targets: ClassVar[tuple[Target, ...]] = RENDERED

    kind: Literal["digits"] = "digits"
    train_size: Natural = 12_000
    val_size: Natural = 1_000
    test_size: Natural = 2_000
    digit_px: tuple[Natural, Natural] = (10, 48)
    digits_per_scene: tuple[Natural, Natural] = (1, 1)

    def check(self, size: tuple[int, int], *, channels: int, classes: int, target: Target) -> None:
        """Ten classes, three channels, and digits that fit the image."""
        low, high = self.digit_px
        wanted = DIGIT_CLASSES + (target == "pixels")  # and the background
        field = "grid.num_classes" if target == "label" else "task.classes"
        if classes != wanted or channels != 3:
            raise ValueError(
                f"{field}: {classes} with {channels} channels does not fit data.kind 'digits'; "
                f"give {field.removeprefix('grid.')} {wanted} and in_channels 3"
            )
        if not MIN_DIGIT_PX <= low <= high <= min(size):
            raise ValueError(
                f"data.digit_px: {[low, high]} does not fit; give [least, greatest] from {MIN_DIGIT_PX} to the "
                f"image's {min(size)} px"
            )
        super().check(size, channels=channels, classes=classes, target=target)


class FilesSpec(Normalised):
    """What all kinds with picture files have.

    Args:
        root: where the data lies; a run keeps it as an absolute path.
        val_fraction: share of the training pictures that is held out where the data has no validation part of its
            own. Each picture's side follows from its own path below its class folder, whatever lies beside it;
            every class with two pictures or more keeps at least one on each side.
        interpolation: how pictures are resized, in evaluation and in training.
        background: RGB colour behind transparent parts, where the network has no alpha channel.
        skip_bad: how many unreadable pictures may be left out of the training, each named once; one more is an
            error.
        hflip: chance that a training picture is mirrored.
    """

    root: str | None = None
    val_fraction: Fraction = 0.2
    interpolation: Interpolation = "bicubic"
    background: tuple[Byte, Byte, Byte] = (255, 255, 255)
    skip_bad: Whole = 0
    hflip: Share = 0.5

    def check(self, size: tuple[int, int], *, channels: int, classes: int, target: Target) -> None:
        """Pictures have 1, 3 or 4 channels."""
        if channels not in (1, 3, 4):
            raise ValueError(
                f"grid.in_channels: {channels} is not allowed with data.kind {self.model_dump()['kind']!r}; "
                f"pictures are read as 1 (grey), 3 (RGB) or 4 (RGBA)"
            )
        super().check(size, channels=channels, classes=classes, target=target)


class PicturesSpec(FilesSpec):
    """What all kinds with pictures of classes have: how they are cut and augmented.

    Args:
        crop_pct: of evaluation: the share of the resized picture's side that is kept.
        scale, ratio, vflip, color_jitter, grayscale, blur, auto_augment, erasing: timm's augmentation
            (`create_transform`): least cropped area, its aspect ratios, chances, strengths, and a policy such as
            rand-m9-mstd0.5-inc1.
    """

    crop_pct: Annotated[float, Field(gt=0, le=1)] = 0.9
    scale: Annotated[float, Field(gt=0, le=1)] = 0.08
    ratio: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (3 / 4, 4 / 3)
    vflip: Share = 0.0
    color_jitter: AtLeast0 = 0.0
    grayscale: Share = 0.0
    blur: Share = 0.0
    auto_augment: str | None = None
    erasing: Share = 0.0

    @field_validator("auto_augment")
    @classmethod
    def _known(cls, policy: str | None) -> str | None:
        if policy is not None:
            check_augment(policy)
        return policy

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.ratio[0] > self.ratio[1]:
            raise ValueError(f"ratio: {list(self.ratio)} must be [least, greatest]")
        return self

    def preprocess(self, size: tuple[int, int], channels: int) -> Preprocess:
        """How evaluation feeds a network that reads (channels, *size); raises SpecError when it cannot be."""
        same = self.model_dump(include={"crop_pct", "interpolation", "background", "mean", "std"})
        return Preprocess.parse({"size": size, "channels": channels, **same}, name="data")

    def check(self, size: tuple[int, int], *, channels: int, classes: int, target: Target) -> None:
        """With 4 channels not every augmentation is defined."""
        for name in ("auto_augment", "grayscale"):
            if channels == 4 and getattr(self, name):
                raise ValueError(f"data.{name}: not possible with grid.in_channels 4 (RGBA); leave it out")
        super().check(size, channels=channels, classes=classes, target=target)


class FolderSpec(PicturesSpec):
    """Pictures in folders of their class: the class is the first folder below the split, at any depth beneath.

    Args:
        root: a folder with train/<class>/ (and val/, test/), or one with <class>/.
        val: `folder`: ROOT/val is the validation part where it is there, else a share of the training pictures
            is held out. `cut`: always the share; ROOT/val is then the test part where there is no ROOT/test,
            as ImageNet is laid out.
    """

    kind: Literal["folder"] = "folder"
    val: Literal["folder", "cut"] = "folder"


class CsvSpec(PicturesSpec):
    """A table of pictures: a line each, with a path, a label and, if there is one, a split.

    Args:
        root: the table, with commas (or tabs, where its name ends in .tsv) and a line of column names.
        images: the folder that relative paths start from; None for the table's own.
        path_column, label_column, split_column: names of the columns. Splits are called train, val and test;
            without such a column every picture is for training.
    """

    kind: Literal["csv"] = "csv"
    images: str | None = None
    path_column: str = "path"
    label_column: str = "label"
    split_column: str = "split"


class WebDatasetSpec(PicturesSpec):
    """Shards of WebDataset on this machine: .tar files whose members `key.jpg`, `key.cls` belong together.

    Args:
        root: the folder with the shards.
        train_shards, val_shards, test_shards: patterns of their names; without validation shards a share of the
            training pictures is held out.
        label: the member with the label: `cls`, a number or a name, or a key of the member `json`.
    """

    kind: Literal["webdataset"] = "webdataset"
    train_shards: str = "*train*.tar"
    val_shards: str = "*val*.tar"
    test_shards: str = "*test*.tar"
    label: str = "cls"


class TimmSpec(PicturesSpec):
    """A dataset that timm's `create_dataset` makes.

    Args:
        name: such as torch/cifar10, torch/mnist or hfds/OWNER/NAME (Hugging Face; needs the package datasets).
        root: where it is kept on this machine.
        download: fetch it where it is not there.
        train_split, val_split, test_split: what the dataset calls its parts; without a validation part a share
            of the training pictures is held out.
        input_key, target_key: columns of a Hugging Face dataset; None for `image` and `label`.
    """

    kind: Literal["timm"] = "timm"
    name: str | None = None
    download: bool = False
    train_split: str = "train"
    val_split: str | None = None
    test_split: str = "test"
    input_key: str | None = None
    target_key: str | None = None

    @field_validator("name")
    @classmethod
    def _indexed(cls, name: str | None) -> str | None:
        if name is not None and name.partition("/")[0] not in ("torch", "hfds"):
            raise ValueError(
                f"{name!r:.60} is not allowed; give torch/NAME or hfds/NAME: what can only be streamed cannot be "
                f"resumed exactly (shards on this machine: data.kind webdataset)"
            )
        return name
