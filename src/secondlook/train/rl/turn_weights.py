"""Which turns a step learns from, and how much each counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from secondlook.train.rl.advantages import verdict_balance
from secondlook.train.rl.trajectory import (
    Reduction,
    Trajectory,
    TrajectoryTurn,
    groups_of,
    varies,
)

if TYPE_CHECKING:
    from secondlook.train.rl.config import AdvantageConfig


def select_turns(
    trajectories: list[Trajectory], config: AdvantageConfig, reduction: Reduction, max_tokens: int
) -> list[TrajectoryTurn]:
    """The turns that a step learns from, of all ranks, numbered and weighted in place.

    ``trajectories`` are those of all ranks with their advantages, so that all ranks number alike.
    Left out are turns without an advantage (a missing score) and, with ``drop_flat_groups``, groups
    without variance. ``max_tokens`` is the length of the longest possible turn.
    """
    scale_verdicts(trajectories, config)
    selected_turns: list[TrajectoryTurn] = []
    for group in groups_of(trajectories):
        if config.drop_flat_groups and not varies(group):
            continue
        for trajectory in group:
            # a first image that the group shares is not learned from
            for turn in trajectory.turns[1:] if trajectory.is_repair else trajectory.turns:
                if not turn.is_masked:
                    turn.index = len(selected_turns)
                    selected_turns.append(turn)
    for turn in selected_turns:
        if turn.sampled is not None:  # other ranks weigh their own, whose lengths they know
            weigh(turn, reduction, max_tokens)
    return selected_turns


def scale_verdicts(trajectories: list[Trajectory], config: AdvantageConfig) -> None:
    """Set the verdicts' ``advantage_scale``.

    It is 0 without a ``judging_weight``, whatever the credit: an episode's reward and whitened
    advantages would teach them something else. With ``balance_verdicts`` those on right and on
    wrong images weigh the same.
    """
    complete_trajectories = [trajectory for trajectory in trajectories if trajectory.is_complete]
    image_scores: list[float] = []
    for trajectory in complete_trajectories:
        image_scores += trajectory.image_scores
    balance = verdict_balance(image_scores)
    for trajectory in complete_trajectories:
        for turn in trajectory.judge_turns:
            turn.advantage_scale = 1.0 if config.judging_weight else 0.0
            if config.balance_verdicts:
                turn.advantage_scale *= balance.factor(turn.image_score)


def weigh(turn: TrajectoryTurn, reduction: Reduction = "token", max_tokens: int = 1) -> None:
    """Set what a turn and its tokens count in the loss.

    - ``token``: every token of the update weighs the same;
    - ``turn``: every turn does;
    - ``constant``: every token does, and the denominator is turns times ``max_tokens``, so that a
      turn's length does not decide how much its tokens count (Dr. GRPO, arXiv 2503.20783).
    """
    n_tokens = len(turn.turn.tokens)
    # the loss is sum(token_weight x token's loss) / sum(turn_weight)
    if reduction == "token":
        turn.token_weight, turn.turn_weight = 1.0, float(n_tokens)
    elif reduction == "turn":
        turn.token_weight, turn.turn_weight = 1.0 / n_tokens, 1.0
    else:  # constant
        turn.token_weight, turn.turn_weight = 1.0 / max_tokens, 1.0


def total_weight(turns: list[TrajectoryTurn]) -> float:
    """The denominator of an update over ``turns``."""
    return sum(turn.turn_weight for turn in turns)
