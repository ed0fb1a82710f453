"""A function of one picture as a reward."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL.Image import Image

from secondlook.errors import InputError, Stopped
from secondlook.llm.missing import Missing
from secondlook.plugin_settings import takes
from secondlook.rewards.reward import Edited, Score


class FunctionReward:
    """Calls ``function(prompt, image, **settings)`` for each picture.

    The function returns S in [0, 1], a ``Score``, or None where no score could be had. An exception
    and a number that is not finite also count as missing, and their reason is told; a number beyond
    [0, 1] raises InputError.
    """

    def __init__(self, function: Callable[..., Any], name: str, settings: Mapping[str, Any]):
        self.function, self.name, self.settings = function, name, settings
        self.missing = Missing(f"the reward {name!r}")

    def __call__(self, items: Sequence[tuple[str, Image]]) -> list[Score | None]:
        """One score for each (prompt, picture); None where it is missing."""
        self.missing.begin()
        return [self._score(prompt, image) for prompt, image in items]

    def _score(self, prompt: str, image: Image, **source: Image) -> Score | None:
        """One picture's score; ``source`` is given for an edit, whose ``prompt`` is the
        instruction."""
        try:
            result = self.function(prompt, image, **source, **self.settings)
        except (InputError, Stopped):
            raise
        except (Exception, SystemExit) as error:  # a function of the user's may raise anything
            # on one line, for it is told in one sentence
            self.missing.add(f"{type(error).__name__}: {' '.join(str(error).split())}")
            return None
        if isinstance(result, Score):
            return result
        if result is None:
            self.missing.add("it returned None")
            return None
        try:
            score_value = float(result)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"reward: {self.name!r} returned {result!r}; it must return a number in [0, 1], a "
                "Score or None"
            ) from error
        if not math.isfinite(score_value):
            self.missing.add(f"it returned {score_value}")
            return None
        if not 0 <= score_value <= 1:
            raise InputError(f"reward: {self.name!r} returned {score_value}; it must be in [0, 1]")
        is_correct = score_value >= 0.5
        score_reason = f"the score is {score_value:.2f}"
        if source:  # one number stands for following and for preserving
            return Score.of_edit(score_value, score_value, is_correct, score_reason)
        return Score(score_value, is_correct, score_reason)


class EditFunctionReward(FunctionReward):
    """Of a function that has a parameter ``source``, and so can score edits too."""

    def edits(self, items: Sequence[Edited]) -> list[Score | None]:
        """One score for each (instruction, source, edit)."""
        self.missing.begin()
        scores = []
        for instruction, source, image in items:
            scores.append(self._score(instruction, image, source=source))
        return scores


def of_function(
    function: Callable[..., Any], name: str, settings: Mapping[str, Any] | None = None
) -> FunctionReward:
    """The reward of a function ``(prompt, image)``, or ``(prompt, image, source=None)`` where it
    can score edits. Raises InputError for one that cannot be called so."""
    can_edit = takes(function, "source")
    keyword_arguments = dict(settings or {}, **({"source": None} if can_edit else {}))
    try:
        inspect.signature(function).bind("prompt", "image", **keyword_arguments)
    except TypeError as error:
        raise InputError(
            f"reward: {name!r} cannot be called with a prompt and an image ({error}); write it as "
            "a function (prompt, image), or (prompt, image, source=None) to score edits too"
        ) from error
    reward_class = EditFunctionReward if can_edit else FunctionReward
    return reward_class(function, name, settings or {})
