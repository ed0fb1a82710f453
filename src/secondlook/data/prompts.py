"""Where a job's prompts come from: a text file, or the miniature's world."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from secondlook.data import miniature
from secondlook.types import InputError


class Prompts:
    """Prompts of a file with one a line, or (``path`` empty) of the miniature's world, held-out compositions excluded, their
    kinds in the shares ``kinds``."""

    def __init__(self, path: str = "", kinds: dict[str, float] = miniature.KINDS):
        self.lines: list[str] = []
        self.kinds = kinds
        if path:
            if not Path(path).is_file():
                raise InputError(f"config: prompts is {path!r}, which is not a file; give a text file, one prompt a line")
            self.lines = [line.strip() for line in Path(path).read_text().splitlines() if line.strip()]
            if not self.lines:
                raise InputError(f"config: prompts is {path!r}, which holds no prompt; write one a line")

    def draw(self, rng: np.random.Generator, n: int) -> list[str]:
        """``n`` prompts."""
        if self.lines:
            return [self.lines[i] for i in rng.integers(len(self.lines), size=n)]
        return [p.spec.prompt for p in miniature.pictures(rng, n, kinds=self.kinds)]
