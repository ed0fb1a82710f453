"""Turns with their advantages as the rows of an update."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from secondlook.train.distributed import Ranks
from secondlook.types import Turn

Reduction = Literal["token", "turn", "constant"]


@dataclass(frozen=True)
class Row:
    """One turn of an update. Values that have one entry a token are tuples."""

    turn: Turn
    advantages: tuple[float, ...]
    weight: float
    """Of each of its tokens."""
    share: float
    """Of the update's denominator."""
    reward: float = 0.0
    """At its last token (PPO)."""
    reference: tuple[float, ...] = ()
    """Log-probabilities under the KL reference, once they are known."""
    old: tuple[float, ...] = ()
    """Log-probabilities that the policy scored before the step's first update, once they are
    known."""
    values: tuple[float, ...] = ()
    """The value head's, before the update (PPO)."""
    targets: tuple[float, ...] = ()
    """What it is taught (PPO)."""
    factor: float = 1.0
    """Of its advantages, once they are whitened (PPO's balanced verdicts)."""
    index: int = -1
    """Its place among all ranks' rows of a step."""


@dataclass(frozen=True)
class Packed:
    """Turns sampled under one rule, their tokens one after another (N,)."""

    rows: list[Row]
    behaviour: Tensor
    """Log-probabilities that the engine recorded."""
    old: Tensor
    """Those that the policy scored before the step's first update; empty (0,) where they are not
    known yet."""
    reference: Tensor
    advantage: Tensor
    weight: Tensor

    @property
    def turns(self) -> list[Turn]:
        return [r.turn for r in self.rows]

    def split(self, values_N: Tensor) -> list[tuple[Row, Tensor]]:
        """Each row, idle ones left out, with its tokens' part of ``values_N`` (N, …)."""
        parts = values_N.split([len(t.tokens) for t in self.turns])
        return [(row, part) for row, part in zip(self.rows, parts, strict=True) if row.index >= 0]


def rows_of(
    turns: list[Turn],
    advantages: list[float],
    reduction: Reduction = "token",
    longest: int = 1,
    rewards: list[float] | None = None,
    factors: list[float] | None = None,
    start: int = 0,
) -> list[Row]:
    """Turns worth learning from, numbered from ``start``: those whose advantage is missing (NaN)
    are left out.

    - ``token``: every token of the update weighs the same;
    - ``turn``: every turn does;
    - ``constant``: every token does, and the denominator is turns times ``longest``, so that a
      turn's length does not decide how much its tokens count (Dr. GRPO, arXiv 2503.20783).
    """
    rows: list[Row] = []
    for i, (turn, a) in enumerate(zip(turns, advantages, strict=True)):
        n = len(turn.tokens)
        weight = {"token": 1.0, "turn": 1.0 / n, "constant": 1.0 / longest}[reduction]
        share = float(n) if reduction == "token" else 1.0
        if math.isfinite(a):
            reward, factor = rewards[i] if rewards else 0.0, factors[i] if factors else 1.0
            rows.append(
                Row(turn, (a,) * n, weight, share, reward, factor=factor, index=start + len(rows))
            )
    return rows


def total_weight(rows: list[Row]) -> float:
    """The denominator of an update over ``rows``."""
    return sum(r.share for r in rows)


def pack(rows: list[Row], size: int, device: torch.device | str = "cpu") -> list[Packed]:
    """Micro-batches of at most ``size`` turns; each holds turns of one rule and, as far as that
    goes, of one length. Drawn ones come first."""
    by_sampling_params: dict = {}
    for row in rows:
        by_sampling_params.setdefault(row.turn.sampling_params, []).append(row)
    packed = []
    for same in sorted(
        by_sampling_params.values(), key=lambda same: same[0].turn.sampling_params.head
    ):
        same.sort(key=lambda r: (len(r.turn.segments), len(r.turn.tokens)))
        for i in range(0, len(same), size):
            part = same[i : i + size]

            def per_token(values: list[list[float]]) -> Tensor:
                return torch.tensor([v for row in values for v in row], device=device)

            packed.append(
                Packed(
                    part,
                    per_token([list(r.turn.logprobs) for r in part]),
                    per_token([list(r.old) for r in part]),
                    per_token([list(r.reference) for r in part]),
                    per_token([list(r.advantages) for r in part]),
                    per_token([[r.weight] * len(r.turn.tokens) for r in part]),
                )
            )
    return packed


def in_step(packed: list[Packed], idle: dict[str, Row], ranks: Ranks) -> list[Packed]:
    """``packed``, with idle micro-batches (of weight 0) for the heads of which another rank has
    more: ranks that share weights gather them together."""
    if ranks.size == 1:
        return packed
    counts = ranks.gather(Counter(p.rows[0].turn.sampling_params.head for p in packed))
    found = []
    for head, row in sorted(idle.items()):
        mine = [p for p in packed if p.rows[0].turn.sampling_params.head == head]
        found += mine + pack([row], 1, ranks.device) * (max(c[head] for c in counts) - len(mine))
    return found


def idle_row(turn: Turn) -> Row:
    """A turn that counts nothing."""
    zeros = (0.0,) * len(turn.tokens)
    return Row(turn, zeros, 0.0, 0.0, reference=turn.logprobs, old=turn.logprobs)
