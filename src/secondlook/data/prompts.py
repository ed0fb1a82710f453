"""Where a job's prompts come from: a file, or the miniature's world."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from secondlook.data import miniature
from secondlook.files import read_image
from secondlook.types import InputError, Prompt


class Prompts:
    """Prompts of a text file with one a line; of a JSONL file whose lines are {"prompt": …} or, for edits, {"prompt": the
    instruction, "source": a picture's path beside the file}; or (``path`` empty) of the miniature's world, held-out
    compositions excluded, their kinds in the shares ``kinds``."""

    def __init__(self, path: str = "", kinds: dict[str, float] = miniature.KINDS):
        self.kinds = kinds
        self.lines: list[tuple[str, Path | None]] = []
        """Texts with the sources' paths."""
        if path:
            if not Path(path).is_file():
                raise InputError(
                    f"config: prompts is {path!r}, which is not a file; give a text file, one prompt a line, or a .jsonl"
                )
            lines = [(n, line.strip()) for n, line in enumerate(Path(path).read_text().splitlines(), 1) if line.strip()]
            self.lines = [_stated(Path(path), n, line) if path.endswith(".jsonl") else (line, None) for n, line in lines]
            if not self.lines:
                raise InputError(f"config: prompts is {path!r}, which holds no prompt; write one a line")

    def get(self, index: int) -> Prompt:
        """A file's prompt."""
        text, source = self.lines[index]
        return Prompt(text, read_image(source) if source else None)

    def draw(self, rng: np.random.Generator, n: int) -> list[Prompt]:
        """``n`` prompts."""
        if self.lines:
            return [self.get(i) for i in rng.integers(len(self.lines), size=n).tolist()]
        return [p.prompt for p in miniature.wishes(rng, n, self.kinds)]


def _stated(path: Path, number: int, line: str) -> tuple[str, Path | None]:
    try:
        row = json.loads(line)
        text, source = row["prompt"].strip(), row.get("source")
        if not text:
            raise ValueError("the prompt is empty")
        return text, path.parent / source if source else None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"config: prompts, line {number} of {path} is not an object with prompt and perhaps source ({error})"
        ) from error
