"""Scores and verdicts of an episode's images to rewards and advantages of its turns. Pure functions
of numbers; a missing score is NaN.

Source: arXiv 2506.01480, section 3.2 (bi-level QA rewards), for credit by episode; credit by
segment is that of the public code. Departures:

- The paper states the last image's weight twice, as T-K+1 and (in its sum) as T-K; T-K+1 is the
  default.
- Segments: T rounds instead of two, each normalised by itself.
- An episode with a missing score takes no part: its advantages are NaN (masked), and its group is
  normalised without it.
- "expected" credit is ours. In a group, verdicts are on different images, and 1 - |S - SE| is
  larger on the better ones: among right images a true No on a half-right one (S = 0.3, reward 0.7)
  is worse than the group's mean and would be unlearned. Here a verdict is compared with what the
  same policy earns on the same image on average.

Suffixes of arrays: G episodes of a group, T tokens of a turn, N tokens of many turns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

Credit = Literal["episode", "segment", "expected"]
LastImageWeight = Literal["T-K+1", "T-K"]
Scale = Literal["std", "none"]

EPSILON = 1e-4
RIGHT = 0.5
"""Score from which on an image counts as right."""


@dataclass(frozen=True)
class RedrawReward:
    """What is added to the rewards of turns so that looking back pays; 0: the paper's rewards.

    Source: ours; that progress pays and regress costs is also in UMM-Reflection (arXiv 2609.35767).
    """

    progress: float = 0.0
    """A redraw earns so many times what its S is above that of the image before."""
    regress: float = 0.0
    """It loses so many times what its S is below."""
    premature_yes: float = 0.0
    """What a Yes to a wrong image costs."""


AS_PAPER = RedrawReward()


def comprehension(score: float, yes: bool, shaping: RedrawReward = AS_PAPER) -> float:
    """Reward of a verdict: 1 - |S - SE|, where SE is 1 for Yes and 0 for No, less what a Yes to a
    wrong image costs."""
    cost = shaping.premature_yes if yes and score < RIGHT else 0.0
    return 1 - abs(score - float(yes)) - cost


def change(before: float, after: float, shaping: RedrawReward) -> float:
    """What a redraw earns for the change of S from the image before to its own."""
    difference = after - before
    return difference * (shaping.progress if difference > 0 else shaping.regress)


def episode_reward(
    scores: Sequence[float],
    yes: Sequence[bool],
    rounds: int,
    last_image_weight: LastImageWeight = "T-K+1",
    judging_weight: float = 1.0,
    shaping: RedrawReward = AS_PAPER,
) -> float:
    """The paper's reward of a whole episode of at most ``rounds`` = T images.

    R = sum over i < K of S_i + w S_K + (T / K) sum over i <= K of (1 - |S_i - SE_i|), K the last
    round; NaN if a score is. The second sum counts ``judging_weight`` times. ``shaping`` adds what
    the changes from image to image earn.
    """
    n_drawn = len(scores)  # K
    # the last image also stands for the rounds that were not needed
    last_weight = rounds - n_drawn + (last_image_weight == "T-K+1")
    drawing_reward = sum(scores[:-1]) + last_weight * scores[-1]
    drawing_reward += sum(change(*pair, shaping) for pair in pairwise(scores))
    verdict_rewards = [
        comprehension(s, said_yes, shaping) for s, said_yes in zip(scores, yes, strict=True)
    ]
    return drawing_reward + judging_weight * rounds / n_drawn * sum(verdict_rewards)


def segment_rewards(
    scores: Sequence[float], yes: Sequence[bool], shaping: RedrawReward = AS_PAPER
) -> list[float]:
    """One reward a turn, in order draw, judge, redraw, judge …: S of the image drawn and what its
    change earns, 1 - |S - SE| of the verdict."""
    rewards = []
    for i, (score, said_yes) in enumerate(zip(scores, yes, strict=True)):
        changed = change(scores[i - 1], score, shaping) if i > 0 else 0.0
        rewards += [score + changed, comprehension(score, said_yes, shaping)]
    return rewards


def turn_rewards(
    scores: Sequence[float],
    yes: Sequence[bool],
    rounds: int,
    credit: Credit = "episode",
    last_image_weight: LastImageWeight = "T-K+1",
    judging_weight: float = 1.0,
    shaping: RedrawReward = AS_PAPER,
) -> list[float]:
    """The reward at the end of each turn of one episode, for PPO: the whole episode's on all of
    them, or each turn's own."""
    n_turns = 2 * len(scores)
    if credit == "episode":
        return [
            episode_reward(scores, yes, rounds, last_image_weight, judging_weight, shaping)
        ] * n_turns
    if not np.isfinite(scores).all():
        return [math.nan] * n_turns
    rewards = segment_rewards(scores, yes, shaping)
    for i in range(1, n_turns, 2):  # every second turn is a verdict
        rewards[i] *= judging_weight
    return rewards


