"""From a file to AP: what a meter finds with our targets is what COCOeval finds with the file itself."""

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from train_annotated import annotation, coco_data, rle, source_of, write_coco
from train_tiny import tiny

from routespace.train.data.loaders import Loaders
from routespace.train.recipe.coco import CocoSpec
from routespace.train.tasks.base import Metric
from routespace.train.tasks.coco_meter import CocoMeter

CATEGORIES = ((7, "ant"), (3, "cat"), (90, "dog"))
SIZES = [(96, 128), (128, 96), (100, 100), (64, 128), (50, 60)]
EMPTY = 3  # a picture without objects


def ellipse(size, box):
    """A mask (H, W) that fills a box x, y, w, h as a disc does."""
    x, y, w, h = box
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    return ((columns - x - w / 2) / (w / 2)) ** 2 + ((rows - y - h / 2) / (h / 2)) ** 2 <= 1


def truth(rng):
    """Objects of all three classes, some of them crowds, some that reach out of their picture."""
    found = []
    for image, (height, width) in enumerate(SIZES, 1):
        for _ in range(0 if image == EMPTY else int(rng.integers(0, 5))):
            w, h = rng.integers(6, 40, 2)
            x, y = int(rng.integers(-w // 2, width - w // 2)), int(rng.integers(-h // 2, height - h // 2))
            box = [x, y, int(w), int(h)]
            mask, crowd = ellipse((height, width), box), int(rng.random() < 0.2)
            category = int(rng.choice([7, 3, 90]))
            one = annotation(len(found) + 1, image, category, box, rle(mask), crowd, area=int(mask.sum()))
            found.append(one)
    return found


def answers(rng, annotations):
    """What a detector might say, in pixels of the pictures, as COCO's results are written."""
    found = []
    for one in annotations * 2:
        height, width = SIZES[one["image_id"] - 1]
        x, y, w, h = np.array(one["bbox"]) + rng.uniform(-3, 4, 4)  # no overlap is just a threshold of COCO's
        box = [max(0.0, float(x)), max(0.0, float(y)), max(3.0, float(w)), max(3.0, float(h))]
        category = int(rng.choice([one["category_id"]] * 3 + [7]))
        mask, score = rle(ellipse((height, width), box)), round(float(rng.random()), 6)
        result = {"image_id": one["image_id"], "category_id": category, "score": score}
        found.append(result | {"bbox": box, "segmentation": mask})
    return found


class Answers:
    """A head's outputs that say what was written."""

    def __init__(self, targets, results):
        self.found = []
        for target in targets:
            own = [one for one in results if one["image_id"] == int(target["image_id"])]
            boxes = torch.tensor([one["bbox"] for one in own], dtype=torch.float32).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            size = target["size"].tolist()
            masks = [ellipse(size, one["bbox"]) for one in own]
            labels = [[3, 7, 90].index(one["category_id"]) for one in own]
            self.found.append(
                {
                    "boxes": boxes,
                    "scores": torch.tensor([one["score"] for one in own]),
                    "labels": torch.tensor(labels, dtype=torch.long),
                    "masks": torch.from_numpy(np.stack(masks)) if own else torch.zeros(0, *size, dtype=torch.bool),
                }
            )

    def detections(self, fed, sizes):
        return self.found

    def image_losses(self, targets):
        return torch.zeros(len(targets))


@pytest.mark.parametrize(("seed", "fed"), [(0, (160, 256)), (1, (160, 256)), (2, (32, 48))])  # larger, smaller
def test_ap_is_that_of_cocoeval_on_the_file(tmp_path, seed, fed):
    rng = np.random.default_rng(seed)
    annotations = truth(rng)
    results = answers(rng, annotations)
    file = write_coco(tmp_path, coco_data(SIZES, annotations, CATEGORIES))
    spec = CocoSpec(root=str(file), eval_size=fed)
    loaders = Loaders(tiny(train__batch_size=3), source_of(spec, "masks", whole=True))
    meter = CocoMeter(Metric("mask_ap", "%", "maximise"), 3)
    for group in loaders.test:
        meter.update(Answers(group.targets, results), group.targets)
    found = meter.compute()
    coco = COCO(str(file))
    for kind, name in (("bbox", "box_ap"), ("segm", "mask_ap")):
        other = {"bbox": "segmentation", "segm": "bbox"}[kind]  # pycocotools takes areas from boxes where it can
        told = [{field: value for field, value in one.items() if field != other} for one in results]
        judge = COCOeval(coco, coco.loadRes(told), kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
        for place, part in enumerate(("", "50", "75", "_s", "_m")):
            if judge.stats[place] >= 0:
                assert found[name + part] == pytest.approx(judge.stats[place], abs=1e-6), name + part
    assert 0.05 < found["box_ap"] < 0.95
