"""What `routespace predict` prints and writes of networks that find objects or tell the class of each pixel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from routespace.cli.printing import printable

if TYPE_CHECKING:
    from routespace.deploy.predict.answers import Prediction
    from routespace.deploy.predict.coco_ids import CocoIds
    from routespace.deploy.predict.images import InputImages
    from routespace.deploy.predict.predictor import Predictor
    from routespace.workflow.drawing_answers import AnswerFolder

OBJECT_COLUMNS = "path", "label", "score", "x", "y", "width", "height"
PIXEL_COLUMNS = "path", "label", "share"
NAMED = 6  # classes of an image that a row of several images names


class Told(NamedTuple):
    """What is kept of an image's answer: masks and maps of many pictures fill a memory.

    Attributes:
        path: of the image.
        results: JSON data, in COCO's result format where there are objects.
        rows: a table's, of the columns above.
    """

    path: str | None
    results: list[dict[str, Any]]
    rows: list[tuple[str, ...]]


def told_of(
    answers: Iterable[Prediction],
    folder: AnswerFolder | None,
    paths: Sequence[str | None],
    ids: CocoIds | None = None,
) -> list[Told]:
    """Draw what is wanted of each answer, and keep what is told of it.

    Args:
        answers: in the order of what was asked; there is none of an image that could not be read.
        folder: where to draw.
        paths: of all that was asked: an image's number is its place among them, from 1.
        ids: of images and categories, to number by instead.
    """
    from routespace.deploy.predict.answers import FoundObjects, PixelClasses, coco_results, pixel_results

    told, asked = [], enumerate(paths, 1)
    for answer in answers:
        number = next(number for number, path in asked if path == answer.path)
        files = folder.add(answer) if folder is not None else {}
        path = answer.path or ""
        if isinstance(answer, FoundObjects):
            known = None if ids is None else ids.image(answer.path)
            categories = None if ids is None else ids.categories
            results = coco_results(number if known is None else known, answer, categories)
            rows = [
                (path, name, f"{score:.6f}", *(f"{side:g}" for side in result["bbox"]))
                for name, score, result in zip(answer.labels, answer.scores, results, strict=True)
            ]
        else:
            assert isinstance(answer, PixelClasses)
            map_file = files.get("map")
            results = [pixel_results(number, answer, None if map_file is None else str(map_file))]
            rows = [(path, name, f"{share:.6f}") for name, share in zip(answer.labels, answer.scores, strict=True)]
        told.append(Told(answer.path, results, rows))
    return told


def known_ids(predictor: Predictor, pictures: InputImages, ids: Path) -> CocoIds:
    """The ids of a file; raises DataError or SpecError for what they cannot be given to."""
    from routespace.deploy.predict.coco_ids import read_coco_ids
    from routespace.errors import SpecError

    if predictor.answers != "objects":
        raise SpecError("ids: only objects have them; leave --ids out")
    known = read_coco_ids(ids)
    if not predictor.classes:
        raise SpecError("ids: the network has no names of its classes, by which categories are found")
    known.require(predictor.classes, [item.path for item in pictures.items])
    return known


def columns_of(answers: str) -> tuple[str, ...]:
    """Of the table of `objects` or `pixels`."""
    return OBJECT_COLUMNS if answers == "objects" else PIXEL_COLUMNS


def show_told(told: Sequence[Told], answers: str, *, single: bool) -> None:
    """Print what was found: an image's objects or classes below each other, those of several in a row each."""
    from routespace.cli.render import percent, table

    if single and not told[0].rows:
        print("nothing is found")
        return
    if single:
        rows = [(printable(row[1]), percent(float(row[2])), *row[3:]) for row in told[0].rows]
        table(columns_of(answers)[1:], rows)
        return
    what = "objects" if answers == "objects" else "mostly"
    table(
        ("image", what),
        [(printable(one.path or ""), printable(_line(one, answers))) for one in told],
        left=(what,),
    )
    print(printable(summary_of(told, answers)))


def _line(one: Told, answers: str) -> str:
    if answers == "pixels":
        named = [f"{row[1]} {100 * float(row[2]):.0f} %" for row in one.rows[:NAMED]]
    else:
        named = [f"{name} {count}" for name, count in Counter(row[1] for row in one.rows).most_common(NAMED)]
    return ", ".join(named) or "nothing"


def summary_of(told: Sequence[Told], answers: str) -> str:
    """How much there was: `3 images, 14 objects: ant 9, cat 5`, or how many images have a class at all."""
    images = f"{len(told)} {'image' if len(told) == 1 else 'images'}"
    counts = Counter(row[1] for one in told for row in one.rows).most_common(NAMED)
    named = ", ".join(f"{name} {count}" for name, count in counts)
    if answers == "pixels":
        return f"{images}, with {named}"
    total = sum(len(one.rows) for one in told)
    return f"{images}, {total} {'object' if total == 1 else 'objects'}" + (f": {named}" if named else "")
