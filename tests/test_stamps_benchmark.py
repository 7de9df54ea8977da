"""benchmarks/data_stamps.py on packages made here, and what benchmarks/map_stamps.py takes for the true tokens."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPT = str(BENCHMARKS / "data_stamps.py")


@pytest.fixture(autouse=True)
def _found(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def content(values: np.ndarray, form: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, form)
    return stream.getvalue()


def stamp(height: int, width: int, *, drawn: bool = False) -> bytes:
    """Noise, or one colour, with ten transparent pixels all around."""
    values = np.zeros((height + 20, width + 20, 4), np.uint8)
    inside = values[10:-10, 10:-10]
    inside[:] = 200 if drawn else np.random.default_rng(0).integers(0, 256, inside.shape)
    inside[..., 3] = 255
    return content(values, "PNG")


def package(folder: Path, name: str, files: dict[str, bytes]) -> None:
    root = folder / name
    entries = {
        "DEBIAN/control": f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b.c>\n".encode()
    }
    entries["DEBIAN/control"] += b"Description: made for a test\n"
    for path, value in {**entries, f"usr/share/doc/{name}/copyright": b"free", **files}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(value)
        (root / path).chmod(0o644)
    (root / "DEBIAN").chmod(0o755)
    subprocess.run(["dpkg-deb", "--build", str(root), str(folder / f"{name}_1_all.deb")], check=True)


@pytest.fixture
def debs(tmp_path):
    folder = tmp_path / "debs"
    stamps = "usr/share/tuxpaint/stamps"
    kept = {f"{stamps}/animals/birds/{name}.png": stamp(90, 80) for name in ("owl", "far/owl", "wren")}
    left_out = {
        f"{stamps}/animals/birds/owl_mirror.png": stamp(90, 80),
        f"{stamps}/animals/birds/cartoon/duck.png": stamp(90, 80),
        f"{stamps}/animals/birds/small.png": stamp(30, 30),
        f"{stamps}/animals/birds/long.png": stamp(40, 200),
        f"{stamps}/animals/birds/drawn.png": stamp(90, 80, drawn=True),
        f"{stamps}/symbols/a.png": stamp(90, 80),
    }
    package(folder, "tuxpaint-stamps-default", kept | left_out)
    photo, icon = (content(np.full((side // 2, side, 3), 90, np.uint8), "WEBP") for side in (700, 300))
    rcc = "usr/share/gcompris-qt/rcc"
    files = {f"{rcc}/erase.rcc": b"qres" + photo + b"\x00\x01" + icon + photo, f"{rcc}/chess.rcc": photo}
    package(folder, "gcompris-qt-data", files)
    return folder


def run(*arguments):
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True)


needs_dpkg = pytest.mark.skipif(not Path("/usr/bin/dpkg-deb").exists(), reason="packages are made by dpkg-deb")


@needs_dpkg
def test_stamps_and_photographs_are_taken_out_of_the_packages(debs, tmp_path):
    out = tmp_path / "out"
    done = run("--debs", debs, "--by", "category", out)
    assert done.returncode == 0, done.stderr
    assert "licence GPL-2" in done.stdout
    found = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    birds = [f"cutouts/animals-birds/{name}.png" for name in ("far-owl", "owl", "wren")]
    photos = ["photographs/erase_000.jpg", "photographs/erase_002.jpg"]
    assert found == [*birds, "licences/gcompris-qt-data", "licences/tuxpaint-stamps-default", *photos]
    with Image.open(out / birds[0]) as picture:
        assert (picture.mode, picture.size) == ("RGBA", (80, 90))
    with Image.open(out / photos[0]) as picture:
        assert picture.size == (480, 240)


@needs_dpkg
def test_a_class_is_a_stamp_unless_told_otherwise(debs, tmp_path):
    assert run("--debs", debs, "--classes", "2", tmp_path / "out").returncode == 0
    assert len(list((tmp_path / "out" / "cutouts").glob("animals-birds-*/*.png"))) == 2


@needs_dpkg
def test_bad_input_is_one_line_and_leaves_nothing(debs, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "tuxpaint-stamps-default_1.deb").write_bytes(b"nothing")
    (tmp_path / "bad" / "gcompris-qt-data_1.deb").write_bytes(b"nothing")
    out = tmp_path / "out"
    for arguments, said in (
        (("--debs", tmp_path / "full", out), "holds no tuxpaint-stamps-default_*.deb"),
        (("--debs", tmp_path / "bad", out), "is no Debian package that can be read"),
        (("--debs", debs, "--classes", "9", out), "9 is more than there are; give 3 or fewer"),
        (("--debs", debs, tmp_path / "full"), "is there and not empty"),
    ):
        done = run(*arguments)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
        assert said in done.stderr
        assert not out.exists()


def test_true_tokens_are_those_that_reach_into_the_box_and_two_pixels_around_it():
    from map_stamps import touched

    boxes = torch.tensor([[18.0, 7.0, 30.0, 12.0], [0.0, 0.0, 40.0, 24.0]])
    for rate in (4, 8):
        found = touched(boxes, (24, 40), rate).view(2, -(-24 // rate), -(-40 // rate))
        for number, (left, top, right, bottom) in enumerate(boxes.tolist()):
            near = torch.zeros(24, 40, dtype=torch.bool)
            near[max(0, int(top) - 2) : int(bottom) + 2, max(0, int(left) - 2) : int(right) + 2] = True
            wanted = near.view(24 // rate, rate, 40 // rate, rate).any(3).any(1)
            assert torch.equal(found[number], wanted)
