"""The one reader of pictures: what the model sees is what a viewer shows."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps

from secondlook.files.text import read_bytes
from secondlook.types import InputError

MAX_PIXELS = 178_956_970
"""More are refused (Pillow's own limit against decompression bombs)."""
EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")


def read_image(path: Path) -> Image.Image:
    """A picture file as RGB, as a viewer shows it. Raises InputError for a missing, foreign, truncated or too large one."""
    if not Path(path).is_file():
        raise InputError(f"image: {str(path)!r} is not a file; give a path to a picture")
    return decode_image(read_bytes(path), str(path))


def decode_image(data: bytes, name: str) -> Image.Image:
    """``read_image`` of bytes that are there already; ``name`` is what errors call it."""
    data_file = io.BytesIO(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit is checked below
            with Image.open(data_file) as image:
                pixels = image.width * image.height
                if pixels > MAX_PIXELS:
                    raise InputError(f"image: {name!r} has {pixels:,} pixels; at most {MAX_PIXELS:,} are read")
                return as_rgb(image)
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"image: {name!r} has too many pixels; at most {MAX_PIXELS:,} are read ({error})") from error
    except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them to
        reason = str(error).split("\n")[0].replace(f" {data_file!r}", "")
        raise InputError(f"image: {name!r} could not be read ({reason}); give a whole PNG or JPEG") from error


def as_rgb(image: Image.Image) -> Image.Image:
    """RGB as a viewer shows it: upright by EXIF's orientation, 16 bits scaled to 8, colours by their profile, transparent
    places white. Raises ValueError for values whose range no one states."""
    if image.mode == "RGB" and not image.info and not image.getexif():
        return image.copy()  # the file it comes from may be closed
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        wide = np.asarray(image)  # (H, W) uint16
        transparent = image.info.get("transparency")
        image = Image.fromarray(((wide.astype(np.uint32) + 128) // 257).astype(np.uint8))
        if isinstance(transparent, int):  # one value stands for nothing
            image.putalpha(Image.fromarray(np.where(wide == transparent, 0, 255).astype(np.uint8)))
    if image.mode in ("I", "F"):
        raise ValueError(f"its values are of mode {image.mode}, whose range is not stated; save it with 8 or 16 bits")
    image = _in_srgb(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _in_srgb(image: Image.Image) -> Image.Image:
    """Colours of another profile as sRGB, which is what a picture without one is taken for."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("L", "RGB", "RGBA", "CMYK", "LAB"):
        return image
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(own).lower():
            return image
        mode = "RGBA" if image.mode == "RGBA" else "RGB"
        shown = ImageCms.profileToProfile(image, own, ImageCms.createProfile("sRGB"), outputMode=mode)
        return shown or image
    except (ImageCms.PyCMSError, OSError, ValueError):  # viewers show a picture with a broken profile without it
        return image


def png(image: Image.Image) -> bytes:
    """A picture as a PNG file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
