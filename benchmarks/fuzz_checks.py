"""Independent readings of files: what is wrong with what the package read of them, or "" where
nothing is."""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
import tomllib
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import pyarrow.parquet as pq
from PIL import Image, ImageOps

from secondlook.data.sft_dataset import Pool


def text_of(data: bytes) -> str:
    """As a reader of Unicode text has it, by its mark."""
    marks = {
        codecs.BOM_UTF8: "utf-8-sig",
        codecs.BOM_UTF32_LE: "utf-32",
        codecs.BOM_UTF32_BE: "utf-32",
    }
    marks |= {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
    return data.decode(next((e for mark, e in marks.items() if data.startswith(mark)), "utf-8"))


def lines_of(data: bytes) -> list[str]:
    return [
        line.strip(" \t\r\f\v") for line in text_of(data).split("\n") if line.strip(" \t\r\f\v")
    ]


def rows_of(data: bytes) -> list[dict]:
    return [json.loads(line) for line in lines_of(data)]


def differ(what: str, found: Any, wanted: Any) -> str:
    return (
        ""
        if found == wanted
        else f"{what}: read {str(found)[:150]}, where the file says {str(wanted)[:150]}"
    )


def picture(data: bytes, found: Image.Image) -> str:
    with Image.open(io.BytesIO(data)) as image:
        size = ImageOps.exif_transpose(image).size
    return differ("size", (found.mode, found.size), ("RGB", size))


def prompts_text(data: bytes, found: list) -> str:
    return differ("prompts", [line.text for line in found], lines_of(data))


def prompts_rows(data: bytes, found: list) -> str:
    return differ(
        "prompts", [line.text for line in found], [row["prompt"].strip() for row in rows_of(data)]
    )


def pairs_rows(data: bytes, found: list) -> str:
    wanted = [(row["prompt"].strip(), row.get("good")) for row in rows_of(data)]
    return differ("pairs", [(p.prompt, p.good) for p in found], wanted)


def pairs_parquet(data: bytes, found: list) -> str:
    rows = pq.read_table(io.BytesIO(data)).to_pylist()
    return differ(
        "pairs",
        [(p.prompt, p.good) for p in found],
        [(r["prompt"].strip(), r.get("good")) for r in rows],
    )


def sanity_rows(data: bytes, found: tuple[list, list]) -> str:
    wanted = [
        [r["prompt"].strip() for r in rows_of(data) if r["good"] is good] for good in (True, False)
    ]
    return differ("sanity pairs", [[prompt.text for prompt, _ in part] for part in found], wanted)


def each_row_is_used(kind: str) -> Callable[[bytes, Any], str]:
    """A row without a prompt is named, never left out."""

    def check(data: bytes, found: list[str]) -> str:
        if kind == "jsonl":
            rows: list[Any] = rows_of(data)
        elif kind == "json":
            said = json.loads(text_of(data))
            rows = list(said.values()) if isinstance(said, dict) else said
        elif kind == "txt":
            return differ(
                "prompts", found, [line.split("\t")[0].strip() for line in lines_of(data)]
            )
        else:
            delimiter = "\t" if kind == "tsv" else ","
            rows = list(csv.DictReader(io.StringIO(text_of(data), newline=""), delimiter=delimiter))
        names = ("prompt", "text", "caption", "Prompt")
        wanted = [
            next(
                (row[n] for n in names if isinstance(row, dict) and isinstance(row.get(n), str)),
                row,
            )
            for row in rows
        ]
        return differ("prompts", found, wanted)

    return check


def config_values(data: bytes, found: Any) -> str:
    for name, value in tomllib.loads(text_of(data)).items():
        own = getattr(found, name)
        if is_dataclass(own) or (isinstance(value, list) and value and isinstance(value[0], dict)):
            continue
        if isinstance(value, list):
            own, value = list(own), list(value)
        if isinstance(own, float):
            value = float(value)
        if wrong := differ(name, own, value):
            return wrong
    bad = [
        f.name
        for f in fields(found)
        if isinstance(v := getattr(found, f.name), float) and not math.isfinite(v)
    ]
    return f"{bad[0]} is no finite number" if bad else ""


def published_rows(data: bytes, found: Pool) -> str:
    wanted = [(row["prompt"], picture["prob"]) for row in rows_of(data) for picture in row["data"]]
    return differ("pictures", [(r["prompt"], r["score"]) for r in found.rows], wanted)


def shard_rows(data: bytes, found: Pool) -> str:
    wanted = [(r["prompt"], r["score"]) for r in pq.read_table(io.BytesIO(data)).to_pylist()]
    return differ("pictures", [(r["prompt"], r["score"]) for r in found.rows], wanted)
