"""Small annotated data sets, written for tests: COCO's format, label maps, Pascal VOC and Cityscapes."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from routespace.preprocess import Preprocess
from routespace.train.data.source import SOURCES, Wanted

SQUARE = [[10.0, 6.0, 30.0, 6.0, 30.0, 22.0, 10.0, 22.0]]  # x 10…30, y 6…22

SIZES = [(48, 64), (64, 48), (40, 40)]
OBJECT = """<object><name>{}</name><difficult>{}</difficult>
<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"""


def noise(path, size, seed=0, mode="RGB"):
    """Write a noisy picture of (H, W) pixels."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = size if mode == "L" else (*size, 3)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, shape, np.uint8), mode).save(path)
    return path


def rle(mask, compressed=True):
    """A mask (H, W) as run lengths, as JSON has them."""
    if not compressed:
        flat = mask.T.flatten()
        edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [1 - flat[-1]]])))
        runs = np.diff(np.concatenate([[0], edges])).tolist()
        assert sum(runs) == flat.size
        return {"size": list(mask.shape), "counts": runs}
    found = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": found["counts"].decode()}


def annotation(number, image, category=3, bbox=(10, 6, 20, 16), segmentation=SQUARE, crowd=0, **more):
    """An annotation, by default of a square."""
    fields = {"id": number, "image_id": image, "category_id": category, "bbox": list(bbox), "iscrowd": crowd}
    return fields | {"segmentation": segmentation, "area": bbox[2] * bbox[3]} | more


def coco_data(sizes, annotations, categories=((3, "cat"), (90, "dog"))):
    """The data of a JSON file for images of these (H, W), numbered from 1."""
    return {
        "images": [
            {"id": n, "file_name": f"{n}.png", "height": h, "width": w} for n, (h, w) in enumerate(sizes, 1)
        ],
        "categories": [{"id": number, "name": name} for number, name in categories],
        "annotations": annotations,
    }


def write_coco(root, data, split="train", pictures=True):
    """Write a part as COCO lies; returns the JSON file."""
    file = Path(root, "annotations", f"instances_{split}.json")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(data))
    for image in data["images"] if pictures else ():
        noise(Path(root, split, image["file_name"]), (image["height"], image["width"]), image["id"])
    return file


def some_coco(root, split="train", count=6):
    """A part with pictures lying and standing, with two, one and no objects."""
    sizes = [(48, 64), (64, 48), (40, 40)] * (count // 3)
    annotations = []
    for n in range(1, count + 1):
        if n % 3:
            annotations.append(annotation(len(annotations) + 1, n))
        if n % 3 == 1:
            annotations.append(annotation(len(annotations) + 1, n, 90, (0, 30, 12, 10), [[0, 30, 12, 30, 12, 40]]))
    return write_coco(root, coco_data(sizes, annotations), split)


def source_of(spec, target, *, size=(64, 64), fed=None, seed=0, classes=None, whole=False):
    """The source of a data section, for images of (H, W)."""
    preprocess = fed or spec.preprocess(size, 3).inside(multiple=16)
    wanted = Wanted(spec, preprocess, seed, classes, whole, target, size)
    return SOURCES[type(spec)](wanted)


def plain(size=(64, 64)):
    """A Preprocess of whole pictures that changes no pixel of pictures that fit."""
    return Preprocess(size=size, crop_pct=1.0, fit="inside", multiple=16, interpolation="bilinear")


def label_map(path, values, palette=False):
    """Write a label map (H, W)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    if palette:
        image.putpalette([7] * 768)
    image.save(path)


def ade(root, split="training", numbers=(0, 1, 2, 3), count=6):
    """A part with folders below it; returns the label maps."""
    found = []
    for n in range(count):
        size = SIZES[n % 3]
        noise(root / "images" / split / f"room/{n}.jpg", size, n)
        values = np.random.default_rng(n).choice(np.array(numbers, np.uint8), size)
        label_map(root / "annotations" / split / f"room/{n}.png", values, palette=n % 2 == 1)
        found.append(values)
    (root / "classes.txt").write_text("wall\nfloor\n\nlamp\n")
    return found


def cityscapes(root):
    """Two cities of one picture for each part, with every number that there is."""
    numbers = np.arange(34, dtype=np.uint8).repeat(64 * 36 // 34 + 1)[: 64 * 36].reshape(36, 64)
    numbers[0, :9] = 255  # licence plates
    for split in ("train", "val"):
        for city in ("aachen", "zurich"):
            name = f"{split}/{city}/{city}_000000_000019"
            noise(root / "leftImg8bit" / f"{name}_leftImg8bit.png", (36, 64))
            label_map(root / "gtFine" / f"{name}_gtFine_labelIds.png", numbers)
    return numbers


def voc(root, objects, sizes=()):
    """VOC 2012 with two pictures for training and one for validation; every picture has the same objects.

    Their size is (48, 64), but for those of `sizes`; the list `trainval` has all three pictures.
    """
    base = root / "VOCdevkit/VOC2012"
    for kind in ("Main", "Segmentation"):
        (base / "ImageSets" / kind).mkdir(parents=True)
        (base / "ImageSets" / kind / "train.txt").write_text("a\nb\n")
        (base / "ImageSets" / kind / "val.txt").write_text("c\n")
        (base / "ImageSets" / kind / "trainval.txt").write_text("a\nb\nc\n")
    (base / "Annotations").mkdir()
    values = np.zeros((48, 64), np.uint8)
    values[10:20, 5:30], values[9, 5:30] = 12, 255
    for name in "abc":
        height, width = dict(sizes).get(name, (48, 64))
        noise(base / f"JPEGImages/{name}.jpg", (height, width))
        scaled = np.kron(values, np.ones((height // 48, width // 64), np.uint8))
        label_map(base / f"SegmentationClass/{name}.png", scaled, palette=True)
        size = "<size><width>64</width><height>48</height><depth>3</depth></size>"
        text = "".join(OBJECT.format(*one) for one in objects)
        (base / f"Annotations/{name}.xml").write_text(f"<annotation>{size}{text}</annotation>")
    return values
