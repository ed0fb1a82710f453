"""What a reward is: a score in [0, 1] for a picture of a prompt, or nothing when it could not be had."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL.Image import Image

from secondlook.types import InputError


@dataclass(frozen=True)
class Score:
    """How well a picture matches its prompt."""

    value: float
    """S in [0, 1]."""
    correct: bool
    """The judge's yes."""
    reason: str
    """One sentence without a verdict: "there is a red star but no blue cat"."""

    @property
    def answer(self) -> str:
        """ "No, there is a red star but no blue cat." """
        return f"{'Yes' if self.correct else 'No'}, {self.reason}."


class Reward(Protocol):
    """A judge of pictures. A call that failed gives None: missing, never 0."""

    def __call__(self, items: Sequence[tuple[str, Image]]) -> list[Score | None]:
        """One score for each (prompt, picture)."""
        ...


class Weighted:
    """A weighted mean of several judges. What one of them misses is missing; the reason is the heaviest judge's."""

    def __init__(self, parts: Sequence[tuple[float, Reward]]):
        if not parts or any(weight <= 0 for weight, _ in parts):
            raise InputError(f"judge: a weight is {min((w for w, _ in parts), default=0)}; each must be above 0")
        self.parts = sorted(parts, key=lambda part: -part[0])

    def __call__(self, items: Sequence[tuple[str, Image]]) -> list[Score | None]:
        total = sum(weight for weight, _ in self.parts)
        found: list[Score | None] = []
        for scores in zip(*(judge(items) for _, judge in self.parts), strict=True):
            known = [s for s in scores if s is not None]
            if len(known) < len(scores):
                found.append(None)
                continue
            value = sum(w * s.value for (w, _), s in zip(self.parts, known, strict=True)) / total
            found.append(Score(value, value >= 0.5, known[0].reason))
        return found
