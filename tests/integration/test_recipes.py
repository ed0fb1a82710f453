"""The rewards of the shipped recipes, on given scores, are the paper's (arXiv 2506.01480, section
3.2)."""

import math
from pathlib import Path

import numpy as np
import pytest

from secondlook import config
from secondlook.recipes import recipe_names
from secondlook.rewards.reward import Score
from secondlook.train.distributed import ProcessGroup
from secondlook.train.rl.algorithms import algorithms
from secondlook.train.rl.config import RLConfig
from secondlook.train.rl.trajectory import Trajectory, TrajectoryTurn
from secondlook.train.rl.turn_weights import select_turns
from secondlook.types import SamplingParams, TokenIds, Turn

RECIPES = [name for name in recipe_names() if "grpo" in name or "ppo" in name]
EDITS = [[(0.2, 0.9)], [(0.8, 0.4)], [(1.0, 1.0)], [(0.0, 1.0)]]
"""Following and preserving of the one image of four episodes."""
SCORES = [[0.9], [0.2, 0.7], [0.3, 0.1, 0.6], [0.5, 0.4, 0.2]]
VERDICTS = [[True], [False, True], [False, False, False], [False, False, True]]
ROUNDS = 3


def paper_reward(scores: list[float], yes: list[bool]) -> float:
    """R = sum of S_i before the last image + (T - K + 1) S_K + T / K times the sum of 1 - |S_i -
    SE_i|."""
    last = len(scores)
    drawn = sum(scores[:-1]) + (ROUNDS - last + 1) * scores[-1]
    return drawn + ROUNDS / last * sum(
        1 - abs(s - (1.0 if y else 0.0)) for s, y in zip(scores, yes, strict=True)
    )


def normed(rewards: list[float]) -> np.ndarray:
    return (np.array(rewards) - np.mean(rewards)) / np.std(rewards, ddof=1)


def sampled(kind: str) -> Turn:
    """A drawing or a verdict of two tokens."""
    params = SamplingParams("text" if kind == "judge" else "code")
    return Turn(kind, (TokenIds((1,)),), (1, 2), (-1.0, -1.0), params, 0)


def trajectory(scores: list[Score], verdicts: list[bool]) -> Trajectory:
    turns = []
    for score in scores:
        for kind in ("draw", "judge"):
            turns.append(TrajectoryTurn(kind, score.value, sampled(kind)))
    n = len(scores)
    return Trajectory(0, tuple(scores), tuple(verdicts), (0.5,) * n, n - 1, turns)


def with_advantages(settings: RLConfig, group: list[Trajectory], janus) -> list[TrajectoryTurn]:
    """What a step with these settings learns of one group."""
    algorithm = algorithms.get(settings.algorithm)(settings, janus, ProcessGroup())
    algorithm.advantages(group)
    return select_turns(group, settings.advantage, settings.loss.reduction, 576)


def test_there_are_recipes():
    assert len(RECIPES) == 8 and sum("edit" in name for name in RECIPES) == 2


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipes_reward_is_the_papers(name, janus):
    settings = config.load(RLConfig, Path(name), [])
    editing = "/edit" in name
    if editing:
        assert settings.rollout.rounds == 1
        scores = [[Score.of_edit(*parts, True, "") for parts in each] for each in EDITS]
        verdicts = [[True], [False], [False], [True]]
        rewards = [0.5 * following + preserving for [(following, preserving)] in EDITS]
    else:
        assert settings.rollout.rounds == ROUNDS
        scores = [[Score(s, s > 0.5, "") for s in each] for each in SCORES]
        verdicts = VERDICTS
        rewards = [paper_reward(s, y) for s, y in zip(SCORES, VERDICTS, strict=True)]
    group = [trajectory(s, y) for s, y in zip(scores, verdicts, strict=True)]
    turns = with_advantages(settings, group, janus)
    assert len(turns) == sum(len(t.turns) for t in group)
    for i, each in enumerate(group):
        for turn in each.turns:
            if settings.algorithm == "ppo":
                assert turn.reward == pytest.approx(rewards[i]) and turn.advantage_scale == 1
            else:
                # S of an edit is its reward / 1.5, which a group's spread divides out again (but
                # for the epsilon beside it)
                wanted = 0.0 if editing and turn.is_verdict else normed(rewards)[i]
                found = turn.token_advantages[0]
                assert found == pytest.approx(wanted, rel=2e-3, abs=1e-9), f"episode {i}"


@pytest.mark.parametrize("credit", ["episode", "segment", "expected"])
@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_without_a_weight_verdicts_teach_nothing_whatever_the_credit(algorithm, credit, janus):
    settings = RLConfig(
        model="mini",
        algorithm=algorithm,
        advantage={"credit": credit, "judging_weight": 0.0, "balance_verdicts": True},
    )
    scores = [[Score(s, s > 0.5, "") for s in each] for each in SCORES]
    group = [trajectory(s, y) for s, y in zip(scores, VERDICTS, strict=True)]
    turns = with_advantages(settings, group, janus)
    assert {(t.kind, t.advantage_scale) for t in turns} == {("draw", 1.0), ("judge", 0.0)}
    verdicts = [a for t in turns if t.is_verdict for a in t.token_advantages]
    drawings = [a for t in turns if not t.is_verdict for a in t.token_advantages]
    assert all(map(math.isfinite, verdicts)) and not any(verdicts) and any(drawings)
