"""What an algorithm decides: what each turn is credited with, and the loss of a minibatch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from secondlook.config import parse
from secondlook.train.distributed import ProcessGroup
from secondlook.train.rl.advantages import Credit, group_advantages, reason_advantages
from secondlook.train.rl.losses import PolicyLoss, importance_weights, policy_loss
from secondlook.train.rl.micro_batches import MicroBatch
from secondlook.train.rl.trajectory import Trajectory, TrajectoryTurn, groups_of

if TYPE_CHECKING:
    import numpy as np

    from secondlook.models.janus.model import Janus
    from secondlook.train.rl.config import RLConfig


@dataclass
class NoOptions:
    """The settings of an algorithm that has none."""


class Algorithm:
    """Base of all algorithms. A derived class must have ``advantages``; the loss is the clipped
    surrogate with the KL to the reference unless it has its own.

    What belongs to every algorithm is done outside of it: dropping flat groups, balancing verdicts,
    weights of tokens, old and reference log-probabilities, clipping of gradients.
    """

    config_class: ClassVar[type | None] = None
    """A dataclass of the algorithm's own settings, the table ``[algorithm_options]``."""
    has_critic: ClassVar[bool] = False
    """``learn_before`` is given the final hidden states of all turns."""

    def __init__(self, config: RLConfig, janus: Janus, ranks: ProcessGroup):
        """Raises InputError for ``[algorithm_options]`` that ``config_class`` does not have."""
        self.config = config
        self.ranks = ranks
        options_class: type = self.config_class or NoOptions
        section = "algorithm_options"
        self.options: Any = parse(options_class, config.algorithm_options, f"[{section}]", section)

    def advantages(self, trajectories: list[Trajectory]) -> None:
        """Set ``advantage`` of every turn of a step's trajectories, those of one prompt side by
        side (``trajectory.groups_of``): a number, or one number a token. Leave it NaN where the
        turn must not be learned from; not on all turns of a step that has scores: that stops
        the run.

        The trajectories are those of all ranks, and each rank calls this: it must not depend on
        pictures or tokens (``episode``, ``sampled``), which only the drawing rank has.
        """
        raise NotImplementedError

    def compare_in_groups(self, trajectories: list[Trajectory], credit: Credit) -> None:
        """Set each turn's ``advantage`` to how much better it did than the other episodes of its
        prompt, by the settings of ``[advantage]``."""
        advantage_config = self.config.advantage
        for group in groups_of(trajectories):
            # one list for each trajectory, one entry for each of its turns
            advantages_of_group = group_advantages(
                [trajectory.image_scores for trajectory in group],
                [trajectory.verdicts for trajectory in group],
                self.config.rollout.rounds,
                credit,
                advantage_config.last_image_weight,
                [trajectory.p_yes for trajectory in group],
                advantage_config.scale_rewards,
                advantage_config.judging_weight,
                advantage_config.shaping,
            )
            for trajectory, turn_advantages in zip(group, advantages_of_group, strict=True):
                for turn, advantage in zip(trajectory.turns, turn_advantages, strict=True):
                    turn.advantage = advantage
            self._credit_reasons(group)

    def _credit_reasons(self, group: list[Trajectory]) -> None:
        """Set ``reason_advantage`` of verdicts, where reasons are checked."""
        advantage_config = self.config.advantage
        if not all(trajectory.reason_truths for trajectory in group):
            return
        truths = [trajectory.reason_truths for trajectory in group]
        advantages_of_group = reason_advantages(truths, advantage_config.scale_rewards)
        for trajectory, own_advantages in zip(group, advantages_of_group, strict=True):
            for turn, advantage in zip(trajectory.judge_turns, own_advantages, strict=True):
                turn.reason_advantage = advantage_config.reason_weight * advantage

    def loss(
        self, batch: MicroBatch, logprobs: Tensor, denominator: float, beta: float
    ) -> PolicyLoss:
        """Loss of a micro-batch, given the current log-probabilities (N,) of its tokens. Parts are
        summed over micro-batches and ranks, so each is divided by ``denominator``, the weights' sum
        over the whole update. ``beta`` is the weight of the KL to the reference at this step."""
        loss_config = self.config.loss
        # for the sampler that drew the tokens, which computes their probabilities in another order
        importance_N = importance_weights(
            batch.old_logprobs, batch.behaviour_logprobs, loss_config.importance_cap
        )
        return policy_loss(
            logprobs,
            batch.old_logprobs,
            batch.reference_logprobs,
            batch.advantages,
            batch.weights,
            denominator,
            loss_config.clip_range,
            beta,
            loss_config.clip_range_high,
            importance_N,
        )

    def critic_epochs(self, rng: np.random.Generator, n_turns: int) -> list[list[list[int]]]:
        """Numbers of turns (of all ranks) in the minibatches of each pass of the critic."""
        return []

    def learn_before(
        self,
        turns: list[TrajectoryTurn],
        hidden_states: list[Tensor],
        epochs: list[list[list[int]]],
        step: int,
        beta: float,
    ) -> dict[str, float]:
        """Learn what is not the policy, before the policy is updated; returns metrics. For
        algorithms that have a critic: ``hidden_states`` (n, D) are those from which each turn's
        tokens were predicted, ``epochs`` are those of ``critic_epochs``."""
        return {}

    def updates_policy(self, step: int) -> bool:
        """Whether the policy moves at this step, or the critic only."""
        return True

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what ``state_dict`` returned."""
