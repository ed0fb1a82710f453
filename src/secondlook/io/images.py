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
SRGB_GAMMA = 2.2
"""Exponent of a display: a PNG whose gamma is about 1 / 2.2 is shown as it is stored."""
TIFF_BITS, TIFF_PHOTOMETRIC = 258, 262
"""Tags of a TIFF: bits of a value; 0 where its lowest value is white."""
PROFILE_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}
"""Colour spaces of profiles, and the modes of their pictures."""
SAME_LEVELS = 2
"""Levels of 255 by which a profile may differ from sRGB and be taken for it."""


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
            # a picture's size is checked below; Pillow warns at half of that
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(data_file) as image:
                num_pixels = image.width * image.height
                if num_pixels > MAX_PIXELS:
                    raise InputError(
                        f"image: {name!r} has {num_pixels:,} pixels; at most {MAX_PIXELS:,} are "
                        "read"
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
    one states, and for a picture without pixels."""
    if not image.width or not image.height:
        raise ValueError(f"it has no pixels: {image.width} x {image.height}")
    if image.mode == "RGB" and not image.info and not image.getexif():
        return image.copy()  # the file it comes from may be closed
    # read before transposing, which makes a plain image of a TIFF
    tiff_tags = getattr(image, "tag_v2", {})
    profile, gamma = image.info.get("icc_profile"), image.info.get("gamma")
    if "srgb" in image.info:  # a PNG that says so
        gamma = None
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = _in_8_bits(image, tiff_tags)
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
    # profiles and gamma are of the colours alone
    colours = image.convert({"LA": "L", "RGBA": "RGB"}.get(image.mode, image.mode))
    if profile:
        colours = _in_srgb(colours, profile)
    elif isinstance(gamma, int | float) and gamma > 0 and abs(SRGB_GAMMA * gamma - 1) > 0.05:
        colours = colours.convert("RGB").point(_gamma_table(gamma) * 3)
    rgb_image = colours.convert("RGB")
    if alpha is None:
        return rgb_image
    on_white = Image.new("RGB", rgb_image.size, "white")
    on_white.paste(rgb_image, mask=alpha)
    return on_white


def _gamma_table(gamma: float) -> list[int]:
    """What each of the 256 levels of a picture of this gamma is shown as."""
    exponent = 1 / (SRGB_GAMMA * gamma)
    return [round(255 * (level / 255) ** exponent) for level in range(256)]


def _in_8_bits(image: Image.Image, tiff_tags: Any) -> Image.Image:
    """A grey picture of more bits: 16, or as many as a TIFF's tags say, whose white may be 0."""
    values = np.asarray(image).astype(np.uint32)  # (H, W)
    bits = tiff_tags.get(TIFF_BITS, (16,))  # one number a channel
    max_value = 2 ** int(bits[0] if isinstance(bits, tuple) else bits) - 1
    # scaled to 0 … 255 and rounded, in integers
    levels = (np.minimum(values, max_value) * 255 + max_value // 2) // max_value
    if tiff_tags.get(TIFF_PHOTOMETRIC) == 0:
        levels = 255 - levels
    grey_image = Image.fromarray(levels.astype(np.uint8))
    transparent_value = image.info.get("transparency")
    if isinstance(transparent_value, int):  # one value stands for nothing
        alpha = np.where(values == transparent_value, 0, 255).astype(np.uint8)
        grey_image.putalpha(Image.fromarray(alpha))
    return grey_image


def _in_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Colours of a profile as sRGB, which is what a picture without one is taken for."""
    try:
        own_profile = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = PROFILE_MODES.get(own_profile.profile.xcolor_space.strip())
        if mode is None:
            return image
        # grey and RGB pictures may have each other's profiles; other modes only their own
        if image.mode != mode and {image.mode, mode} - {"1", "L", "RGB", "YCbCr"}:
            return image
        image = image.convert(mode)
        srgb_profile = ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(own_profile, srgb_profile, mode, "RGB")
        if mode == "RGB" and _changes_little(transform):
            return image
        return ImageCms.applyTransform(image, transform) or image
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image  # viewers show a picture with a broken profile without it


def _changes_little(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether colours all over the RGB cube stay within ``SAME_LEVELS``: then the picture is kept
    as it is, to the bit."""
    axis = np.arange(0, 256, 51, dtype=np.uint8)  # 6 levels of each channel
    colours = np.stack(np.meshgrid(axis, axis, axis), -1).reshape(6, 36, 3)  # (H, W, RGB)
    transformed = np.asarray(ImageCms.applyTransform(Image.fromarray(colours), transform))
    return bool(np.abs(transformed.astype(int) - colours).max() <= SAME_LEVELS)


def png(image: Image.Image) -> bytes:
    """A picture as a PNG file's bytes."""
    png_file = io.BytesIO()
    image.save(png_file, "PNG")
    return png_file.getvalue()
