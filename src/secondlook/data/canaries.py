"""Pictures whose verdict is known, by which a judge is checked before it rewards anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from secondlook.data import miniature
from secondlook.data.overlap import normal
from secondlook.files import (
    beside,
    finite,
    read_image,
    read_parquet,
    read_rows,
    text_field,
    writable_folder,
    write_bytes,
    write_text,
)
from secondlook.report import embed, page
from secondlook.types import InputError, Prompt

Pair = tuple[Prompt, Image.Image]
"""A prompt (with a source: an instruction) and a picture."""


def of_the_world(seed: int, kinds: dict[str, float] = miniature.KINDS, n: int = 16) -> tuple[list[Pair], list[Pair]]:
    """``n`` pictures that satisfy their prompts, of ``kinds``, and a near miss of each."""
    wishes = miniature.wishes(np.random.default_rng(seed), n, kinds)
    rng = np.random.default_rng(seed)
    bad = [
        miniature.wrong_edits(rng, w, 1)[0] if isinstance(w, miniature.EditPicture) else miniature.wrong(rng, w, 1)[0][0]
        for w in wishes
    ]
    return [(w.prompt, w.image) for w in wishes], [(w.prompt, image) for w, image in zip(wishes, bad, strict=True)]


def choose(data: Path, out: Path, n: int = 16, sure: float = 0.95, seed: int = 0) -> Path:
    """Write canaries of a folder of ``data build`` to the folder ``out`` (canaries.jsonl, their pictures, canaries.html to look
    at): ``n`` pictures that its judge was sure of, each with its own prompt (good) and with one that shares no word (bad). Of
    an edit the bad picture is the source itself, where nothing was done. Returns the list's path.

    The judge chose the good ones, so a person has to look: a judge that is wrong on all of them would pass its own check.
    Raises InputError where the folder has fewer.
    """
    rows, sources = sure_rows(data, sure)
    rng = np.random.default_rng(seed)
    rows = [rows[i] for i in rng.permutation(len(rows))]
    by_prompt = {(row["prompt"], row["source_id"]): row for row in rows}  # one of each
    chosen = list(by_prompt.values())[:n]
    if len(chosen) < n:
        raise InputError(f"canaries: {data} has {len(chosen)} prompts with a picture of score {sure} and more; {n} are needed")
    prompts = list(dict.fromkeys(row["prompt"] for row in rows))
    lines: list[dict[str, Any]] = []
    writable_folder(out)
    for i, row in enumerate(chosen):
        good = {"prompt": row["prompt"], "image": f"{i:03d}.png", "good": True}
        write_bytes(out / good["image"], row["image"]["bytes"])
        if row["source_id"]:
            source = f"{i:03d}-source.png"
            write_bytes(out / source, sources[row["source_id"]])
            good |= {"source": source}
            lines += [good, good | {"image": source, "good": False}]
        else:
            other = next((p for p in prompts if not _words(p) & _words(row["prompt"])), None)
            if other is None:
                raise InputError(f"canaries: every prompt of {data} shares a word with {row['prompt']!r}; give more prompts")
            lines += [good, good | {"prompt": other, "good": False}]
    write_text(out / "canaries.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    shown = [line | {"src": embed(read_image(out / line["image"]))} for line in lines]
    write_text(out / "canaries.html", page("canaries.html", lines=shown))
    return out / "canaries.jsonl"


def _words(prompt: str) -> set[str]:
    return set(normal(prompt).split()) - {"photo", "of", "and", "in", "on", "is", "to", "with"}


def sure_rows(data: Path, sure: float) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """Rows of pictures that scored ``sure`` and more, and the sources' files by name. Raises InputError."""
    shards = sorted(data.glob("images-*.parquet"))
    if not shards:
        raise InputError(f"data: {str(data)!r} holds no images-*.parquet; run data build first")
    rows = []
    for path in shards:
        for row in read_parquet(path, ["prompt", "score", "source_id", "image"]).to_pylist():
            if finite(row["score"], sure, 1):
                rows.append(row)
    stored = [row for path in sorted(data.glob("sources-*.parquet")) for row in read_parquet(path).to_pylist()]
    return rows, {row["id"]: row["image"]["bytes"] for row in stored}


def read(path: str | Path) -> tuple[list[Pair], list[Pair]]:
    """Good and bad pairs of a JSONL file whose lines are {"prompt": …, "image": path beside the file, "good": true or
    false}, for edits with the "source" as well.

    Raises InputError that names the line and what is wrong with it, or when one of the two kinds is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"config: canaries is {str(path)!r}, which is not a file; give a JSONL of prompt, image and good")
    found: dict[bool, list[Pair]] = {True: [], False: []}
    for number, row in read_rows(path):
        where = f"line {number} of {path}"
        prompt, image = text_field(row, "prompt", where), text_field(row, "image", where)
        source = text_field(row, "source", where) if row.get("source") is not None else None
        good = row.get("good")
        if not isinstance(good, bool):
            raise InputError(f"canaries: good is {good!r} in {where}; it must be true or false")
        try:
            of = read_image(beside(path, source)) if source else None
            found[good].append((Prompt(prompt, of), read_image(beside(path, image))))
        except InputError as error:
            raise InputError(f"canaries: {where}: {error}") from error
    for good, pairs in found.items():
        if not pairs:
            raise InputError(f"config: canaries: {path} has no line with good = {str(good).lower()}; give some of both")
    return found[True], found[False]
