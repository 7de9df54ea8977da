"""Tasks with small objects on large canvases: an arena each, with the recipe of its routed network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from routespace.recipes import load_recipe
from routespace.train.recipe.recipe import Recipe

STAMPS = {"rotate": 25, "hflip": 0.5, "brightness": 0.3, "saturation": 0.5, "held_out": 0.2}

FIRST_SCENES, OWN_SCENES = 128 * 250, 128 * 250  # of an epoch, on a GPU: 1000 steps and 1500


@dataclass(frozen=True)
class Arena:
    """A task and the blocks of its networks.

    Attributes:
        name: of its results.
        device: `cpu` or `cuda`.
        changes: of the recipe, as dotted fields.
        supernet: more blocks in narrower widths, for the network that parts are extracted from.
        objects: the data's field of object sizes.
        first_px, own_px: sizes of objects on the small and on the large canvas.
        first: the small canvas: epochs, image size and scenes of an epoch.
        tune_epochs: of what is extracted.
        composed: whether scenes are composed where the network is.
        length: times the steps that the fields above say, for machines that are faster or slower.
        based_on: the recipe.
        crops: whether the small canvas is a crop on which objects are learned, and so the same for everybody, and
            not a smaller image, which is smaller still where images are.
        seconds: of each phase, the large canvas last, by the processor's clock, in place of the epochs above:
            everybody then has the same time, whatever a step takes.
        before: fields of every phase before the last.
    """

    name: str
    device: str
    changes: Mapping[str, Any]
    supernet: Mapping[str, Any]
    objects: str
    first_px: tuple[int, int]
    own_px: tuple[int, int]
    first: tuple[int, int, int]
    tune_epochs: int = 2
    composed: bool = False
    length: float = 1.0
    based_on: str = "digits_map"
    crops: bool = False
    seconds: tuple[float, ...] | None = None
    before: Mapping[str, Any] = field(default_factory=dict)

    def recipe(self, seed: int) -> Recipe:
        """That of the routed network, at the recipe's own budget."""
        given = load_recipe(self.based_on)
        epochs, size, scenes = self.first
        start, *between = (phase.model_dump(mode="json") | {**self.before} for phase in given.train.phases)
        start |= {"epochs": epochs, "image_size": size, "data": {self.objects: self.first_px}}
        timed: dict[str, Any] = {}
        if self.seconds is not None:
            *before, last = self.seconds
            for phase, length in zip((start, *between), before, strict=True):
                phase["seconds"] = length
            timed = {"train.seconds": last, "train.clock": "processor"}
        own = given.override(
            {"name": f"evidence_{self.name}", "seed": seed, "train.device": self.device}
            | {"train.phases": []}
            | dict(self.changes)
            | {f"data.{self.objects}": self.own_px}
            | timed
        )
        told, batch = own.data.model_dump(), own.train.batch
        start["data"]["train_size"] = self._scenes(scenes, batch)
        size = self._scenes(told["train_size"], batch)
        return own.override({"data.train_size": size, "train.phases": [start, *between]})

    def _scenes(self, count: int, batch: int) -> int:
        """Of an epoch: whole batches where the length is not that of the arena."""
        return count if self.length == 1 else max(1, round(count * self.length / batch)) * batch


def scenes_of(folder: Path | None, train_size: int, val_size: int = 1000, test_size: int = 2000) -> dict[str, Any]:
    """The data section of stamps in a folder of `data_stamps.py`; scikit-learn's digits without one."""
    sizes = {"kind": "scenes", "train_size": train_size, "val_size": val_size, "test_size": test_size}
    if folder is None:
        return sizes
    return {**sizes, **STAMPS, "cutouts": str(folder / "cutouts"), "backgrounds": str(folder / "photographs")}


def classes_of(folder: Path | None) -> int:
    """Classes of the stamps in a folder; ten digits without one."""
    return 10 if folder is None else len(list((folder / "cutouts").iterdir()))


def digits() -> Arena:
    """Digits of 14 to 44 px on 96 px: `digits_map` as it is."""
    supernet = {"grid.layers": 6, "grid.widths": [6, 12, 24, 36]}
    return Arena("digits_cpu", "cpu", {}, supernet, "digit_px", (16, 56), (14, 44), (8, 64, 6000))


def stamps(folder: Path | None) -> Arena:
    """Cut-outs of 18 to 52 px on photographs of 96 px."""
    changes = {"data": scenes_of(folder, 6400), "grid.num_classes": classes_of(folder)}
    supernet = {"grid.layers": 6, "grid.widths": [6, 12, 24, 36]}
    return Arena("stamps_cpu", "cpu", changes, supernet, "object_px", (20, 60), (18, 52), (8, 64, 6000))


