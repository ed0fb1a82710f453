"""A step's episodes: drawn, scored, and told to all ranks; and what to watch of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from secondlook.engine.engine import Engine
from secondlook.episode import SamplingConfig, run_episodes
from secondlook.rewards.reward import Reward, Score, score
from secondlook.train.distributed import ProcessGroup
from secondlook.train.rl.trajectory import Trajectory
from secondlook.types import Episode, Prompt


def rollout(
    engine: Engine,
    prompts: list[Prompt],
    group_size: int,
    rounds: int,
    seeds: list[int],
    sampling: SamplingConfig,
) -> list[Episode]:
    """``group_size`` episodes of each prompt, side by side, all decoded together. A group's
    episodes are seeded by its prompt's seed and the following numbers."""
    episode_prompts: list[Prompt] = []
    episode_seeds: list[int] = []
    for prompt, seed in zip(prompts, seeds, strict=True):
        episode_prompts += [prompt] * group_size
        episode_seeds += range(seed, seed + group_size)
    return run_episodes(engine, episode_prompts, episode_seeds, rounds, sampling)


def score_episodes(
    reward: Reward, episodes: list[Episode], group_numbers: Sequence[int]
) -> list[Trajectory]:
    """Trajectories of episodes, every image scored in one call. ``group_numbers`` are the numbers
    of the prompts, each of which has as many episodes."""
    images = [(episode.prompt, r.image) for episode in episodes for r in episode.rounds]
    scores = iter(score(reward, images))
    group_size = len(episodes) // max(1, len(group_numbers))
    trajectories = []
    for i, episode in enumerate(episodes):
        own_scores = [next(scores) for _ in episode.rounds]
        group = group_numbers[i // group_size]
        trajectories.append(Trajectory.of_episode(episode, own_scores, group))
    return trajectories


def gather_trajectories(own: list[Trajectory], ranks: ProcessGroup) -> list[Trajectory]:
    """The trajectories of all ranks, in order of their groups. Of the others' only scores and
    verdicts are known: no picture leaves a rank."""
    if ranks.world_size == 1:
        return own
    parts = ranks.all_gather([trajectory.without_episode() for trajectory in own])
    parts[ranks.rank] = own
    everyone = [trajectory for part in parts for trajectory in part]
    return sorted(everyone, key=lambda trajectory: trajectory.group)


def describe(trajectories: list[Trajectory]) -> dict[str, float]:
    """What to watch: scores and correctness by round, of first and final images, verdicts and their
    agreement with the reward, what redrawing gains."""
    complete = [t for t in trajectories if t.is_complete]
    n_images = sum(len(t.scores) for t in trajectories)
    n_missing = sum(score is None for t in trajectories for score in t.scores)
    metrics = {"missing": n_missing / n_images, "images": float(n_images)}
    if complete:
        metrics |= _of_rounds(complete) | _of_verdicts(complete)
    return metrics


def _of_rounds(complete: list[Trajectory]) -> dict[str, float]:
    """Scores by round, and of first and final images."""
    metrics = {}
    for i in range(max(len(t.scores) for t in complete)):
        scores = [t.image_scores for t in complete if len(t.scores) > i]
        metrics[f"score_{i + 1}"] = float(np.mean([s[i] for s in scores]))
        if i:
            metrics[f"gain_{i + 1}"] = float(np.mean([s[i] - s[i - 1] for s in scores]))
    metrics |= {
        "score": float(np.mean([t.image_scores[t.final] for t in complete])),
        "first": float(np.mean([_known(t)[0].correct for t in complete])),
        "final": float(np.mean([_known(t)[t.final].correct for t in complete])),
    }
    redrawn = [t.image_scores for t in complete if len(t.scores) > 1]
    finals = [t.final for t in complete if len(t.scores) > 1]
    if redrawn:
        gains = [s[final] - s[0] for s, final in zip(redrawn, finals, strict=True)]
        metrics["redraw_gain"] = float(np.mean(gains))
    return metrics


def _of_verdicts(complete: list[Trajectory]) -> dict[str, float]:
    """How often the model says Yes, and how often it agrees with the reward."""
    verdicts = np.array([yes for t in complete for yes in t.verdicts])
    truths = np.array([score.correct for t in complete for score in _known(t)])
    metrics = {
        "yes_rate": float(np.mean(verdicts)),
        "agreement": float(np.mean(verdicts == truths)),
    }
    if truths.any():
        metrics["yes_when_right"] = float(np.mean(verdicts[truths]))
    if not truths.all():
        metrics["no_when_wrong"] = float(np.mean(~verdicts[~truths]))
    return metrics


def _known(trajectory: Trajectory) -> list[Score]:
    """A complete trajectory's scores."""
    return [score for score in trajectory.scores if score is not None]
