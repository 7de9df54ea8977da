"""Rendered scenes as files that others read: COCO's JSON beside PNG pictures, or pictures and label maps.

    write_scenes(recipe, "masks", folder)

    objects, masks    train/000000.png …, annotations/instances_train.json; the same for val and test
    pixels            images/training/000000.png …, annotations/training/000000.png …, classes.txt

Training scenes are those of the first epoch. Pictures and what is known of them are read back as they were.

Shapes: C channels · H, W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from routespace.checked import checked
from routespace.errors import BundleError, SpecError
from routespace.files import json_text, replaced_folder, require_place, write_text
from routespace.preprocess import Preprocess
from routespace.train.data.catalogue import Split
from routespace.train.data.source import scenes_of
from routespace.train.recipe.recipe import Recipe
from routespace.train.recipe.segmentation import CLASS_FILES
from routespace.train.recipe.targets import Target

TOGETHER = 32  # scenes rendered at once
FOLDERS: dict[Split, str] = {"train": "training", "val": "validation", "test": "test"}  # ADE20K's
COLOURS = 255, 85, 170  # of a palette, so that a person sees classes of a label map apart

Tell = Callable[[int, int], None]


@checked
def write_scenes(
    recipe: Recipe, target: Target, folder: Path | str, *, tell: Tell | None = None
) -> dict[str, int]:
    """Write the train, val and test scenes of a recipe; all of them or none.

    Args:
        recipe: its data, image size and seed; its task does not count.
        target: what is written of each scene.
        folder: new, or an empty one.
        tell: called with how many scenes of how many are written.

    Returns:
        Part → scenes.

    Raises:
        SpecError: the recipe's data is not rendered, or does not fit its image size.
        BundleError: the folder is not empty, or cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BundleError(f"{folder}: exists and is not empty; choose another folder")
    if not folder.exists():
        require_place(folder)
    if "label" not in recipe.data.targets or target not in recipe.data.targets:
        raise SpecError(f"data.kind: {recipe.data.kind!r} is not rendered; give a recipe of digits or scenes")
    source = scenes_of(recipe, target)
    scenes: dict[Split, Any] = {"train": source.train(), "val": source.val(), "test": source.test()}
    total, done = sum(len(some) for some in scenes.values()), 0

    def one_more() -> None:
        nonlocal done
        done += 1
        if tell is not None:
            tell(done, total)

    with replaced_folder(folder) as partial:
        for split, some in scenes.items():
            items = _items(some, source.preprocess, one_more)
            if target == "pixels":
                _write_label_maps(partial, FOLDERS[split], items)
            else:
                _write_coco(partial, split, items, source.classes, about=f"{recipe.name} ({recipe.hash})")
        if target == "pixels":
            write_text(partial / CLASS_FILES[0], "\n".join(source.classes) + "\n")
    return {split: len(some) for split, some in scenes.items()}


Item = tuple[str, NDArray[np.uint8], Any]  # file name, picture (H, W, C), target


def _items(scenes: Any, preprocess: Preprocess, done: Callable[[], None]) -> Iterator[Item]:
    scenes.set_epoch(0)
    for start in range(0, len(scenes), TOGETHER):
        numbers = range(start, min(start + TOGETHER, len(scenes)))
        for number, (image, target) in zip(numbers, scenes.__getitems__(numbers), strict=True):
            picture = np.rint(preprocess.shown(image.numpy()) * 255).astype(np.uint8)
            yield f"{number:06d}.png", picture.transpose(1, 2, 0), target
            done()


def _write_label_maps(folder: Path, part: str, items: Iterator[Item]) -> None:
    places = folder / "images" / part, folder / "annotations" / part
    for place in places:
        place.mkdir(parents=True)
    palette = [(number * step) % 256 for number in range(256) for step in COLOURS]
    for name, picture, pixels in items:
        Image.fromarray(picture).save(places[0] / name)
        image = Image.fromarray(pixels.numpy().astype(np.uint8))
        image.putpalette(palette)
        image.save(places[1] / name)


def _write_coco(folder: Path, part: str, items: Iterator[Item], classes: Sequence[str], *, about: str) -> None:
    (folder / part).mkdir()
    (folder / "annotations").mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for name, picture, target in items:
        Image.fromarray(picture).save(folder / part / name)
        height, width = picture.shape[:2]
        number = int(target["image_id"])
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        for n, (x1, y1, x2, y2) in enumerate(target["boxes"].tolist()):
            annotations.append(
                {
                    "id": len(annotations) + 1,  # from 1: pycocotools takes 0 for none
                    "image_id": number,
                    "category_id": int(target["labels"][n]) + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": float(target["area"][n]),
                    "iscrowd": 0,
                    **({"segmentation": _packed(target["masks"][n].numpy())} if "masks" in target else {}),
                }
            )
    data = {
        "info": {"description": f"scenes of {about}, {part}"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": label + 1, "name": name} for label, name in enumerate(classes)],
    }
    write_text(folder / "annotations" / f"instances_{part}.json", json_text(data, indent=None))


def _packed(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """A mask (H, W) as compressed run lengths: exact, where polygons are not."""
    packed = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": [int(side) for side in packed["size"]], "counts": packed["counts"].decode()}
