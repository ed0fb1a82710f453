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
    given = Prompt(prompt) if isinstance(prompt, str) else prompt
    if given.source is not None:
        given = replace(given, source=open_picture(given.source))
    what = "say what to draw" if given.source is None else "say what to change"
    return replace(given, text=check_text("prompt", given.text, what))


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


def as_list(given: Any, single: Any) -> list[Any]:
    """A list of one thing (of the types ``single``), or of several. What is neither is taken for
    one, and refused by whoever reads it."""
    several = isinstance(given, Iterable) and not isinstance(given, single)
    return list(given) if several else [given]


def one_each(name: str, given: Any, n: int, single: Any) -> list[Any]:
    """``n`` things: one that stands for all (of the types ``single``), or as many as there are.
    Raises InputError."""
    if isinstance(given, single):
        return [given] * n
    found = as_list(given, single)
    if len(found) != n:
        raise InputError(f"{name}: {len(found)} are given for {n} images; give one for all, or {n}")
    return found


def check_text(name: str, text: str, what: str) -> str:
    """Text that is not empty. Raises InputError, which ends with ``what`` to say."""
    if not check_unicode(text, name).strip():
        raise InputError(f"{name}: it is empty; {what}")
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
