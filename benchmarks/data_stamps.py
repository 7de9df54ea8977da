"""Cut-outs and photographs out of two Debian packages, as folders for scenes (data.kind: scenes).

    python benchmarks/data_stamps.py [--debs DIR] [--by stamp|category] [--classes N] OUT

`tuxpaint-stamps-default` holds photographs of animals, fruit, tools and so on with transparency around them,
`gcompris-qt-data` photographs of monuments and landscapes. Both are fetched with `apt-get download`, which needs
no root; with --debs they are taken from a folder and nothing is fetched. Nothing is installed.

Written: OUT/cutouts/<class>/*.png, OUT/photographs/*.jpg and OUT/licences/<package>. A class is a stamp, or with
`--by category` a folder of stamps, such as animals/birds. Pictures stay under their packages' licences: they are
for measuring, and no part of routespace. Any other such folders do as well.
"""

from __future__ import annotations

import argparse
import io
import random
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from routespace.errors import DataError, RoutespaceError, reason
from routespace.files import replaced_folder, write_bytes


@dataclass(frozen=True)
class Package:
    """A Debian package: its name, its size as of 2023 and its licence as its copyright file has it."""

    name: str
    megabytes: int
    licence: str


STAMPS = Package("tuxpaint-stamps-default", 161, "GPL-2")
PHOTOS = Package("gcompris-qt-data", 44, "GPL-3+, some pictures under others, which its copyright file lists")
STAMP_FOLDER, RCC_FOLDER = "/usr/share/tuxpaint/stamps/", "/usr/share/gcompris-qt/rcc/"
CATEGORIES = (  # those that hold photographs
    *("animals/mammals", "animals/birds", "food/fruit", "plants/flowers", "hobbies/music", "animals/fish"),
    *("food/vegetables", "household/tools", "town/roadsigns", "animals/insects"),
)
RESOURCES = ("explore_monuments", "erase")  # .rcc files with photographs
OPAQUE, LEAST_OPAQUE_PX = 200, 4000  # opacity from which a pixel counts, and how many there must be
LEAST_COLOURS, COLOUR_STEP = 500, 8  # different colours in steps of 8: a drawing has fewer
MOST_ASPECT = 2.2  # longer side by shorter
CUTOUT_PX, PHOTO_PX, LEAST_PHOTO_PX = 160, 480, 600  # of a cut-out's longer side; of photographs' widths
LEAST_IN_CATEGORY = 3  # cut-outs: fewer cannot be dealt out to train, val and test
SHUFFLE_SEED = 1
CLASSES = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a folder, which must not exist or be empty")
    parser.add_argument("--debs", type=Path, help="a folder with both packages (*.deb); nothing is fetched then")
    parser.add_argument("--by", choices=("stamp", "category"), default="stamp", help="what a class is")
    parser.add_argument("--classes", type=int, help=f"how many; {CLASSES} stamps, or all categories, without it")
    arguments = parser.parse_args()
    try:
        unpack(arguments.out, arguments.debs, by=arguments.by, classes=arguments.classes)
    except RoutespaceError as error:
        print(f"error: {reason(error)}", file=sys.stderr)
        sys.exit(2)


