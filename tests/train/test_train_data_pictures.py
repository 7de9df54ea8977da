"""Pictures of every kind as a viewer shows them, and the evaluation transform against timm's."""

import io
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from timm.data.transforms_factory import create_transform

from routespace.errors import DataError, SpecError
from routespace.pictures import as_channels, picture_suffixes, read_picture
from routespace.preprocess import (
    FILTERS,
    Preprocess,
    normalisation,
    preprocess_from_json,
    preprocess_to_json,
)

NUMBERS = np.random.default_rng(0)
SMOOTH = np.linspace(0, 255, 40)
RAMP = np.stack(
    [
        SMOOTH[:, None] + 0 * SMOOTH[:30],
        255 - SMOOTH[:30] + 0 * SMOOTH[:, None],
        SMOOTH[:, None] / 2 + 0 * SMOOTH[:30],
    ],
    2,
)
COLOURS = RAMP.astype(np.uint8)  # (40, 30, 3): smooth, so that lossy formats come close
RGB = Image.fromarray(COLOURS)
GREY = RGB.convert("L")


def close(image, wanted, within=6.0):
    assert image.mode == wanted.mode
    assert image.size == wanted.size
    assert np.abs(np.asarray(image, float) - np.asarray(wanted, float)).mean() < within


# -- reading --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["a.jpg", "a.JPG", "a.jpeg", "a.jpe", "a.png", "a.PNG", "a.webp", "a.bmp", "a.tif", "a.TIFF", "a.gif",
     "a.ppm", "a.avif", "a.jp2", "a.tga"],
)  # fmt: skip
def test_every_format_is_read(tmp_path, name):
    RGB.save(tmp_path / name)
    assert "." + name.split(".")[1].lower() in picture_suffixes()
    close(read_picture(tmp_path / name), RGB, within=12)


def test_what_starts_other_programs_is_no_picture(tmp_path):
    assert not {".eps", ".ps", ".pdf", ".mpg", ".h5", ".wmf"} & picture_suffixes()
    RGB.save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")
    with pytest.raises(DataError, match=r"a.jpg: is no image that Pillow can read"):
        read_picture(tmp_path / "a.jpg")


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_scaled_not_clipped(tmp_path, suffix):
    wide = np.asarray(GREY).astype(np.uint16) * 257
    Image.fromarray(wide).save(tmp_path / f"a.{suffix}")
    assert np.array_equal(np.asarray(read_picture(tmp_path / f"a.{suffix}", 1)), np.asarray(GREY))
    assert np.array_equal(np.asarray(read_picture(tmp_path / f"a.{suffix}")), np.asarray(GREY.convert("RGB")))


def test_big_endian_and_32_bit_whole_numbers():
    wide = np.asarray(GREY).astype(np.uint32) * 257
    big = Image.frombytes("I;16B", GREY.size, wide.astype(">u2").tobytes())
    for image in (big, Image.fromarray(wide.astype(np.int32))):
        assert np.array_equal(np.asarray(as_channels(image, 1)), np.asarray(GREY))
    far = Image.fromarray(np.array([[-1000, 0], [500, 1000]], np.int32))
    assert np.asarray(as_channels(far, 1)).tolist() == [[0, 128], [191, 255]]  # from least to greatest


@pytest.mark.parametrize("top", [1.0, 255.0, 65535.0])
def test_floating_point_by_its_range(tmp_path, top):
    values = np.asarray(GREY).astype(np.float32) / 255 * top
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert np.array_equal(np.asarray(read_picture(tmp_path / "a.tif", 1)), np.asarray(GREY))


