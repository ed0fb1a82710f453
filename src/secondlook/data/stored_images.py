"""Scored pictures where they are stored: Parquet shards of ``data build``; ``data.listed_images``
has those of JSON lines.

A scan reads the words of all rows once. A picture is read alone, when it is needed, from the file
where it is: no second copy is written.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from secondlook.errors import InputError
from secondlook.io import decode_image, finite, read_bytes, read_json

T = TypeVar("T")
WORDS = ("id", "prompt", "score", "reason", "source_id", "following", "preserving", "redraw_target")
"""Columns of a shard that say something of its pictures."""
NEEDED_COLUMNS = ("prompt", "score", "reason", "image")
"""Columns that it must have."""
MAX_OPEN_FILES = 16
"""Parquet files that a process holds open: each keeps its footer, some megabytes."""
CACHE_BYTES = 48 * 2**20
"""Bytes of row groups that a process keeps. A larger group is read up to the row that is wanted and
not kept."""
PIECE_BYTES = 4 * 2**20
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
    redraw_target: str | None = None
    """Id of the picture that its redraw is taught to become; None: any right one."""
    path: str = ""

    @property
    def quality(self) -> float | None:
        """What the picture is taught for: S, of an edit the lesser of following and preserving.
        None: nobody has scored it."""
        if self.source is None or self.score is None:
            return self.score
        if self.following is None or self.preserving is None:
            return None
        return min(self.following, self.preserving)


def _count_one(value: Any) -> int:
    return 1


def _bytes_of(table: Any) -> int:
    return table.nbytes


@dataclass
class LRUCache:
    """The values that were used last: the sum of their ``size_of`` is at most ``max_size``, but one
    value is kept however large."""

    max_size: int
    size_of: Callable[[Any], int] = _count_one

    def __post_init__(self) -> None:
        self._values: OrderedDict[Any, Any] = OrderedDict()  # the least recently used one is first
        self._total_size = 0

    def get(self, key: Any, make: Callable[[], T]) -> T:
        """The value of ``key``; made where it is not kept."""
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        value = self._values[key] = make()
        self._total_size += self.size_of(value)
        # the value just made is last, so it stays
        while self._total_size > self.max_size and len(self._values) > 1:
            _, oldest_value = self._values.popitem(last=False)
            self._total_size -= self.size_of(oldest_value)
        return value

    def __getstate__(self) -> dict[str, Any]:
        """Without the values: another process opens files itself."""
        return {"max_size": self.max_size, "size_of": self.size_of}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


class ParquetCache:
    """A process's open Parquet files and their row groups that were read last."""

    def __init__(self) -> None:
        self.open_files = LRUCache(MAX_OPEN_FILES)
        self.row_groups = LRUCache(CACHE_BYTES, _bytes_of)


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
        return  # neither file: the folder was not made by data build, and may be whole
    for shard_name in read_json(manifest, dict).get("shards", []):
        if not (folder / shard_name).is_file():
            raise InputError(
                f"data: {str(folder / shard_name)!r} is missing, which manifest.json names; run "
                "data build again"
            )


