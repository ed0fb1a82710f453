"""Reward liveness: a judge is checked before it rewards anything, and a run that has nothing to learn from stops."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from secondlook.data.canaries import Pair
from secondlook.rewards.base import Reward, score, why_missing
from secondlook.train.advantage import varies
from secondlook.types import Stopped


def check_reward(reward: Reward, good: list[Pair], bad: list[Pair], least: float = 1.0) -> None:
    """Refuse a judge that is dead: in a share ``least`` of all pairs of a known-good picture and a known-bad one the good one
    must score higher (1: in all), and no score may be missing.

    Raises Stopped.
    """
    scores = score(reward, [*good, *bad])
    missing = sum(s is None for s in scores)
    if missing:
        why = why_missing(reward)
        raise Stopped(f"reward: {missing} of {len(scores)} canary pictures got no score; the judge is not working{why}")
    values = [s.value for s in scores if s]
    share = float(np.mean([g > b for g in values[: len(good)] for b in values[len(good) :]]))
    if share < least:
        lowest, highest = min(values[: len(good)]), max(values[len(good) :])
        raise Stopped(
            f"reward: a known-good picture scores {lowest:.3f} and a known-bad one {highest:.3f}; "
            f"the judge cannot tell them apart: it does in {share:.3f} of the pairs, and least_separation is {least}"
        )


@dataclass
class Guard:
    """Watches a run's steps. ``dull`` counts the last steps in a row that taught nothing; it is part of a run's state."""

    most_missing: float
    """A step with a larger share of missing scores stops the run."""
    one_verdict: float
    """A step counts as one of a single verdict when so large a share of the verdicts is the same, and a smaller one is true."""
    patience: int
    """So many steps in a row without variance in any group, or of a single verdict, stop the run."""
    dull: int = 0

    def check(
        self, metrics: dict[str, float], advantages: list[list[list[float]]], reward: Reward | None = None
    ) -> dict[str, float]:
        """One step's metrics and its groups' advantages; returns the share of groups whose drawings' advantages vary.
        Raises Stopped; ``reward`` may know why scores are missing."""
        if metrics["missing"] > self.most_missing or "yes_rate" not in metrics:
            least = f"{metrics['missing']:.0%} of the scores are missing; at most {self.most_missing:.0%} may be"
            raise Stopped(f"reward: {least}{why_missing(reward)}")
        varied = float(np.mean([varies(g) for g in advantages]))
        same = max(metrics["yes_rate"], 1 - metrics["yes_rate"]) >= self.one_verdict > metrics["agreement"]
        self.dull = self.dull + 1 if not varied or same else 0
        if self.dull >= self.patience:
            raise Stopped(
                f"reward: {self.patience} steps in a row had no variance in any group or one verdict only "
                f"(yes rate {metrics['yes_rate']:.2f}); there is nothing to learn from"
            )
        return {"groups_with_variance": varied}

    def state_dict(self) -> dict[str, int]:
        return {"dull": self.dull}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.dull = state["dull"]
