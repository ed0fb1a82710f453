"""What users give: checks that end in one sentence, and the many forms of a prompt or a picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from operator import index
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from PIL import Image

from secondlook.errors import InputError
from secondlook.io import as_rgb, check_unicode, finite, read_image
from secondlook.types import Prompt

if TYPE_CHECKING:
    from secondlook.models.janus.model import Janus

Picture = Image.Image | str | Path
"""An image, or a file's path."""


def as_path(name: str, path: Any) -> Path:
    """A path of what names one. Raises InputError for another type."""
    try:
        return Path(path)
    except TypeError as error:
        raise InputError(f"{name}: {path!r} is no path; give a text or a Path") from error


def as_prompt(prompt: str | Prompt, janus: Janus) -> Prompt:
    """A prompt that is text and not empty, its source as RGB, its codes such as ``janus`` draws.
    Raises InputError."""
    if not isinstance(prompt, str | Prompt):
        raise InputError(f"prompt: {prompt!r} is no text; give a string or a Prompt")
    if isinstance(prompt, str):
        prompt = Prompt(prompt)
    advice = "say what to draw"
    if prompt.source is not None:
        prompt = replace(prompt, source=open_picture(prompt.source, "source"))
        advice = "say what to change"
    _check_codes(prompt, janus.n_codes, janus.net.config.vq_config.num_embeddings)
    return replace(prompt, text=check_text("prompt", prompt.text, advice))


def _check_codes(prompt: Prompt, num_codes: int, codebook_size: int) -> None:
    """Raises InputError where a prompt's codes are not those of one drawn image."""
    codes = prompt.codes
    if isinstance(codes, Sequence) and not codes:  # the source is encoded
        return
    advice = f"give the {num_codes} of a round that was drawn, or none"
    if prompt.source is None:
        raise InputError("codes: they are given without a source, which they stand for; give both")
    if not isinstance(codes, Sequence) or len(codes) != num_codes:
        raise InputError(f"codes: {_shortened(codes)} are not those of one image; {advice}")
    for code in codes:
        if at_least("codes", code, 0) >= codebook_size:
            raise InputError(f"codes: {code} is above the last one, {codebook_size - 1}; {advice}")


def open_picture(picture: Picture, name: str = "image") -> Image.Image:
    """An image as RGB, as a viewer shows it. Raises InputError for a file that is none."""
    if isinstance(picture, str | Path):
        return read_image(Path(picture))
    if not isinstance(picture, Image.Image):
        raise InputError(
            f"{name}: {type(picture).__name__} is no picture; give a PIL image or a file's path"
        )
    try:
        return as_rgb(picture)
    except ValueError as error:
        raise InputError(f"{name}: it cannot be read ({error})") from error


def as_list(one_or_several: Any, single_types: Any) -> list[Any]:
    """A list of what is given: one thing, which is of ``single_types`` (a text is one, though it
    can be iterated), or several. What is neither is taken for one, and refused by whoever reads
    it."""
    if _are_several(one_or_several, single_types):
        return list(one_or_several)
    return [one_or_several]


def one_each(name: str, one_or_several: Any, num_images: int, single_types: Any) -> list[Any]:
    """One thing for each image: a single one (see ``as_list``) stands for all. Raises InputError
    for another number of them."""
    if not _are_several(one_or_several, single_types):
        return [one_or_several] * num_images
    values = list(one_or_several)
    if len(values) != num_images:
        raise InputError(
            f"{name}: {len(values)} are given for {num_images} images; give one for all, or "
            f"{num_images}"
        )
    return values


def _are_several(one_or_several: Any, single_types: Any) -> bool:
    is_single = isinstance(one_or_several, single_types | bytes)
    return isinstance(one_or_several, Iterable) and not is_single


def check_text(name: str, text: Any, advice: str) -> str:
    """Text that is not empty. Raises InputError, which ends with the ``advice``."""
    if not isinstance(text, str):
        raise InputError(f"{name}: {_shortened(text)} is no text; {advice}")
    if not check_unicode(text, name).strip():
        raise InputError(f"{name}: it is empty; {advice}")
    return text


def at_least(name: str, value: Any, least: int = 1) -> int:
    """A whole number, also numpy's, as an int. Raises InputError for a smaller one and for what is
    none, as a truth value."""
    try:
        number = None if isinstance(value, bool) else index(value)
    except TypeError:
        number = None
    if number is None:
        raise InputError(f"{name}: {_shortened(value)} is no whole number; give {least} or more")
    if number < least:
        raise InputError(f"{name}: {number} is too small; it must be at least {least}")
    return number


def check_sampling(guidance: float | None, temperature: float) -> None:
    """Raises InputError for numbers that are out of range."""
    if not finite(temperature, 0, 0) and not finite(temperature, 0.001, 1000):
        raise InputError(
            f"temperature: {temperature!r} is no temperature; use 0 for greedy, or a number from "
            "0.001 to 1000"
        )
    if guidance is not None and not finite(guidance, 0, 1000):
        raise InputError(
            f"guidance: {guidance!r} is no scale of guidance; give a number from 0 to 1000, 1 for "
            "none"
        )


def check_threshold(threshold: float) -> None:
    """Raises InputError for what is no probability."""
    if not finite(threshold, 0, 1):
        raise InputError(f"threshold: {threshold!r} is no probability; it must lie between 0 and 1")


def _shortened(value: Any) -> str:
    """Python's writing of a value on one line, for a message."""
    return shorten(repr(value), 100, placeholder=" …")
