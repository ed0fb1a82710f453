"""PPO's value head: what a turn will earn, told from the states before its tokens.

Source: arXiv 2506.01480 names PPO without details; the formulas are those of arXiv 1707.06347 and 1506.02438. Ours: the head
stands on the policy's own final hidden states, which its loss does not move (the policy is taught by its own loss alone), so
there is no second model. Each turn is a segment of its own with the reward at its last token and nothing after it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from secondlook.train.advantage import gae, whiten
from secondlook.train.batch import Packed, Row
from secondlook.train.loss import explained_variance, value_loss

HEADS = ("code", "text")


class ValueHead(nn.Module):
    """Hidden states (N, D) to values (N,), one output for drawn and one for written tokens; 0 before training."""

    def __init__(self, width: int):
        super().__init__()
        last = nn.Linear(width, len(HEADS))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), last)

    def forward(self, hidden: Tensor, head: str) -> Tensor:
        return self.layers(hidden.detach().float())[..., HEADS.index(head)]


@dataclass
class Critic:
    """The value head with its optimizer, and what becomes of its values."""

    head: ValueHead
    lr: float
    gamma: float = 1.0
    lam: float = 0.95
    clip: float = 0.2
    kl_weight: float = 0.0
    """Of log pi - log reference, taken off each token's reward; 0: the KL is in the loss."""

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.AdamW(self.head.parameters(), self.lr, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.0)

    def judge(self, rows: list[Row], states: Iterable[tuple[list[Row], Tensor]]) -> tuple[list[Row], dict[str, float]]:
        """``rows``, in parts with the states (N, D) of their tokens, with values, targets and advantages: GAE over each turn's
        tokens, whitened over all tokens of a kind of turn. Returns them in the order of the parts, and metrics."""
        judged: list[Row] = []
        for part, hidden in states:
            with torch.no_grad():
                values = self.head(hidden, part[0].turn.rule.head).double().cpu().numpy()
            ends = np.cumsum([len(r.turn.tokens) for r in part])
            judged += [self._with_advantages(r, v) for r, v in zip(part, np.split(values, ends[:-1]), strict=True)]
        targets, before = (torch.tensor([x for r in judged for x in getattr(r, n)]) for n in ("targets", "values"))
        explained = explained_variance(before, targets)
        return whitened(judged), {"explained_variance": explained} if math.isfinite(explained) else {}

    def _with_advantages(self, row: Row, values: np.ndarray) -> Row:
        rewards = np.zeros(len(values))
        rewards[-1] = row.reward
        if self.kl_weight:
            rewards -= self.kl_weight * (np.array(row.turn.logprobs) - np.array(row.reference))
        a = gae(rewards, values, self.gamma, self.lam)
        return replace(row, values=tuple(values.tolist()), targets=tuple((a + values).tolist()), advantages=tuple(a.tolist()))

    def loss(self, hidden: Tensor, batch: Packed, denominator: float) -> Tensor:
        """One micro-batch's share of the value loss."""
        values = self.head(hidden, batch.turns[0].rule.head)
        return value_loss(values, batch.values, batch.targets, batch.weight, denominator, self.clip)

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict:
        return {"head": self.head.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])


def whitened(rows: list[Row]) -> list[Row]:
    """Advantages whitened over all tokens of a kind of turn: verdicts and drawings earn on different scales."""
    found = list(rows)
    for kind in {r.turn.kind for r in rows}:
        of_kind = [i for i, r in enumerate(rows) if r.turn.kind == kind]
        flat = whiten(np.concatenate([rows[i].advantages for i in of_kind]))
        ends = np.cumsum([len(rows[i].advantages) for i in of_kind])
        for i, part in zip(of_kind, np.split(flat, ends[:-1]), strict=True):
            found[i] = replace(rows[i], advantages=tuple(part.tolist()))
    return found
