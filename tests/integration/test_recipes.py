"""The rewards of the shipped recipes, on given scores, are the paper's (arXiv 2506.01480, section
3.2)."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from secondlook import config
from secondlook.recipes import recipe_names
from secondlook.rewards.reward import Score
from secondlook.train.distributed import Ranks
from secondlook.train.rl.config import RLConfig
from secondlook.train.rl.loop import RLLoop
from secondlook.train.rl.rollout import Group, Outcome
from secondlook.types import Episode, Prompt, SamplingParams, TokenIds, Turn

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


def turns_of(n: int) -> tuple[Turn, ...]:
    """Drawings and verdicts of ``n`` images."""
    kinds = (("draw", SamplingParams("code")), ("judge", SamplingParams("text")))
    return tuple(
        Turn(kind, (TokenIds((1,)),), (1, 2), (-1.0, -1.0), sampling_params, 0)
        for _ in range(n)
        for kind, sampling_params in kinds
    )


def rows_of(settings: RLConfig, outcome: Outcome):
    """A job's rows of one group, whose learning knows nothing but its settings."""
    job = SimpleNamespace(
        config=settings,
        ranks=Ranks(),
        janus=SimpleNamespace(n_codes=576),
        sampling=SimpleNamespace(reason_tokens=48),
    )
    episodes = tuple(Episode(Prompt("p"), 0, (), turns_of(len(s))) for s in outcome.scores)
    rows, _ = RLLoop.rows(
        job, [Group(episodes, outcome)], [outcome], [RLLoop.advantages(job, outcome)]
    )
    return rows


def test_there_are_recipes():
    assert len(RECIPES) == 8 and sum("edit" in name for name in RECIPES) == 2


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipes_reward_is_the_papers(name):
    settings = config.load(RLConfig, Path(name), [])
    editing = "/edit" in name
    if editing:
        assert settings.rounds == 1
        scores = tuple(tuple(Score.of_edit(*fp, True, "") for fp in each) for each in EDITS)
        verdicts = [[True], [False], [False], [True]]
        rewards = [0.5 * f + p for [(f, p)] in EDITS]
    else:
        assert settings.rounds == ROUNDS
        scores, verdicts = (
            tuple(tuple(Score(s, s > 0.5, "") for s in each) for each in SCORES),
            VERDICTS,
        )
        rewards = [paper_reward(s, y) for s, y in zip(SCORES, VERDICTS, strict=True)]
    outcome = Outcome(
        scores, verdicts, [[0.5] * len(y) for y in verdicts], [len(y) - 1 for y in verdicts]
    )
    rows = rows_of(settings, outcome)
    of_turns = [(i, k) for i, s in enumerate(scores) for k in range(2 * len(s))]
    assert len(rows) == len(of_turns)
    for row, (i, k) in zip(rows, of_turns, strict=True):
        if settings.algorithm == "ppo":
            assert row.reward == pytest.approx(rewards[i]) and row.factor == 1
        else:
            # S of an edit is its reward / 1.5, which a group's spread divides out again (but for
            # the epsilon beside it)
            wanted = 0.0 if editing and k % 2 else normed(rewards)[i]
            assert row.advantages[0] == pytest.approx(wanted, rel=2e-3, abs=1e-9), (
                f"episode {i}, turn {k}"
            )


@pytest.mark.parametrize("form", ["episode", "segment", "expected"])
@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_without_a_weight_verdicts_teach_nothing_in_any_form(algorithm, form):
    settings = RLConfig(
        model="mini", algorithm=algorithm, form=form, judging_weight=0.0, balanced=True
    )
    scores = tuple(tuple(Score(s, s > 0.5, "") for s in each) for each in SCORES)
    outcome = Outcome(scores, VERDICTS, [[0.5] * len(y) for y in VERDICTS], [0] * 4)
    rows = rows_of(settings, outcome)
    factors = {(r.turn.kind, r.factor) for r in rows}  # of PPO's advantages, once they are whitened
    assert algorithm == "grpo" or factors == {("draw", 1.0), ("judge", 0.0)}
    told = {
        kind: [a for r in rows if r.turn.kind == kind for a in r.advantages]
        for kind in ("draw", "judge")
    }
    assert all(map(math.isfinite, told["judge"])) and (
        algorithm == "ppo" or (not any(told["judge"]) and any(told["draw"]))
    )
