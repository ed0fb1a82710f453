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
    name = prompts if sanity_pairs is None else sanity_pairs  # "" is no registered name
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
    good_pairs: list[Pair] = []
    bad_pairs: list[Pair] = []
    for number, row in read_rows(path):
        where = f"line {number} of {path}"
        prompt_text = text_field(row, "prompt", where)
        image_name = text_field(row, "image", where)
        has_source = row.get("source") is not None
        source_name = text_field(row, "source", where) if has_source else None
        is_good = row.get("good")
        if not isinstance(is_good, bool):
            raise InputError(
                f"sanity_pairs: good is {is_good!r} in {where}; it must be true or false"
            )
        # read here: the run begins with a reward's scores of all of them
        try:
            source_image = read_image(beside(path, source_name)) if source_name else None
            image = read_image(beside(path, image_name))
        except InputError as error:
            raise InputError(f"sanity_pairs: {where}: {error}") from error
        pair = (Prompt(prompt_text, source_image), image)
        if is_good:
            good_pairs.append(pair)
        else:
            bad_pairs.append(pair)
    if not good_pairs or not bad_pairs:
        missing_label = "false" if good_pairs else "true"
        raise InputError(
            f"config: sanity_pairs: {path} has no line with good = {missing_label}; give some of "
            "both"
        )
    return good_pairs, bad_pairs
