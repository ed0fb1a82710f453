"""Pictures whose verdict is known, by which a judge is checked before it rewards anything."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from secondlook.data import miniature
from secondlook.types import InputError

Pair = tuple[str, Image.Image]
"""A prompt and a picture."""


def of_the_world(seed: int, n: int = 16) -> tuple[list[Pair], list[Pair]]:
    """``n`` pictures that satisfy their prompts, and a near miss of each."""
    pictures = miniature.pictures(np.random.default_rng(seed), n)
    rng = np.random.default_rng(seed)
    bad = [(p.spec.prompt, miniature.wrong(rng, p, 1)[0][0]) for p in pictures]
    return [(p.spec.prompt, p.image) for p in pictures], bad


def read(path: str | Path) -> tuple[list[Pair], list[Pair]]:
    """Good and bad pairs of a JSONL file whose lines are {"prompt": …, "image": path beside the file, "good": true or false}.

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
            prompt, image, good = row["prompt"], row["image"], row["good"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise InputError(
                f"config: canaries, line {number} of {path} is not an object with prompt, image and good"
            ) from error
        if not isinstance(good, bool):
            raise InputError(f"config: canaries, line {number} of {path}: good is {good!r}; it must be true or false")
        try:
            found[good].append((prompt, Image.open(path.parent / image).convert("RGB")))
        except OSError as error:
            raise InputError(f"config: canaries, line {number} of {path}: image {image!r} cannot be read ({error})") from error
    for good, pairs in found.items():
        if not pairs:
            raise InputError(f"config: canaries: {path} has no line with good = {str(good).lower()}; give some of both")
    return found[True], found[False]