def stamps_gpu(folder: Path | None, size: str) -> Arena:
    """Cut-outs on photographs of 192 (b0) or 224 px (b1), composed where the network is; PVTv2's widths."""
    widths, px = {"b0": ([32, 64, 160, 256], 192), "b1": ([64, 128, 320, 512], 224)}[size]
    heads, mlp, sr = (1, 2, 5, 8), (8, 8, 4, 4), (8, 4, 2, 1)
    narrower = [width * 3 // 4 // head * head for width, head in zip(widths, heads, strict=True)]
    changes = {
        "data": scenes_of(folder, 12_800),
        "grid.num_classes": classes_of(folder),
        "grid.image_size": px,
        "grid.widths": widths,
        "grid.heads": heads,
        "grid.mlp_ratios": mlp,
        "grid.sr_ratios": sr,
        "train.batch_size": 128,
        "train.precision": "bf16",
        "train.lr": 1e-3,
        "train.epochs": 4,
    }
    first = (4, px * 2 // 3 // 32 * 32, 12_800)
    large, small = _shares(first[1], 0.3, 0.9), _shares(px, 0.15, 0.45)
    supernet = {"grid.layers": 6, "grid.widths": narrower}
    return Arena(f"stamps_{size}_cuda", "cuda", changes, supernet, "object_px", large, small, first, composed=True)


def digits_gpu() -> Arena:
    """Digits of 14 to 44 px on photographs of 96 px: the blocks of `digits_map`, in larger batches."""
    changes = _composed(ratio=0.5)
    supernet = {"grid.layers": 6, "grid.widths": [6, 12, 24, 36]}
    return Arena(
        "digits_cuda",
        "cuda",
        changes,
        supernet,
        "object_px",
        (16, 56),
        (14, 44),
        (4, 64, FIRST_SCENES),
        composed=True,
    )


def sparse() -> Arena:
    """Digits of 10 to 20 px on 128 px, learned on crops; three quarters of the MACs are in rows that can skip."""
    changes = {"grid.image_size": 128, "grid.depths": [2, 2, 1, 1], **_composed(ratio=0.4)}
    supernet = {"grid.layers": 6, "grid.depths": 1, "grid.widths": [6, 12, 24, 36]}
    return Arena(
        "sparse_cuda",
        "cuda",
        changes,
        supernet,
        "object_px",
        (10, 32),
        (10, 20),
        (8, 32, FIRST_SCENES),
        composed=True,
        based_on="digits_sparse",
        crops=True,
    )


def sparse_b0() -> Arena:
    """The task of `sparse` for blocks of PVTv2-b0's widths, twenty times the MACs."""
    widths = {"grid.widths": [32, 64, 160, 256], "grid.heads": [1, 2, 5, 8]}
    given = sparse()
    rates = {"train.lr": 1e-3, "train.precision": "bf16"}
    supernet = {**given.supernet, "grid.widths": [24, 48, 120, 192]}
    changes = {**given.changes, **widths, **rates}
    before = {"lr_factor": 1.0, "min_lr": 3e-4}
    return replace(given, name="sparse_b0_cuda", changes=changes, supernet=supernet, before=before)


def crops() -> Arena:
    """Digits of 10 to 20 px on 128 px, learned on crops of 32 px first: `digits_sparse`, by the clock."""
    supernet = {"grid.layers": 6, "grid.widths": [6, 12, 24, 36]}
    first, own, canvas = (10, 32), (10, 20), (24, 32, 6400)
    return Arena(
        "crops_cpu",
        "cpu",
        {},
        supernet,
        "digit_px",
        first,
        own,
        canvas,
        based_on="digits_sparse",
        crops=True,
        seconds=(150.0, 25.0, 95.0),
    )


def stamp_crops(folder: Path | None) -> Arena:
    """Cut-outs of 18 to 32 px on photographs of 128 px, learned on crops of 48 px first; a scout makes the map."""
    changes = {
        "data": scenes_of(folder, 3200),
        "grid.num_classes": classes_of(folder),
        "gates.scout": 4,
        "gates.scout_square": 4,
    }
    supernet = {"grid.layers": 6, "grid.widths": [6, 12, 24, 36]}
    first, own, canvas = (18, 48), (18, 32), (24, 48, 6400)
    return Arena(
        "stamp_crops_cpu",
        "cpu",
        changes,
        supernet,
        "object_px",
        first,
        own,
        canvas,
        based_on="digits_sparse",
        crops=True,
        seconds=(150.0, 40.0, 110.0),
    )


def _composed(*, ratio: float) -> dict[str, Any]:
    """Of digits on photographs, composed where the network is; rows are masked, as packing waits for a GPU."""
    return {
        "data": scenes_of(None, OWN_SCENES, val_size=2000),
        "budget.ratio": ratio,
        "train.batch_size": 128,
        "train.epochs": 6,
        "train.lr": 3e-3,
        "train.execution": "dense",
    }


def _shares(px: int, low: float, high: float) -> tuple[int, int]:
    return round(low * px), round(high * px)


def rehearsal() -> Arena:
    """Everything small, on digits that are composed as stamps are; no number counts."""
    changes = {
        "data": scenes_of(None, 64, val_size=40, test_size=40),
        "grid.image_size": 64,
        "grid.widths": [4, 8, 12, 18],
        "train.epochs": 2,
        "train.batch_size": 16,
        "budget.open_frac": 0.5,
        "budget.settle_frac": 0.5,
    }
    supernet = {"grid.layers": 5}
    return Arena(
        "rehearsal",
        "cpu",
        changes,
        supernet,
        "object_px",
        (16, 30),
        (16, 40),
        (1, 48, 32),
        tune_epochs=1,
        based_on="digits_sparse",
    )
