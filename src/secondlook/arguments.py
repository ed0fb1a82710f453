"""What users give: checks that end in one sentence, and the many forms of a prompt or a picture."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from secondlook.errors import InputError
from secondlook.io import as_rgb, check_unicode, finite, read_image
from secondlook.types import Prompt

Picture = Image.Image | str | Path
"""An image, or a file's path."""


def as_prompt(prompt: str | Prompt) -> Prompt:
    """A prompt that is text and not empty, its source as RGB. Raises InputError."""
    if not isinstance(prompt, str | Prompt):
        raise InputError(f"prompt: {prompt!r} is no text; give a string or a Prompt")
    if isinstance(prompt, str):
        prompt = Prompt(prompt)
    advice = "say what to draw"
    if prompt.source is not None:
        prompt = replace(prompt, source=open_picture(prompt.source))
        advice = "say what to change"
    return replace(prompt, text=check_text("prompt", prompt.text, advice))


def open_picture(picture: Picture) -> Image.Image:
    """An image as RGB, as a viewer shows it. Raises InputError for a file that is none."""
    if isinstance(picture, str | Path):
        return read_image(Path(picture))
    if not isinstance(picture, Image.Image):
        raise InputError(
            f"image: {type(picture).__name__} is no picture; give a PIL image or a file's path"
        )
    try:
        return as_rgb(picture)
    except ValueError as error:
        raise InputError(f"image: it cannot be read ({error})") from error


def as_list(one_or_several: Any, single_types: Any) -> list[Any]:
    """A list of what is given: one thing, which is of ``single_types`` (a text is one, though it
    can be iterated), or several. What is neither is taken for one, and refused by whoever reads
    it."""
    is_iterable = isinstance(one_or_several, Iterable)
    if is_iterable and not isinstance(one_or_several, single_types):
        return list(one_or_several)
    return [one_or_several]


def one_each(name: str, one_or_several: Any, num_images: int, single_types: Any) -> list[Any]:
    """One thing for each image: a single one, of ``single_types``, stands for all. Raises
    InputError for another number of them."""
    if isinstance(one_or_several, single_types):
        return [one_or_several] * num_images
    values = as_list(one_or_several, single_types)
    if len(values) != num_images:
        raise InputError(
            f"{name}: {len(values)} are given for {num_images} images; give one for all, or "
            f"{num_images}"
        )
    return values


def check_text(name: str, text: str, advice: str) -> str:
    """Text that is not empty. Raises InputError, which ends with the ``advice``."""
    if not check_unicode(text, name).strip():
        raise InputError(f"{name}: it is empty; {advice}")
    return text


def at_least(name: str, value: int, least: int = 1) -> None:
    """Raises InputError for a smaller number."""
    if value < least:
        raise InputError(f"{name}: {value} is too few; it must be at least {least}")


def check_sampling(guidance: float | None, temperature: float) -> None:
    """Raises InputError for numbers that are out of range."""
    if temperature != 0 and not finite(temperature, 0.001, 1000):
        raise InputError(
            f"temperature: {temperature} is no temperature; use 0 for greedy, or a number from "
            "0.001 to 1000"
        )
    if guidance is not None and not finite(guidance, 0, 1000):
        raise InputError(
            f"guidance: {guidance} is no scale of guidance; give a number from 0 to 1000, 1 for "
            "none"
        )


def check_threshold(threshold: float) -> None:
    """Raises InputError for what is no probability."""
    if not finite(threshold, 0, 1):
        raise InputError(f"threshold: {threshold} is no probability; it must lie between 0 and 1")
