"""Scored pictures of JSON lines in the layout of the paper's published data."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from secondlook.data.stored_images import LRUCache, Place, Words, checked_score
from secondlook.errors import InputError
from secondlook.io import (
    beside,
    check_unicode,
    parse_json,
    read_bytes,
    read_image,
    read_text,
)
from secondlook.io.text import MARKS


class Folders:
    """Which files there are, by listing their folders: asking for millions one by one takes hours
    on a network's disk."""

    def __init__(self) -> None:
        self._names_by_folder = LRUCache(64)  # folders

    def __contains__(self, file_path: str) -> bool:
        folder, file_name = os.path.split(file_path)
        names = self._names_by_folder.get(folder, lambda: self._names_in(folder))
        return file_name in names

    @staticmethod
    def _names_in(folder: str) -> set[str]:
        try:
            with os.scandir(folder or ".") as entries:
                return {entry.name for entry in entries}
        except (OSError, ValueError):  # no such folder, or a name with a NUL
            return set()


class Listed:
    """A JSONL file in the published layout: lines {"promptid", "prompt", "data": [{"img_path",
    "reason", "prob", "state"}]}, of edits with "source" too, and "following" and "preserving" of
    each picture. Paths are beside the file; absolute ones and those that lead out of the folder are
    followed, for what they name is only ever read as a picture. Raises InputError that names the
    line.

    Only the lines' places are kept; a line is read again when a picture of it is needed."""

    def __init__(self, path: Path):
        self.path, self._folder = path, str(path.parent)
        if not path.is_file():
            raise InputError(
                f"config: data = {str(path)!r} is not a file; give a JSONL of scored pictures or "
                "a folder of data build"
            )
        with open(path, "rb") as file:
            first_bytes = file.read(4)
        byte_order_mark = b""
        for mark in MARKS:  # UTF-32's is before UTF-16's, with which it begins
            if first_bytes.startswith(mark):
                byte_order_mark = mark
                break
        is_utf8 = MARKS.get(byte_order_mark, "utf-8-sig") == "utf-8-sig"
        self._utf8_text = None if is_utf8 else read_text(path).encode()
        """The whole file as UTF-8, where it is stored in another encoding."""
        self._mark_bytes = len(byte_order_mark) if is_utf8 else 0
        """Bytes before the first line's text."""
        self.line_starts = np.zeros(1, dtype=np.int64)
        """(lines + 1) bytes: where each line begins, and the end; known after a scan."""

    def where(self, place: Place) -> str:
        return f"line {place.at + 1} of {self.path}"

    def _lines(self) -> Iterator[bytes]:
        if self._utf8_text is not None:
            yield from io.BytesIO(self._utf8_text)
            return
        # as bytes: their lengths are the places that ``read`` seeks
        with open(self.path, "rb") as file:
            yield from file

    def _parsed(self, line_number: int, line: bytes) -> dict[str, Any]:
        """A line's fields, checked but for those of its pictures; ``line_number`` is from 0 on."""
        if line_number == 0:
            line = line[self._mark_bytes :]
        try:
            row = parse_json(line.decode())
            if not isinstance(row, dict) or not isinstance(row["data"], list):
                raise ValueError("data is no list")
            for name in ("prompt", "source"):
                may_be_null = name == "source"
                if not isinstance(row.get(name), str) and not (
                    may_be_null and row.get(name) is None
                ):
                    raise ValueError(f"{name} is {row.get(name)!r}")
            row["promptid"]  # a KeyError where it is missing; any value will do
            if not check_unicode(row["prompt"], "prompt").strip():
                raise ValueError("the prompt is empty")
            return row
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, UnicodeDecodeError):
                read_text(self.path)  # raises an InputError that says what it should be
            reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else error
            raise InputError(
                f"config: data, line {line_number + 1} of {self.path} is not promptid, prompt, "
                f"data with img_path, reason, prob ({reason})"
            ) from error

    def _words(self, row: dict[str, Any], place: Place) -> Words:
        """What a line says of the picture at ``place.item``, checked."""
        picture = row["data"][place.item]
        if not isinstance(picture, dict):
            picture = {}  # lacks all
        for name in ("img_path", "reason", "prob"):
            if name not in picture:
                raise InputError(
                    f"data: {self.where(place)}: picture {place.item + 1} of data has no {name}"
                )
        for name in ("img_path", "reason"):
            may_be_null = name == "reason"
            if not isinstance(picture[name], str) and not (may_be_null and picture[name] is None):
                raise InputError(
                    f"{name}: it is {picture[name]!r} in {self.where(place)}; it must be a text"
                )
        if picture["reason"]:
            check_unicode(picture["reason"], "reason", self.where(place))
        return Words(
            id=f"{row['promptid']}-{place.item}",
            prompt=row["prompt"],
            score=checked_score(picture, "prob", self.where, place),
            reason=picture["reason"],
            source=row.get("source") or None,
            following=checked_score(picture, "following", self.where, place),
            preserving=checked_score(picture, "preserving", self.where, place),
            path=picture["img_path"],
        )

    def scan(self) -> Iterator[tuple[Place, Words]]:
        """The words of every picture, checked. Empty lines are passed over."""
        line_starts = [0]
        for line_number, line in enumerate(self._lines()):
            line_starts.append(line_starts[-1] + len(line))
            text = line[self._mark_bytes :] if line_number == 0 else line
            if not line.strip() or not text.strip():
                continue
            row = self._parsed(line_number, line)
            for item in range(len(row["data"])):
                place = Place(line_number, item)
                yield place, self._words(row, place)
        self.line_starts = np.array(line_starts, dtype=np.int64)

    def read(self, place: Place) -> Words:
        """The words of one picture; its line is read and checked again."""
        line_start, line_end = self.line_starts[place.at : place.at + 2].tolist()
        if self._utf8_text is not None:
            line = self._utf8_text[line_start:line_end]
        else:
            with open(self.path, "rb") as file:
                file.seek(line_start)
                line = file.read(line_end - line_start)
        return self._words(self._parsed(place.at, line), place)

    def lacking(self, words: Words, folders: Folders) -> str:
        """The file of a picture or its source that is not there; "" where they are."""
        for file_name in (words.path, words.source):
            if not file_name or os.path.join(self._folder, file_name) in folders:
                continue
            # not in the listing: perhaps written with backslashes, or in other letters
            try:
                if beside(self.path, file_name).is_file():
                    continue
            except (OSError, ValueError):  # a NUL, or a name that is too long
                pass
            return file_name
        return ""

    def file_of(self, place: Place) -> bytes:
        """The picture's file."""
        return read_bytes(beside(self.path, self.read(place).path))

    def image(self, place: Place, file_name: str = "") -> Image.Image:
        """The picture, or the one that the line calls ``file_name``. Raises InputError that names
        the line."""
        try:
            file_name = file_name or self.read(place).path
            return read_image(beside(self.path, file_name))
        except InputError as error:
            raise InputError(f"data: {self.where(place)}: {error}") from error
