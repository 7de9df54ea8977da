"""`routespace predict`: what is on images, by a run, a bundle or an exported file: classes, objects, pixels."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from routespace.cli.options import AsJson, Device
from routespace.cli.predict_classes import as_data, classes_csv, show_classes, summary_of_classes
from routespace.cli.printing import csv_bytes, csv_text, printable, tell_boxes
from routespace.files import json_text, require_place, write_bytes

if TYPE_CHECKING:
    from routespace.cli.predict_dense import Told
    from routespace.deploy.predict.images import InputImages
    from routespace.deploy.predict.predictor import Prediction, Predictor
    from routespace.errors import DataError
    from routespace.workflow.drawing_answers import AnswerFolder

NAME = "predict"
EXAMPLE = "routespace predict small/ photos/ --top 3"
STDIN = STDOUT = "-"
SOME_LEFT_OUT = 1  # exit code, as of `data check`: the command went well, some of the pictures did not
SHOWN = 20  # unreadable pictures that are named

Source = Annotated[
    Path,
    typer.Argument(metavar="BUNDLE|RUN|FILE", help="A trained network, or a .onnx or .pt2 file."),
]
Images = Annotated[
    list[str],
    typer.Argument(
        metavar="IMAGE|FOLDER|-", help="What to look at; - reads paths, a line each, or an image from stdin."
    ),
]
Top = Annotated[int | None, typer.Option(min=1, help="How many classes a classifier names; else 5.")]
Score = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Least score of the objects that are told; else 0.3, with --ids 0."),
]
Draw = Annotated[
    Path | None, typer.Option(help="Folder for the pictures with boxes, masks or classes drawn on them.")
]
Maps = Annotated[Path | None, typer.Option(help="Folder for a PNG of each picture whose values are the classes.")]
ToCsv = Annotated[str | None, typer.Option("--csv", help="Write a table to this file; - prints it.")]
BatchSize = Annotated[int, typer.Option("--batch", min=1, help="Images that are run at once.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes that read images; 0: this one.")]
Ids = Annotated[
    Path | None,
    typer.Option(
        metavar="ANNOTATIONS", help="COCO's JSON of these images: results have its image and category ids."
    ),
]
Picture = Annotated[Path | None, typer.Option(help="Draw which tokens of the first images were computed.")]


def run(
    source: Source,
    images: Images,
    top: Top = None,
    as_json: AsJson = False,
    to_csv: ToCsv = None,
    batch: BatchSize = 32,
    workers: Workers = 0,
    device: Device = "auto",
    picture: Picture = None,
    score: Score = None,
    draw: Draw = None,
    maps: Maps = None,
    ids: Ids = None,
) -> None:
    """Tell what is on images: classes, objects or pixels, by the network's task.

    Pictures are fed exactly as in evaluation. Objects are told in pixels of the pictures themselves; --json gives
    COCO's result format, with --ids in the data set's own numbers. Of a folder every picture at any depth is
    taken, by name. Pictures that cannot be read or fed are named and left out; the exit code is then 1, and 2 when
    none is left.
    """
    from routespace.cli.predict_dense import known_ids, told_of
    from routespace.cli.status import busy, loading
    from routespace.deploy.predict.network import require_network

    _require_forms(to_csv, ids, as_json=as_json)
    require_network(source)
    _require_files(source, picture, to_csv)
    pictures = pictures_of(images)
    with loading("loading the network"):
        from routespace.deploy.predict.predictor import LEAST_SCORE, TOP, Predictor

        usual = LEAST_SCORE if ids is None else 0.0  # AP is about all that a detector finds
        least = usual if score is None else score
        predictor = Predictor(source, device, batch, workers=workers, least_score=least)
        _check_wishes(predictor, top, score)
        known = None if ids is None else known_ids(predictor, pictures, ids)
        folder = _folder(predictor, pictures, draw, maps)
        if picture is not None:  # it brings what training needs
            from routespace.workflow.predicting import paint_predictions
    with busy("predicting") as say:
        unread: list[DataError] = []
        answers = predicted(predictor, pictures, TOP if top is None else top, say, unread)
        paths = [item.path for item in pictures.items]
        told = None if predictor.answers == "classes" else told_of(answers, folder, paths, known)
        found = list(answers)
        if picture is not None:
            paint_predictions(predictor, pictures, picture)
    if told is not None:
        _tell_dense(told, predictor.answers, to_csv, as_json=as_json, single=pictures.single)
    else:
        _tell_classes(found, to_csv, as_json=as_json, single=pictures.single)
    tell_boxes(folder.drawn_names if folder is not None else ())
    tell_boxes((one.label for one in found if picture is not None), several=True)  # of classifiers alone
    _tell_places({} if as_json else {"drawn in": draw, "maps in": maps, "tokens drawn in": picture})
    if unread:
        raise typer.Exit(SOME_LEFT_OUT)


def _require_forms(to_csv: str | None, ids: Path | None, *, as_json: bool) -> None:
    """Raise SpecError where two forms are printed, nothing has ids, or their file is not there."""
    from routespace.errors import SpecError

    if as_json and to_csv == STDOUT:
        raise SpecError("csv: --csv - and --json both print; give --csv a file, or leave one of them out")
    if ids is not None and not as_json:
        raise SpecError("ids: only objects that are told as JSON have them; give --json, or leave --ids out")
    if ids is not None and not ids.is_file():
        raise SpecError(f"ids: {ids}: no such file; give COCO's JSON of these images")


def _require_files(source: Path, picture: Path | None, to_csv: str | None) -> None:
    """Raise when the files that are asked for cannot be written, or no picture can be drawn of a network."""
    if picture is not None:
        from routespace.draw.canvas import require_format
        from routespace.workflow.subjects import require_routed

        require_routed(source)
        require_format(picture)
    for place in (picture, None if to_csv in (None, STDOUT) else Path(to_csv or "")):
        if place is not None:
            require_place(place)


def pictures_of(given: Sequence[str]) -> InputImages:
    """The images that the arguments name; raises DataError when there are none, SpecError for - beside others."""
    from routespace.deploy.predict.images import gather
    from routespace.errors import SpecError

    if STDIN in given:
        if len(given) > 1:
            raise SpecError("images: - stands for standard input; give it alone, or paths")
        return _from_stdin(sys.stdin.buffer.read())
    return gather(given[0] if len(given) == 1 else given)


def _from_stdin(content: bytes) -> InputImages:
    """One image, or those whose paths stand there, a line each or with zero bytes between them (find -print0)."""
    from routespace.deploy.predict.images import InputImage, InputImages, gather
    from routespace.errors import DataError
    from routespace.pictures import header, quiet_pillow

    try:
        with quiet_pillow(), header(io.BytesIO(content)):
            return InputImages([InputImage(STDIN, content)], single=True)
    except Exception:  # Pillow's readers raise whatever makes them stumble
        lines = content.split(b"\0") if b"\0" in content else content.splitlines()
    paths = [os.fsdecode(line) for line in lines if line.strip()]
    if not any(os.path.lexists(path) for path in paths):
        state = "is empty" if not content else "holds neither an image that Pillow can read nor paths of images"
        raise DataError(f"stdin: {state}; give an image, or paths with one a line")
    return gather(paths)


def predicted(
    predictor: Predictor, images: InputImages, top: int, say: Callable[[str], None], unread: list[DataError]
) -> Iterator[Prediction]:
    """What is on the images that can be read and fed, one by one; the others are named on stderr at the end.

    Args:
        predictor, images, top: what to ask about what.
        say: is told how far it is.
        unread: takes up what is wrong with the others.

    Raises:
        DataError: none can be read and fed.
    """
    from routespace.errors import DataError
    from routespace.train.data.folder import told_left_out

    total, found = len(images.items), 0
    for found, prediction in enumerate(predictor.stream(images, top=top, unreadable=unread.append), 1):
        yield prediction
        say(f"predicting, {found} of {total} images")
    if not found:
        raise unread[0] if total == 1 else DataError(f"none of the {total} images can be used; first {unread[0]}")
    for error in unread[:SHOWN]:
        _tell(f"warning: {error}")
    if unread:
        _tell(f"warning: {len(unread)} of {total} images are left out")
    if images.left_out:
        _tell(f"left out: {told_left_out(images.left_out)}")


def _check_wishes(predictor: Predictor, top: int | None, score: float | None) -> None:
    """Raise SpecError for what means nothing to the network's task."""
    from routespace.errors import SpecError

    if top is not None and predictor.answers != "classes":
        raise SpecError("top: only classifiers rank the classes of an image; leave it out")
    if score is not None and predictor.answers != "objects":
        raise SpecError("score: only networks that find objects have a least score of them; leave it out")


