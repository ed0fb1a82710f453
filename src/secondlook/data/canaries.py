"""Pictures whose verdict is known, by which a judge is checked before it rewards anything."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from secondlook.data import miniature
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


def read(path: str | Path) -> tuple[list[Pair], list[Pair]]:
    """Good and bad pairs of a JSONL file whose lines are {"prompt": …, "image": path beside the file, "good": true or
    false}, for edits with the "source" as well.

    Raises InputError that names the line and what is wrong with it, or when one of the two kinds is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"config: canaries is {str(path)!r}, which is not a file; give a JSONL of prompt, image and good")
    found: dict[bool, list[Pair]] = {True: [], False: []}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            prompt, image, good, source = row["prompt"], row["image"], row["good"], row.get("source")
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"config: canaries, line {number} of {path} is not an object with prompt, image and good"
            ) from error
        if not isinstance(good, bool):
            raise InputError(f"config: canaries, line {number} of {path}: good is {good!r}; it must be true or false")
        try:
            of = Image.open(path.parent / source).convert("RGB") if source else None
            found[good].append((Prompt(prompt, of), Image.open(path.parent / image).convert("RGB")))
        except OSError as error:
            raise InputError(f"config: canaries, line {number} of {path}: image {image!r} cannot be read ({error})") from error
    for good, pairs in found.items():
        if not pairs:
            raise InputError(f"config: canaries: {path} has no line with good = {str(good).lower()}; give some of both")
    return found[True], found[False]
