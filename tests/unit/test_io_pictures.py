"""Pictures as people have them: read as a viewer shows them, or refused in one sentence."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from secondlook.arguments import open_picture
from secondlook.data.labelled_images import read_pairs
from secondlook.errors import InputError
from secondlook.io import as_rgb, decode_image, read_image

CASES = Path(__file__).parents[1] / "cases"


def sentence(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert len(text.splitlines()) == 1
    return text


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_pictures_look_as_in_a_viewer():
    upright = np.asarray(read_image(CASES / "images" / "red_star.png"), dtype=int)
    for name in ("turned_180.jpg", "turned_90.jpg"):  # upright by EXIF's orientation
        shown = np.asarray(read_image(CASES / "images" / name).resize((48, 48)), dtype=int)
        assert abs(shown - upright).mean() < 10, name
    wide, narrow = (np.asarray(read_image(CASES / "images" / f"grey_{n}_bit.png")) for n in (16, 8))
    assert np.array_equal(wide, narrow)


def test_what_is_transparent_is_white():
    hidden = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([255, 0, 0])
    for data in (
        encoded(hidden),
        encoded(hidden, "WEBP", lossless=True),
        encoded(palette, transparency=0),
    ):
        assert decode_image(data, "x").getpixel((1, 1)) == (255, 255, 255)
    half = Image.new("LA", (4, 4), (0, 128))
    assert abs(decode_image(encoded(half), "x").getpixel((1, 1))[0] - 127) <= 1


def test_what_is_transparent_is_white_with_a_profile_too():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = Image.new("RGB", (4, 4), (10, 20, 30))
    assert decode_image(encoded(image, transparency=(10, 20, 30), icc_profile=srgb), "x").getpixel(
        (0, 0)
    ) == (255, 255, 255)
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([200, 100, 50])
    assert decode_image(encoded(palette, icc_profile=srgb), "x").getpixel((0, 0)) == (200, 100, 50)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK", "YCbCr", "LAB", "I", "F"]
)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG"])
def test_every_mode_is_shown_or_refused(mode, kind):
    image = Image.new(mode, (8, 8))
    try:
        data = encoded(image, kind)
    except OSError:
        return  # not every kind has every mode
    try:
        shown = decode_image(data, "x")
    except InputError as error:
        assert mode in ("I", "F") and "mode" in str(error)
    else:
        assert shown.mode == "RGB" and shown.size == (8, 8)


def test_colours_are_those_of_the_pictures_profile():
    image = Image.new("RGB", (4, 4), (200, 100, 50))
    other = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    assert decode_image(encoded(image, icc_profile=srgb.tobytes()), "x").getpixel((0, 0)) == (
        200,
        100,
        50,
    )
    assert decode_image(encoded(image, icc_profile=b"no profile"), "x").getpixel((0, 0)) == (
        200,
        100,
        50,
    )
    lab = ImageCms.profileToProfile(image, srgb, other, outputMode="LAB")
    shown = decode_image(encoded(lab, "TIFF", icc_profile=other.tobytes()), "x").getpixel((0, 0))
    assert max(abs(a - b) for a, b in zip(shown, (200, 100, 50), strict=True)) <= 3


def test_more_bits_and_gamma_are_shown_as_in_a_viewer():
    data = encoded(Image.fromarray(np.full((4, 4), 0xFFFF, dtype=np.uint16)), "TIFF")
    # the tag of the bits a sample, which Pillow writes as 16 whatever it is told
    sixteen, twelve = (struct.pack("<HHIHH", 258, 3, 1, bits, 0) for bits in (16, 12))
    assert data.count(sixteen) == 1
    assert decode_image(data.replace(sixteen, twelve), "x").getpixel((0, 0)) == (255, 255, 255)
    linear = Image.new("RGB", (4, 4), (50, 50, 50))
    linear.info["gamma"] = 1.0
    assert abs(as_rgb(linear).getpixel((0, 0))[0] - 122) <= 1
    linear.info["gamma"] = 0.45455
    assert as_rgb(linear).getpixel((0, 0)) == (50, 50, 50)


def test_heic_is_refused_by_name(tmp_path):
    path = tmp_path / "IMG_0001.HEIC"
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64))
    with pytest.raises(InputError, match="is HEIC, which is not read; convert it to PNG or JPEG"):
        read_image(path)
    with pytest.raises(InputError, match=r"holds no picture .*HEIC is not read: convert it"):
        read_pairs(tmp_path, "a cat")


def test_pictures_that_are_none_are_refused(recwarn):
    whole = encoded(Image.effect_noise((64, 64), 50))
    for data in (
        b"",
        b"hello",
        whole[:500],
        whole[:-8000],
        b"version https://git-lfs.github.com/spec/v1\n",
    ):
        with pytest.raises(InputError, match="'name'") as error:
            decode_image(data, "name")
        assert "BytesIO" not in sentence(error)
    with pytest.raises(InputError, match=r"196000000|196,000,000") as error:
        read_image(CASES / "images" / "pixels_196_million.png")
    assert "178,956,970" in sentence(error)
    assert not recwarn.list


@pytest.mark.parametrize("size", [(0, 0), (5, 0), (0, 5)])
def test_a_picture_without_pixels_is_refused(size):
    with pytest.raises(InputError, match=f"it has no pixels: {size[0]} x {size[1]}"):
        open_picture(Image.new("RGB", size))