class Shard:
    """A Parquet file with columns prompt, score, reason and image, and perhaps the other ``WORDS``;
    or one of ``sources``, with id and image. Raises InputError that names the file and, where a row
    is wrong, the row (from 1 on)."""

    def __init__(
        self, path: Path, parquet_cache: ParquetCache, needed: tuple[str, ...] = NEEDED_COLUMNS
    ):
        self.path, self._parquet_cache = path, parquet_cache
        with self._reading():
            parquet_file = self._open_file()
            column_names = parquet_file.schema_arrow.names
            metadata = parquet_file.metadata
            group_sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        for name in needed:
            if name not in column_names:
                raise InputError(
                    f"data: {str(path)!r} has no column {name}; it has {', '.join(column_names)}"
                )
        self.word_columns = [name for name in WORDS if name in column_names]
        self.group_starts = np.cumsum([0, *group_sizes])
        """(row groups + 1): the first row of every row group, and the end."""

    @property
    def has_targets(self) -> bool:
        """Whether redraws of its pictures may have targets of their own."""
        return "redraw_target" in self.word_columns

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
                # raises better words for a git-lfs pointer, and for a file that may not be opened
                read_bytes(self.path)
            first_line = str(error).split("\n")[0]
            raise InputError(
                f"data: {str(self.path)!r} cannot be read as Parquet ({first_line}); give a whole "
                "file"
            ) from error

    def _open_file(self) -> Any:
        import pyarrow.parquet as pq

        # A picture is read alone: nothing is read ahead, and pages come from the system's cache.
        return self._parquet_cache.open_files.get(
            self.path, lambda: pq.ParquetFile(self.path, pre_buffer=False, memory_map=True)
        )

    def scan(self) -> Iterator[tuple[Place, Words]]:
        """The words of every row, checked."""
        row_number = 0
        with self._reading():
            # The column "image" is not among them, so no picture is read.
            batches = self._open_file().iter_batches(
                8192, columns=self.word_columns, use_threads=False
            )
            for batch in batches:
                columns = [batch[name].to_pylist() for name in self.word_columns]
                for values in zip(*columns, strict=True):
                    place = Place(row_number)
                    row = dict(zip(self.word_columns, values, strict=True))
                    yield place, self._checked(row, place)
                    row_number += 1

    def _checked(self, row: dict[str, Any], place: Place) -> Words:
        for name in ("prompt", "reason", "source_id", "redraw_target"):
            value = row.get(name)
            if not isinstance(value, str) and (value is not None or name == "prompt"):
                raise InputError(
                    f"{name}: it is {value!r} in {self.where(place)}; it must be a text"
                )
        if not row["prompt"].strip():
            raise InputError(
                f"prompt: it is empty in {self.where(place)}; say what the picture should show"
            )
        return Words(
            id=str(row.get("id") or place.at),
            prompt=row["prompt"],
            score=checked_score(row, "score", self.where, place),
            reason=row["reason"],
            source=row.get("source_id"),
            following=checked_score(row, "following", self.where, place),
            preserving=checked_score(row, "preserving", self.where, place),
            redraw_target=row.get("redraw_target"),
        )

    def _row(self, place: Place, columns: list[str]) -> dict[str, Any]:
        """Columns of one row. Its row group is read and kept, or where that is large read in pieces
        up to the row."""
        group = int(np.searchsorted(self.group_starts, place.at, side="right")) - 1
        row_in_group = place.at - int(self.group_starts[group])
        with self._reading():
            parquet_file = self._open_file()
            group_metadata = parquet_file.metadata.row_group(group)
            num_bytes = 0  # of the wanted columns, uncompressed
            for i in range(group_metadata.num_columns):
                column_chunk = group_metadata.column(i)
                # a nested column is stored by its leaves: "image.bytes" belongs to "image"
                if column_chunk.path_in_schema.partition(".")[0] in columns:
                    num_bytes += column_chunk.total_uncompressed_size
            if num_bytes <= CACHE_BYTES // 2:
                table = self._parquet_cache.row_groups.get(
                    (self.path, group, *columns),
                    lambda: parquet_file.read_row_group(group, columns=columns, use_threads=False),
                )
                return {name: table[name][row_in_group].as_py() for name in table.column_names}
            piece_rows = max(1, PIECE_BYTES * group_metadata.num_rows // num_bytes)
            # A page cannot be entered in its middle: the rows before are decoded and dropped.
            pieces = parquet_file.iter_batches(
                piece_rows, row_groups=[group], columns=columns, use_threads=False
            )
            rows_to_skip = row_in_group
            for piece in pieces:
                if rows_to_skip < len(piece):
                    return {name: piece[name][rows_to_skip].as_py() for name in piece.schema.names}
                rows_to_skip -= len(piece)
        raise InputError(
            f"data: {str(self.path)!r} has fewer rows than its footer says; give a whole file"
        )

    def read(self, place: Place) -> Words:
        return self._checked(self._row(place, self.word_columns), place)

    def file_of(self, place: Place) -> bytes:
        """The picture's file. Raises InputError where the row has none."""
        stored_image = self._row(place, ["image"])["image"]
        # datasets' layout is {"bytes": …, "path": …}; others store the bytes themselves
        image_bytes = stored_image.get("bytes") if isinstance(stored_image, dict) else stored_image
        if not isinstance(image_bytes, bytes) or not image_bytes:
            raise InputError(f"image: {self.where(place)} holds no picture; store its file's bytes")
        return image_bytes

    def image(self, place: Place) -> Image.Image:
        return decode_image(self.file_of(place), self.where(place))

    def ids(self) -> list[str]:
        """Of sources: their names, in order."""
        with self._reading():
            table = self._open_file().read(columns=["id"], use_threads=False)
            return table["id"].to_pylist()


def checked_score(
    row: dict[str, Any], name: str, where: Callable[[Place], str], place: Place
) -> float | None:
    """The number from 0 to 1 called ``name``, None where nobody has given one. Raises InputError
    that names it and ``where(place)`` it stands."""
    value = row.get(name)
    if value is None or (type(value) is float and 0 <= value <= 1):  # the usual case, quickly
        return value
    if not finite(value, 0, 1):
        raise InputError(
            f"{name}: it is {value!r} in {where(place)}; it must be a number from 0 to 1, or null"
        )
    return float(value)
