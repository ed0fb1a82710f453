"""Sanity pairs: pictures whose verdict is known, by which a reward is checked before it rewards
anything."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from secondlook import registry
from secondlook.errors import InputError
from secondlook.io import beside, read_image, read_rows, text_field
from secondlook.types import Prompt

Pair = tuple[Prompt, Image.Image]
"""A prompt (with a source: an instruction) and a picture."""
SanityPairs = tuple[list[Pair], list[Pair]]
"""Good pairs and bad ones: every good one should score higher than every bad one."""


def open_sanity_pairs(
    sanity_pairs: str | None, prompts: str, seed: int, prompt_options: Mapping[str, Any]
) -> SanityPairs | None:
    """The pairs of a registered name, else of a file; None for "".

    Where ``sanity_pairs`` is None they are those registered under the name of the job's
    ``prompts``, or None where there are none.

    A registered function is called as ``(seed, prompt_options)``. Raises InputError.
    """
    name = prompts if sanity_pairs is None else sanity_pairs
    if name in registry.sanity_pairs.names():
        good, bad = registry.sanity_pairs.get(name)(seed, dict(prompt_options))
        if not good or not bad:
            raise InputError(
                f"config: sanity_pairs: {name!r} gave {len(good)} good pairs and {len(bad)} bad "
                "ones; some of both are needed"
            )
        return good, bad
    return read_sanity_pairs(sanity_pairs) if sanity_pairs else None


def read_sanity_pairs(path: str | Path) -> SanityPairs:
    """Good and bad pairs of a JSONL file whose lines are {"prompt": …, "image": path beside the
    file, "good": true or false}, for edits with the "source" as well.

    Raises InputError that names the line and what is wrong with it, or when one of the two kinds is
    missing.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"config: sanity_pairs is {str(path)!r}, which is not a file; give a JSONL of prompt, "
            "image and good, or a registered name of "
            f"{', '.join(registry.sanity_pairs.names())}"
        )
    found: dict[bool, list[Pair]] = {True: [], False: []}
    for number, row in read_rows(path):
        where = f"line {number} of {path}"
        prompt, image = text_field(row, "prompt", where), text_field(row, "image", where)
        source = text_field(row, "source", where) if row.get("source") is not None else None
        good = row.get("good")
        if not isinstance(good, bool):
            raise InputError(f"sanity_pairs: good is {good!r} in {where}; it must be true or false")
        try:
            of = read_image(beside(path, source)) if source else None
            found[good].append((Prompt(prompt, of), read_image(beside(path, image))))
        except InputError as error:
            raise InputError(f"sanity_pairs: {where}: {error}") from error
    for good, pairs in found.items():
        if not pairs:
            raise InputError(
                f"config: sanity_pairs: {path} has no line with good = {str(good).lower()}; give "
                "some of both"
            )
    return found[True], found[False]
