"""`routespace data check`: every picture of a folder or table is read before it is trained on. No torch.

`routespace data scenes` writes rendered scenes to files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from routespace.cli.options import Changes, out

if TYPE_CHECKING:
    from routespace.train.data.check import DataReport
    from routespace.train.recipe.data import FilesSpec
    from routespace.train.recipe.targets import Target

NAME = "data"
EXAMPLE = "routespace data check photos"
SCENES_EXAMPLE = "routespace data scenes --task detect -o scenes --set data.train_size=500"
SHOWN = 20  # findings of each kind in a terminal; --json gives all
UNREADABLE = 1  # exit code, as of `verify`: the command went well, the data is not

app = typer.Typer(help="Look at your own pictures before training on them, or make some.")


@app.callback()
def group() -> None:
    """Look at your own pictures before training on them, or make some."""


@app.command("check", epilog=f"Example:  {EXAMPLE}")
def check(
    root: Annotated[
        Path | None,
        typer.Argument(
            help="A folder with train/<class>/ or <class>/, a table (.csv), or annotations: of COCO's format "
            "(.json, or a folder), or images/ and annotations/ with label maps."
        ),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="Whose data it is, by name or file: the kind, and its fields.")
    ] = None,
    changes: Changes = None,
    task: Annotated[
        str | None, typer.Option(help="What annotations are for: detect (else), instance or semantic.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; else one for each processor.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with every finding.")] = False,
) -> None:
    """Read every picture and annotation, and name those that training would trip over.

    Those are unreadable, truncated, huge, duplicate and misnamed pictures, and annotations that do not fit. Exit
    code 0 when every picture can be read and its class trained, and 1 when not: training would refuse it, or
    leave it out where data.skip_bad allows for it.
    """
    import os

    from routespace.files import json_text
    from routespace.train.recipe.annotated import AnnotatedSpec

    spec, target = _data_of(root, recipe, changes or [], task)
    with _bar(shown=not as_json) as progress:
        how: Any = {"workers": workers or os.cpu_count() or 1, "progress": progress}
        if isinstance(spec, AnnotatedSpec):
            from routespace.train.data.annotated.check import check_annotated
            from routespace.train.data.annotated.kinds import ANNOTATIONS

            report = check_annotated(ANNOTATIONS[type(spec)](spec, target), spec, **how)
        else:
            from routespace.train.data.check import check_pictures

            report = check_pictures(spec, **how)
    if as_json:
        found = [finding._asdict() for finding in report.findings]
        data = {"ok": report.ok, "counts": report.counts, "left_out": report.left_out, "findings": found}
        print(json_text(data | ({} if report.images is None else {"images": report.images})))
    else:
        show(report)
    if not report.ok:
        raise typer.Exit(UNREADABLE)


def _data_of(root: Path | None, name: str | None, changes: list[str], task: str | None) -> tuple[Any, Target]:
    """What to check: the data section, and the target that it is asked for."""
    from routespace.errors import DataError, SpecError
    from routespace.train.recipe.annotated import AnnotatedSpec
    from routespace.train.recipe.data import CsvSpec, FolderSpec
    from routespace.train.recipe.data_kinds import spec_at

    if name is not None:
        from routespace.cli.train import with_changes

        recipe = with_changes(name, changes, data=root)
        spec: Any = recipe.data
        target = recipe.task.target
    elif root is None:
        raise SpecError("data: give a folder or file, or --recipe")
    else:
        spec = _changed(spec_at(root), changes)
        target = spec.targets[0]
    if task is not None:
        target = _target_of(task)
    if target not in spec.targets:
        raise DataError(f"data.kind: {spec.model_dump()['kind']!r} does not give what task {task!r} asks for")
    if not isinstance(spec, AnnotatedSpec | CsvSpec | FolderSpec) or spec.root is None:
        raise DataError(f"data.kind: {spec.model_dump()['kind']!r} has no files to check; give a folder or file")
    return spec, target


def _changed(spec: FilesSpec, changes: list[str]) -> FilesSpec:
    """What a folder looks like, with what --set says of it; raises SpecError for fields of other sections."""
    from routespace.cli.arguments import said_once
    from routespace.errors import DataError, SpecError
    from routespace.train.recipe.data import FilesSpec
    from routespace.train.recipe.data_kinds import SPECS, absolute, of_kind, settled
    from routespace.train.recipe.recipe import parse_assignments

    given = parse_assignments(changes)
    said_once("data.root", "the folder or file", spec.root, given, read=absolute)
    other = next((field for field in given if not field.startswith("data.")), None)
    if other is not None:
        raise SpecError(f"{other}: is no field of the data; give --recipe, which it changes, or leave it out")
    fields = {field.removeprefix("data."): value for field, value in given.items()}
    found = spec.model_dump(exclude_unset=True)
    found = of_kind(found, fields.get("kind", spec.model_dump()["kind"])) | fields
    try:
        kind = SPECS[settled(found)["kind"]]
    except ValueError as error:
        raise SpecError(f"data.{error}") from error
    changed = kind.parse(found, name="data")
    if not isinstance(changed, FilesSpec):
        raise DataError(f"data.kind: {found['kind']!r} has no files to check; give another, or leave it out")
    return changed


def _target_of(task: str) -> Target:
    """What a task's images come with; raises SpecError for one without boxes, masks or pixel classes."""
    from routespace.cli.arguments import one_of
    from routespace.train.tasks.kinds import TASKS

    targets = {name: spec.target for name, spec in TASKS.items() if spec.target != "label"}
    return targets[one_of("task", task, tuple(targets))]


