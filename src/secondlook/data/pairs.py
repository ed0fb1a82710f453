"""Pairs of a prompt and a picture: a folder, JSON lines or Parquet, with or without a label."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from secondlook.files import read_image
from secondlook.types import InputError, Prompt

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class Pair:
    """One picture of a prompt; ``good`` says whether it matches, None where nobody said. With a ``source`` the prompt is an
    instruction and the picture an edit of it."""

    name: str
    prompt: str
    open: Callable[[], Image.Image]
    good: bool | None = None
    source: Callable[[], Image.Image] | None = None

    def asked(self) -> Prompt:
        return Prompt(self.prompt, self.source() if self.source else None)


def read_pairs(path: Path, prompt: str = "", source: Path | None = None) -> list[Pair]:
    """Pairs of a picture (``prompt`` is then needed), a folder (with metadata.jsonl of file_name and prompt, else its pictures,
    all of ``prompt``), a JSONL file (image, prompt, perhaps good and source; paths beside the file) or a Parquet file (columns
    image, prompt, perhaps good or correct, and source_image). Pictures without a source of their own are edits of ``source``,
    if any.

    Raises InputError that names the file, the line and what is missing.
    """
    found = _found(path, prompt)
    return [replace(p, source=partial(read_image, source)) if source and not p.source else p for p in found]


def _found(path: Path, prompt: str) -> list[Pair]:
    if path.is_dir():
        listed = path / "metadata.jsonl"
        if listed.is_file():
            return _lines(listed, "file_name", prompt)
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURES)
        if not files:
            raise InputError(f"images: {str(path)!r} holds no picture ({', '.join(PICTURES)}) and no metadata.jsonl")
        return [_of(p.name, prompt, p) for p in files]
    if path.suffix == ".jsonl":
        return _lines(path, "image", prompt)
    if path.suffix == ".parquet":
        return _parquet(path, prompt)
    return [_of(path.name, prompt, path)]


def _of(name: str, prompt: str, path: Path, good: bool | None = None, source: Path | None = None) -> Pair:
    if not prompt.strip():
        raise InputError(f"prompt: it is missing for {name!r}; say what the picture should show")
    return Pair(name, prompt, partial(read_image, path), good, partial(read_image, source) if source else None)


def _label(value: Any, where: str) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    raise InputError(f"images: {where}: good is {value!r}; it must be true or false")


def _lines(path: Path, field: str, prompt: str) -> list[Pair]:
    if not path.is_file():
        raise InputError(f"images: {str(path)!r} is not a file; give a picture, a folder, a .jsonl or a .parquet")
    found = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name, said, source = row[field], row.get("prompt", prompt), row.get("source")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"images: line {number} of {path} is not an object with {field} and prompt") from error
        label = _label(row.get("good"), f"line {number} of {path}")
        found.append(_of(name, said, path.parent / name, label, path.parent / source if source else None))
    if not found:
        raise InputError(f"images: {str(path)!r} is empty; give at least one line")
    return found


def _decoded(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def _parquet(path: Path, prompt: str) -> list[Pair]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"images: {str(path)!r} cannot be read ({error}); give a whole Parquet file") from error
    if "image" not in table.column_names:
        raise InputError(f"images: {str(path)!r} has no column image; it has {', '.join(table.column_names)}")
    found = []
    for i, row in enumerate(table.to_pylist()):
        data, source = (
            value["bytes"] if isinstance(value, dict) else value for value in (row["image"], row.get("source_image"))
        )
        said = row.get("prompt") or prompt
        if not said.strip():
            raise InputError(f"prompt: it is missing in row {i} of {str(path)!r}")
        if not isinstance(data, bytes):
            raise InputError(f"images: row {i} of {str(path)!r} holds no picture's bytes")
        label = _label(row.get("good", row.get("correct")), f"row {i} of {path}")
        of = partial(_decoded, source) if isinstance(source, bytes) else None
        found.append(Pair(str(row.get("id") or i), said, partial(_decoded, data), label, of))
    return found
