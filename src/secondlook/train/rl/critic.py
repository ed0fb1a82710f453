"""PPO's value head: what a turn will earn, told from the states before its tokens.

Source: arXiv 2506.01480 names PPO without details; the formulas are those of arXiv 1707.06347 and
1506.02438. Ours: the head stands on the policy's own final hidden states, which its loss does not
move (the policy is taught by its own loss alone), so there is no second model, and the head is
taught in passes of its own over states that are computed once a step. Each turn is a segment of its
own with the reward at its last token and nothing after it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from secondlook.train.distributed import Ranks
from secondlook.train.muon import load_named_state, named_state
from secondlook.train.rl.advantages import gae, whiten
from secondlook.train.rl.losses import explained_variance, value_loss
from secondlook.train.rl.minibatch import Row

HEADS = ("code", "text")
KINDS = ("draw", "edit", "judge", "redraw")


class ValueHead(nn.Module):
    """Hidden states (N, D) to values (N,), one output for drawn and one for written tokens; 0
    before training."""

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
    kl_weight: float = 0.0
    """Of log pi - log reference (both scored), taken off each token's reward; 0: the KL is in the
    loss."""
    ranks: Ranks = field(default_factory=Ranks)

    def __post_init__(self) -> None:
        self.names = {p: n for n, p in self.head.named_parameters()}
        self.optimizer = torch.optim.AdamW(
            self.head.parameters(), self.lr, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.0
        )

    @torch.no_grad()
    def judge(self, rows: list[Row], states: list[Tensor]) -> tuple[list[Row], dict[str, float]]:
        """``rows``, with the states (n, D) of each one's tokens, get values, targets and
        advantages: GAE over each turn's tokens, whitened over all ranks' tokens of a kind of turn.
        Returns them, and metrics."""
        judged = [
            self._with_advantages(
                row, self.head(hidden, row.turn.sampling_params.head).double().cpu().numpy()
            )
            for row, hidden in zip(rows, states, strict=True)
        ]
        told = self.ranks.gather([(r.targets, r.values) for r in judged])
        targets, before = (
            torch.tensor([x for part in told for pair in part for x in pair[i]]) for i in (0, 1)
        )
        explained = explained_variance(before, targets)
        return whitened(judged, self.ranks), {"explained_variance": explained} if math.isfinite(
            explained
        ) else {}

    def _with_advantages(self, row: Row, values: np.ndarray) -> Row:
        rewards = np.zeros(len(values))
        rewards[-1] = row.reward
        if self.kl_weight:
            rewards -= self.kl_weight * (np.array(row.old) - np.array(row.reference))
        a = gae(rewards, values, self.gamma, self.lam)
        return replace(
            row,
            values=tuple(values.tolist()),
            targets=tuple((a + values).tolist()),
            advantages=tuple(a.tolist()),
        )

    def fit(
        self, rows: list[Row], states: list[Tensor], parts: list[list[int]], clip: float | None
    ) -> float:
        """One pass over judged rows, of which this rank has those of each part's numbers that are
        its own: the head follows their targets. Returns the mean loss."""
        mine = {row.index: i for i, row in enumerate(rows)}
        losses = []
        for part in parts:
            chosen = [mine[i] for i in part if i in mine]
            [denominator] = self.ranks.total({"share": sum(rows[i].share for i in chosen)}).values()
            total = 0.0
            for head in HEADS:
                picked = [i for i in chosen if rows[i].turn.sampling_params.head == head]
                if not picked or not denominator:
                    continue
                value = self.head(torch.cat([states[i] for i in picked]), head)
                weight, before, target = (
                    torch.tensor([x for i in picked for x in column(rows[i])], device=value.device)
                    for column in (
                        lambda r: [r.weight] * len(r.values),
                        lambda r: r.values,
                        lambda r: r.targets,
                    )
                )
                loss = value_loss(value, before, target, weight, denominator, clip)
                loss.backward()
                total += float(loss.detach())
            self.ranks.add_gradients(self.head.parameters())
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            losses.append(self.ranks.total({"loss": total})["loss"])
        return float(np.mean(losses))

    def state_dict(self) -> dict:
        return {
            "head": self.head.state_dict(),
            "optimizer": named_state(self.optimizer, self.names),
        }

    def load_state_dict(self, state: dict) -> None:
        self.head.load_state_dict(state["head"])
        load_named_state(self.optimizer, self.names, state["optimizer"])


def whitened(rows: list[Row], ranks: Ranks = Ranks()) -> list[Row]:
    """Advantages whitened over all tokens of a kind of turn: verdicts and drawings earn on
    different scales."""
    found = list(rows)
    for kind in KINDS:
        of_kind = [i for i, r in enumerate(rows) if r.turn.kind == kind]
        mine = np.concatenate([np.zeros(0), *(rows[i].advantages for i in of_kind)])
        parts = ranks.gather(mine)
        flat = np.split(whiten(np.concatenate(parts)), np.cumsum([len(p) for p in parts])[:-1])[
            ranks.rank
        ]
        ends = np.cumsum([len(rows[i].advantages) for i in of_kind])
        for i, part in zip(of_kind, np.split(flat, ends)[:-1], strict=True):
            found[i] = replace(rows[i], advantages=tuple((part * rows[i].factor).tolist()))
    return found
