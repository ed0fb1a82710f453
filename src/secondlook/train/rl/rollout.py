"""A step's episodes: drawn, scored, and told to all ranks; and what to watch of them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from textwrap import shorten

import numpy as np
from PIL.Image import Image

from secondlook.engine.engine import Engine
from secondlook.episode import SamplingConfig, run_episodes
from secondlook.errors import InputError
from secondlook.io import finite
from secondlook.registry import origin
from secondlook.rewards.reward import Reward, Score, score
from secondlook.train.distributed import ProcessGroup
from secondlook.train.rl.trajectory import Trajectory, groups_of
from secondlook.types import Episode, Prompt, Turn


def rollout(
    engine: Engine,
    prompts: list[Prompt],
    group_size: int,
    rounds: int,
    seeds: list[int],
    sampling: SamplingConfig,
    first_turns: Sequence[Turn] = (),
) -> list[Episode]:
    """``group_size`` episodes of each prompt, side by side, all decoded together. A group's
    episodes are seeded by its prompt's seed and the following numbers. ``first_turns``, one for
    each prompt, draw the first image of all of its episodes."""
    episode_prompts: list[Prompt] = []
    episode_seeds: list[int] = []
    for prompt, seed in zip(prompts, seeds, strict=True):
        episode_prompts += [prompt] * group_size
        episode_seeds += range(seed, seed + group_size)
    episode_turns = [turn for turn in first_turns for _ in range(group_size)]
    return run_episodes(engine, episode_prompts, episode_seeds, rounds, sampling, episode_turns)


def redraw_first_images(
    engine: Engine,
    starts: Sequence[Trajectory],
    group_size: int,
    rounds: int,
    seeds: list[int],
    sampling: SamplingConfig,
) -> list[Episode]:
    """``rollout`` of episodes that begin with the first images of trajectories of this rank, as
    many of each."""
    prompts: list[Prompt] = []
    first_turns: list[Turn] = []
    for start in starts:
        assert start.episode is not None, "it was drawn by another rank"
        prompts.append(start.episode.prompt)
        first_turns.append(start.episode.turns[0])
    return rollout(engine, prompts, group_size, rounds, seeds, sampling, first_turns)


def score_episodes(
    reward: Reward,
    episodes: list[Episode],
    group_numbers: Sequence[int],
    first_scores: Sequence[Score] = (),
    checks_reasons: bool = False,
) -> list[Trajectory]:
    """Trajectories of episodes, every image scored in one call. ``group_numbers`` are the numbers
    of the prompts, each of which has as many episodes. ``first_scores``, one for each prompt, are
    known already, of the image that its episodes begin with. With ``checks_reasons`` the reward is
    asked how true the reasons are (``check_reasons``)."""
    group_size = len(episodes) // max(1, len(group_numbers))
    num_known = 1 if first_scores else 0
    drawn_images: list[tuple[Prompt, Image]] = []
    for episode in episodes:
        for episode_round in episode.rounds[num_known:]:
            drawn_images.append((episode.prompt, episode_round.image))
    image_scores = iter(score(reward, drawn_images))  # in the order of the images
    trajectories = []
    for i, episode in enumerate(episodes):
        own_scores: list[Score | None] = [*first_scores[i // group_size :][:num_known]]
        own_scores += [next(image_scores) for _ in episode.rounds[num_known:]]
        trajectory = Trajectory.of_episode(episode, own_scores, group_numbers[i // group_size])
        trajectory.is_repair = bool(first_scores)
        trajectories.append(trajectory)
    if checks_reasons:
        check_reasons(reward, trajectories)
    return trajectories


def check_reasons(reward: Reward, trajectories: list[Trajectory]) -> None:
    """Set ``reason_truths``: the reward's ``reason_truths`` of the reasons of a No to a wrong image
    that was drawn. Raises InputError for a reward that checks no reasons, and where it returns
    anything else than a number in [0, 1] or None for each."""
    check_checks_reasons(reward)
    asked: list[tuple[str, Image, str]] = []
    places: list[tuple[Trajectory, int]] = []
    for trajectory in trajectories:
        trajectory.reason_truths = (math.nan,) * len(trajectory.scores)
        episode = trajectory.episode
        if episode is None or episode.prompt.source is not None:
            continue
        for i, (image_score, episode_round) in enumerate(
            zip(trajectory.scores, episode.rounds, strict=True)
        ):
            if image_score is not None and not image_score.correct and not episode_round.yes:
                asked.append((episode.prompt.text, episode_round.image, episode_round.reason))
                places.append((trajectory, i))
    returned = list(reward.reason_truths(asked)) if asked else []  # type: ignore[attr-defined]
    are_truths = all(truth is None or finite(truth, 0, 1) for truth in returned)
    if not are_truths or len(returned) != len(asked):
        raise InputError(
            f"reward: {origin(reward)!r} was asked how true {len(asked)} reasons are and returned "
            f"{shorten(repr(returned), 80, placeholder=' …')}; reason_truths must return as many "
            "numbers from 0 to 1, or None"
        )
    for (trajectory, i), truth in zip(places, returned, strict=True):
        truths = list(trajectory.reason_truths)
        truths[i] = math.nan if truth is None else truth
        trajectory.reason_truths = tuple(truths)


def check_checks_reasons(reward: Reward) -> None:
    """Raises InputError for a reward without ``reason_truths``."""
    if not hasattr(reward, "reason_truths"):
        raise InputError(
            "config: advantage.reason_weight needs a reward that checks reasons; "
            f"{type(reward).__name__} does not, use 0"
        )


def wrong_first_images(
    rng: np.random.Generator, trajectories: list[Trajectory], n: int
) -> list[Trajectory]:
    """At most ``n`` trajectories whose first image is wrong, in a random order; of each prompt one
    before any has two."""
    by_turn_of_prompt: list[tuple[int, Trajectory]] = []
    for group in groups_of(trajectories):
        wrong = [t for t in group if t.scores[0] is not None and not t.scores[0].correct]
        for turn_of_prompt, i in enumerate(rng.permutation(len(wrong))):
            by_turn_of_prompt.append((turn_of_prompt, wrong[i]))
    order = rng.permutation(len(by_turn_of_prompt))
    shuffled = [by_turn_of_prompt[i] for i in order]
    shuffled.sort(key=lambda item: item[0])  # stable: random among those of equal turn
    return [trajectory for _, trajectory in shuffled[:n]]


def gather_trajectories(own: list[Trajectory], ranks: ProcessGroup) -> list[Trajectory]:
    """The trajectories of all ranks, in order of their groups. Of the others' only scores and
    verdicts are known: no picture leaves a rank."""
    if ranks.world_size == 1:
        return own
    parts_of_ranks = ranks.all_gather([trajectory.without_episode() for trajectory in own])
    parts_of_ranks[ranks.rank] = own  # with their pictures and tokens
    all_trajectories: list[Trajectory] = []
    for rank_trajectories in parts_of_ranks:
        all_trajectories += rank_trajectories
    # the sort is stable: a group's episodes stay in the order in which its rank drew them
    return sorted(all_trajectories, key=lambda trajectory: trajectory.group)


def describe(trajectories: list[Trajectory]) -> dict[str, float]:
    """What to watch: scores and correctness by round, of first and final images, verdicts and their
    agreement with the reward, what redrawing gains."""
    complete = [t for t in trajectories if t.is_complete and not t.is_repair]
    all_scores: list[Score | None] = []
    for trajectory in trajectories:
        # also those of episodes that lack another one; a shared first image is counted once
        all_scores += trajectory.scores[1:] if trajectory.is_repair else trajectory.scores
    n_images, n_missing = len(all_scores), all_scores.count(None)
    metrics = {"missing": n_missing / n_images, "images": float(n_images)}
    if complete:
        metrics |= _metrics_by_round(complete)
        metrics |= _metrics_of_first_and_final(complete)
        metrics |= _metrics_of_verdicts(complete)
    metrics |= _metrics_of_repairs(trajectories)
    return metrics


def _metrics_of_repairs(trajectories: list[Trajectory]) -> dict[str, float]:
    """How many episodes that begin with a wrong image end with a right one, and how true reasons
    are, where there are any."""
    metrics = {}
    repaired = []
    for trajectory in trajectories:
        if trajectory.is_repair and trajectory.is_complete:
            repaired.append(_known_scores(trajectory)[trajectory.final].correct)
    if repaired:
        metrics["repaired"] = float(np.mean(repaired))
    truths = [truth for t in trajectories for truth in t.reason_truths if math.isfinite(truth)]
    if truths:
        metrics["reason_true"] = float(np.mean(truths))
    return metrics


def _metrics_by_round(complete: list[Trajectory]) -> dict[str, float]:
    """The mean score of each round's images, and what each gains over the round before."""
    scores_of_round: dict[int, list[float]] = defaultdict(list)
    gains_of_round: dict[int, list[float]] = defaultdict(list)
    for trajectory in complete:
        image_scores = trajectory.image_scores
        for i, image_score in enumerate(image_scores):
            scores_of_round[i].append(image_score)
            if i > 0:
                gains_of_round[i].append(image_score - image_scores[i - 1])
    metrics = {}
    # fewer episodes reach a later round: each mean is over those that do
    for i in range(len(scores_of_round)):  # rounds count from 1 in metrics
        metrics[f"score_{i + 1}"] = float(np.mean(scores_of_round[i]))
        if i > 0:
            metrics[f"gain_{i + 1}"] = float(np.mean(gains_of_round[i]))
    return metrics


