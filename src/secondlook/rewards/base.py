"""What a reward is: a score in [0, 1] for a picture of a prompt, or nothing when it could not be had."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL.Image import Image


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
