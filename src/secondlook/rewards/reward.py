"""What a reward is: a callable that gives each picture of a prompt a score in [0, 1], or None where
the score could not be had."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import Any, Protocol

from PIL.Image import Image

from secondlook.errors import InputError
from secondlook.io import finite
from secondlook.llm.missing import Missing, missing_of
from secondlook.registry import origin
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
    """One score for each picture, in the order of ``items``, of pictures of prompts and of edits of
    sources. Raises InputError for edits where the judge knows none, and for a judge that returns
    anything else than scores."""
    drawings: list[tuple[str, Image]] = []
    edits: list[Edited] = []
    for prompt, image in items:
        if prompt.source is None:
            drawings.append((prompt.text, image))
        else:
            edits.append((prompt.text, prompt.source, image))
    # one call for each of the two sorts, so that a served judge is asked about all at once
    drawing_scores = iter(_checked_scores(reward, reward, drawings) if drawings else [])
    if not edits:
        return list(drawing_scores)
    if not hasattr(reward, "edits"):
        raise InputError(
            f"judge: {type(reward).__name__} cannot judge edits; use another for prompts with a "
            "source"
        )
    # the scores of both sorts, back in the order of the items
    edit_scores = iter(_checked_scores(reward, reward.edits, edits))
    scores = []
    for prompt, _ in items:
        scores.append(next(drawing_scores if prompt.source is None else edit_scores))
    return scores


def _checked_scores(
    reward: Reward, method: Callable[..., Any], items: Sequence[Any]
) -> list[Score | None]:
    """What a method of a reward returns for these pictures. Raises InputError unless it is one
    Score or None for each."""
    returned = method(items)
    scores = list(returned) if isinstance(returned, Iterable) else [returned]
    are_scores = all(each is None or isinstance(each, Score) for each in scores)
    if not are_scores or len(scores) != len(items):
        raise InputError(
            f"reward: {origin(reward)!r} was given a list of {len(items)} (prompt, image) and "
            f"returned {shorten(repr(returned), 80, placeholder=' …')}; it must return a list of "
            "as many Scores or None; with two parameters, (prompt, image), it is called for each "
            "picture and may return a number"
        )
    return scores


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
        weights = [weight for weight, _ in parts]
        if not parts or not all(finite(weight) and weight > 0 for weight in weights):
            raise InputError(f"judge: a weight is {min(weights, default=0)}; each must be above 0")
        # the heaviest judge first: its reason is told
        self.parts = sorted(parts, key=lambda part: -part[0])

    @property
    def missing(self) -> list[Missing]:
        """Why answers are missing, of all judges."""
        missing_answers: list[Missing] = []
        for _, judge in self.parts:
            missing_answers += missing_of(judge)
        return missing_answers

    def __call__(self, items: Sequence[tuple[str, Image]]) -> list[Score | None]:
        """One score for each (prompt, picture)."""
        return self._mean_scores([_checked_scores(judge, judge, items) for _, judge in self.parts])

    def __getattr__(self, name: str) -> Any:
        """``reason_truths`` of the heaviest judge that checks reasons, where one does."""
        if name == "reason_truths":
            for _, judge in self.__dict__.get("parts", ()):
                if hasattr(judge, name):
                    return judge.reason_truths
        raise AttributeError(name)

    def try_out(self) -> None:
        """``try_out`` of each judge."""
        for _, judge in self.parts:
            try_out(judge)

    def edits(self, items: Sequence[Edited]) -> list[Score | None]:
        """One score for each (instruction, source, edit)."""
        edit_items = [(Prompt(text, source), image) for text, source, image in items]
        return self._mean_scores([score(judge, edit_items) for _, judge in self.parts])

    def _mean_scores(self, scores_of_judges: list[list[Score | None]]) -> list[Score | None]:
        """One score for each picture, from one list of all pictures' scores for each judge."""
        return [self._mean_score(scores) for scores in zip(*scores_of_judges, strict=True)]

    def _mean_score(self, scores: Sequence[Score | None]) -> Score | None:
        """The mean of one picture's scores, one for each judge; None where one is missing."""
        reasons: list[str] = []
        values: list[float] = []
        following_values: list[float] = []
        preserving_values: list[float] = []
        for one_score in scores:
            if one_score is None:
                return None
            reasons.append(one_score.reason)
            values.append(one_score.value)
            if one_score.edit is not None:
                following_values.append(one_score.edit[0])
                preserving_values.append(one_score.edit[1])
        reason = reasons[0]  # the heaviest judge's
        if len(following_values) < len(values):  # a drawing, or a judge that tells S alone
            mean_value = self._weighted_mean(values)
            return Score(mean_value, mean_value >= 0.5, reason)
        following = self._weighted_mean(following_values)
        preserving = self._weighted_mean(preserving_values)
        return Score.of_edit(following, preserving, min(following, preserving) >= 0.5, reason)

    def _weighted_mean(self, values: Sequence[float]) -> float:
        """``values`` are one for each judge."""
        weights = [weight for weight, _ in self.parts]
        weighted = [weight * value for weight, value in zip(weights, values, strict=True)]
        return sum(weighted) / sum(weights)
