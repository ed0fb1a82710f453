"""What a reward is: a score in [0, 1] for a picture of a prompt, or nothing when it could not be
had."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL.Image import Image

from secondlook.errors import InputError
from secondlook.io import finite
from secondlook.llm.missing import Missing, missing_of
from secondlook.types import Prompt


@dataclass(frozen=True)
class Score:
    """How well a picture matches its prompt."""

    value: float
    """S in [0, 1]."""
    correct: bool
    """The judge's yes."""
    reason: str
    """One sentence without a verdict: "there is a red star but no blue cat"."""
    edit: tuple[float, float] | None = None
    """Of an edit: how well the instruction is followed and the rest preserved, in [0, 1]."""

    @staticmethod
    def of_edit(following: float, preserving: float, correct: bool, reason: str) -> Score:
        """S = (0.5 following + preserving) / 1.5: the paper's reward of an edit, scaled to [0, 1].
        A smaller weight of following makes a model copy the source."""
        return Score((0.5 * following + preserving) / 1.5, correct, reason, (following, preserving))

    @property
    def answer(self) -> str:
        """ "No, there is a red star but no blue cat." """
        return f"{'Yes' if self.correct else 'No'}, {self.reason}."


class Reward(Protocol):
    """A judge of pictures. A call that failed gives None: missing, never 0."""

    def __call__(self, items: Sequence[tuple[str, Image]]) -> list[Score | None]:
        """One score for each (prompt, picture). A judge of edits has a method ``edits`` too; one
        that knows of some prompts that it scores no picture of says so by ``why_not`` (a prompt; ""
        where it may)."""
        ...


Edited = tuple[str, Image, Image]
"""An instruction, a source and an edit of it."""


def score(reward: Reward, items: Sequence[tuple[Prompt, Image]]) -> list[Score | None]:
    """Scores of pictures of prompts and of edits of sources. Raises InputError for edits where the
    judge knows none."""
    drawn = [(p.text, image) for p, image in items if p.source is None]
    edited = [(p.text, p.source, image) for p, image in items if p.source is not None]
    judged = iter(reward(drawn) if drawn else [])
    if not edited:
        return list(judged)
    if not hasattr(reward, "edits"):
        raise InputError(
            f"judge: {type(reward).__name__} cannot judge edits; use another for prompts with a "
            "source"
        )
    judged_edits = iter(reward.edits(edited))
    return [next(judged if p.source is None else judged_edits) for p, _ in items]


def try_out(reward: Reward) -> None:
    """Ask a judge behind an endpoint one trial question, before pictures are drawn for it; other
    judges are not asked.

    Raises InputError where it can answer none, Stopped as its calls do.
    """
    if hasattr(reward, "try_out"):
        reward.try_out()


class Weighted:
    """A weighted mean of several judges. What one of them misses is missing; the reason is the
    heaviest judge's."""

    def __init__(self, parts: Sequence[tuple[float, Reward]]):
        if not parts or any(not finite(weight) or weight <= 0 for weight, _ in parts):
            raise InputError(
                f"judge: a weight is {min((w for w, _ in parts), default=0)}; each must be above 0"
            )
        self.parts = sorted(parts, key=lambda part: -part[0])

    @property
    def missing(self) -> list[Missing]:
        return [m for _, judge in self.parts for m in missing_of(judge)]

    def __call__(self, items: Sequence[tuple[str, Image]]) -> list[Score | None]:
        return [
            self._mean(scores)
            for scores in zip(*(judge(items) for _, judge in self.parts), strict=True)
        ]

    def try_out(self) -> None:
        """``try_out`` of each judge."""
        for _, judge in self.parts:
            try_out(judge)

    def edits(self, items: Sequence[Edited]) -> list[Score | None]:
        """One score for each (instruction, source, edit)."""
        of_each = [
            score(judge, [(Prompt(text, source), image) for text, source, image in items])
            for _, judge in self.parts
        ]
        return [self._mean(scores) for scores in zip(*of_each, strict=True)]

    def _mean(self, scores: Sequence[Score | None]) -> Score | None:
        known = [(w, s) for (w, _), s in zip(self.parts, scores, strict=True) if s is not None]
        if len(known) < len(scores):
            return None
        total, reason = sum(w for w, _ in known), known[0][1].reason
        value = sum(w * s.value for w, s in known) / total
        if any(s.edit is None for _, s in known):
            return Score(value, value >= 0.5, reason)
        following, preserving = (
            sum(w * s.edit[i] for w, s in known if s.edit) / total for i in (0, 1)
        )
        return Score.of_edit(following, preserving, min(following, preserving) >= 0.5, reason)
