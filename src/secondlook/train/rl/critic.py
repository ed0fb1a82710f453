"""PPO's critic: a value head that predicts, from the hidden state before each token, what its turn
will earn.

Source: arXiv 2506.01480 names PPO without details; the formulas are those of arXiv 1707.06347 and
1506.02438. Our own choices:

- The head reads the policy's own final hidden states, detached: there is no second model, and the
  value loss does not change the policy.
- It learns in passes of its own, over states that are computed once a step.
- Each turn ends by itself: its reward is at its last token, and the value after that is 0.

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
        output_layer = nn.Linear(width, len(HEADS))
        nn.init.zeros_(output_layer.weight)
        nn.init.zeros_(output_layer.bias)
        self.layers = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), output_layer
        )

    def forward(self, hidden: Tensor, head: str) -> Tensor:
        values_of_heads = self.layers(hidden.detach().float())  # (N, heads); no gradient to hidden
        return values_of_heads[..., HEADS.index(head)]


@dataclass
class Critic:
    """The value head with its optimizer: estimates advantages, and learns from what the turns
    earned."""

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
        if not math.isfinite(explained):  # returns without variance
            return {}
        return {"explained_variance": explained}

    def _set_advantage(self, turn: TrajectoryTurn, values_n: np.ndarray, kl_weight: float) -> None:
        """Set ``values``, ``returns`` and ``advantage`` (not whitened yet) of one turn."""
        rewards_n = np.zeros(len(values_n))
        rewards_n[-1] = turn.reward  # the turn earns at its last token, the KL is paid at each
        if kl_weight:
            log_ratio_n = np.array(turn.old_logprobs) - np.array(turn.reference_logprobs)
            rewards_n -= kl_weight * log_ratio_n
        advantages_n = gae(rewards_n, values_n, self.gamma, self.gae_lambda)
        turn.values = tuple(values_n.tolist())
        turn.returns = tuple((advantages_n + values_n).tolist())
        turn.advantage = tuple(advantages_n.tolist())

    def _explained_variance(self, turns: list[TrajectoryTurn]) -> float:
        """Over all ranks' tokens; NaN where the returns have no variance."""
        all_values: list[float] = []
        all_returns: list[float] = []
        own_pairs = [(turn.values, turn.returns) for turn in turns]
        for rank_pairs in self.ranks.all_gather(own_pairs):
            for turn_values, turn_returns in rank_pairs:
                all_values += turn_values
                all_returns += turn_returns
        return explained_variance(torch.tensor(all_values), torch.tensor(all_returns))

    def fit(
        self,
        turns: list[TrajectoryTurn],
        states: list[Tensor],
        parts: list[list[int]],
        clip_range: float | None,
    ) -> float:
        """One pass of the value head over this rank's ``turns``, one update a minibatch.

        ``states`` are the turns' hidden states (n, D). ``parts`` are, of each minibatch, the
        ``index`` of all ranks' turns in it. The turns must have their values and returns. Returns
        the mean loss.
        """
        position_of_index = {turn.index: i for i, turn in enumerate(turns)}
        losses = []
        for turn_indices in parts:
            part_turns: list[TrajectoryTurn] = []
            part_states: list[Tensor] = []
            for index in turn_indices:
                if index in position_of_index:  # the others are on other ranks
                    part_turns.append(turns[position_of_index[index]])
                    part_states.append(states[position_of_index[index]])
            # collective: also where this rank has none of a minibatch's turns
            weight_sums = self.ranks.all_sum({"weight": total_weight(part_turns)})
            own_loss = self._backward(part_turns, part_states, weight_sums["weight"], clip_range)
            self.ranks.all_sum_gradients(self.value_head.parameters())
            self.optimizer.step(1.0)
            losses.append(self.ranks.all_sum({"loss": own_loss})["loss"])
        return float(np.mean(losses))

    def _backward(
        self,
        turns: list[TrajectoryTurn],
        states: list[Tensor],
        denominator: float,
        clip_range: float | None,
    ) -> float:
        """This rank's part of a minibatch's value loss, whose gradient is left in the head."""
        total_loss = 0.0
        for head in HEADS:  # each has its own output of the value head
            head_states: list[Tensor] = []  # (n, D) each
            token_weights: list[float] = []
            old_values: list[float] = []
            returns: list[float] = []
            for turn, turn_states in zip(turns, states, strict=True):
                if turn.turn.sampling_params.head == head:
                    head_states.append(turn_states)
                    token_weights += [turn.token_weight] * len(turn.values)
                    old_values += turn.values
                    returns += turn.returns
            if not head_states or not denominator:  # 0: no rank has a turn that weighs anything
                continue
            values = self.value_head(torch.cat(head_states), head)  # (N,)
            loss = value_loss(
                values,
                torch.tensor(old_values, device=values.device),
                torch.tensor(returns, device=values.device),
                torch.tensor(token_weights, device=values.device),
                denominator,
                clip_range,
            )
            loss.backward()
            total_loss += float(loss.detach())
        return total_loss

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
        turns_of_kind = [turn for turn in turns if turn.kind == kind]
        own_advantages = [np.array(turn.advantage) for turn in turns_of_kind]  # (n,) each
        own_N = np.concatenate([np.zeros(0), *own_advantages])  # zeros(0): there may be no turn
        advantages_of_ranks = ranks.all_gather(own_N)
        white_N = whiten(np.concatenate(advantages_of_ranks))
        # back to this rank's tokens, which stand behind those of the ranks before it
        start = sum(map(len, advantages_of_ranks[: ranks.rank]))
        for turn, advantages_n in zip(turns_of_kind, own_advantages, strict=True):
            end = start + len(advantages_n)
            turn.advantage = tuple(white_N[start:end].tolist())
            start = end
