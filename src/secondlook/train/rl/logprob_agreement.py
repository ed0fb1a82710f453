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
from secondlook.train.distributed import Ranks
from secondlook.train.rl.minibatch import Packed
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
    """Collects the differences of a step's tokens on every rank, and refuses a policy that is not
    the sampler."""

    most_mean: float
    most_high: float
    """Largest mean and 99 % quantile of |scored - recorded| of tokens without guidance
    (``amplification`` times as much with it)."""
    low: float
    high: float
    """The clip range: ratios below 1 - ``low`` and above 1 + ``high`` are clipped."""
    cap: float
    """Of importance weights."""
    ranks: Ranks = field(default_factory=Ranks)
    agreed: bool = False
    """Sampler and scorer have been compared since the start (or resumption), before any update."""
    gaps: dict[tuple[str, float], list[np.ndarray]] = field(
        default_factory=lambda: defaultdict(list)
    )
    """Of this rank's tokens, by what they are called and the amplification of their rounding:
    scored less recorded."""

    def add(self, batch: Packed, scored_N: Tensor) -> None:
        """The batch's log-probabilities under the policy that has not been updated yet."""
        sampling_params = batch.turns[0].sampling_params
        for row, gap in batch.split(scored_N - batch.behaviour):
            values = gap.cpu().numpy().astype(np.float32)
            if row.turn.sampling_params.first:
                self.gaps[name_of(sampling_params, True), amplification(sampling_params)].append(
                    values[:1]
                )
                values = values[1:]
            self.gaps[name_of(sampling_params, False), amplification(sampling_params)].append(
                values
            )

    def check(self) -> dict[str, float]:
        """Metrics of all ranks' tokens since the last call; all ranks must call it. Raises Stopped
        (on all of them) where sampler and scorer disagree, as long as no update has been made since
        the start."""
        parts = self.ranks.gather(
            {key: np.concatenate(values) for key, values in self.gaps.items()}
        )
        self.gaps.clear()
        of_key = {
            key: np.concatenate([p[key] for p in parts if key in p])
            for key in sorted({k for p in parts for k in p})
        }
        if not self.agreed:
            for (name, factor), gaps in of_key.items():
                self._compare(name, np.abs(gaps), factor)
        self.agreed = True
        every = np.concatenate(list(of_key.values()))
        ratio = np.exp(every.astype(np.float64))
        return {
            "sampler_gap": float(np.abs(every).max()),
            "sampler_gap_mean": float(np.abs(every).mean()),
            "sampler_gap_99": high_quantile(np.abs(every)),
            "sampler_outside": float(np.mean((ratio < 1 - self.low) | (ratio > 1 + self.high))),
            "importance": float(np.minimum(ratio, self.cap).mean()),
        }

    def _compare(self, name: str, distances: np.ndarray, factor: float) -> None:
        if not len(distances):
            return
        mean, high = float(distances.mean()), high_quantile(distances)
        most_mean, most_high = factor * self.most_mean, factor * self.most_high
        if not (mean <= most_mean and high <= most_high):  # NaN is refused too
            raise Stopped(
                f"policy: sampled and scored log-probabilities of {name} differ by {mean:.3g} on "
                f"average and by {high:.3g} in "
                f"one token of 100 before any update; at most {most_mean:.3g} and "
                f"{most_high:.3g} is rounding, so the sampler "
                "and the scorer disagree (most_mean_gap, most_high_gap)"
            )
