"""Turns with their advantages as the rows of an update."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

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
    values: tuple[float, ...] = ()
    """The value head's, before the update (PPO)."""
    targets: tuple[float, ...] = ()
    """What it is taught (PPO)."""


@dataclass(frozen=True)
class Packed:
    """Turns sampled under one rule, their tokens one after another (N,)."""

    rows: list[Row]
    behaviour: Tensor
    reference: Tensor
    advantage: Tensor
    weight: Tensor
    values: Tensor
    targets: Tensor
    """These two are empty where no value head is trained."""

    @property
    def turns(self) -> list[Turn]:
        return [r.turn for r in self.rows]


def rows_of(
    turns: list[Turn],
    advantages: list[float],
    reduction: Reduction = "token",
    longest: int = 1,
    rewards: list[float] | None = None,
) -> list[Row]:
    """Turns worth learning from: those whose advantage is missing (NaN) are left out. ``token``: every token of the update
    weighs the same; ``turn``: every turn does; ``constant``: every token does, and the denominator is turns times ``longest``,
    so that a turn's length does not decide how much its tokens count (Dr. GRPO, arXiv 2503.20783)."""
    rows = []
    for i, (turn, a) in enumerate(zip(turns, advantages, strict=True)):
        n = len(turn.tokens)
        weight = {"token": 1.0, "turn": 1.0 / n, "constant": 1.0 / longest}[reduction]
        share = float(n) if reduction == "token" else 1.0
        if math.isfinite(a):
            rows.append(Row(turn, (a,) * n, weight, share, rewards[i] if rewards else 0.0))
    return rows


def total_weight(rows: list[Row]) -> float:
    """The denominator of an update over ``rows``."""
    return sum(r.share for r in rows)


def pack(rows: list[Row], size: int, device: torch.device | str = "cpu") -> list[Packed]:
    """Micro-batches of at most ``size`` turns; each holds turns of one rule and, as far as that goes, of one length."""
    by_rule: dict = {}
    for row in rows:
        by_rule.setdefault(row.turn.rule, []).append(row)
    packed = []
    for same in by_rule.values():
        same.sort(key=lambda r: (len(r.turn.segments), len(r.turn.tokens)))
        for i in range(0, len(same), size):
            part = same[i : i + size]

            def per_token(values: list[list[float]]) -> Tensor:
                return torch.tensor([v for row in values for v in row], device=device)

            packed.append(
                Packed(
                    part,
                    per_token([list(r.turn.logprobs) for r in part]),
                    per_token([list(r.reference) for r in part]),
                    per_token([list(r.advantages) for r in part]),
                    per_token([[r.weight] * len(r.turn.tokens) for r in part]),
                    per_token([list(r.values) for r in part]),
                    per_token([list(r.targets) for r in part]),
                )
            )
    return packed