def _folder(
    predictor: Predictor, pictures: InputImages, draw: Path | None, maps: Path | None
) -> AnswerFolder | None:
    """Where answers are drawn; raises SpecError for what the network's task does not give."""
    from routespace.errors import SpecError

    if draw is not None and predictor.answers == "classes":
        raise SpecError("draw: a classifier finds nothing in a place; leave it out")
    if maps is not None and predictor.answers != "pixels":
        raise SpecError("maps: only networks that tell the class of each pixel make maps; leave it out")
    if draw is None and maps is None:
        return None
    from routespace.workflow.drawing_answers import AnswerFolder

    return AnswerFolder(pictures, drawn=draw, maps=maps, names=predictor.classes)


def _tell_classes(found: Sequence[Prediction], to_csv: str | None, *, as_json: bool, single: bool) -> None:
    """Print and write what a classifier named."""
    table_file = None if to_csv in (None, STDOUT) else Path(to_csv or "")
    if table_file is not None:
        write_bytes(table_file, csv_bytes(classes_csv(found)))
    if as_json:
        print(json_text([as_data(prediction) for prediction in found]))
    elif to_csv == STDOUT:
        print(printable(classes_csv(found)), end="")
    elif table_file is not None:
        print(printable(f"{table_file}  {summary_of_classes(found)}"))
    else:
        show_classes(found, single=single)


def _tell_places(written: Mapping[str, Path | None]) -> None:
    """Say on stderr where pictures were written."""
    for what, place in written.items():
        if place is not None:
            _tell(f"{what} {place}")


def _tell_dense(told: Sequence[Told], answers: str, to_csv: str | None, *, as_json: bool, single: bool) -> None:
    """Print and write objects or pixels."""
    from routespace.cli.predict_dense import columns_of, show_told, summary_of

    text = csv_text([columns_of(answers), *(row for one in told for row in one.rows)])
    if to_csv not in (None, STDOUT):
        write_bytes(Path(to_csv or ""), csv_bytes(text))
    if as_json:
        print(json_text([result for one in told for result in one.results]))
    elif to_csv == STDOUT:
        print(printable(text), end="")
    elif to_csv is not None:
        print(printable(f"{to_csv}  {summary_of(told, answers)}"))
    else:
        show_told(told, answers, single=single)


def _tell(line: str) -> None:
    typer.echo(printable(line), err=True)
