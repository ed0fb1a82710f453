"""A trajectory: an episode from rollout to loss, whose turns get their fields as a step goes on.

============================  =======================================================
fields of a turn              are set by
============================  =======================================================
kind, image_score, sampled    ``rollout.score_episodes``
reward, advantage,            ``Algorithm.advantages``
reason_advantage
advantage_scale, index,       ``turn_weights.select_turns``
token_weight, turn_weight
reference_logprobs            ``PolicyUpdate.score_reference``
old_logprobs                  ``PolicyUpdate.score_before`` or the first update
values, returns, advantage    ``Critic.estimate`` (PPO)
============================  =======================================================
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Literal

from secondlook.rewards.reward import Score
from secondlook.types import Episode, Turn

Reduction = Literal["token", "turn", "constant"]


@dataclass
class TrajectoryTurn:
    """One turn of an episode, and what is learned from it. Fields with one entry a token are
    tuples."""

    kind: str
    """"draw", "edit", "redraw" or "judge"."""
    image_score: float
    """S of the image that this turn drew or judged; NaN: missing."""
    sampled: Turn | None = None
    """What the model was given and sampled; None where another rank did."""
    reward: float = math.nan
    """What the turn earns at its last token (PPO)."""
    advantage: float | tuple[float, ...] = math.nan
    """Of every token, or one for each; NaN: masked."""
    reason_advantage: float = math.nan
    """Of a verdict: that of every token after its first; NaN: the same as the first's."""
    advantage_scale: float = 1.0
    """Factor of the advantage, after whitening where there is any; 0: the turn teaches nothing."""
    index: int = -1
    """Number among all ranks' turns that a step learns from; -1: none of them."""
    token_weight: float = 0.0
    """Weight of each of its tokens in the loss."""
    turn_weight: float = 0.0
    """What it adds to the loss's denominator."""
    reference_logprobs: tuple[float, ...] = ()
    """Log-probabilities under the frozen reference."""
    old_logprobs: tuple[float, ...] = ()
    """Log-probabilities that the policy scored before the step's first update."""
    values: tuple[float, ...] = ()
    """The value head's, before its passes of this step (PPO)."""
    returns: tuple[float, ...] = ()
    """The value head's targets: advantages before whitening + values (PPO)."""

    @property
    def turn(self) -> Turn:
        """What was sampled, on the rank that did."""
        assert self.sampled is not None, "this turn was sampled by another rank"
        return self.sampled

    @property
    def is_verdict(self) -> bool:
        return self.kind == "judge"

    @property
    def is_masked(self) -> bool:
        """There is no advantage, because a score is missing."""
        return not isinstance(self.advantage, tuple) and not math.isfinite(self.advantage)

    @property
    def token_advantages(self) -> list[float]:
        """The scaled advantage of each token."""
        if isinstance(self.advantage, tuple):
            advantages = self.advantage
        else:
            advantages = (self.advantage,) * len(self.turn.tokens)
            if math.isfinite(self.reason_advantage):
                advantages = (self.advantage, *(self.reason_advantage,) * (len(advantages) - 1))
        return [advantage * self.advantage_scale for advantage in advantages]


@dataclass
class Trajectory:
    """An episode with the scores of its images, and its turns (draw, judge, redraw, judge …)."""

    group: int
    """Number of its prompt in the step; the episodes of one prompt are a group."""
    scores: tuple[Score | None, ...]
    """Of each image; None: missing."""
    verdicts: tuple[bool, ...]
    """Whether the model said Yes, of each image."""
    p_yes: tuple[float, ...]
    """Probability of that Yes, of each image."""
    final: int
    """Number of the final image."""
    turns: list[TrajectoryTurn] = field(default_factory=list)
    reason_truths: tuple[float, ...] = ()
    """Of each image how true the reason of its verdict is, in [0, 1]; NaN where that is not asked
    (a Yes, a right image) or not known. () where no reason is checked."""
    is_repair: bool = False
    """It begins with a wrong first image that the episodes of its group share, and that is not
    learned from."""
    episode: Episode | None = None
    """Its pictures and tokens; None where another rank drew it."""

    @staticmethod
    def of_episode(episode: Episode, scores: Sequence[Score | None], group: int = 0) -> Trajectory:
        """``scores`` are of the episode's images."""
        trajectory_turns = []
        for i, turn in enumerate(episode.turns):
            image_score = _value_of(scores[i // 2])  # of a drawing and of the verdict on it
            trajectory_turns.append(TrajectoryTurn(turn.kind, image_score, turn))
        return Trajectory(
            group=group,
            scores=tuple(scores),
            verdicts=tuple(each.yes for each in episode.rounds),
            p_yes=tuple(each.p_yes for each in episode.rounds),
            final=episode.final,
            turns=trajectory_turns,
            episode=episode,
        )

    @property
    def image_scores(self) -> list[float]:
        """S of each image; NaN where it is missing."""
        return [_value_of(score) for score in self.scores]

    @property
    def first_score(self) -> Score:
        """Of a first image that is known to have one."""
        assert self.scores[0] is not None, "the first image has no score"
        return self.scores[0]

    @property
    def is_complete(self) -> bool:
        """No score is missing."""
        return all(map(math.isfinite, self.image_scores))

    @property
    def num_tokens(self) -> int:
        """Tokens that were sampled, on the rank that did; a shared first image was another's."""
        sampled_turns = self.turns[1:] if self.is_repair else self.turns
        return sum(len(turn.turn.tokens) for turn in sampled_turns)

    @property
    def drawing_turns(self) -> list[TrajectoryTurn]:
        return [turn for turn in self.turns if not turn.is_verdict]  # edits and redraws too

    @property
    def judge_turns(self) -> list[TrajectoryTurn]:
        return [turn for turn in self.turns if turn.is_verdict]

    def without_episode(self) -> Trajectory:
        """Scores and verdicts alone, small enough to be told to all ranks."""
        # pictures and tokens stay on the rank that drew them
        bare_turns = [replace(turn, sampled=None) for turn in self.turns]
        return replace(self, turns=bare_turns, episode=None)


def _value_of(score: Score | None) -> float:
    """S; NaN where it is missing, which every computation of an advantage carries on."""
    return math.nan if score is None else score.value


def groups_of(trajectories: Iterable[Trajectory]) -> list[list[Trajectory]]:
    """The trajectories of each prompt, which stand side by side."""
    by_prompt = groupby(trajectories, key=lambda trajectory: trajectory.group)
    return [list(group) for _, group in by_prompt]


def varies(group: Sequence[Trajectory]) -> bool:
    """Whether a group's drawings have advantages other than 0, so that there is something to
    learn; of episodes that share their first image any turn after it, verdicts as well."""
    for trajectory in group:
        turns = trajectory.turns[1:] if trajectory.is_repair else trajectory.drawing_turns
        for turn in turns:
            if turn.advantage and not turn.is_masked:  # NaN is true, too
                return True
    return False