def test_floating_point_that_is_odd():
    odd = Image.fromarray(np.array([[np.nan, 0.5], [np.inf, 1.0]], np.float32))
    assert np.asarray(as_channels(odd, 1)).tolist() == [[0, 128], [0, 255]]
    assert np.asarray(as_channels(Image.fromarray(np.zeros((2, 2), np.float32)), 1)).max() == 0
    below = Image.fromarray(np.array([[-1.0, 1.0]], np.float32))
    assert np.asarray(as_channels(below, 1)).tolist() == [[0, 255]]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_cameras_orientation_is_applied(tmp_path, suffix, orientation):
    # How a viewer turns the stored pixels, by EXIF 2.3's table.
    turned = {
        1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: np.swapaxes(a, 0, 1),
        6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(np.swapaxes(a, 0, 1), 2), 8: np.rot90,
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    RGB.save(tmp_path / f"a.{suffix}", exif=exif)
    wanted = Image.fromarray(np.ascontiguousarray(turned[orientation](COLOURS)))
    close(read_picture(tmp_path / f"a.{suffix}"), wanted)


def test_damaged_exif_is_no_reason_to_refuse(tmp_path):
    RGB.save(tmp_path / "a.jpg", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff broken")
    close(read_picture(tmp_path / "a.jpg"), RGB)


def test_palettes_cmyk_lab_and_single_bits(tmp_path):
    RGB.convert("P", palette=Image.Palette.ADAPTIVE, colors=200).save(tmp_path / "p.png")
    close(read_picture(tmp_path / "p.png"), RGB)
    RGB.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    close(read_picture(tmp_path / "cmyk.jpg"), RGB)
    Image.fromarray(np.asarray(GREY) > 127).save(tmp_path / "bits.png")
    assert set(np.unique(np.asarray(read_picture(tmp_path / "bits.png", 1)))) == {0, 255}
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    ImageCms.profileToProfile(RGB, *profiles, outputMode="LAB").save(tmp_path / "lab.tif")
    close(read_picture(tmp_path / "lab.tif"), RGB)


def test_transparency_shows_the_background(tmp_path):
    clear = np.dstack([COLOURS, np.zeros(COLOURS.shape[:2], np.uint8)])
    clear[:20, :, 3] = 255
    rgba = Image.fromarray(clear)
    rgba.save(tmp_path / "rgba.png")
    rgba.convert("LA").save(tmp_path / "la.png")
    indexed = RGB.convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    indexed.save(tmp_path / "index.png", transparency=bytes([0] * 256))
    indexed.save(tmp_path / "gif.gif", transparency=indexed.getpixel((0, 0)))
    for background in ((255, 255, 255), (10, 200, 30)):
        seen = np.asarray(read_picture(tmp_path / "rgba.png", background=background))
        assert np.array_equal(seen[:20], COLOURS[:20])
        assert (seen[20:] == background).all()
        assert (np.asarray(read_picture(tmp_path / "index.png", background=background)) == background).all()
        assert tuple(np.asarray(read_picture(tmp_path / "gif.gif", background=background))[0, 0]) == background
    assert (np.asarray(read_picture(tmp_path / "la.png", 1, background=(0, 0, 0)))[20:] == 0).all()
    assert np.array_equal(np.asarray(read_picture(tmp_path / "rgba.png", 4)), clear)
    assert (np.asarray(read_picture(tmp_path / "index.png", 4))[..., 3] == 0).all()
    RGB.save(tmp_path / "opaque.png")
    assert (np.asarray(read_picture(tmp_path / "opaque.png", 4))[..., 3] == 255).all()


def test_the_first_frame_is_taken(tmp_path):
    for name in ("a.gif", "a.webp", "a.tif", "a.png"):
        RGB.save(tmp_path / name, save_all=True, append_images=[Image.new("RGB", RGB.size)])
        close(read_picture(tmp_path / name), RGB, within=12)


@pytest.mark.parametrize("form", ["JPEG", "MPO"])
def test_a_huge_photo_is_decoded_smaller_and_looks_the_same(tmp_path, form):
    photo = RGB.resize((2400, 3200), Image.Resampling.BICUBIC)
    photo.save(tmp_path / "a.jpg", form)
    assert read_picture(tmp_path / "a.jpg").size == (2400, 3200)
    small = read_picture(tmp_path / "a.jpg", at_least=512)
    assert small.size == (600, 800)
    close(small, photo.resize((600, 800)))
    preprocess = Preprocess(size=(64, 64))
    assert np.abs(preprocess.read(tmp_path / "a.jpg") - preprocess(photo)).mean() < 0.05
    assert read_picture(tmp_path / "a.jpg", at_least=5000).size == (2400, 3200)


@pytest.mark.parametrize(
    ("damage", "words"),
    [("empty", "is empty"), ("gone", "no such file"), ("link", "leads nowhere"), ("text", "is no image"),
     ("cut", "missing or corrupt"), ("folder", "missing or corrupt")],
)  # fmt: skip
def test_what_cannot_be_read_is_named_in_one_line(tmp_path, damage, words):
    path = tmp_path / "a.png"
    RGB.save(path)
    content = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage == "link":
        path.symlink_to(tmp_path / "nowhere.png")
    elif damage != "gone":
        path.write_bytes({"empty": b"", "text": b"hello", "cut": content[: len(content) // 2]}[damage])
    with pytest.raises(DataError, match=f"a.png: {words}") as caught:
        read_picture(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(path))


def test_pillows_warnings_do_not_leak(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", RGB.width * RGB.height - 1)
    RGB.convert("P").save(tmp_path / "a.png", transparency=bytes([128] * 256))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_picture(tmp_path / "a.png").size == RGB.size
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match=r"a.png: is too large to be read safely"):
        read_picture(tmp_path / "a.png")


def test_a_file_object_and_its_name(tmp_path):
    stream = io.BytesIO()
    RGB.save(stream, "PNG")
    stream.seek(0)
    assert np.array_equal(np.asarray(read_picture(stream)), COLOURS)
    with pytest.raises(DataError, match=r"^shard.tar/3.png: is no image"):
        read_picture(io.BytesIO(b"x"), name="shard.tar/3.png")


# -- the evaluation transform ---------------------------------------------------------------------------


def timms(preprocess):
    mean, std = preprocess.mean, preprocess.std
    size = (preprocess.channels, *preprocess.size)
    return create_transform(
        size, crop_pct=preprocess.crop_pct, interpolation=preprocess.interpolation, mean=mean, std=std
    )


@settings(max_examples=80, deadline=None)
@given(
    size=st.tuples(st.integers(8, 70), st.integers(8, 70)) | st.integers(8, 70).map(lambda side: (side, side)),
    shape=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    crop_pct=st.sampled_from([0.5, 0.875, 0.9, 0.95, 1.0]) | st.floats(0.3, 1),
    interpolation=st.sampled_from(sorted(FILTERS)),
    channels=st.sampled_from([1, 3, 4]),
)
def test_it_is_timms_evaluation_transform(size, shape, crop_pct, interpolation, channels):
    preprocess = Preprocess(size=size, crop_pct=crop_pct, interpolation=interpolation, channels=channels)
    pixels = NUMBERS.integers(0, 256, (*shape, channels), np.uint8)
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    numbers = preprocess(image)
    assert numbers.dtype == np.float32
    assert torch.equal(torch.from_numpy(numbers), timms(preprocess)(image))


def test_normalisation_by_channels_and_back():
    assert normalisation(3) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    for channels in (1, 3, 4):
        preprocess = Preprocess(size=(40, 30), crop_pct=1.0, channels=channels)
        assert len(preprocess.mean) == channels == len(preprocess.std)
        numbers = preprocess(RGB)
        assert numbers.shape == (channels, 40, 30)
        seen = np.asarray(as_channels(RGB, channels), np.float32).reshape(40, 30, channels).transpose(2, 0, 1)
        np.testing.assert_allclose(preprocess.shown(numbers) * 255, seen, atol=1e-3)


def test_json_and_back():
    preprocess = Preprocess(size=(40, 30), channels=1, mean=(0.3,), std=(0.2,), background=(1, 2, 3))
    data = preprocess_to_json(preprocess, ["ant", "Käfer"])
    assert preprocess_from_json(data) == (preprocess, ("ant", "Käfer"))
    for change, words in [
        ({"format": "x"}, "format 'x'"),
        ({"size": [0, 3]}, "preprocess.size"),
        ({"std": [0.0]}, "above 0"),
        ({"mean": [0.1, 0.2]}, "2 numbers for 1 channels"),
        ({"mean": [float("nan")]}, "must be numbers"),
        ({"channels": 2}, "channels"),
        ({"extra": 1}, "extra"),
        ({"classes": [1]}, "classes"),
    ]:
        with pytest.raises(SpecError, match=words):
            preprocess_from_json(data | change)
    with pytest.raises(SpecError, match="list"):
        preprocess_from_json([])
