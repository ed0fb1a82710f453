"""Checks of the reward: on known-good and known-bad pictures before the run, and after each rollout
whether there is something to learn from it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from secondlook.data.sanity_pairs import Pair
from secondlook.errors import Stopped
from secondlook.llm.missing import why_missing
from secondlook.rewards.reward import Reward, score
from secondlook.train.rl.config import RewardChecksConfig
from secondlook.train.rl.trajectory import Trajectory, groups_of, varies


def check_reward(
    reward: Reward, good: list[Pair], bad: list[Pair], min_separation: float = 1.0
) -> None:
    """Refuse a reward that is dead: in a share ``min_separation`` of all pairs of a known-good
    picture and a known-bad one the good one must score higher (1: in all), and no score may be
    missing.

    Raises Stopped.
    """
    scores = score(reward, [*good, *bad])
    n_missing = scores.count(None)
    if n_missing:
        raise Stopped(
            f"reward: {n_missing} of {len(scores)} sanity pictures got no score; the judge is not "
            f"working{why_missing(reward)}"
        )
    values = np.array([each.value for each in scores if each is not None])  # none is missing
    good_values, bad_values = values[: len(good)], values[len(good) :]  # in the order asked
    # (good, bad): every known-good picture against every known-bad one
    is_separated = good_values[:, None] > bad_values[None, :]
    separation = float(np.mean(is_separated))
    if separation < min_separation:
        raise Stopped(
            f"reward: a known-good picture scores {min(good_values):.3f} and a known-bad one "
            f"{max(bad_values):.3f}; the judge cannot tell them apart: it does in "
            f"{separation:.3f} of the pairs, and reward_checks.min_separation is {min_separation}"
        )


MIN_WRONG = 0.05
"""Smallest share of wrong verdicts at which a single verdict counts as a collapse; below, nearly
all pictures are of the kind that it names."""


@dataclass
class RewardChecks:
    """Watches a run's steps. ``flat_steps`` and ``single_verdict_steps`` count the last steps in a
    row without variance and with a single verdict; they are part of a run's state."""

    config: RewardChecksConfig
    verdicts_learn: bool = True
    """Verdicts are taught, so they are checked for collapse."""
    flat_steps: int = 0
    single_verdict_steps: int = 0

    def check(
        self, metrics: dict[str, float], trajectories: list[Trajectory], why: str = ""
    ) -> dict[str, float]:
        """One step's metrics (``rollout.describe``) and all ranks' trajectories with their
        advantages; returns the share of groups whose drawings' advantages vary.

        Raises Stopped; ``why`` says why scores are missing (``why_missing``).
        """
        max_missing = self.config.max_missing
        # without a "yes_rate" no episode has all of its scores, however few are missing
        if metrics["missing"] > max_missing or "yes_rate" not in metrics:
            raise Stopped(
                f"reward: {metrics['missing']:.0%} of the scores are missing; at most "
                f"{max_missing:.0%} may be{why}"
            )
        share_varied = float(np.mean([varies(group) for group in groups_of(trajectories)]))
        self._check_variance(share_varied)
        self._check_verdicts(metrics)
        return {"groups_with_variance": share_varied}

    def _check_variance(self, share_varied: float) -> None:
        """Count steps in a row in which no group varies. Raises Stopped after too many."""
        self.flat_steps = 0 if share_varied else self.flat_steps + 1
        if self.flat_steps >= self.config.max_flat_steps:
            raise Stopped(
                f"reward: {self.flat_steps} steps in a row had no variance in any group; there is "
                "nothing to learn from"
            )

    def _check_verdicts(self, metrics: dict[str, float]) -> None:
        """Count steps in a row in which nearly all verdicts are one and enough of them are wrong.
        Raises Stopped after too many."""
        share_commonest = max(metrics["yes_rate"], 1 - metrics["yes_rate"])
        share_wrong = 1 - metrics["agreement"]
        # infinite: no share is as large, so that verdicts which are not taught stop nothing
        max_share = self.config.single_verdict_share if self.verdicts_learn else math.inf
        is_single = share_commonest >= max_share and metrics["agreement"] <= 1 - MIN_WRONG
        self.single_verdict_steps = self.single_verdict_steps + 1 if is_single else 0
        if self.single_verdict_steps >= self.config.max_single_verdict_steps:
            raise Stopped(
                f"reward: {self.single_verdict_steps} steps in a row had one verdict only (yes "
                f"rate {metrics['yes_rate']:.2f}) of which {share_wrong:.0%} are wrong; the "
                "judging has collapsed"
            )

    def state_dict(self) -> dict[str, int]:
        return {"flat_steps": self.flat_steps, "single_verdict_steps": self.single_verdict_steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.flat_steps = state["flat_steps"]
        self.single_verdict_steps = state["single_verdict_steps"]
