"""PPO's value head: what a turn will earn, told from the states before its tokens.

Source: arXiv 2506.01480 names PPO without details; the formulas are those of arXiv 1707.06347 and
1506.02438. Ours: the head stands on the policy's own final hidden states, which its loss does not
move (the policy is taught by its own loss alone), so there is no second model, and the head is
taught in passes of its own over states that are computed once a step. Each turn is a segment of its
own with the reward at its last token and nothing after it.

Suffixes: n tokens of a turn, N tokens of many turns, D hidden width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from secondlook.train.distributed import ProcessGroup
from secondlook.train.optim import Optimizer
from secondlook.train.rl.advantages import gae, whiten
from secondlook.train.rl.losses import explained_variance, value_loss
from secondlook.train.rl.trajectory import TrajectoryTurn
from secondlook.train.rl.turn_weights import total_weight

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

    value_head: ValueHead
    lr: float
    gamma: float = 1.0
    gae_lambda: float = 0.95
    ranks: ProcessGroup = field(default_factory=ProcessGroup)

    def __post_init__(self) -> None:
        self.optimizer = Optimizer(self.value_head, self.lr, eps=1e-6)

    @torch.no_grad()
    def estimate(
        self, turns: list[TrajectoryTurn], states: list[Tensor], kl_weight: float = 0.0
    ) -> dict[str, float]:
        """Set ``values``, ``returns`` and ``advantage`` of turns from the hidden states (n, D) that
        each one's tokens were predicted from: GAE over each turn's tokens, whitened over all ranks'
        tokens of a kind of turn. Returns metrics.

        ``kl_weight`` times log pi - log reference (both scored) is taken off each token's reward;
        0: the KL is in the loss.
        """
        for turn, hidden in zip(turns, states, strict=True):
            values = self.value_head(hidden, turn.turn.sampling_params.head)
            self._set_advantage(turn, values.double().cpu().numpy(), kl_weight)
        explained = self._explained_variance(turns)
        whiten_advantages(turns, self.ranks)
        return {"explained_variance": explained} if math.isfinite(explained) else {}

    def _set_advantage(self, turn: TrajectoryTurn, values: np.ndarray, kl_weight: float) -> None:
        rewards = np.zeros(len(values))
        rewards[-1] = turn.reward
        if kl_weight:
            log_ratio = np.array(turn.old_logprobs) - np.array(turn.reference_logprobs)
            rewards -= kl_weight * log_ratio
        advantages = gae(rewards, values, self.gamma, self.gae_lambda)
        turn.values = tuple(values.tolist())
        turn.returns = tuple((advantages + values).tolist())
        turn.advantage = tuple(advantages.tolist())

    def _explained_variance(self, turns: list[TrajectoryTurn]) -> float:
        """Of all ranks' tokens."""
        values: list[float] = []
        returns: list[float] = []
        for part in self.ranks.all_gather([(turn.values, turn.returns) for turn in turns]):
            for turn_values, turn_returns in part:
                values += turn_values
                returns += turn_returns
        return explained_variance(torch.tensor(values), torch.tensor(returns))

    def fit(
        self,
        turns: list[TrajectoryTurn],
        states: list[Tensor],
        parts: list[list[int]],
        clip_range: float | None,
    ) -> float:
        """One pass over this rank's turns, with values and returns, in minibatches: ``parts`` are
        the numbers of all ranks' turns of each. Returns the mean loss."""
        place = {turn.index: i for i, turn in enumerate(turns)}
        losses = []
        for part in parts:
            own = [place[number] for number in part if number in place]
            denominator = self.ranks.all_sum({"weight": total_weight([turns[i] for i in own])})
            loss = self._backward(
                [turns[i] for i in own], [states[i] for i in own], denominator["weight"], clip_range
            )
            self.ranks.all_sum_gradients(self.value_head.parameters())
            self.optimizer.step(1.0)
            losses.append(self.ranks.all_sum({"loss": loss})["loss"])
        return float(np.mean(losses))

    def _backward(
        self,
        turns: list[TrajectoryTurn],
        states: list[Tensor],
        denominator: float,
        clip_range: float | None,
    ) -> float:
        """This rank's part of a minibatch's value loss, whose gradient is left in the head."""
        total = 0.0
        for head in HEADS:
            of_head = [i for i, t in enumerate(turns) if t.turn.sampling_params.head == head]
            if not of_head or not denominator:
                continue
            values = self.value_head(torch.cat([states[i] for i in of_head]), head)  # (N,)
            token_weights: list[float] = []
            old_values: list[float] = []
            returns: list[float] = []
            for i in of_head:
                token_weights += [turns[i].token_weight] * len(turns[i].values)
                old_values += turns[i].values
                returns += turns[i].returns
            loss = value_loss(
                values,
                torch.tensor(old_values, device=values.device),
                torch.tensor(returns, device=values.device),
                torch.tensor(token_weights, device=values.device),
                denominator,
                clip_range,
            )
            loss.backward()
            total += float(loss.detach())
        return total

    def state_dict(self) -> dict:
        return {
            "value_head": self.value_head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        self.value_head.load_state_dict(state["value_head"])
        self.optimizer.load_state_dict(state["optimizer"])


def whiten_advantages(turns: list[TrajectoryTurn], ranks: ProcessGroup = ProcessGroup()) -> None:
    """Whiten token advantages over all ranks' tokens of a kind of turn: verdicts and drawings earn
    on different scales."""
    for kind in KINDS:
        of_kind = [turn for turn in turns if turn.kind == kind]
        advantages = [np.array(turn.advantage) for turn in of_kind]  # (n,) each
        own_N = np.concatenate([np.zeros(0), *advantages])
        parts = ranks.all_gather(own_N)
        white_N = whiten(np.concatenate(parts))
        rank_ends = np.cumsum([len(part) for part in parts])[:-1]
        own_white_N = np.split(white_N, rank_ends)[ranks.rank]
        turn_ends = np.cumsum([len(part) for part in advantages])[:-1]
        for turn, part in zip(of_kind, np.split(own_white_N, turn_ends), strict=False):
            turn.advantage = tuple(part.tolist())
