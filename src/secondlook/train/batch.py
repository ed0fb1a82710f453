"""Turns with their advantages as the rows of an update."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from secondlook.types import Turn

Reduction = Literal["token", "turn"]


@dataclass(frozen=True)
class Row:
    """One turn of an update: every token has the turn's advantage and ``weight``."""

    turn: Turn
    advantage: float
    weight: float
    reference: tuple[float, ...] = ()
    """Log-probabilities of its tokens under the KL reference, once they are known."""


@dataclass(frozen=True)
class Packed:
    """Turns sampled under one rule, their tokens one after another (N,)."""

    rows: list[Row]
    behaviour: Tensor
    reference: Tensor
    advantage: Tensor
    weight: Tensor

    @property
    def turns(self) -> list[Turn]:
        return [r.turn for r in self.rows]


def rows_of(turns: list[Turn], advantages: list[float], reduction: Reduction = "token") -> list[Row]:
    """Turns worth learning from: those whose advantage is missing (NaN) are left out. ``token``: every token of the update
    weighs the same; ``turn``: every turn does."""
    return [
        Row(turn, a, 1.0 if reduction == "token" else 1.0 / len(turn.tokens))
        for turn, a in zip(turns, advantages, strict=True)
        if math.isfinite(a)
    ]


def total_weight(rows: list[Row]) -> float:
    """The denominator of an update over ``rows``: the sum of its tokens' weights."""
    return sum(r.weight * len(r.turn.tokens) for r in rows)


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
                    per_token([[r.advantage] * len(r.turn.tokens) for r in part]),
                    per_token([[r.weight] * len(r.turn.tokens) for r in part]),
                )
            )
    return packed
