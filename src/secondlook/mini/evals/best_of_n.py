"""Introspection beside best-of-N by the model's own judge, at equal numbers of drawn codes, over
rounds and N.

For every prompt and sample: one episode of at most ``most`` rounds (its first T rounds are the
episode of T rounds), and as many independent first images, each judged alone. Best-of-N shows the
image with the highest p(yes) among N; "until yes" draws afresh while the verdict is No, which is
introspection without memory. At a mean cost of c images, best-of-N takes N = floor(c) or one more,
in the share that makes its mean cost c.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from secondlook.engine.engine import Engine
from secondlook.episode import SamplingConfig, run_episodes
from secondlook.evals.intervals import Interval, Sample, check_counts, mean_of_tasks
from secondlook.io import versions, whole_file, write_json
from secondlook.mini.evals.geneval import seeded_rows
from secondlook.mini.world.language import Spec, check_split
from secondlook.mini.world.reader import judge
from secondlook.types import Episode, Prompt


@dataclass(frozen=True)
class Settings:
    """Everything that a curve depends on."""

    model: str
    most: int = 5
    """Most rounds, and largest N."""
    samples: int = 4
    seed: int = 0
    split: str = "held-out"
    rows_per_task: int = 80
    guidance: float = 1.0

    def __post_init__(self) -> None:
        check_counts(self, "most", "rows_per_task")
        check_counts(self, "samples", most=1000)
        check_split(self.split)


@dataclass(frozen=True)
class Tried:
    """One prompt and sample: verdicts, p(yes) and truth (or score) of the episode's images and of
    independent ones, the first of which is the episode's own."""

    task: str
    prompt: str
    yes: tuple[bool, ...]
    p_yes: tuple[float, ...]
    right: tuple[float, ...]
    fresh_yes: tuple[bool, ...]
    fresh_p_yes: tuple[float, ...]
    fresh_right: tuple[float, ...]


def run(
    engine: Engine,
    settings: Settings,
    sampling: SamplingConfig,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> list[Tried]:
    """Sample the episodes and the independent images of every row of mini-GenEval."""
    jobs = seeded_rows(settings.split, settings.rows_per_task, settings.samples, settings.seed)
    tried: list[Tried] = []
    most = settings.most
    for start in range(0, len(jobs), engine.batch):
        part = jobs[start : start + engine.batch]
        prompts, seeds = [Prompt(s.prompt) for s, _ in part], [seed for _, seed in part]
        episodes = run_episodes(engine, prompts, seeds, most, sampling)
        # the first image is shared; the others have seeds that no other job uses
        others = [10**9 + seed * most + k for seed in seeds for k in range(1, most)]
        alike = [p for p in prompts for _ in range(1, most)]
        fresh = (
            run_episodes(engine, alike, others, 1, replace(sampling, reason_tokens=1))
            if alike
            else []
        )  # verdicts only
        for i, ((spec, _), episode) in enumerate(zip(part, episodes, strict=True)):
            alone = fresh[i * (most - 1) : (i + 1) * (most - 1)]
            tried.append(_tried(spec, episode, alone))
        progress(len(tried), len(jobs))
    return tried


def _tried(spec: Spec, episode: Episode, alone: list[Episode]) -> Tried:
    drawn = [e.rounds[0] for e in alone]
    fresh = [episode.rounds[0], *drawn]
    return Tried(
        spec.tag,
        spec.prompt,
        *(
            tuple(f(r) for r in episode.rounds)
            for f in (lambda r: r.yes, lambda r: r.p_yes, lambda r: _right(spec, r))
        ),
        *(
            tuple(f(r) for r in fresh)
            for f in (lambda r: r.yes, lambda r: r.p_yes, lambda r: _right(spec, r))
        ),
    )


def _right(spec: Spec, r) -> bool:
    return judge(spec, r.image).correct


def shown(yes: tuple[bool, ...], p_yes: tuple[float, ...], most: int) -> tuple[int, int]:
    """Which image is final, and how many were drawn, when one stops at a Yes or after ``most``
    images."""
    drawn = yes.index(True) + 1 if True in yes[:most] else min(most, len(yes))
    return (drawn - 1 if yes[drawn - 1] else int(np.argmax(p_yes[:drawn]))), drawn


def summarize(tried: list[Tried], settings: Settings) -> dict:
    """The numbers of result.json."""
    return points(tried, settings.most, settings.most) | {
        "settings": asdict(settings),
        "versions": versions(),
    }


def points(tried: list[Tried], rounds_: int, n_fresh: int) -> dict:
    """Per T up to ``rounds_``: accuracy, mean images, and the difference to both baselines at equal
    cost; per N up to ``n_fresh``: best-of-N."""
    best = {
        n: [float(t.fresh_right[int(np.argmax(t.fresh_p_yes[:n]))]) for t in tried]
        for n in range(1, n_fresh + 1)
    }
    rounds = []
    for most in range(1, rounds_ + 1):
        ours = [shown(t.yes, t.p_yes, most) for t in tried]
        again = [shown(t.fresh_yes, t.fresh_p_yes, most) for t in tried]
        right = [float(t.right[i]) for t, (i, _) in zip(tried, ours, strict=True)]
        right_again = [float(t.fresh_right[i]) for t, (i, _) in zip(tried, again, strict=True)]
        cost = float(np.mean([n for _, n in ours]))
        low = min(int(cost), n_fresh - 1) or 1
        share = cost - low
        high = min(low + 1, n_fresh)
        equal = [(1 - share) * a + share * b for a, b in zip(best[low], best[high], strict=True)]
        rounds.append(
            {
                "rounds": most,
                "images": cost,
                "final": _mean(tried, right),
                "best_of_n": _mean(tried, equal),
                "over_best_of_n": _mean(tried, [a - b for a, b in zip(right, equal, strict=True)]),
                "until_yes": _mean(tried, right_again)
                | {"images": float(np.mean([n for _, n in again]))},
                "over_until_yes": _mean(
                    tried, [a - b for a, b in zip(right, right_again, strict=True)]
                ),
            }
        )
    return {
        "curve": rounds,
        "best_of_n": [{"n": n, "final": _mean(tried, values)} for n, values in best.items()],
    }


def _mean(tried: list[Tried], values: list[float]) -> Interval:
    return mean_of_tasks([Sample(t.task, t.prompt, v) for t, v in zip(tried, values, strict=True)])


def plot(curves: dict[str, dict], path: Path) -> None:
    """Accuracy over mean images an episode: introspection (solid) and best-of-N (dashed), one
    colour a model."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6.4, 4.2))
    for i, (name, result) in enumerate(curves.items()):
        for style, label, points in (
            ("-o", f"{name}: introspection", [(c["images"], c["final"]) for c in result["curve"]]),
            ("--s", f"{name}: best of N", [(b["n"], b["final"]) for b in result["best_of_n"]]),
        ):
            x, y = [p[0] for p in points], [p[1]["mean"] for p in points]
            axis.plot(x, y, style, color=f"C{i}", ms=4, label=label)
            axis.fill_between(
                x,
                [p[1]["low"] for p in points],
                [p[1]["high"] for p in points],
                color=f"C{i}",
                alpha=0.08,
            )
    axis.set_xlabel("images drawn per episode (mean)")
    axis.set_ylabel("right, mean of tasks")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.tight_layout()
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    plt.close(figure)


def write(out: Path, tried: list[Tried], settings: Settings) -> dict:
    """curve.png and, last, result.json; returns the result."""
    result = summarize(tried, settings)
    plot({Path(settings.model).name: result}, out / "curve.png")
    write_json(out / "result.json", result)
    return result
