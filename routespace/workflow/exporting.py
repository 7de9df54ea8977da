"""Exporting a run or bundle: files of several formats, which tell how images go in and what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from routespace import file_names
from routespace.checked import checked
from routespace.deploy.export.base import Say
from routespace.deploy.export.formats import exporter_named
from routespace.deploy.export.write import ExportReport, Traces, export
from routespace.deploy.folder import require_export_place
from routespace.errors import BundleError
from routespace.files import json_text
from routespace.preprocess import Preprocess, load_preprocess, preprocess_to_json, save_preprocess
from routespace.workflow.artifacts import Artifact


@checked
def export_artifact(
    artifact: Artifact,
    folder: Path | str,
    formats: Sequence[str],
    *,
    image_size: tuple[int, int] | None = None,
    overwrite: bool = False,
    say: Say | None = None,
) -> list[ExportReport]:
    """Write a network as `model.<suffix>` of each format, and `preprocess.json` beside them where it is known.

    Each file also carries the content of `preprocess.json`, as metadata of that name: sizes, mean, standard
    deviation, and the class names in the order of the outputs.

    Args:
        artifact: a run or bundle.
        folder: where to.
        formats: names in EXPORTERS.
        image_size: (H, W) in pixels; None for the spec's own.
        overwrite: replace files that are there.
        say: is told what is being done.

    Raises:
        SpecError: an unknown format, or an image size that the network does not take.
        MissingDependencyError: a package that a format needs is not installed.
        BundleError: a file is there already or cannot be written, or others in the folder take pictures in
            another way.
        RoutespaceError: an exported network does not give the network's numbers.
    """
    told: dict[str, str] = {}
    suffixes = tuple(exporter_named(name).suffix for name in formats)
    require_export_place(folder, suffixes, overwrite=overwrite)
    preprocess = artifact.preprocess
    if preprocess is not None:
        if image_size is not None:
            preprocess = preprocess.model_copy(update={"size": image_size})
        data = preprocess_to_json(preprocess, artifact.classes or ())
        told = {"preprocess": json_text(data, indent=None)}
    _require_same_pictures(Path(folder), preprocess, artifact.classes, suffixes)
    files = [Path(folder) / f"model{suffix}" for suffix in suffixes]
    traces: Traces = {}  # a good part of the time, and the same for all formats
    reports = [
        export(artifact.net, file, image_size=image_size, metadata=told, say=say, traces=traces) for file in files
    ]
    if preprocess is not None:
        save_preprocess(folder, preprocess, artifact.classes or ())
    return reports


def _require_same_pictures(
    folder: Path, preprocess: Preprocess | None, classes: Sequence[str] | None, suffixes: Sequence[str]
) -> None:
    """Raise BundleError where files that stay in a folder take pictures otherwise: one file tells of them all.

    Args:
        folder: where to write.
        preprocess, classes: what its preprocess.json will say.
        suffixes: of the files that are written anew.
    """
    before = load_preprocess(folder)
    stay = sorted(file for file in folder.glob("model*") if file.suffix not in suffixes)
    stay += [net for net in (folder / file_names.NET,) if net.exists()]
    if before is None or preprocess is None or not stay or before == (preprocess, tuple(classes or ())):
        return
    raise BundleError(
        f"{stay[0]}: goes with a preprocess.json that would change ({_sides(before[0])} there, "
        f"{_sides(preprocess)} px now); choose another folder for these files"
    )


def _sides(preprocess: Preprocess) -> str:
    return "×".join(map(str, preprocess.size))
