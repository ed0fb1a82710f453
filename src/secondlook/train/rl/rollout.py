"""Groups of episodes of one prompt, and what the judge says of each of their images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from secondlook.engine.engine import Engine
from secondlook.episode import SamplingConfig, run_episodes
from secondlook.rewards.reward import Reward, Score, score
from secondlook.types import Episode, Prompt


@dataclass(frozen=True)
class Outcome:
    """What came of the G episodes of one prompt, in numbers: small enough to tell every rank."""

    scores: tuple[tuple[Score | None, ...], ...]
    """Of every image of every episode; None is a missing score."""
    verdicts: list[list[bool]]
    """What the model said of every image."""
    p_yes: list[list[float]]
    final: list[int]
    """Each episode's final image."""

    def values(self) -> list[list[float]]:
        """S of every image of every episode; NaN where it is missing."""
        return [[s.value if s else float("nan") for s in scores] for scores in self.scores]


@dataclass(frozen=True)
class Group:
    """The episodes of one prompt and their outcome."""

    episodes: tuple[Episode, ...]
    outcome: Outcome


def collect(
    engine: Engine,
    prompts: list[Prompt],
    size: int,
    rounds: int,
    seeds: list[int],
    sampling: SamplingConfig,
    reward: Reward,
) -> list[Group]:
    """One group of ``size`` episodes a prompt, all decoded together, every image scored. A group's
    episodes are seeded by its seed and the following numbers."""
    asked = [p for p in prompts for _ in range(size)]
    each = [seed + i for seed in seeds for i in range(size)]
    episodes = run_episodes(engine, asked, each, rounds, sampling)
    scores = iter(score(reward, [(e.prompt, r.image) for e in episodes for r in e.rounds]))
    scored = [tuple(next(scores) for _ in e.rounds) for e in episodes]
    groups = []
    for i in range(0, len(episodes), size):
        part = tuple(episodes[i : i + size])
        said = (
            [[r.yes for r in e.rounds] for e in part],
            [[r.p_yes for r in e.rounds] for e in part],
        )
        groups.append(
            Group(part, Outcome(tuple(scored[i : i + size]), *said, [e.final for e in part]))
        )
    return groups


def describe(outcomes: list[Outcome]) -> dict[str, float]:
    """What to watch: scores and correctness by round, first and final image, verdicts and their
    agreement, redraws."""
    pairs = [each for o in outcomes for each in zip(o.verdicts, o.final, o.scores, strict=True)]
    whole = [(yes, final, [x for x in s if x]) for yes, final, s in pairs if all(s)]
    images = sum(len(s) for _, _, s in pairs)
    metrics = {
        "missing": sum(x is None for _, _, s in pairs for x in s) / images,
        "images": float(images),
    }
    verdicts = [each for yes, _, s in whole for each in zip(yes, s, strict=True)]
    if not verdicts:
        return metrics
    for i in range(max(len(s) for _, _, s in whole)):
        there = [s for _, _, s in whole if len(s) > i]
        metrics[f"score_{i + 1}"] = float(np.mean([s[i].value for s in there]))
        if i:
            metrics[f"gain_{i + 1}"] = float(np.mean([s[i].value - s[i - 1].value for s in there]))
    metrics |= {
        "score": float(np.mean([s[final].value for _, final, s in whole])),
        "first": float(np.mean([s[0].correct for _, _, s in whole])),
        "final": float(np.mean([s[final].correct for _, final, s in whole])),
        "yes_rate": float(np.mean([yes for yes, _ in verdicts])),
        "agreement": float(np.mean([yes == x.correct for yes, x in verdicts])),
    }
    for name, truth in (("yes_when_right", True), ("no_when_wrong", False)):
        said = [yes == truth for yes, x in verdicts if x.correct == truth]
        if said:
            metrics[name] = float(np.mean(said))
    redrawn = [s[final].value - s[0].value for _, final, s in whole if len(s) > 1]
    if redrawn:
        metrics["redraw_gain"] = float(np.mean(redrawn))
    return metrics
