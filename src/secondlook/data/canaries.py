"""Pictures whose verdict is known, by which a judge is checked before it rewards anything."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from secondlook.data import miniature
from secondlook.files import beside, read_image, read_rows, text_field
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
