"""Scored pictures where they are stored: Parquet shards of ``data build``, or JSON lines in the
layout of the paper's published data. A scan reads the words of all of them once; a picture is read
alone, when it is needed, and nothing is stored twice."""

from __future__ import annotations

import io
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from secondlook.errors import InputError
from secondlook.io import (
    beside,
    check_unicode,
    decode_image,
    finite,
    parse_json,
    read_bytes,
    read_image,
    read_json,
    read_text,
)
from secondlook.io.text import MARKS

T = TypeVar("T")
WORDS = ("id", "prompt", "score", "reason", "source_id", "following", "preserving")
NEEDED = ("prompt", "score", "reason", "image")
OPEN_FILES = 16
"""Parquet files that a process holds open: each keeps its footer, some megabytes."""
CACHED = 48 * 2**20
"""Bytes of row groups that a process keeps. A larger group is read up to the row that is wanted and
not kept."""
PIECE = 4 * 2**20
"""About how many bytes of a large row group are decoded at a time."""


class Place(NamedTuple):
    """Where a picture is stored: the row of a Parquet file, or the line of a list (from 0 on) and
    its item there."""

    at: int
    item: int = 0


class Words(NamedTuple):
    """What is said of a picture; ``source`` is the name or path of the picture that it is an edit
    of, ``path`` its own file."""

    id: str
    prompt: str
    score: float | None
    reason: str | None
    source: str | None
    following: float | None
    preserving: float | None
    path: str = ""

    @property
    def quality(self) -> float | None:
        """What the picture is taught for: S, of an edit the lesser of following and preserving.
        None: nobody has scored it."""
        if self.source is None or self.score is None:
            return self.score
        return (
            None
            if self.following is None or self.preserving is None
            else min(self.following, self.preserving)
        )


def _one(value: Any) -> int:
    return 1


def _bytes_of(table: Any) -> int:
    return table.nbytes


@dataclass
class Lately:
    """What was made last of a kind, up to ``most`` in ``size``."""

    most: int
    size: Callable[[Any], int] = _one

    def __post_init__(self) -> None:
        self._kept: OrderedDict[Any, Any] = OrderedDict()
        self._sum = 0

    def get(self, key: Any, make: Callable[[], T]) -> T:
        """The value of ``key``; made where it is not kept."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        value = self._kept[key] = make()
        self._sum += self.size(value)
        while self._sum > self.most and len(self._kept) > 1:
            self._sum -= self.size(self._kept.popitem(last=False)[1])
        return value

    def __getstate__(self) -> dict[str, Any]:
        """Another process opens files itself."""
        return {"most": self.most, "size": self.size}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


class Kept:
    """A process's open Parquet files and their row groups that were read last."""

    def __init__(self) -> None:
        self.files = Lately(OPEN_FILES)
        self.groups = Lately(CACHED, _bytes_of)


def check_built(folder: Path) -> None:
    """Refuse a folder that ``data build`` is still writing, or that lacks a shard which it wrote.
    Raises InputError."""
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        if (folder / "config.json").is_file():
            raise InputError(
                f"data: the build of {str(folder)!r} has not ended (no manifest.json); run data "
                "build to its end"
            )
        return  # made by others
    for name in read_json(manifest, dict).get("shards", []):
        if not (folder / name).is_file():
            raise InputError(
                f"data: {str(folder / name)!r} is missing, which manifest.json names; run data "
                "build again"
            )