def normalise(
    rewards_G: np.ndarray, epsilon: float = EPSILON, scale_rewards: Scale = "std"
) -> np.ndarray:
    """Group-relative advantages (r - mean) / (std + epsilon), std of the sample.

    ``scale_rewards`` "none" leaves the division out (Dr. GRPO, arXiv 2503.20783: it favours groups
    that hardly vary). NaN stays NaN; a group with fewer than two rewards has advantage 0.
    """
    rewards_G = np.asarray(rewards_G, np.float64)
    is_known_G = np.isfinite(rewards_G)
    if is_known_G.sum() < 2:  # nothing to compare with
        return np.where(is_known_G, 0.0, np.nan)
    known_rewards = rewards_G[is_known_G]
    centred_G = rewards_G - known_rewards.mean()
    if scale_rewards == "none":
        return centred_G
    return centred_G / (known_rewards.std(ddof=1) + epsilon)


def verdict_advantage(
    score: float,
    yes: bool,
    p_yes: float,
    epsilon: float = EPSILON,
    scale_rewards: Scale = "std",
    shaping: RedrawReward = AS_PAPER,
) -> float:
    """(r - E r) / (std r + epsilon) of a verdict's reward r = 1 - |S - SE|, over the policy's own
    Yes and No on that image: what group normalisation tends to in an endless group of verdicts on
    one image. ``scale_rewards`` "none": without the division."""
    # (2,) of No and of Yes
    rewards = np.array([comprehension(score, said_yes, shaping) for said_yes in (False, True)])
    probabilities = np.array([1 - p_yes, p_yes])  # (2,)
    expected_reward = float(probabilities @ rewards)
    centred = float(rewards[int(yes)] - expected_reward)
    if scale_rewards == "none":
        return centred
    std = np.sqrt(probabilities @ (rewards - expected_reward) ** 2)
    return centred / float(std + epsilon)


def group_advantages(
    scores: Sequence[Sequence[float]],
    yes: Sequence[Sequence[bool]],
    rounds: int,
    credit: Credit = "episode",
    last_image_weight: LastImageWeight = "T-K+1",
    p_yes: Sequence[Sequence[float]] = (),
    scale_rewards: Scale = "std",
    judging_weight: float = 1.0,
    shaping: RedrawReward = AS_PAPER,
) -> list[list[float]]:
    """Advantages of every turn of one group's episodes (draw, judge, redraw, judge …), given each
    image's score and verdict.

    - ``episode``: one advantage an episode, on all its turns.
    - ``segment``: each kind of turn in each round is normalised among the episodes that reached it.
    - ``expected``: drawings as there, verdicts by ``verdict_advantage`` from the probabilities
      ``p_yes`` of their Yes.

    What verdicts earn counts ``judging_weight`` times. An episode with a missing score gets NaN on
    all its turns.
    """
    if credit == "episode":
        episode_rewards = []
        for own_scores, own_yes in zip(scores, yes, strict=True):
            episode_rewards.append(
                episode_reward(
                    own_scores, own_yes, rounds, last_image_weight, judging_weight, shaping
                )
            )
        advantages_G = normalise(np.array(episode_rewards), scale_rewards=scale_rewards).tolist()
        turn_advantages = []
        for advantage, own_scores in zip(advantages_G, scores, strict=True):
            turn_advantages.append([advantage] * (2 * len(own_scores)))  # a drawing and a verdict
        return turn_advantages

    # (G, 2 T): a column for each kind of turn in each round; NaN where an episode ended before
    rewards = np.full((len(scores), 2 * rounds), np.nan)
    for i, (own_scores, own_yes) in enumerate(zip(scores, yes, strict=True)):
        if np.isfinite(own_scores).all():
            rewards[i, : 2 * len(own_scores)] = segment_rewards(own_scores, own_yes, shaping)
    columns = [normalise(column_G, scale_rewards=scale_rewards) for column_G in rewards.T]
    advantages = np.stack(columns, axis=1)  # (G, 2 T)
    if credit == "expected":
        for i in range(len(scores)):
            if np.isfinite(scores[i]).all():
                advantages[i, 1 : 2 * len(scores[i]) : 2] = verdict_advantages(
                    scores[i], yes[i], p_yes[i], scale_rewards, shaping
                )
    advantages[:, 1::2] *= judging_weight  # the columns of verdicts
    return [advantages[i, : 2 * len(own)].tolist() for i, own in enumerate(scores)]


