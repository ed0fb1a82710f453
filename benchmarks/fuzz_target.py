"""A kind of file that ``fuzz`` spoils, and what the targets of all rooms are made with."""

from __future__ import annotations

import io
import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from secondlook.io import png

TEXT = ["a photo of a red star", "ein Bild von Bäumen 🌲", "two cats, and “quotes”"]
"""Prompts of the whole files."""
ODD_VALUES = (None, 5, math.nan, math.inf, -1.0, 2.0, b"", "", "x", True, ["x"], {"bytes": None})


@dataclass
class Target:
    """A file in a folder, and how the folder is read."""

    name: str
    template: Path
    """The folder with everything that the file needs beside it."""
    file: str
    read: Callable[[Path], Any]
    """The folder, with the file in it, to what is read of it."""
    check: Callable[[bytes, Any], str]
    """The file and what was read of it, to what is wrong with that, or ""."""
    json_lines: bool | None = None
    """It is JSON, of one value (False) or one a line (True)."""
    names: tuple[str, ...] = ()
    """What a refusal may name instead of the file: a setting."""
    rebuilt: Callable[[random.Random], bytes] | None = None
    """A whole file of its kind with other contents."""

    @property
    def data(self) -> bytes:
        return (self.template / self.file).read_bytes()


def write_lines(path: Path, rows: list[dict]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")


def in_folder(folder: Path, colours: dict[str, str]) -> Path:
    """A new folder with a small picture of one colour for each name."""
    folder.mkdir(parents=True)
    for name, colour in colours.items():
        (folder / name).write_bytes(png(Image.new("RGB", (12, 12), colour)))
    return folder


def odd_parquet(columns: dict[str, list]) -> Callable[[random.Random], bytes]:
    """A Parquet file of these columns, one of which is missing or holds, once or everywhere,
    something else."""

    def build(rng: random.Random) -> bytes:
        table = {name: list(values) for name, values in columns.items()}
        odd_name = rng.choice(list(table))
        num_rows, chance = len(table[odd_name]), rng.random()
        if chance < 0.15:
            del table[odd_name]
        elif chance < 0.6:
            # the row is chosen after the value: cases are known by their random numbers
            odd_value = rng.choice([None, *table[odd_name]])
            table[odd_name][rng.randrange(num_rows)] = odd_value
        else:
            table[odd_name] = [rng.choice(ODD_VALUES)] * num_rows
        buffer = io.BytesIO()
        pq.write_table(pa.table(table), buffer)
        return buffer.getvalue()

    return build
