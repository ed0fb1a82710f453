"""Sanity pairs chosen from a build: pictures whose verdict is known, to check a reward with."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from secondlook.data.decontaminate import normal
from secondlook.data.stored_images import Kept, Place, Shard
from secondlook.errors import InputError
from secondlook.io import (
    read_image,
    writable_folder,
    write_bytes,
    write_text,
)
from secondlook.report import embed, page


def choose(data: Path, out: Path, n: int = 16, sure: float = 0.95, seed: int = 0) -> Path:
    """Write sanity pairs of a folder of ``data build`` to the folder ``out`` (sanity_pairs.jsonl,
    their pictures, sanity_pairs.html to look at).

    They are ``n`` pictures that its judge was sure of, each with its own prompt (good) and with one
    that shares no word (bad). Of an edit the bad picture is the source itself, where nothing was
    done. Returns the list's path.

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
            f"sanity pairs: {data} has {len(chosen)} prompts with a picture of score {sure} and "
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
                    f"sanity pairs: every prompt of {data} shares a word with {row.prompt!r}; give "
                    "more prompts"
                )
            lines += [good, good | {"prompt": other, "good": False}]
    write_text(
        out / "sanity_pairs.jsonl",
        "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines),
    )
    shown = [line | {"src": embed(read_image(out / line["image"]))} for line in lines]
    write_text(out / "sanity_pairs.html", page("sanity_pairs.html", lines=shown))
    return out / "sanity_pairs.jsonl"


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
