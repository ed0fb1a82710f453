"""Scores of an episode's images to one advantage for each of its turns. Pure functions of numbers;
missing scores are NaN.

Source: arXiv 2506.01480, section 3.2 (bi-level QA rewards) for the episode form; the segment form
is that of the public code. Departures: the paper's weight of the last image is stated twice, as
T-K+1 and (in its sum) as T-K; T-K+1 is the default. The segment form has T rounds instead of two,
each normalised for itself. An episode with a missing score takes no part: its advantages are NaN
(masked), and its group is normalised without it. The expected form is ours. In a group, verdicts
are on different images, and 1 - |S - SE| is larger on the better ones: among right images a true No
on a half-right one (S = 0.3, reward 0.7) is worse than the group's mean and would be unlearned.
There a verdict is compared with what the same policy earns on the same image on average.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

Form = Literal["episode", "segment", "expected"]
Weight = Literal["T-K+1", "T-K"]
Scale = Literal["std", "none"]
EPSILON = 1e-4


def comprehension(score: float, yes: bool) -> float:
    """Reward of a verdict: 1 - |S - SE|."""
    return 1 - abs(score - float(yes))


def episode_reward(
    scores: Sequence[float],
    yes: Sequence[bool],
    rounds: int,
    weight: Weight = "T-K+1",
    judging_weight: float = 1.0,
) -> float:
    """The paper's reward of a whole episode of at most ``rounds`` = T images.

    R = sum over i < K of S_i + w S_K + (T / K) sum over i <= K of (1 - |S_i - SE_i|), K the last
    round; NaN if a score is. The second sum counts ``judging_weight`` times.
    """
    last = len(scores)
    w = rounds - last + (weight == "T-K+1")
    drawing = sum(scores[:-1]) + w * scores[-1]
    judging = sum(comprehension(s, y) for s, y in zip(scores, yes, strict=True))
    return drawing + judging_weight * rounds / last * judging


def segment_rewards(scores: Sequence[float], yes: Sequence[bool]) -> list[float]:
    """One reward a turn, in order draw, judge, redraw, judge …: S of the image drawn, 1 - |S - SE|
    of the verdict."""
    return [value for s, y in zip(scores, yes, strict=True) for value in (s, comprehension(s, y))]


def normalise(rewards_G: np.ndarray, epsilon: float = EPSILON, scale: Scale = "std") -> np.ndarray:
    """Group-relative advantages (r - mean) / (std + epsilon), std of the sample; ``scale`` "none"
    leaves the division out (Dr. GRPO, arXiv 2503.20783: it favours groups that hardly vary). NaN
    stays NaN; a group with fewer than two rewards has advantage 0."""
    rewards_G = np.asarray(rewards_G, np.float64)
    there = np.isfinite(rewards_G)
    if there.sum() < 2:
        return np.where(there, 0.0, np.nan)
    known = rewards_G[there]
    centred = rewards_G - known.mean()
    return centred / (known.std(ddof=1) + epsilon) if scale == "std" else centred


def verdict_advantage(
    score: float, yes: bool, p_yes: float, epsilon: float = EPSILON, scale: Scale = "std"
) -> float:
    """(r - E r) / (std r + epsilon) of a verdict's reward r = 1 - |S - SE|, over the policy's own
    Yes and No on that image: what group normalisation tends to in an endless group of verdicts on
    one image. ``scale`` "none": without the division."""
    rewards, p = (
        np.array([comprehension(score, False), comprehension(score, True)]),
        np.array([1 - p_yes, p_yes]),
    )
    mean = float(p @ rewards)
    centred = float(rewards[int(yes)] - mean)
    return (
        centred / float(np.sqrt(p @ (rewards - mean) ** 2) + epsilon) if scale == "std" else centred
    )


def advantages(
    scores: Sequence[Sequence[float]],
    yes: Sequence[Sequence[bool]],
    rounds: int,
    form: Form = "episode",
    weight: Weight = "T-K+1",
    p_yes: Sequence[Sequence[float]] = (),
    scale: Scale = "std",
    judging_weight: float = 1.0,
) -> list[list[float]]:
    """Advantages of every turn of one group's episodes (draw, judge, redraw, judge …), given each
    image's score and verdict.

    ``episode``: one advantage an episode, on all its turns. ``segment``: each kind of turn in each
    round is normalised among the episodes that reached it. ``expected``: drawings as there,
    verdicts by ``verdict_advantage`` from the probabilities ``p_yes`` of their Yes. What verdicts
    earn counts ``judging_weight`` times. An episode with a missing score gets NaN on all its turns.
    """
    if form == "episode":
        rewards = np.array(
            [
                episode_reward(s, y, rounds, weight, judging_weight)
                for s, y in zip(scores, yes, strict=True)
            ]
        )
        return [
            [a] * (2 * len(s))
            for a, s in zip(normalise(rewards, scale=scale).tolist(), scores, strict=True)
        ]
    per_turn = np.full((len(scores), 2 * rounds), np.nan)
    for i, (s, y) in enumerate(zip(scores, yes, strict=True)):
        if np.isfinite(s).all():
            per_turn[i, : 2 * len(s)] = segment_rewards(s, y)
    normed = np.stack([normalise(column, scale=scale) for column in per_turn.T], axis=1)
    if form == "expected":
        for i, (s, y, p) in enumerate(zip(scores, yes, p_yes, strict=True)):
            if np.isfinite(s).all():
                normed[i, 1 : 2 * len(s) : 2] = [
                    verdict_advantage(*each, scale=scale) for each in zip(s, y, p, strict=True)
                ]
    normed[:, 1::2] *= judging_weight
    return [normed[i, : 2 * len(s)].tolist() for i, s in enumerate(scores)]


def turn_rewards(
    scores: Sequence[float],
    yes: Sequence[bool],
    rounds: int,
    form: Form = "episode",
    weight: Weight = "T-K+1",
    judging_weight: float = 1.0,
) -> list[float]:
    """The reward at the end of each turn of one episode, for PPO: the whole episode's on all of
    them, or each turn's own."""
    if form == "episode":
        return [episode_reward(scores, yes, rounds, weight, judging_weight)] * (2 * len(scores))
    if not np.isfinite(scores).all():
        return [math.nan] * (2 * len(scores))
    return [r * judging_weight if k % 2 else r for k, r in enumerate(segment_rewards(scores, yes))]


