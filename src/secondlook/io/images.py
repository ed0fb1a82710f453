"""The one reader of pictures: what the model sees is what a viewer shows."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps

from secondlook.errors import InputError
from secondlook.io.text import read_bytes

MAX_PIXELS = 178_956_970
"""More are refused (Pillow's own limit against decompression bombs)."""
HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
"""How files of phones that hold HEVC pictures name themselves, after "ftyp"; AVIF has others."""
EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")


def read_image(path: Path) -> Image.Image:
    """A picture file as RGB, as a viewer shows it. Raises InputError for a missing, foreign,
    truncated or too large one."""
    if not Path(path).is_file():
        raise InputError(f"image: {str(path)!r} is not a file; give a path to a picture")
    return decode_image(read_bytes(path), str(path))


def decode_image(data: bytes, name: str) -> Image.Image:
    """``read_image`` of bytes that are there already; ``name`` is what errors call it."""
    if data[4:8] == b"ftyp" and data[8:12] in HEIC_BRANDS:
        raise InputError(f"image: {name!r} is HEIC, which is not read; convert it to PNG or JPEG")
    data_file = io.BytesIO(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", Image.DecompressionBombWarning
            )  # the limit is checked below
            with Image.open(data_file) as image:
                pixels = image.width * image.height
                if pixels > MAX_PIXELS:
                    raise InputError(
                        f"image: {name!r} has {pixels:,} pixels; at most {MAX_PIXELS:,} are read"
                    )
                return as_rgb(image)
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(
            f"image: {name!r} has too many pixels; at most {MAX_PIXELS:,} are read ({error})"
        ) from error
    except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them to
        reason = str(error).split("\n")[0].replace(f" {data_file!r}", "")
        raise InputError(
            f"image: {name!r} could not be read ({reason}); give a whole PNG or JPEG"
        ) from error


def as_rgb(image: Image.Image) -> Image.Image:
    """RGB as a viewer shows it: upright by EXIF's orientation, more bits scaled to 8, colours by
    their profile or gamma, transparent places white. Raises ValueError for values whose range no
    one states."""
    if image.mode == "RGB" and not image.info and not image.getexif():
        return image.copy()  # the file it comes from may be closed
    tags = getattr(image, "tag_v2", {})
    profile, gamma = image.info.get("icc_profile"), image.info.get("gamma")
    if "srgb" in image.info:  # a PNG that says so
        gamma = None
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = _in_8_bits(image, tags)
    if image.mode in ("I", "F"):
        raise ValueError(
            f"its values are of mode {image.mode}, whose range is not stated; save it with 8 or "
            "16 bits"
        )
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode in ("1", "L", "LA") else "RGBA")
    elif image.mode == "P":
        image = image.convert("RGB")
    alpha = image.getchannel("A") if image.mode in ("LA", "RGBA") else None
    colours = image.convert({"LA": "L", "RGBA": "RGB"}.get(image.mode, image.mode))
    if profile:
        colours = _in_srgb(colours, profile)
    elif isinstance(gamma, int | float) and gamma > 0 and abs(2.2 * gamma - 1) > 0.05:
        colours = colours.convert("RGB").point(
            [round(255 * (v / 255) ** (1 / (2.2 * gamma))) for v in range(256)] * 3
        )
    shown = colours.convert("RGB")
    if alpha is not None:
        white = Image.new("RGB", shown.size, "white")
        white.paste(shown, mask=alpha)
        shown = white
    return shown


def _in_8_bits(image: Image.Image, tags: Any) -> Image.Image:
    """A grey picture of more bits: 16, or as many as a TIFF's ``tags`` say, whose white may be
    0."""
    wide = np.asarray(image).astype(np.uint32)  # (H, W)
    bits = tags.get(258, (16,))
    most = 2 ** int(bits[0] if isinstance(bits, tuple) else bits) - 1
    narrow = (np.minimum(wide, most) * 255 + most // 2) // most
    if tags.get(262) == 0:
        narrow = 255 - narrow
    grey = Image.fromarray(narrow.astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):  # one value stands for nothing
        grey.putalpha(Image.fromarray(np.where(wide == transparent, 0, 255).astype(np.uint8)))
    return grey


MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}
"""Colour spaces of profiles, and the modes of their pictures."""
SAME = 2
"""Levels of 255 by which a profile may differ from sRGB and be taken for it."""


def _in_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Colours of a profile as sRGB, which is what a picture without one is taken for."""
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = MODES.get(own.profile.xcolor_space.strip())
        if mode is None or (image.mode != mode and {image.mode, mode} - {"1", "L", "RGB", "YCbCr"}):
            return image
        image = image.convert(mode)
        transform = ImageCms.buildTransform(own, ImageCms.createProfile("sRGB"), mode, "RGB")
        if mode == "RGB":
            levels = np.stack(
                np.meshgrid(*[np.arange(0, 256, 51, dtype=np.uint8)] * 3), -1
            ).reshape(6, 36, 3)
            swatch = Image.fromarray(levels)
            moved = np.asarray(ImageCms.applyTransform(swatch, transform)).astype(int) - levels
            if np.abs(moved).max() <= SAME:
                return image
        return ImageCms.applyTransform(image, transform) or image
    except (
        ImageCms.PyCMSError,
        OSError,
        ValueError,
    ):  # viewers show a picture with a broken profile without it
        return image


def png(image: Image.Image) -> bytes:
    """A picture as a PNG file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
