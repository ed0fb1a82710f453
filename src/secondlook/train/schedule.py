"""The learning rate of every step, for all jobs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from secondlook.errors import InputError


@dataclass(frozen=True)
class Schedule:
    """Learning rates of ``steps`` updates: a linear warm-up to ``lr``, then a cosine down to
    ``min_lr`` at the last step (arXiv 2506.01480, table 5).

    ``convert_step``: between warm-up and cosine the rate falls linearly to ``convert_lr``, which it
    reaches at this step (table 5's "conversion"). ``linear_decay``: instead of the cosine the rate
    stays at ``lr`` and falls linearly to 0 over this share of the steps, at the end. A job with
    several optimizers lets ``lr`` be 1 and takes the values as factors.

    Raises InputError where ``convert_step`` does not lie between the warm-up and the end.
    """

    steps: int
    lr: float = 1.0
    min_lr: float = 0.0
    warmup_steps: int = 0
    convert_lr: float = 0.0
    convert_step: int = 0
    linear_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.convert_step and not self.warmup_steps <= self.convert_step < self.steps:
            raise InputError(
                f"config: convert_step is {self.convert_step}; it must lie between warmup_steps "
                f"({self.warmup_steps}) and steps ({self.steps})"
            )

    def at(self, step: int) -> float:
        """The learning rate of update ``step``, counted from 0."""
        if self.linear_decay:
            # the lower of both: a short run may still warm up where its decay begins
            return min(self._warmup(step), self._linear(step))
        if step < self.warmup_steps:
            return self._warmup(step)
        if step < self.convert_step:
            # from lr, at the warm-up's end, to convert_lr
            progress = (step - self.warmup_steps) / max(1, self.convert_step - self.warmup_steps)
            return self.lr + (self.convert_lr - self.lr) * progress
        return self._cosine(step)

    def _warmup(self, step: int) -> float:
        if step >= self.warmup_steps:
            return self.lr
        return self.lr * (step + 1) / self.warmup_steps  # update 0 learns already

    def _linear(self, step: int) -> float:
        decay_steps = max(1.0, self.linear_decay * self.steps)
        # above lr until the last ``decay_steps``: ``at`` takes the lower of both
        return self.lr * (self.steps - step) / decay_steps

    def _cosine(self, step: int) -> float:
        first_step = self.convert_step or self.warmup_steps
        first_lr = self.convert_lr if self.convert_step else self.lr
        progress = min(1.0, (step - first_step) / max(1, self.steps - first_step))
        return self.min_lr + (first_lr - self.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))
