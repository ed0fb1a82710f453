"""Pairs of a prompt and a picture: a folder, JSON lines or Parquet, with or without a label."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from secondlook.data.prompts import Line
from secondlook.errors import InputError
from secondlook.io import (
    EXTENSIONS,
    beside,
    check_unicode,
    decode_image,
    is_file,
    parquet_rows,
    read_image,
    read_rows,
    text_field,
)
from secondlook.types import Prompt

LISTS = (".jsonl", ".parquet")


@dataclass(frozen=True)
class Pair:
    """One picture of a prompt; ``good`` says whether it matches, None where nobody said. With a
    ``source`` the prompt is an instruction and the picture an edit of it."""

    name: str
    prompt: str
    open: Callable[[], Image.Image]
    good: bool | None = None
    source: Callable[[], Image.Image] | None = None
    source_name: str = ""
    """What the source is called, by which verdicts of another one are known."""
    where: str = ""
    """ "line 3 of pairs.jsonl"; empty outside of a list."""

    def asked(self) -> Prompt:
        return Prompt(self.prompt, self.source() if self.source else None)


def is_list(path: Path) -> bool:
    """Whether a path names several pictures, not one."""
    return path.is_dir() or path.suffix.lower() in LISTS


def read_pairs(
    path: Path,
    prompt: str = "",
    source: Path | None = None,
    left_out: Callable[[str], None] = lambda _: None,
) -> list[Pair]:
    """Pairs of a picture (``prompt`` is then needed), a folder (with metadata.jsonl of file_name
    and prompt, else its pictures, all of ``prompt``), a JSONL file (image, prompt, perhaps good and
    source; paths beside the file) or a Parquet file (columns image, prompt, perhaps good or
    correct, and source_image). Pictures without a source of their own are edits of ``source``, if
    any. ``left_out`` is told the name of each of a folder's files that is no picture.

    Files that a list names are looked for, not opened. Raises InputError that names the file, the
    line or row, the field and the value.
    """
    found = _found(path, prompt, left_out)
    return [
        replace(p, source=partial(read_image, source), source_name=str(source))
        if source and not p.source
        else p
        for p in found
    ]


def _found(path: Path, prompt: str, left_out: Callable[[str], None]) -> list[Pair]:
    if path.is_dir():
        listed = path / "metadata.jsonl"
        if listed.is_file():
            pairs = _lines(listed, "file_name", prompt)
            named = {p.name for p in pairs} | {listed.name}
            for other in sorted(path.iterdir()):
                if (
                    other.name not in named
                    and not other.name.startswith(".")
                    and other.suffix.lower() in EXTENSIONS
                ):
                    left_out(other.name)
            return pairs
        files = sorted(path.iterdir())
        pictures = [p for p in files if is_file(p) and p.suffix.lower() in EXTENSIONS]
        if not pictures:
            is_heic = any(p.suffix.lower() in (".heic", ".heif") for p in files)
            hint = "; HEIC is not read: convert it to PNG or JPEG" if is_heic else ""
            raise InputError(
                f"images: {str(path)!r} holds no picture ({', '.join(EXTENSIONS)}) and no "
                f"metadata.jsonl{hint}"
            )
        for other in files:
            if other not in pictures and not other.name.startswith("."):
                left_out(other.name)
        _needed(prompt, path.name)
        return [Pair(p.name, prompt, partial(read_image, p)) for p in pictures]
    if path.suffix.lower() == ".jsonl":
        return _lines(path, "image", prompt)
    if path.suffix.lower() == ".parquet":
        return _parquet(path, prompt)
    if is_file(path) and path.suffix.lower() not in EXTENSIONS:
        try:
            read_image(path)
        except InputError as error:
            if "cannot identify" not in str(error):
                raise
            raise InputError(
                f"images: {str(path)!r} is neither a picture nor a list of pictures; lists end "
                f"in {' or '.join(LISTS)}"
            ) from error
    _needed(prompt, path.name)
    return [Pair(path.name, prompt, partial(read_image, path))]


def _needed(prompt: str, name: str) -> None:
    if not prompt.strip():
        raise InputError(f"prompt: it is missing for {name!r}; say what the picture should show")


def _label(value: Any, where: str) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    raise InputError(f"images: {where}: good is {value!r}; it must be true or false")


def _lines(path: Path, field: str, prompt: str) -> list[Pair]:
    if not is_file(path):
        raise InputError(
            f"images: {str(path)!r} is not a file; give a picture, a folder, a .jsonl or a .parquet"
        )
    pairs = []
    for number, row in read_rows(path):
        where = f"line {number} of {path}"
        name = row[field] if _is_path(row.get(field)) else text_field(row, field, where)
        asked = text_field(row, "prompt", where, prompt)
        image = _there(beside(path, name), where)
        source = _there(beside(path, row["source"]), where) if _is_path(row.get("source")) else None
        if source is None and row.get("source") is not None:
            text_field(row, "source", where)
        pairs.append(
            Pair(
                name,
                asked,
                partial(read_image, image),
                _label(row.get("good"), where),
                partial(read_image, source) if source else None,
                str(source or ""),
                where,
            )
        )
    if not pairs:
        raise InputError(f"images: {str(path)!r} is empty; give at least one line")
    return pairs


def _is_path(value: Any) -> bool:
    """A name may have bytes that are no Unicode, as file systems allow."""
    return isinstance(value, str) and bool(value.strip())


def _there(path: Path, where: str) -> Path:
    if not is_file(path):
        raise InputError(
            f"image: {where}: {str(path)!r} is not a file; give a path beside the list"
        )
    return path


def _parquet(path: Path, prompt: str) -> list[Pair]:
    pairs = []
    rows = parquet_rows(path, ["image"], ["prompt", "good", "correct", "source_image", "id"])
    for number, row in enumerate(rows, 1):
        where = f"row {number} of {path}"
        data, source = (
            value.get("bytes") if isinstance(value, dict) else value
            for value in (row["image"], row.get("source_image"))
        )
        asked = row.get("prompt")
        if asked is None:
            asked = prompt
        if not isinstance(asked, str) or not asked.strip():
            raise InputError(
                f"prompt: it is {asked!r} in {where}; column prompt must hold texts that are not "
                "empty"
            )
        if not isinstance(data, bytes):
            raise InputError(
                f"image: it is {type(data).__name__} in {where}; column image must hold a "
                "picture's bytes"
            )
        if source is not None and not isinstance(source, bytes):
            raise InputError(
                f"source_image: it is {type(source).__name__} in {where}; it must hold a "
                "picture's bytes"
            )
        label = _label(row.get("good", row.get("correct")), where)
        name = str(number - 1 if row.get("id") is None else row["id"])
        edited = partial(decode_image, source, where) if source else None
        pairs.append(
            Pair(
                name,
                check_unicode(asked.strip(), "prompt", where),
                partial(decode_image, data, where),
                label,
                edited,
                name if source else "",
                where,
            )
        )
    if not pairs:
        raise InputError(f"images: {str(path)!r} is empty; give at least one row")
    return pairs


def lines_of(pairs: Iterable[Pair]) -> list[Line]:
    """Prompts with where they stand, as ``prompts.check_prompts`` wants them."""
    return [
        Line(p.prompt, Path() if p.source else None, p.where or f"the prompt of {p.name!r}")
        for p in pairs
    ]