@app.command("scenes", epilog=f"Example:  {SCENES_EXAMPLE}")
def scenes(
    task: Annotated[str, typer.Option(help="What is told of each scene: detect, instance or semantic.")],
    folder: Annotated[Path, out("The folder to write, a new or an empty one.")],
    recipe: Annotated[
        str, typer.Option("--recipe", help="Of the scenes, by name or file: its data, image size and seed.")
    ] = "digits_tiny",
    changes: Changes = None,
) -> None:
    """Write rendered scenes to files, as COCO's JSON or as label maps.

    detect gives boxes, instance boxes and masks, semantic a class for each pixel. Training scenes are those of the
    first epoch. Train on them with --data FOLDER.
    """
    from routespace.cli.status import loading
    from routespace.cli.train import with_changes
    from routespace.train.named_files import require_images

    target = _target_of(task)
    chosen = with_changes(recipe, changes or [], data=None)
    require_images(chosen)
    with loading():
        from routespace.train.data.annotated.written import write_scenes
    with _bar(shown=True, what="writing") as progress:
        found = write_scenes(chosen, target, folder, tell=progress)
    print(f"{folder}: {', '.join(f'{part} {count}' for part, count in found.items())} scenes")


def show(report: DataReport) -> None:
    """Print what was found, the worst first."""
    from routespace.train.data.check import PROBLEMS, by_problem

    print(report.text)
    for problem, findings in by_problem(report.findings).items():
        print(f"\n{PROBLEMS[problem]} ({len(findings)}):")
        for finding in findings[:SHOWN]:
            print(f"  {finding.path}  ({finding.detail})")
        if len(findings) > SHOWN:
            print(f"  … and {len(findings) - SHOWN} more; --json lists all")
    if not report.findings:
        what = "annotations fit" if report.images is not None else "none is huge, there twice, or misnamed"
        print(f"every picture can be read; {what}")


@contextmanager
def _bar(*, shown: bool, what: str = "reading") -> Iterator[Callable[[int, int], None] | None]:
    """A bar in a terminal, that says what is done; nothing elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from routespace.cli.render import console

    screen = console()
    if not shown or not screen.is_terminal:
        yield None
        return
    columns = (TextColumn(what), BarColumn(bar_width=20), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=screen, transient=True) as bars:
        task = bars.add_task("", total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
