"""Groups of episodes of one prompt, and what the judge says of each of their images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from secondlook.engine.decode import Engine
from secondlook.introspect import Sampling, introspect
from secondlook.rewards.base import Reward, Score
from secondlook.types import Episode, Prompt


@dataclass(frozen=True)
class Group:
    """G episodes of one prompt with the scores of their images; None is a missing score."""

    episodes: tuple[Episode, ...]
    scores: tuple[tuple[Score | None, ...], ...]

    def values(self) -> list[list[float]]:
        """S of every image of every episode; NaN where it is missing."""
        return [[s.value if s else float("nan") for s in scores] for scores in self.scores]

    def verdicts(self) -> list[list[bool]]:
        """What the model said of every image."""
        return [[r.yes for r in e.rounds] for e in self.episodes]

    def p_yes(self) -> list[list[float]]:
        """The probability of Yes on every image."""
        return [[r.p_yes for r in e.rounds] for e in self.episodes]


def collect(
    engine: Engine, prompts: list[str], size: int, rounds: int, seed: int, sampling: Sampling, reward: Reward
) -> list[Group]:
    """One group of ``size`` episodes a prompt, all decoded together, every image scored."""
    asked = [Prompt(p) for p in prompts for _ in range(size)]
    episodes = introspect(engine, asked, list(range(seed, seed + len(asked))), rounds, sampling)
    scores = iter(reward([(e.prompt.text, r.image) for e in episodes for r in e.rounds]))
    scored = [tuple(next(scores) for _ in e.rounds) for e in episodes]
    return [Group(tuple(episodes[i : i + size]), tuple(scored[i : i + size])) for i in range(0, len(episodes), size)]


def describe(groups: list[Group]) -> dict[str, float]:
    """What to watch: scores and correctness by round, first and final image, verdicts and their agreement, redraws."""
    pairs = [(e, s) for g in groups for e, s in zip(g.episodes, g.scores, strict=True)]
    whole = [(e, [x for x in s if x]) for e, s in pairs if all(s)]
    images = sum(len(s) for _, s in pairs)
    metrics = {"missing": sum(x is None for _, s in pairs for x in s) / images, "images": float(images)}
    verdicts = [(r.yes, x) for e, s in whole for r, x in zip(e.rounds, s, strict=True)]
    if not verdicts:
        return metrics
    for i in range(max(len(s) for _, s in whole)):
        metrics[f"score_{i + 1}"] = float(np.mean([s[i].value for _, s in whole if len(s) > i]))
    metrics |= {
        "first": float(np.mean([s[0].correct for _, s in whole])),
        "final": float(np.mean([s[e.final].correct for e, s in whole])),
        "yes_rate": float(np.mean([yes for yes, _ in verdicts])),
        "agreement": float(np.mean([yes == x.correct for yes, x in verdicts])),
    }
    for name, truth in (("yes_when_right", True), ("no_when_wrong", False)):
        said = [yes == truth for yes, x in verdicts if x.correct == truth]
        if said:
            metrics[name] = float(np.mean(said))
    redrawn = [s[e.final].value - s[0].value for e, s in whole if len(s) > 1]
    if redrawn:
        metrics["redraw_gain"] = float(np.mean(redrawn))
    return metrics
