"""A trained network as something that gives arrays, with what it says about its images: a folder's or a file's.

Shape legend: N images · C channels · H, W pixels · K classes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from routespace.deploy.export.base import LoadedNet
from routespace.deploy.export.formats import EXPORTERS, exporter_of
from routespace.deploy.export.load import load_exported
from routespace.deploy.export.packages import require
from routespace.deploy.export.region_files import is_region_file, require_first
from routespace.deploy.folder import is_bundle, net_folder
from routespace.errors import BundleError, RoutespaceError, SpecError, reason
from routespace.grid.families.base import Family
from routespace.preprocess import Preprocess, load_preprocess, preprocess_from_json

if TYPE_CHECKING:
    import torch

    from routespace.nn.heads.base import Head
    from routespace.nn.task_net import TaskNet

PIXELS = ("pixel_logits",)  # the output of networks that tell the class of each pixel
DETECTORS = ("detect", "instance")  # kinds of heads that find objects
Arrays = tuple[NDArray[np.float32], ...]
Answers = Literal["classes", "pixels", "objects"]
Size = tuple[int, int]
Decode = Callable[[Arrays, Sequence[Size], Sequence[Size]], list[dict[str, NDArray[Any]]]]
HowFed = tuple[Preprocess, tuple[str, ...]]  # how images go in, and the names of the outputs


@dataclass(frozen=True)
class OpenNetwork:
    """A trained network, ready to run.

    Attributes:
        run: (N, C, H, W) as preprocessing gives them → its tensors, (N, …) float32.
        answers: what they are: `classes`, logits (N, K); `pixels`, logits (N, K, h, w); `objects`, which `decode`
            makes of them.
        told: what run, bundle or file says about its images and classes; None where it says nothing.
        batch: images that it takes at once; None for any number.
        net: the network itself; None for an exported file.
        misfit: (H, W) in which an image is fed → why that cannot be taken, or None; None where any size can be.
        decode: tensors, the (H, W) in which images were fed, and those of the pictures themselves → for each image
            boxes (n, 4), labels, scores and, of some networks, masks (n, H, W), in pixels of the picture.
    """

    run: Callable[[NDArray[np.float32]], Arrays]
    answers: Answers
    told: HowFed | None
    batch: int | None = None
    net: TaskNet | None = None
    misfit: Callable[[Size], str | None] | None = None
    decode: Decode | None = None


def require_network(path: Path | str, *, fed: bool = False) -> None:
    """Raise unless a path can be a run, a bundle or an exported file. No torch: it is asked first.

    Args:
        path: where it lies.
        fed: how images go in is known from elsewhere; a folder need not tell.

    Raises:
        BundleError: it leads nowhere, to a folder without a network, or one that does not tell how images go in.
        SpecError: a file of no known format, or `preprocess.json` cannot be read.
        MissingDependencyError: the format needs a package that is not installed.
    """
    path = Path(path)
    if not path.exists():
        raise BundleError(f"{path}: does not exist; give a run, a bundle, or an exported file ({_endings()})")
    if not path.is_dir():
        exporter = exporter_of(path)
        require(exporter.runs_with, f"running {exporter.suffix} files")
        return
    named = [file for file in sorted(path.iterdir()) if file.suffix in _endings().split(", ")]
    files = [file.name for file in named if not is_region_file(file)]
    if files and not is_bundle(path):
        raise BundleError(f"{path}: is a folder of exported files; give one of them, such as {path / files[0]}")
    net_folder(path)
    if load_preprocess(path) is None and not fed:
        raise untold(path)


def untold(path: Path) -> BundleError:
    """The error of a network that does not tell how images go in."""
    how = f"save_preprocess({str(path)!r}, …)" if path.is_dir() else "`routespace export RUN|BUNDLE`"
    given = "Predictor(…, preprocess=…, classes=…)"
    return BundleError(f"{path}: does not tell how images go in; write that with {how}, or give {given}")


def open_network(
    path: Path | str, *, device: str | None = None, families: Iterable[Family] = (), fed: bool = False
) -> OpenNetwork:
    """The network of a run, a bundle or an exported file.

    Args:
        path: where it lies.
        device: where to run: `auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:1`; None for `auto`.
        families: block families of your own that it may be made of.
        fed: how images go in is known from elsewhere.

    Raises:
        BundleError: no finished run, no bundle, or a damaged file.
        SpecError: a file of no known format, no such device, or a network without a task.
        MissingDependencyError: the format needs a package that is not installed.
    """
    path = Path(path)
    require_network(path, fed=fed)
    found = _of_folder(path, device or "auto", families) if path.is_dir() else _of_file(path, device or "auto")
    if found.told is None and not fed:
        raise untold(path)
    return found


def _of_folder(folder: Path, device: str, families: Iterable[Family]) -> OpenNetwork:
    import torch

    from routespace.deploy.bundle import load_bundle
    from routespace.nn.replayed import Replayed
    from routespace.nn.running import as_input, pick_device
    from routespace.nn.weights import load_net

    place = pick_device(device)
    if is_bundle(folder):
        net = load_bundle(folder, families=families).net
    else:
        net = load_net(net_folder(folder), families=families)
    net = net.eval().to(place).decide(execution="auto")
    decode = _decoder(net.head, place)
    answers = "objects" if decode is not None else _answers(folder, net.head.names)
    replayed, turn = Replayed(net), Lock() if place.type == "cuda" else nullcontext()

    def run(images: NDArray[np.float32]) -> Arrays:
        with turn, torch.inference_mode():  # what a graph gives is overwritten by whoever calls next
            found = net.tensors(replayed(as_input(net, torch.from_numpy(images))))
            return tuple(np.asarray(part.float().cpu().numpy()) for part in found)

    return OpenNetwork(run, answers, load_preprocess(folder), net=net, decode=decode)


def _of_file(path: Path, device: str) -> OpenNetwork:
    loaded = load_exported(path, device=device)
    require_first(path, loaded.metadata)
    decode = _file_decoder(path, loaded)
    answers = "objects" if decode is not None else _answers(path, loaded.names)

    def run(images: NDArray[np.float32]) -> Arrays:
        try:
            found = loaded.numbers(images)
        except Exception as error:  # each runtime has exceptions of its own
            raise RoutespaceError(f"{path}: cannot take images {images.shape} ({reason(error):.200})") from error
        return tuple(part.astype(np.float32) for part in found)

    told, misfit = _told(path, loaded.metadata), None if answers == "classes" else _misfit(path, loaded.metadata)
    return OpenNetwork(run, answers, told, batch=loaded.batch, misfit=misfit, decode=decode)


def _misfit(path: Path, metadata: Mapping[str, str]) -> Callable[[Size], str | None]:
    """What says why a file cannot take images that are fed at a size: pictures of dense tasks keep their shape."""
    try:
        least, only = int(metadata.get("least_side", "0")), json.loads(metadata.get("image_size", "null"))
    except ValueError as error:
        raise BundleError(f"{path}: its metadata cannot be read ({error}); export it again") from error
    fixed = None if only is None or "side_step" in metadata else tuple(only)

    def misfit(fed: Size) -> str | None:
        if min(fed) >= least and fixed in (None, fed):
            return None
        takes = f"sides of {least} px or more" if fixed is None else f"{fixed[0]} × {fixed[1]} px alone"
        larger = " or train with a larger grid.image_size or data.eval_size" if fixed is None else ""
        return (
            f"is fed at {fed[0]} × {fed[1]} px (height × width), and {path} takes {takes}; give the run or "
            f"bundle,{larger or ' whose network takes any size'}"
        )

    return misfit


def _decoder(head: Head, place: str | torch.device = "cpu") -> Decode | None:
    """What makes objects of a detector's tensors, on a device; None of other heads."""
    if head.kind not in DETECTORS:
        return None
    import torch

    from routespace.nn.heads.detector import Detector

    assert isinstance(head, Detector)

    def decode(raw: Arrays, fed: Sequence[Size], shown: Sequence[Size]) -> list[dict[str, NDArray[Any]]]:
        found = head.detections_of([torch.from_numpy(part).to(place) for part in raw], list(fed), list(shown))
        return [{name: part.detach().cpu().numpy() for name, part in one.items()} for one in found]

    return decode


