"""Reward liveness: a judge is checked before it rewards anything, and a run that has nothing to
learn from stops."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from secondlook.data.sanity_pairs import Pair
from secondlook.errors import Stopped
from secondlook.llm.missing import why_missing
from secondlook.rewards.reward import Reward, score
from secondlook.train.rl.advantages import varies


def check_reward(reward: Reward, good: list[Pair], bad: list[Pair], least: float = 1.0) -> None:
    """Refuse a judge that is dead: in a share ``least`` of all pairs of a known-good picture and a
    known-bad one the good one must score higher (1: in all), and no score may be missing.

    Raises Stopped.
    """
    scores = score(reward, [*good, *bad])
    missing = sum(s is None for s in scores)
    if missing:
        why = why_missing(reward)
        raise Stopped(
            f"reward: {missing} of {len(scores)} sanity pictures got no score; the judge is not "
            f"working{why}"
        )
    values = [s.value for s in scores if s]
    share = float(np.mean([g > b for g in values[: len(good)] for b in values[len(good) :]]))
    if share < least:
        lowest, highest = min(values[: len(good)]), max(values[len(good) :])
        raise Stopped(
            f"reward: a known-good picture scores {lowest:.3f} and a known-bad one {highest:.3f}; "
            f"the judge cannot tell them apart: it does in {share:.3f} of the pairs, and "
            f"least_separation is {least}"
        )


WRONG = 0.05
"""A single verdict that is wrong in a smaller share is not held against a judge: nearly all of its
pictures are of that kind."""


@dataclass
class RewardChecks:
    """Watches a run's steps. ``flat`` and ``same`` count the last steps in a row without variance
    and of a single verdict; they are part of a run's state."""

    most_missing: float
    """A step with a larger share of missing scores stops the run."""
    one_verdict: float
    """A step counts as one of a single verdict when so large a share of the verdicts is the same,
    and ``WRONG`` or more are not true."""
    patience: int
    """So many steps in a row without variance in any group stop the run."""
    verdict_patience: int
    """So many steps in a row of a single verdict do: a judge that has drifted may come back while
    drawings are still taught."""
    flat: int = 0
    same: int = 0

    def check(
        self, metrics: dict[str, float], advantages: list[list[list[float]]], why: str = ""
    ) -> dict[str, float]:
        """One step's metrics and its groups' advantages; returns the share of groups whose
        drawings' advantages vary. Raises Stopped; ``why`` says why scores are missing
        (``why_missing``)."""
        if metrics["missing"] > self.most_missing or "yes_rate" not in metrics:
            least = (
                f"{metrics['missing']:.0%} of the scores are missing; at most "
                f"{self.most_missing:.0%} may be"
            )
            raise Stopped(f"reward: {least}{why}")
        varied = float(np.mean([varies(g) for g in advantages]))
        self.flat = 0 if varied else self.flat + 1
        if self.flat >= self.patience:
            raise Stopped(
                f"reward: {self.flat} steps in a row had no variance in any group; there is "
                "nothing to learn from"
            )
        one = max(metrics["yes_rate"], 1 - metrics["yes_rate"]) >= self.one_verdict
        self.same = self.same + 1 if one and metrics["agreement"] <= 1 - WRONG else 0
        if self.same >= self.verdict_patience:
            raise Stopped(
                f"reward: {self.same} steps in a row had one verdict only (yes rate "
                f"{metrics['yes_rate']:.2f}) of which "
                f"{1 - metrics['agreement']:.0%} are wrong; the judging has collapsed"
            )
        return {"groups_with_variance": varied}

    def state_dict(self) -> dict[str, int]:
        return {"flat": self.flat, "same": self.same}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.flat, self.same = state["flat"], state["same"]
