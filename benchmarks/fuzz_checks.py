"""Independent readings of files: what is wrong with what the package read of them, or "" where
nothing is."""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from typing import Any

import pyarrow.parquet as pq
from PIL import Image, ImageOps

from secondlook.data.sft_dataset import Pool

ENCODING_OF_MARK = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before that of UTF-16, with which it begins
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def text_of(data: bytes) -> str:
    """As a reader of Unicode text has it, by its byte order mark; without one UTF-8."""
    for mark, encoding in ENCODING_OF_MARK.items():
        if data.startswith(mark):
            return data.decode(encoding)
    return data.decode("utf-8")


def lines_of(data: bytes) -> list[str]:
    """Lines that are not blank, without the blanks around them."""
    stripped_lines = [line.strip(" \t\r\f\v") for line in text_of(data).split("\n")]
    return [line for line in stripped_lines if line]


def rows_of(data: bytes) -> list[dict]:
    return [json.loads(line) for line in lines_of(data)]


def parquet_rows(data: bytes) -> list[dict]:
    return pq.read_table(io.BytesIO(data)).to_pylist()


def differ(what: str, read: Any, wanted: Any) -> str:
    """ "" where what was read is what the file says."""
    if read == wanted:
        return ""
    return f"{what}: read {str(read)[:150]}, where the file says {str(wanted)[:150]}"


def picture(data: bytes, read_image: Image.Image) -> str:
    with Image.open(io.BytesIO(data)) as image:
        size = ImageOps.exif_transpose(image).size
    return differ("size", (read_image.mode, read_image.size), ("RGB", size))


def prompts_text(data: bytes, lines: list) -> str:
    return differ("prompts", [line.text for line in lines], lines_of(data))


def prompts_rows(data: bytes, lines: list) -> str:
    wanted_texts = [row["prompt"].strip() for row in rows_of(data)]
    return differ("prompts", [line.text for line in lines], wanted_texts)


def pairs_rows(data: bytes, pairs: list) -> str:
    return _differing_pairs(pairs, rows_of(data))


def pairs_parquet(data: bytes, pairs: list) -> str:
    return _differing_pairs(pairs, parquet_rows(data))


def _differing_pairs(pairs: list, rows: list[dict]) -> str:
    wanted_pairs = [(row["prompt"].strip(), row.get("good")) for row in rows]
    return differ("pairs", [(pair.prompt, pair.good) for pair in pairs], wanted_pairs)


def sanity_rows(data: bytes, good_and_bad: tuple[list, list]) -> str:
    read_texts = []
    for part in good_and_bad:
        read_texts.append([prompt.text for prompt, _ in part])
    wanted_texts: dict[bool, list[str]] = {True: [], False: []}
    for row in rows_of(data):
        if row["good"] is True or row["good"] is False:  # 1 == True is another value
            wanted_texts[row["good"]].append(row["prompt"].strip())
    return differ("sanity pairs", read_texts, list(wanted_texts.values()))


def each_row_is_used(suffix: str) -> Callable[[bytes, Any], str]:
    """Checks the prompts of a file with this suffix. A row without a prompt is named, never left
    out."""

    def check(data: bytes, prompts: list[str]) -> str:
        if suffix == "txt":
            wanted = [line.split("\t")[0].strip() for line in lines_of(data)]
        else:
            wanted = [prompt_of(row) for row in table_rows(data, suffix)]
        return differ("prompts", prompts, wanted)

    return check


def table_rows(data: bytes, suffix: str) -> list[Any]:
    """Rows of a file in JSON, JSON lines, or with commas or tabs."""
    if suffix == "jsonl":
        return rows_of(data)
    if suffix == "json":
        value = json.loads(text_of(data))
        return list(value.values()) if isinstance(value, dict) else value
    delimiter = "\t" if suffix == "tsv" else ","
    return list(csv.DictReader(io.StringIO(text_of(data), newline=""), delimiter=delimiter))


def prompt_of(row: Any) -> Any:
    """A row's prompt; the row itself where it has none."""
    if isinstance(row, dict):
        for name in ("prompt", "text", "caption", "Prompt"):
            if isinstance(row.get(name), str):
                return row[name]
    return row


def config_values(data: bytes, config: Any) -> str:
    """Settings outside of sections, and that no number of them is infinite or NaN."""
    for name, file_value in tomllib.loads(text_of(data)).items():
        value = getattr(config, name)
        is_list = isinstance(file_value, list)
        if is_dataclass(value) or (is_list and file_value and isinstance(file_value[0], dict)):
            continue
        if is_list:
            value = list(value)
        if isinstance(value, float):
            file_value = float(file_value)
        if wrong := differ(name, value, file_value):
            return wrong
    for field in fields(config):
        value = getattr(config, field.name)
        if isinstance(value, float) and not math.isfinite(value):
            return f"{field.name} is no finite number"
    return ""


def published_rows(data: bytes, pool: Pool) -> str:
    wanted = []
    for row in rows_of(data):
        for listed in row["data"]:
            wanted.append((row["prompt"], listed["prob"]))
    return differ("pictures", scored_prompts(pool.rows), wanted)


def shard_rows(data: bytes, pool: Pool) -> str:
    return differ("pictures", scored_prompts(pool.rows), scored_prompts(parquet_rows(data)))


def scored_prompts(rows: Iterable[dict[str, Any]]) -> list[tuple[str, float]]:
    """Prompt and score of each picture."""
    return [(row["prompt"], row["score"]) for row in rows]