def unpack(out: Path, debs: Path | None, *, by: str, classes: int | None) -> None:
    """Write the folders.

    Raises:
        DataError: a package is missing, cannot be fetched or holds other things than expected; too few classes.
        BundleError: `out` cannot be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: is there and not empty; give a new folder")
    if classes is not None and classes < 2:
        raise DataError(f"--classes: {classes} is too few; give 2 at least")
    if shutil.which("dpkg-deb") is None:
        raise DataError("dpkg-deb: is not here, so packages cannot be opened; run this on Debian or Ubuntu")
    with tempfile.TemporaryDirectory() as fetched, replaced_folder(out) as folder:
        files = {package: the_file(package, debs, Path(fetched)) for package in (STAMPS, PHOTOS)}
        found = cut_outs(files[STAMPS], folder, by=by)
        chosen = chosen_classes(found, by, classes)
        for name in chosen:
            for stem, picture in found[name]:
                write_bytes(folder / "cutouts" / name / f"{stem}.png", as_bytes(picture, "PNG"))
        photos = photographs(files[PHOTOS], folder)
        for stem, picture in photos:
            write_bytes(folder / "photographs" / f"{stem}.jpg", as_bytes(picture, "JPEG"))
    count = sum(len(found[name]) for name in chosen)
    print(f"{out}: {count} cut-outs of {len(chosen)} classes, {len(photos)} photographs")


def the_file(package: Package, debs: Path | None, into: Path) -> Path:
    """Where a package lies: in `debs`, or fetched."""
    print(f"{package.name}: {package.megabytes} MB, licence {package.licence}", flush=True)
    if debs is None:
        _run(["apt-get", "download", package.name], into, "give a folder with it (--debs)")
    place = into if debs is None else debs
    files = sorted(place.glob(f"{package.name}_*.deb"))
    if not files:
        raise DataError(
            f"{place}: holds no {package.name}_*.deb; put it there with `apt-get download {package.name}`, or "
            f"leave --debs out"
        )
    return files[-1]


def members(deb: Path, licences: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Path and content of the files of a package that are wanted; its copyright file is written to `licences`."""
    command = ["dpkg-deb", "--fsys-tarfile", str(deb)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as run:
        assert run.stdout is not None
        try:
            with tarfile.open(fileobj=run.stdout, mode="r|") as archive:
                for member in archive:
                    path = member.name.removeprefix(".")
                    content = archive.extractfile(member) if member.isfile() else None
                    if content is None:
                        continue
                    if path.startswith("/usr/share/doc/") and path.endswith("/copyright"):
                        write_bytes(licences / deb.name.partition("_")[0], content.read())
                    elif wanted(path):
                        yield path, content.read()
        except (tarfile.TarError, EOFError) as error:
            raise DataError(f"{deb}: is no Debian package that can be read; fetch it again") from error


def cut_outs(deb: Path, folder: Path, *, by: str) -> dict[str, list[tuple[str, Image.Image]]]:
    """Class → names and pictures of the stamps that look like photographs, in the categories' order."""

    def wanted(path: str) -> bool:
        inside = path.startswith(tuple(f"{STAMP_FOLDER}{category}/" for category in CATEGORIES))
        return inside and path.endswith(".png") and not path.endswith("_mirror.png") and "/cartoon/" not in path

    pictures = dict(members(deb, folder / "licences", wanted))
    found = defaultdict[str, list[tuple[str, Image.Image]]](list)
    order = {category: number for number, category in enumerate(CATEGORIES)}
    for path in sorted(pictures, key=lambda path: (order["/".join(path.split("/")[5:7])], PurePosixPath(path))):
        picture = cut_out(pictures[path])
        if picture is not None:
            inside = PurePosixPath(path).with_suffix("").relative_to(STAMP_FOLDER).parts
            category, stem = "-".join(inside[:2]), "-".join(inside[2:])
            found[category if by == "category" else f"{category}-{stem}"].append((stem, picture))
    if not found:
        raise DataError(f"{deb}: holds no stamps below {STAMP_FOLDER}; give tuxpaint-stamps-default")
    return dict(found)


def cut_out(content: bytes) -> Image.Image | None:
    """A stamp without the empty space around it; None where it is small, long and thin, or a drawing."""
    image = Image.open(io.BytesIO(content)).convert("RGBA")
    values = np.asarray(image)
    there = values[..., 3] > OPAQUE
    if there.sum() < LEAST_OPAQUE_PX:
        return None
    steps = (values[..., :3][there] // COLOUR_STEP).astype(np.int64) @ np.array([1, 32, 1024])
    image = image.crop(image.getbbox())
    if len(np.unique(steps)) < LEAST_COLOURS or max(image.size) / min(image.size) > MOST_ASPECT:
        return None
    image.thumbnail((CUTOUT_PX, CUTOUT_PX), Image.Resampling.LANCZOS)
    return image


def chosen_classes(found: dict[str, list[tuple[str, Image.Image]]], by: str, classes: int | None) -> list[str]:
    """The classes to write: stamps drawn at random, or the categories that hold most."""
    if by == "stamp":
        names, wanted = list(found), CLASSES if classes is None else classes
        random.Random(SHUFFLE_SEED).shuffle(names)
    else:
        names = [name for name in found if len(found[name]) >= LEAST_IN_CATEGORY]
        names.sort(key=lambda name: -len(found[name]))
        wanted = len(names) if classes is None else classes
    if len(names) < wanted:
        raise DataError(f"--classes: {wanted} is more than there are; give {len(names)} or fewer with --by {by}")
    return names[:wanted]


def photographs(deb: Path, folder: Path) -> list[tuple[str, Image.Image]]:
    """Names and pictures: WebP files lie uncompressed in Qt's resources, which say their length."""
    names = {f"{RCC_FOLDER}{name}.rcc": name for name in RESOURCES}
    found = []
    for path, content in members(deb, folder / "licences", names.__contains__):
        starts = [match.start() for match in re.finditer(rb"RIFF....WEBP", content, re.DOTALL)]
        for number, start in enumerate(starts):
            end = start + 8 + int.from_bytes(content[start + 4 : start + 8], "little")
            image = Image.open(io.BytesIO(content[start:end])).convert("RGB")
            if image.width >= LEAST_PHOTO_PX:
                size = (PHOTO_PX, round(PHOTO_PX * image.height / image.width))
                found.append((f"{names[path]}_{number:03}", image.resize(size, Image.Resampling.LANCZOS)))
    if not found:
        raise DataError(f"{deb}: holds no photographs in {', '.join(names)}; give another version of the package")
    return found


def as_bytes(picture: Image.Image, form: str) -> bytes:
    """A picture as a file's content."""
    stream = io.BytesIO()
    picture.save(stream, form, **({"quality": 92} if form == "JPEG" else {}))
    return stream.getvalue()


def _run(command: list[str], folder: Path, way: str) -> None:
    """Run a command in a folder."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except OSError as error:
        raise DataError(f"{command[0]}: cannot be run here ({error.strerror}); {way}") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise DataError(f"{' '.join(command)}: {last}; {way}")


if __name__ == "__main__":
    main()
