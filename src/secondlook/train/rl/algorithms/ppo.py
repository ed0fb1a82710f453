"""Proximal policy optimisation (arXiv 1707.06347) with a value head on the policy's own states."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from secondlook.train.distributed import ProcessGroup
from secondlook.train.rl.advantages import Credit, turn_rewards
from secondlook.train.rl.algorithms import register_algorithm
from secondlook.train.rl.algorithms.base import Algorithm
from secondlook.train.rl.critic import Critic, ValueHead
from secondlook.train.rl.losses import PolicyLoss
from secondlook.train.rl.micro_batches import MicroBatch, minibatches
from secondlook.train.rl.trajectory import Trajectory, TrajectoryTurn

if TYPE_CHECKING:
    from secondlook.models.janus.model import Janus
    from secondlook.train.rl.config import RLConfig


@register_algorithm("ppo")
class PPO(Algorithm):
    """Each turn ends with a reward, and a critic says what each of its tokens adds to it; settings
    are those of ``[ppo]``."""

    has_critic = True

    def __init__(self, config: RLConfig, janus: Janus, ranks: ProcessGroup):
        super().__init__(config, janus, ranks)
        torch.manual_seed(config.seed)  # all ranks begin with the same value head
        hidden_size = janus.net.config.text_config.hidden_size
        ppo_config = config.ppo
        self.critic = Critic(
            ValueHead(hidden_size).to(ranks.device),
            ppo_config.value_lr,
            ppo_config.gamma,
            ppo_config.gae_lambda,
            ranks,
        )

    def advantages(self, trajectories: list[Trajectory]) -> None:
        """Set ``reward`` of turns. The advantages of tokens come from the critic; until then each
        turn has the one by comparison in its group, which tells what varies and what is masked."""
        advantage_config = self.config.advantage
        # "expected" is a way to compute advantages, which the critic does here: its rewards are
        # those of segments
        credit: Credit = "episode" if advantage_config.credit == "episode" else "segment"
        self.compare_in_groups(trajectories, credit)
        for trajectory in trajectories:
            rewards = turn_rewards(
                trajectory.image_scores,
                trajectory.verdicts,
                self.config.rollout.rounds,
                credit,
                advantage_config.last_image_weight,
                advantage_config.judging_weight,
                advantage_config.shaping,
            )
            for turn, reward in zip(trajectory.turns, rewards, strict=True):
                turn.reward = reward
            # the critic finds which tokens a true reason owes it to
            for turn, truth in zip(trajectory.judge_turns, trajectory.reason_truths, strict=False):
                turn.reason_advantage = math.nan
                if math.isfinite(truth):
                    turn.reward += advantage_config.reason_weight * truth

    def critic_epochs(self, rng: np.random.Generator, n_turns: int) -> list[list[list[int]]]:
        n_minibatches = self.config.optim.minibatches
        n_epochs = self.config.ppo.value_epochs
        return [minibatches(rng, n_turns, n_minibatches) for _ in range(n_epochs)]

    def learn_before(
        self,
        turns: list[TrajectoryTurn],
        hidden_states: list[Tensor],
        epochs: list[list[list[int]]],
        step: int,
        beta: float,
    ) -> dict[str, float]:
        """Advantages from the value head as it is, then its passes over the step's turns."""
        ppo_config = self.config.ppo
        kl_weight = beta if ppo_config.kl_in == "reward" else 0.0
        metrics = self.critic.estimate(turns, hidden_states, kl_weight)
        # while it warms up, the value head starts from 0 and may move as far as it must
        clip_range = ppo_config.value_clip if self.updates_policy(step) else None
        for epoch in epochs:
            metrics["value_loss"] = self.critic.fit(turns, hidden_states, epoch, clip_range)
        return metrics

    def updates_policy(self, step: int) -> bool:
        return step >= self.config.ppo.value_warmup_steps

    def loss(
        self, batch: MicroBatch, logprobs: Tensor, denominator: float, beta: float
    ) -> PolicyLoss:
        loss_beta = beta if self.config.ppo.kl_in == "loss" else 0.0
        return super().loss(batch, logprobs, denominator, loss_beta)

    def state_dict(self) -> dict[str, Any]:
        return self.critic.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.critic.load_state_dict(state)
