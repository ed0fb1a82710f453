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
from secondlook.data.stored_images import ParquetCache, Place, Shard
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
    in_order = sure_rows(data, sure)
    sure_pictures = [in_order[i] for i in np.random.default_rng(seed).permutation(len(in_order))]
    # One picture of each prompt: the last one met, at the place of the first.
    one_of_prompt = {(picture.prompt, picture.source_id): picture for picture in sure_pictures}
    chosen = list(one_of_prompt.values())[:n]
    if len(chosen) < n:
        raise InputError(
            f"sanity pairs: {data} has {len(chosen)} prompts with a picture of score {sure} and "
            f"more; {n} are needed"
        )
    has_edits = any(picture.source_id for picture in chosen)
    read_source = source_files(data) if has_edits else {}
    prompts = list(dict.fromkeys(picture.prompt for picture in sure_pictures))  # each once
    lines: list[dict[str, Any]] = []
    writable_folder(out)
    for i, picture in enumerate(chosen):
        image_name = f"{i:03d}.png"
        # a line is {"prompt", "image", "good"} and for an edit "source", as sanity_pairs reads it
        good_line: dict[str, Any] = {"prompt": picture.prompt, "image": image_name, "good": True}
        write_bytes(out / image_name, picture.file())
        if picture.source_id:
            source_name = f"{i:03d}-source.png"
            write_bytes(out / source_name, read_source[picture.source_id]())
            good_line["source"] = source_name
            # the source as it was: the instruction was not followed
            bad_line = good_line | {"image": source_name, "good": False}
        else:
            bad_line = good_line | {"prompt": _other_prompt(picture, prompts, data), "good": False}
        lines += [good_line, bad_line]
    list_path = out / "sanity_pairs.jsonl"
    write_text(list_path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    page_rows = [line | {"src": embed(read_image(out / line["image"]))} for line in lines]
    write_text(out / "sanity_pairs.html", page("sanity_pairs.html", lines=page_rows))
    return list_path


def _other_prompt(picture: SurePicture, prompts: list[str], data: Path) -> str:
    """The first prompt that shares no word with the picture's own. Raises InputError."""
    for prompt in prompts:
        if not _words(prompt) & _words(picture.prompt):
            return prompt
    raise InputError(
        f"sanity pairs: every prompt of {data} shares a word with {picture.prompt!r}; give "
        "more prompts"
    )


def _words(prompt: str) -> set[str]:
    """A prompt's words that stand for what is seen."""
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
    parquet_cache = ParquetCache()  # one for all shards: it bounds how many are held open
    sure_pictures = []
    for path in shards:
        shard = Shard(path, parquet_cache)
        for place, words in shard.scan():
            if words.score is not None and words.score >= sure:  # None: no answer of the judge
                # of thousands only a few are chosen: their files are read then
                read_file = partial(shard.file_of, place)
                sure_pictures.append(SurePicture(words.prompt, words.source, read_file))
    return sure_pictures


def source_files(data: Path) -> dict[str, Callable[[], bytes]]:
    """Readers of the pictures that a build's edits are edits of, by their names."""
    parquet_cache = ParquetCache()
    read_source: dict[str, Callable[[], bytes]] = {}
    for path in sorted(data.glob("sources-*.parquet")):
        shard = Shard(path, parquet_cache, ("id", "image"))
        for row_number, source_id in enumerate(shard.ids()):
            read_source[source_id] = partial(shard.file_of, Place(row_number))
    return read_source