def gae(
    rewards_T: np.ndarray, values_T: np.ndarray, gamma: float, lam: float, bootstrap: float = 0.0
) -> np.ndarray:
    """Generalised advantage estimation over one turn's tokens (Schulman et al. 2016, arXiv
    1506.02438).

    ``values_T`` are of the states before each token, ``bootstrap`` of the one after the last (0 at
    a true end). Returns advantages (T,); advantages + values are the value's targets.
    """
    following = np.append(values_T[1:], bootstrap)
    found, advantage = np.empty(len(rewards_T)), 0.0
    for t in reversed(range(len(rewards_T))):
        advantage = rewards_T[t] + gamma * following[t] - values_T[t] + gamma * lam * advantage
        found[t] = advantage
    return found


def whiten(advantages_N: np.ndarray, epsilon: float = 1e-8) -> np.ndarray:
    """(A - mean) / (std of the sample + epsilon) over all tokens given."""
    return (
        (advantages_N - advantages_N.mean()) / (advantages_N.std(ddof=1) + epsilon)
        if len(advantages_N) > 1
        else advantages_N * 0
    )


def varies(values: Sequence[Sequence[float]]) -> bool:
    """Whether a group's drawings (every other turn) have advantages other than 0."""
    return any(a for of_turns in values for a in of_turns[::2] if math.isfinite(a))


MOST_BALANCE = 5.0


def balanced(
    values: list[list[list[float]]], scores: Sequence[Sequence[Sequence[float]]]
) -> list[list[list[float]]]:
    """A step's advantages (of groups, episodes, turns) with its verdicts on right images (S >= 0.5)
    and on wrong ones weighing the same, as in SFT, though at most 5 times what they weighed. Else
    the better the images, the more a judge in doubt says Yes. A departure; the paper's rewards
    leave the shares as they are sampled."""
    known = [
        s for group in scores for episode in group if np.isfinite(episode).all() for s in episode
    ]
    n_right = sum(s >= 0.5 for s in known)

    def weight(score: float) -> float:
        return min(
            MOST_BALANCE, 0.5 * len(known) / (n_right if score >= 0.5 else len(known) - n_right)
        )

    return [
        [
            [
                a * weight(s[k // 2]) if k % 2 and math.isfinite(a) else a
                for k, a in enumerate(of_turns)
            ]
            for of_turns, s in zip(of_group, group, strict=True)
        ]
        for of_group, group in zip(values, scores, strict=True)
    ]
