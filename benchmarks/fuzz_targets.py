"""Whole files of every kind, what reads each of them, and what says whether what was read is right
(``fuzz_checks``). Pictures and lists are here, the others in ``fuzz_jobs`` and
``fuzz_checkpoints``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from fuzz_checkpoints import checkpoint_targets
from fuzz_checks import (
    each_row_is_used,
    pairs_parquet,
    pairs_rows,
    picture,
    prompts_rows,
    prompts_text,
    sanity_rows,
)
from fuzz_jobs import own_targets, training_targets
from fuzz_target import TEXT, Target, in_folder, odd_parquet, write_lines
from secondlook.data import decontaminate
from secondlook.data.labelled_images import read_pairs
from secondlook.data.prompts import read_prompts
from secondlook.data.sanity_pairs import read_sanity_pairs
from secondlook.errors import InputError
from secondlook.io import read_image

ORIENTATION = 0x0112
"""EXIF's tag; 6: the picture is to be turned by 90 degrees."""
JSON_LINES_OF_KIND = {"txt": None, "jsonl": True, "json": False, "csv": None, "tsv": None}


def targets(home: Path) -> list[Target]:
    """All of them, their whole files written under ``home``. A case is known by its target and
    number, and how many cases each target has depends on this order."""
    return [
        *_pictures(home),
        *_lists(home),
        *training_targets(home),
        *checkpoint_targets(home),
        *own_targets(home),
    ]


def reader_of(name: str, read: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """Reads the file ``name`` of a folder."""
    return lambda folder: read(folder / name)


def _pictures(home: Path) -> list[Target]:
    gradient = Image.radial_gradient("L").resize((40, 30))
    image_of_name = {
        "a.png": gradient.convert("RGB"),
        "a.jpg": gradient.convert("RGB"),
        "a.webp": gradient.convert("RGBA"),
        "a.gif": gradient,
        "a.tif": gradient.convert("I;16"),
        "p.png": gradient.convert("P"),
    }
    picture_targets = []
    for name, image in image_of_name.items():
        folder = in_folder(home / f"pictures-{name}", {})
        if name == "a.jpg":
            exif = Image.Exif()
            exif[ORIENTATION] = 6
            image.save(folder / name, exif=exif)
        else:
            image.save(folder / name)
        picture_targets.append(
            Target(f"pictures/{name}", folder, name, reader_of(name, read_image), picture)
        )
    return picture_targets


def open_pairs(path: Path) -> list:
    """Pairs with their pictures; one that cannot be read is named when it is opened."""
    pairs = read_pairs(path)
    for pair in pairs:
        try:
            pair.open()
            pair.asked()
        except InputError as error:
            if "\n" in str(error):  # it is not one sentence
                raise
    return pairs


def _lists(home: Path) -> list[Target]:
    """Prompts in every layout, and pairs of a picture and a prompt."""
    folder = in_folder(home / "lists", {"right.png": "red", "wrong.png": "blue"})
    _write_prompts(folder)
    columns = _write_pairs(folder)
    list_targets = [
        # read_prompts is looked up when it is called: a test puts another one in its place
        Target(
            "prompts/prompts.txt",
            folder,
            "prompts.txt",
            lambda folder: read_prompts(folder / "prompts.txt"),
            prompts_text,
        ),
        Target(
            "prompts/prompts.jsonl",
            folder,
            "prompts.jsonl",
            lambda folder: read_prompts(folder / "prompts.jsonl"),
            prompts_rows,
            json_lines=True,
        ),
        Target(
            "pairs/pairs.jsonl",
            folder,
            "pairs.jsonl",
            reader_of("pairs.jsonl", open_pairs),
            pairs_rows,
            json_lines=True,
        ),
        Target(
            "pairs/pairs.parquet",
            folder,
            "pairs.parquet",
            reader_of("pairs.parquet", open_pairs),
            pairs_parquet,
            rebuilt=odd_parquet(columns),
        ),
        Target(
            "sanity/pairs.jsonl",
            folder,
            "pairs.jsonl",
            reader_of("pairs.jsonl", read_sanity_pairs),
            sanity_rows,
            json_lines=True,
        ),
    ]
    for suffix, json_lines in JSON_LINES_OF_KIND.items():
        name = f"prompts.{suffix}"
        list_targets.append(
            Target(
                f"overlap/{name}",
                folder,
                name,
                reader_of(name, decontaminate.read),
                each_row_is_used(suffix),
                json_lines,
            )
        )
    return list_targets


def _write_prompts(folder: Path) -> None:
    tab_lines, comma_lines, rows = ["prompt\tn\n"], ["prompt,n\n"], []
    for number, prompt in enumerate(TEXT):
        tab_lines.append(f"{prompt}\t{number}\n")
        comma_lines.append(f'"{prompt}",{number}\n')
        rows.append({"prompt": prompt, "n": number})
    text_of_file = {
        "prompts.txt": "\n".join(TEXT) + "\n",
        "prompts.tsv": "".join(tab_lines),
        "prompts.csv": "".join(comma_lines),
        "prompts.json": json.dumps(rows, ensure_ascii=False),
    }
    for name, text in text_of_file.items():
        (folder / name).write_text(text, encoding="utf-8")
    edit_rows = [{"prompt": prompt, "source": "right.png"} for prompt in TEXT]
    write_lines(folder / "prompts.jsonl", edit_rows)


def _write_pairs(folder: Path) -> dict[str, list]:
    """As JSON lines with the pictures' names, and as Parquet with their bytes, whose columns are
    returned."""
    rows = []
    columns: dict[str, list] = {"image": [], "prompt": [], "good": []}
    for prompt, good in zip(TEXT, (True, False, True), strict=True):
        image_name = "right.png" if good else "wrong.png"
        rows.append({"image": image_name, "prompt": prompt, "good": good})
        columns["image"].append((folder / image_name).read_bytes())
        columns["prompt"].append(prompt)
        columns["good"].append(good)
    write_lines(folder / "pairs.jsonl", rows)
    pq.write_table(pa.table(columns), folder / "pairs.parquet")
    return columns