def verdict_advantages(
    scores: Sequence[float],
    yes: Sequence[bool],
    p_yes: Sequence[float],
    scale_rewards: Scale = "std",
    shaping: RedrawReward = AS_PAPER,
) -> list[float]:
    """``verdict_advantage`` of each image of one episode."""
    advantages = []
    for score, said_yes, probability in zip(scores, yes, p_yes, strict=True):
        advantages.append(
            verdict_advantage(
                score, said_yes, probability, scale_rewards=scale_rewards, shaping=shaping
            )
        )
    return advantages


def reason_advantages(
    truths: Sequence[Sequence[float]], scale_rewards: Scale = "std"
) -> list[list[float]]:
    """Advantages of the reasons of one group's episodes, by how true they are: one for each image,
    compared with the reasons that the others gave in the same round. NaN, where a reason has no
    truth, stays NaN.
    """
    rounds = max(map(len, truths))
    truths_GT = np.full((len(truths), rounds), np.nan)
    for i, own_truths in enumerate(truths):
        truths_GT[i, : len(own_truths)] = own_truths
    columns = [normalise(column_G, scale_rewards=scale_rewards) for column_G in truths_GT.T]
    advantages_GT = np.stack(columns, axis=1)
    return [advantages_GT[i, : len(own)].tolist() for i, own in enumerate(truths)]


def gae(
    rewards_T: np.ndarray,
    values_T: np.ndarray,
    gamma: float,
    gae_lambda: float,
    bootstrap: float = 0.0,
) -> np.ndarray:
    """Generalised advantage estimation over one turn's tokens (Schulman et al. 2016, arXiv
    1506.02438).

    ``values_T`` are of the states before each token, ``bootstrap`` of the one after the last (0 at
    a true end). Returns advantages (T,); advantages + values are the value head's targets.
    """
    next_values_T = np.append(values_T[1:], bootstrap)
    advantages_T = np.empty(len(rewards_T))
    advantage = 0.0
    # backwards: A_t = delta_t + gamma lambda A_(t+1)
    for t in reversed(range(len(rewards_T))):
        delta = rewards_T[t] + gamma * next_values_T[t] - values_T[t]
        advantage = delta + gamma * gae_lambda * advantage
        advantages_T[t] = advantage
    return advantages_T


def whiten(advantages_N: np.ndarray, epsilon: float = 1e-8) -> np.ndarray:
    """(A - mean) / (std of the sample + epsilon) over all tokens given; 0 where there is only
    one."""
    if len(advantages_N) < 2:
        return advantages_N * 0
    return (advantages_N - advantages_N.mean()) / (advantages_N.std(ddof=1) + epsilon)


@dataclass(frozen=True)
class VerdictBalance:
    """Factors of the advantages of a step's verdicts."""

    right: float = 1.0
    """Of those on right images."""
    wrong: float = 1.0
    """Of those on wrong images."""

    MAX = 5.0
    """No verdict counts more times than this."""

    def factor(self, image_score: float) -> float:
        return self.right if image_score >= RIGHT else self.wrong


def verdict_balance(scores: Sequence[float]) -> VerdictBalance:
    """Factors with which verdicts on right images and on wrong ones weigh the same, as in SFT.

    ``scores`` are of all images of a step. Without it, the better the images, the more a judge in
    doubt says Yes. A departure; the paper's rewards leave the shares as they are sampled.
    """
    n_right = sum(score >= RIGHT for score in scores)
    n_wrong = len(scores) - n_right
    n_half = 0.5 * len(scores)
    return VerdictBalance(
        # verdicts on each side sum to half of all, unless there are too few for that
        right=min(VerdictBalance.MAX, n_half / n_right) if n_right else 1.0,
        wrong=min(VerdictBalance.MAX, n_half / n_wrong) if n_wrong else 1.0,
    )
