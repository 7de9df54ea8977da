"""COCO's AP as the meter tells it: against pycocotools, whatever process saw which image."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch.nn import functional as F

from routespace.train.tasks.base import Metric
from routespace.train.tasks.coco_meter import CocoMeter, masks_at
from routespace.train.tasks.detect_spec import BOX_AP

CLASSES = 3


def picture(number: int, count: int, generator: torch.Generator, scale: int = 2) -> tuple[dict, dict]:
    """The target of an image that is fed at 1/scale of its size, and what a fair detector finds in it."""

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    size = torch.tensor([240, 320])
    corners = rand(count, 2) * torch.tensor([120.0, 80.0])
    boxes = torch.cat([corners, corners + 4 + rand(count, 2) * 36], 1).round()
    fed = {
        "boxes": boxes,
        "labels": torch.randint(CLASSES, (count,), generator=generator),
        "crowd": rand(count) < 0.2,
        "area": (boxes[:, 2:] - boxes[:, :2]).prod(1) * scale**2 * 0.8,
        "image_id": torch.tensor(number),
        "size": size,
        "fed": size // scale,
    }
    found = {
        "boxes": (boxes + rand(count, 4) * 6 - 3).repeat(2, 1) * scale,
        "labels": torch.where(rand(2 * count) < 0.8, fed["labels"].repeat(2), 0),
        "scores": (rand(2 * count) * 20).round() / 20,  # many are equal
    }
    return fed, found


def scene(pictures: int, seed: int = 0) -> list[tuple[dict, dict]]:
    generator = torch.Generator().manual_seed(seed)
    return [picture(n, n % 5, generator) for n in range(pictures)]


def output(found: list[dict], loss: float = 1.0):
    """What a detector that found these would give."""
    return SimpleNamespace(
        detections=lambda fed, shown: found, image_losses=lambda targets: torch.full((len(targets),), loss)
    )


def metered(pictures, metric=BOX_AP) -> dict[str, float]:
    meter = CocoMeter(metric, CLASSES)
    for target, found in pictures:
        meter.update(output([found], float(target["image_id"])), [target])
    return meter.compute()


def judged(pictures) -> tuple[COCO, list[dict]]:
    """The pictures and what was found in them, as COCO's own files have them."""
    known, told = [], []
    for target, found in pictures:
        number = int(target["image_id"])
        for box, label, crowd, area in zip(
            *(target[name].tolist() for name in ("boxes", "labels", "crowd", "area")), strict=True
        ):
            x, y, right, low = (2 * side for side in box)
            one = {"image_id": number, "category_id": label, "bbox": [x, y, right - x, low - y]}
            known.append(one | {"id": len(known) + 1, "iscrowd": int(crowd), "area": area})
        for box, label, score in zip(
            *(found[name].tolist() for name in ("boxes", "labels", "scores")), strict=True
        ):
            x, y, right, low = box
            told.append(
                {"image_id": number, "category_id": label, "bbox": [x, y, right - x, low - y], "score": score}
            )
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": int(target["image_id"]), "height": 240, "width": 320} for target, _ in pictures],
            "annotations": known,
            "categories": [{"id": n} for n in range(CLASSES)],
        }
        truth.createIndex()
    return truth, told


def oracle(pictures) -> dict[str, float]:
    """The same by pycocotools."""
    truth, told = judged(pictures)
    with contextlib.redirect_stdout(io.StringIO()):
        judge = COCOeval(truth, truth.loadRes(told), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    names = "box_ap", "box_ap50", "box_ap75", "box_ap_s", "box_ap_m", "box_ap_l"
    return {name: value for name, value in zip(names, judge.stats[:6], strict=True) if value >= 0}


def test_ap_is_pycocotools_in_original_pixels_with_crowds_and_empty_pictures():
    pictures = scene(25)
    found = metered(pictures)
    wanted = oracle(pictures)
    assert {name: value for name, value in found.items() if name != "loss"} == pytest.approx(wanted, abs=1e-5)
    assert 0.1 < found["box_ap"] < 0.9
    assert found["loss"] == pytest.approx(np.mean(range(25)))


def test_equal_scores_rank_by_picture_whatever_order_they_came_in():
    pictures = scene(25)
    assert metered(pictures[::-1]) == pytest.approx(metered(pictures), abs=0)


def test_sizes_that_no_object_has_are_left_out():
    (target, found), *_ = [pair for pair in scene(6) if len(pair[0]["labels"]) == 4]
    assert "box_ap_l" not in metered([(target, found)])
    assert set(metered(scene(1))) == {"loss"}


def test_masks_come_back_to_the_pictures_pixels():
    masks = torch.rand(3, 10, 15) > 0.5
    larger = F.interpolate(masks[None].float(), (37, 41), mode="nearest-exact")[0].bool()
    assert torch.equal(masks_at(larger, (10, 15)), masks)
    assert masks_at(masks, (20, 30)).shape == (3, 20, 30)
    assert torch.equal(masks_at(masks, (10, 15)), masks)


def with_masks(pair):
    """The pictures' boxes as masks, and the detector's too."""
    target, found = pair

    def filled(boxes: torch.Tensor, height: int, width: int) -> torch.Tensor:
        ys, xs = torch.arange(height)[None, :, None], torch.arange(width)[None, None]
        x, y, right, low = (side[:, None, None] for side in boxes.unbind(1))
        return (xs >= x) & (xs < right) & (ys >= y) & (ys < low)

    return target | {"masks": filled(target["boxes"], 120, 160)}, found | {
        "masks": filled(found["boxes"], 240, 320)
    }


def test_masks_that_are_boxes_have_their_ap():
    pictures = [with_masks(pair) for pair in scene(12)]
    for _, found in pictures:
        found["boxes"] = found["boxes"].round().clamp(min=0)
        found["boxes"][:, 0::2] = found["boxes"][:, 0::2].clamp(max=320)
        found["boxes"][:, 1::2] = found["boxes"][:, 1::2].clamp(max=240)
    pictures = [with_masks(pair) for pair in pictures]
    found = metered(pictures, Metric("mask_ap", "%", "maximise"))
    assert found["mask_ap"] == pytest.approx(found["box_ap"], abs=1e-6)
    assert found["box_ap"] == pytest.approx(metered(pictures)["box_ap"], abs=1e-6)


SCRIPT = """
import json, sys
import torch.distributed as dist
sys.path.insert(0, sys.argv[1])
from test_train_coco_meter import Metric, metered_share
dist.init_process_group("gloo")
found = metered_share(dist.get_rank())
if dist.get_rank() == 1:
    print(json.dumps(found))
dist.destroy_process_group()
"""


def metered_share(rank: int) -> dict[str, float]:
    """What a process of two finds that has some pictures alone; the first has far more of them."""
    pictures = [with_masks(pair) for pair in scene(12)]
    mine = [pair for n, pair in enumerate(pictures) if (n % 4 == 3) == bool(rank)]
    return metered(mine, Metric("mask_ap", "%", "maximise"))


@pytest.mark.slow
def test_two_processes_with_unequal_shares_find_what_one_finds(tmp_path):
    import json

    (tmp_path / "run.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(tmp_path / "run.py"), str(Path(__file__).parent)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    whole = metered([with_masks(pair) for pair in scene(12)], Metric("mask_ap", "%", "maximise"))
    assert found == pytest.approx(whole, abs=0)
