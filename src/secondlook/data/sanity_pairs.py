"""Pictures whose verdict is known, by which a judge is checked before it rewards anything."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from secondlook.data.decontaminate import normal
from secondlook.data.stored_images import Kept, Place, Shard
from secondlook.errors import InputError
from secondlook.io import (
    beside,
    read_image,
    read_rows,
    text_field,
    writable_folder,
    write_bytes,
    write_text,
)
from secondlook.mini import datasets
from secondlook.report import embed, page
from secondlook.types import Prompt

Pair = tuple[Prompt, Image.Image]
"""A prompt (with a source: an instruction) and a picture."""


def of_the_world(
    seed: int, kinds: dict[str, float] = datasets.KINDS, n: int = 16
) -> tuple[list[Pair], list[Pair]]:
    """``n`` pictures that satisfy their prompts, of ``kinds``, and a near miss of each."""
    wishes = datasets.prompts(np.random.default_rng(seed), n, kinds)
    rng = np.random.default_rng(seed)
    bad = [
        datasets.wrong_edits(rng, w, 1)[0]
        if isinstance(w, datasets.EditPicture)
        else datasets.wrong(rng, w, 1)[0][0]
        for w in wishes
    ]
    return [(w.prompt, w.image) for w in wishes], [
        (w.prompt, image) for w, image in zip(wishes, bad, strict=True)
    ]


def choose(data: Path, out: Path, n: int = 16, sure: float = 0.95, seed: int = 0) -> Path:
    """Write canaries of a folder of ``data build`` to the folder ``out`` (canaries.jsonl, their
    pictures, canaries.html to look at): ``n`` pictures that its judge was sure of, each with its
    own prompt (good) and with one that shares no word (bad). Of an edit the bad picture is the
    source itself, where nothing was done. Returns the list's path.

    The judge chose the good ones, so a person has to look: a judge that is wrong on all of them
    would pass its own check. Raises InputError where the folder has fewer.
    """
    rows = sure_rows(data, sure)
    rng = np.random.default_rng(seed)
    rows = [rows[i] for i in rng.permutation(len(rows))]
    chosen = list({(row.prompt, row.source_id): row for row in rows}.values())[
        :n
    ]  # one picture of each
    if len(chosen) < n:
        raise InputError(
            f"canaries: {data} has {len(chosen)} prompts with a picture of score {sure} and "
            f"more; {n} are needed"
        )
    sources = source_files(data) if any(row.source_id for row in chosen) else {}
    prompts = list(dict.fromkeys(row.prompt for row in rows))
    lines: list[dict[str, Any]] = []
    writable_folder(out)
    for i, row in enumerate(chosen):
        image = f"{i:03d}.png"
        good: dict[str, Any] = {"prompt": row.prompt, "image": image, "good": True}
        write_bytes(out / image, row.file())
        if row.source_id:
            source = f"{i:03d}-source.png"
            write_bytes(out / source, sources[row.source_id]())
            good |= {"source": source}
            lines += [good, good | {"image": source, "good": False}]
        else:
            other = next((p for p in prompts if not _words(p) & _words(row.prompt)), None)
            if other is None:
                raise InputError(
                    f"canaries: every prompt of {data} shares a word with {row.prompt!r}; give "
                    "more prompts"
                )
            lines += [good, good | {"prompt": other, "good": False}]
    write_text(
        out / "canaries.jsonl",
        "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines),
    )
    shown = [line | {"src": embed(read_image(out / line["image"]))} for line in lines]
    write_text(out / "canaries.html", page("canaries.html", lines=shown))
    return out / "canaries.jsonl"


def _words(prompt: str) -> set[str]:
    return set(normal(prompt).split()) - {"photo", "of", "and", "in", "on", "is", "to", "with"}


@dataclass(frozen=True)
class SurePicture:
    """A picture of a build that its judge was sure of; ``file`` reads it."""

    prompt: str
    source_id: str | None
    file: Callable[[], bytes]


def sure_rows(data: Path, sure: float) -> list[SurePicture]:
    """Pictures that scored ``sure`` and more; none is read. Raises InputError."""
    shards = sorted(data.glob("images-*.parquet"))
    if not shards:
        raise InputError(f"data: {str(data)!r} holds no images-*.parquet; run data build first")
    kept, found = Kept(), []
    for path in shards:
        shard = Shard(path, kept)
        for place, words in shard.scan():
            if words.score is not None and words.score >= sure:
                found.append(SurePicture(words.prompt, words.source, partial(shard.file_of, place)))
    return found


def source_files(data: Path) -> dict[str, Callable[[], bytes]]:
    """Readers of the pictures that a build's edits are edits of, by their names."""
    kept = Kept()
    found: dict[str, Callable[[], bytes]] = {}
    for path in sorted(data.glob("sources-*.parquet")):
        shard = Shard(path, kept, ("id", "image"))
        found |= {name: partial(shard.file_of, Place(at)) for at, name in enumerate(shard.ids())}
    return found


def read(path: str | Path) -> tuple[list[Pair], list[Pair]]:
    """Good and bad pairs of a JSONL file whose lines are {"prompt": …, "image": path beside the
    file, "good": true or false}, for edits with the "source" as well.

    Raises InputError that names the line and what is wrong with it, or when one of the two kinds is
    missing.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"config: canaries is {str(path)!r}, which is not a file; give a JSONL of prompt, "
            "image and good"
        )
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
            raise InputError(
                f"config: canaries: {path} has no line with good = {str(good).lower()}; give "
                "some of both"
            )
    return found[True], found[False]