def _file_decoder(path: Path, loaded: LoadedNet) -> Decode | None:
    """What makes objects of an exported detector's tensors, which needs torch; None of other files."""
    try:
        head, rates = (json.loads(loaded.metadata.get(key, "{}")) for key in ("head", "rates"))
    except ValueError as error:
        raise BundleError(f"{path}: its metadata cannot be read ({error}); export it again") from error
    if not isinstance(head, dict) or head.get("kind") not in DETECTORS:
        return None
    from routespace.nn.heads.kinds import decoder_of

    try:
        return _decoder(decoder_of(rates, head, loaded.region_runs()))
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error


def _told(path: Path, metadata: Mapping[str, str]) -> HowFed | None:
    """What a file says in its metadata; where its format has no place for it, what lies beside it."""
    if "preprocess" not in metadata:
        return load_preprocess(path.parent)
    try:
        return preprocess_from_json(json.loads(metadata["preprocess"]))
    except ValueError as error:  # SpecError is one
        raise BundleError(f"{path}: its metadata cannot be read ({error}); export it again") from error


def _answers(path: Path, names: tuple[str, ...]) -> Answers:
    """What a network without boxes tells; raises SpecError where its outputs are several, or maps."""
    if names == PIXELS:
        return "pixels"
    if len(names) > 1 or any(name.startswith("features") for name in names):
        raise SpecError(f"{path}: gives {', '.join(names)}, no classes; give a classifier")
    return "classes"


def _endings() -> str:
    return ", ".join(exporter.suffix for exporter in EXPORTERS.values())