class Shard:
    """A Parquet file with columns prompt, score, reason and image, and perhaps the other ``WORDS``;
    or one of ``sources``, with id and image. Raises InputError that names the file and, where a row
    is wrong, the row (from 1 on)."""

    def __init__(self, path: Path, kept: Kept, needed: tuple[str, ...] = NEEDED):
        self.path, self._kept = path, kept
        with self._reading():
            file = self._file()
            names = file.schema_arrow.names
            groups = [
                file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)
            ]
        lacking = [name for name in needed if name not in names]
        if lacking:
            raise InputError(
                f"data: {str(path)!r} has no column {lacking[0]}; it has {', '.join(names)}"
            )
        self.words = [name for name in WORDS if name in names]
        self.starts = np.cumsum([0, *groups])
        """The first row of every row group, and the end."""

    def where(self, place: Place) -> str:
        return f"row {place.at + 1} of {self.path}"

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # Arrow's own errors are of these
            if isinstance(error, InputError):
                raise
            if not self.path.is_file() or self.path.stat().st_size < 2**20:
                read_bytes(
                    self.path
                )  # has better words for a git-lfs pointer, and for a file that may not be opened
            reason = str(error).split("\n")[0]
            raise InputError(
                f"data: {str(self.path)!r} cannot be read as Parquet ({reason}); give a whole file"
            ) from error

    def _file(self) -> Any:
        import pyarrow.parquet as pq

        return self._kept.files.get(
            self.path, lambda: pq.ParquetFile(self.path, pre_buffer=False, memory_map=True)
        )

    def scan(self) -> Iterator[tuple[Place, Words]]:
        """The words of every row, checked."""
        at = 0
        with self._reading():
            for piece in self._file().iter_batches(8192, columns=self.words, use_threads=False):
                columns = {name: piece[name].to_pylist() for name in self.words}
                for row in zip(*columns.values(), strict=True):
                    place = Place(at)
                    yield place, self._checked(dict(zip(columns, row, strict=True)), place)
                    at += 1

    def _checked(self, row: dict[str, Any], place: Place) -> Words:
        for name in ("prompt", "reason", "source_id"):
            value = row.get(name)
            if not isinstance(value, str) and (value is not None or name == "prompt"):
                raise InputError(
                    f"{name}: it is {value!r} in {self.where(place)}; it must be a text"
                )
        if not row["prompt"].strip():
            raise InputError(
                f"prompt: it is empty in {self.where(place)}; say what the picture should show"
            )
        score, following, preserving = (
            _checked_score(row.get(name), name, self, place)
            for name in ("score", "following", "preserving")
        )
        name = str(row.get("id") or place.at)
        return Words(
            name, row["prompt"], score, row["reason"], row.get("source_id"), following, preserving
        )

    def _row(self, place: Place, columns: list[str]) -> dict[str, Any]:
        """Columns of one row. Its row group is read and kept, or where that is large read in pieces
        up to the row."""
        group = int(np.searchsorted(self.starts, place.at, side="right")) - 1
        skipped = place.at - int(self.starts[group])
        with self._reading():
            file = self._file()
            about = file.metadata.row_group(group)
            chunks = [about.column(i) for i in range(about.num_columns)]
            size = sum(
                c.total_uncompressed_size
                for c in chunks
                if c.path_in_schema.partition(".")[0] in columns
            )
            if size <= CACHED // 2:
                read = lambda: file.read_row_group(group, columns=columns, use_threads=False)  # noqa: E731
                table = self._kept.groups.get((self.path, group, *columns), read)
                return {name: table[name][skipped].as_py() for name in table.column_names}
            rows = max(1, PIECE * about.num_rows // size)
            for piece in file.iter_batches(
                rows, row_groups=[group], columns=columns, use_threads=False
            ):
                if skipped < len(piece):
                    return {name: piece[name][skipped].as_py() for name in piece.schema.names}
                skipped -= len(piece)
        raise InputError(
            f"data: {str(self.path)!r} has fewer rows than its footer says; give a whole file"
        )

    def read(self, place: Place) -> Words:
        return self._checked(self._row(place, self.words), place)

    def file_of(self, place: Place) -> bytes:
        """The picture's file."""
        image = self._row(place, ["image"])["image"]
        data = image.get("bytes") if isinstance(image, dict) else image
        if not isinstance(data, bytes) or not data:
            raise InputError(f"image: {self.where(place)} holds no picture; store its file's bytes")
        return data

    def image(self, place: Place) -> Image.Image:
        return decode_image(self.file_of(place), self.where(place))

    def ids(self) -> list[str]:
        """Of sources: their names, in order."""
        with self._reading():
            return self._file().read(columns=["id"], use_threads=False)["id"].to_pylist()


class Folders:
    """Which files there are, by listing their folders: asking for millions one by one takes hours
    on a network's disk."""

    def __init__(self) -> None:
        self._names = Lately(64)

    def __contains__(self, path: str) -> bool:
        folder, name = os.path.split(path)
        return name in self._names.get(folder, lambda: self._listed(folder))

    @staticmethod
    def _listed(folder: str) -> set[str]:
        try:
            with os.scandir(folder or ".") as entries:
                return {entry.name for entry in entries}
        except (OSError, ValueError):
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
            start = file.read(4)
        mark = next((mark for mark in MARKS if start.startswith(mark)), b"")
        self._text = (
            None if MARKS.get(mark, "utf-8-sig") == "utf-8-sig" else read_text(path).encode()
        )
        """The whole file, where it is not UTF-8."""
        self._mark = len(mark) if self._text is None else 0
        self.starts = np.zeros(1, dtype=np.int64)
        """Where each line begins, and the end; known after a scan."""

    def where(self, place: Place) -> str:
        return f"line {place.at + 1} of {self.path}"

    def _lines(self) -> Iterator[bytes]:
        if self._text is not None:
            yield from io.BytesIO(self._text)
            return
        with open(self.path, "rb") as file:
            yield from file

    def _parsed(self, at: int, line: bytes) -> dict[str, Any]:
        if at == 0:
            line = line[self._mark :]
        try:
            row = parse_json(line.decode())
            if not isinstance(row, dict) or not isinstance(row["data"], list):
                raise ValueError("data is no list")
            for name in ("prompt", "source"):
                if not isinstance(row.get(name), str) and (
                    name == "prompt" or row.get(name) is not None
                ):
                    raise ValueError(f"{name} is {row.get(name)!r}")
            row["promptid"]
            if not check_unicode(row["prompt"], "prompt").strip():
                raise ValueError("the prompt is empty")
            return row
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, UnicodeDecodeError):
                read_text(self.path)  # says what it should be
            reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else error
            raise InputError(
                f"config: data, line {at + 1} of {self.path} is not promptid, prompt, data with "
                "img_path, reason, prob "
                f"({reason})"
            ) from error

    def _words(self, row: dict[str, Any], place: Place) -> Words:
        picture = row["data"][place.item]
        lacking = (
            [n for n in ("img_path", "reason", "prob") if n not in picture]
            if isinstance(picture, dict)
            else ["img_path"]
        )
        if lacking:
            raise InputError(
                f"data: {self.where(place)}: picture {place.item + 1} of data has no {lacking[0]}"
            )
        for name in ("img_path", "reason"):
            if not isinstance(picture[name], str) and (
                name == "img_path" or picture[name] is not None
            ):
                raise InputError(
                    f"{name}: it is {picture[name]!r} in {self.where(place)}; it must be a text"
                )
        if picture["reason"]:
            check_unicode(picture["reason"], "reason", self.where(place))
        score, following, preserving = (
            _checked_score(picture.get(name), name, self, place)
            for name in ("prob", "following", "preserving")
        )
        source = row.get("source") or None
        name = f"{row['promptid']}-{place.item}"
        return Words(
            name,
            row["prompt"],
            score,
            picture["reason"],
            source,
            following,
            preserving,
            picture["img_path"],
        )

    def scan(self) -> Iterator[tuple[Place, Words]]:
        """The words of every picture, checked."""
        starts = [0]
        for at, line in enumerate(self._lines()):
            starts.append(starts[-1] + len(line))
            if line.strip() and line[self._mark if at == 0 else 0 :].strip():
                row = self._parsed(at, line)
                for item in range(len(row["data"])):
                    place = Place(at, item)
                    yield place, self._words(row, place)
        self.starts = np.array(starts, dtype=np.int64)

    def read(self, place: Place) -> Words:
        begin, end = self.starts[place.at : place.at + 2].tolist()
        if self._text is not None:
            line = self._text[begin:end]
        else:
            with open(self.path, "rb") as file:
                file.seek(begin)
                line = file.read(end - begin)
        return self._words(self._parsed(place.at, line), place)

    def lacking(self, words: Words, folders: Folders) -> str:
        """The file of a picture or its source that is not there; "" where they are."""
        for name in (words.path, words.source):
            if not name or os.path.join(self._folder, name) in folders:
                continue
            try:
                if beside(self.path, name).is_file():
                    continue
            except (OSError, ValueError):  # a NUL, or a name that is too long
                pass
            return name
        return ""

    def file_of(self, place: Place) -> bytes:
        """The picture's file."""
        return read_bytes(beside(self.path, self.read(place).path))

    def image(self, place: Place, name: str = "") -> Image.Image:
        """The picture, or the one that the line calls ``name``."""
        try:
            name = name or self.read(place).path
            return read_image(beside(self.path, name))
        except InputError as error:
            raise InputError(f"data: {self.where(place)}: {error}") from error


def _checked_score(value: Any, name: str, stored: Shard | Listed, place: Place) -> float | None:
    if value is None or (type(value) is float and 0 <= value <= 1):
        return value
    if not finite(value, 0, 1):
        raise InputError(
            f"{name}: it is {value!r} in {stored.where(place)}; it must be a number from 0 to 1, "
            "or null"
        )
    return float(value)