def _metrics_of_first_and_final(complete: list[Trajectory]) -> dict[str, float]:
    """The score of final images, how many first and final ones are correct, and what redrawing
    gains in the episodes that have more than one image."""
    final_scores: list[float] = []
    first_correct: list[bool] = []
    final_correct: list[bool] = []
    redraw_gains: list[float] = []
    for trajectory in complete:
        image_scores, final = trajectory.image_scores, trajectory.final
        reward_scores = _known_scores(trajectory)
        final_scores.append(image_scores[final])
        first_correct.append(reward_scores[0].correct)
        final_correct.append(reward_scores[final].correct)
        if len(image_scores) > 1:
            redraw_gains.append(image_scores[final] - image_scores[0])
    metrics = {
        "score": float(np.mean(final_scores)),
        "first": float(np.mean(first_correct)),
        "final": float(np.mean(final_correct)),
    }
    if redraw_gains:
        metrics["redraw_gain"] = float(np.mean(redraw_gains))
    return metrics


def _metrics_of_verdicts(complete: list[Trajectory]) -> dict[str, float]:
    """How often the model says Yes, and how often it agrees with the reward."""
    all_verdicts: list[bool] = []
    all_correct: list[bool] = []
    for trajectory in complete:
        all_verdicts += trajectory.verdicts
        all_correct += [score.correct for score in _known_scores(trajectory)]
    verdicts = np.array(all_verdicts)  # (images,) the model's Yes
    truths = np.array(all_correct)  # (images,) the reward's
    metrics = {
        "yes_rate": float(np.mean(verdicts)),
        "agreement": float(np.mean(verdicts == truths)),
    }
    # of right images alone, and of wrong ones alone, where there are any
    if truths.any():
        metrics["yes_when_right"] = float(np.mean(verdicts[truths]))
    if not truths.all():
        metrics["no_when_wrong"] = float(np.mean(~verdicts[~truths]))
    return metrics


def _known_scores(trajectory: Trajectory) -> list[Score]:
    """A complete trajectory's scores."""
    return [score for score in trajectory.scores if score is not None]
