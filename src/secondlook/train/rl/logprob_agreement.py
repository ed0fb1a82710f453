"""Whether the log-probabilities that the engine recorded are those of the policy that is trained,
before a step's first update.

In exact arithmetic they are one number computed twice: while sampling, token by token from a cache,
and while scoring, all tokens of a sequence at once. In half precision they differ by rounding,
which guidance enlarges. An error of the sampler or of the scorer (another guidance, a position that
is off by one, weights that are not those that were trained) moves most tokens, rounding moves few
of them far: so a run is refused by the mean and by the 99 % quantile, and not by the largest
difference, which grows with the number of tokens and is that of one token.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from secondlook.errors import Stopped
from secondlook.train.distributed import ProcessGroup
from secondlook.train.rl.micro_batches import MicroBatch
from secondlook.train.sharding import Dtype
from secondlook.types import SamplingParams

LIMITS: dict[Dtype, tuple[float, float]] = {"float32": (2e-4, 2e-3), "bfloat16": (0.04, 0.4)}
"""Mean and quantile of |scored - recorded| that are rounding, of tokens sampled without guidance.
The miniature has 5e-4 and .016 of written tokens in bfloat16, and .023 and .34 of codes drawn with
guidance 5 (whose limits are .26 and 2.6); errors put into it on purpose have .17 to .61 and 3.4 to
11 of codes, .03 to .06 and .6 to 1.3 of words."""


def high_quantile(distances: np.ndarray) -> float:
    """The 99 % quantile: one of the values, so that it may be infinite."""
    return float(np.quantile(distances, 0.99, method="lower"))


def amplification(sampling_params: SamplingParams) -> float:
    """How many times larger rounding is in guided logits s c - (s - 1) u than in c, when c and u
    are rounded independently."""
    return math.hypot(sampling_params.guidance, sampling_params.guidance - 1)


def name_of(sampling_params: SamplingParams, first: bool) -> str:
    """What tokens sampled under a rule are called in messages."""
    if sampling_params.head == "code":
        return f"codes drawn with guidance {sampling_params.guidance:g}"
    return "verdicts" if first and sampling_params.first else "words"


@dataclass
class Agreement:
    """Collects the differences between scored and recorded log-probabilities of a step's tokens, on
    every rank, and stops the run where they are larger than rounding."""

    max_mean: float
    """Largest mean of |scored - recorded| of tokens without guidance (``amplification`` times as
    much with it)."""
    max_p99: float
    """Largest 99 % quantile of the same."""
    clip_low: float
    clip_high: float
    """The clip range: ratios below 1 - ``clip_low`` and above 1 + ``clip_high`` are clipped."""
    importance_cap: float
    """Largest importance weight; infinite: none is cut."""
    ranks: ProcessGroup = field(default_factory=ProcessGroup)
    agreed: bool = False
    """Sampler and scorer have been compared since the start (or resumption), before any update."""
    differences: dict[tuple[str, float], list[np.ndarray]] = field(
        default_factory=lambda: defaultdict(list)
    )
    """Of this rank's tokens, scored less recorded, by what they are called and the amplification of
    their rounding."""

    def add(self, batch: MicroBatch, scored_N: Tensor) -> None:
        """The batch's log-probabilities under the policy that has not been updated yet."""
        params = batch.sampling_params
        rounding_factor = amplification(params)
        for _, turn_differences in batch.split(scored_N - batch.behaviour_logprobs):
            differences_n = turn_differences.cpu().numpy().astype(np.float32)
            if params.first:  # the first token is the verdict, the rest its reason
                self.differences[name_of(params, True), rounding_factor].append(differences_n[:1])
                differences_n = differences_n[1:]
            self.differences[name_of(params, False), rounding_factor].append(differences_n)

    def check(self) -> dict[str, float]:
        """Metrics of all ranks' tokens since the last call; all ranks must call it. Raises Stopped
        (on all of them) where sampler and scorer disagree, as long as no update has been made since
        the start."""
        own_differences = {key: np.concatenate(parts) for key, parts in self.differences.items()}
        self.differences.clear()
        by_key = self._gather_differences(own_differences)
        # by kind of token only at first: later differences are those that updates made
        if not self.agreed:
            for (name, rounding_factor), key_differences in by_key.items():
                self._compare(name, np.abs(key_differences), rounding_factor)
        self.agreed = True
        differences_N = np.concatenate(list(by_key.values()))  # of all kinds of tokens together
        distances_N = np.abs(differences_N)
        ratio_N = np.exp(differences_N.astype(np.float64))  # scored / sampled probability
        is_outside = (ratio_N < 1 - self.clip_low) | (ratio_N > 1 + self.clip_high)
        return {
            "sampler_gap": float(distances_N.max()),
            "sampler_gap_mean": float(distances_N.mean()),
            "sampler_gap_99": high_quantile(distances_N),
            "sampler_outside": float(np.mean(is_outside)),
            "importance": float(np.minimum(ratio_N, self.importance_cap).mean()),
        }

    def _gather_differences(
        self, own_differences: dict[tuple[str, float], np.ndarray]
    ) -> dict[tuple[str, float], np.ndarray]:
        """The differences of all ranks' tokens by the same keys, which are sorted so that all ranks
        have one order; a rank may have sampled nothing of a key."""
        by_key: dict[tuple[str, float], list[np.ndarray]] = defaultdict(list)
        for rank_differences in self.ranks.all_gather(own_differences):
            for key, key_differences in rank_differences.items():
                by_key[key].append(key_differences)
        return {key: np.concatenate(by_key[key]) for key in sorted(by_key)}

    def _compare(self, name: str, distances_N: np.ndarray, rounding_factor: float) -> None:
        """Raise Stopped where ``distances_N`` (N,) are larger than rounding."""
        if not len(distances_N):
            return
        mean, p99 = float(distances_N.mean()), high_quantile(distances_N)
        max_mean, max_p99 = rounding_factor * self.max_mean, rounding_factor * self.max_p99
        if not (mean <= max_mean and p99 <= max_p99):  # NaN is refused too
            raise Stopped(
                f"policy: sampled and scored log-probabilities of {name} differ by {mean:.3g} on "
                f"average and by {p99:.3g} in one token of 100 before any update; at most "
                f"{max_mean:.3g} and {max_p99:.3g} is rounding, so the sampler and the scorer "
                "disagree (reward_checks.max_logprob_diff_mean, max_logprob_diff_p99)"
            )
