"""Looking again beside best-of-N by the model's own judge, at equal numbers of drawn images.

For every prompt and sample there is one episode of at most T rounds (its first t rounds are the
episode of t rounds), and as many independent first images, each judged alone. Best-of-N shows the
image with the highest P(Yes) among N; "until yes" draws afresh while the verdict is No, which is
introspection without memory. At a mean cost of c images, best-of-N takes N = floor(c) or one more,
in the proportion that makes its mean cost c.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from secondlook.evals.intervals import Interval, Sample, mean_of_tasks
from secondlook.io import whole_file


class JudgedImage(NamedTuple):
    """The model's verdict on an image, its P(Yes), and the image's true score (1.0 is right)."""

    yes: bool
    p_yes: float
    value: float


@dataclass(frozen=True)
class Trial:
    """One prompt and sample."""

    task: str
    prompt: str
    rounds: tuple[JudgedImage, ...]
    """The episode's images."""
    fresh: tuple[JudgedImage, ...]
    """Independent first images; the first one is the episode's own."""


def final_image(images: Sequence[JudgedImage], max_images: int) -> tuple[int, int]:
    """Which image is final, and how many are drawn, when one stops at a Yes or after
    ``max_images``: the one with a Yes, else that with the highest P(Yes)."""
    for i, image in enumerate(images[:max_images]):
        if image.yes:
            return i, i + 1
    drawn = min(max_images, len(images))
    return int(np.argmax([image.p_yes for image in images[:drawn]])), drawn


def curve(trials: Sequence[Trial], max_rounds: int, n_fresh: int) -> dict[str, Any]:
    """``curve``: for each number of rounds up to ``max_rounds`` the score, the mean number of
    images, and the differences to both baselines at equal cost; ``best_of_n``: best-of-N for each N
    up to ``n_fresh``."""
    best_values = {}
    for n in range(1, n_fresh + 1):
        best_values[n] = [_best_of(trial.fresh[:n]) for trial in trials]
    return {
        "curve": [
            _point(trials, rounds, best_values, n_fresh) for rounds in range(1, max_rounds + 1)
        ],
        "best_of_n": [
            {"n": n, "final": _mean(trials, values)} for n, values in best_values.items()
        ],
    }


def _best_of(images: Sequence[JudgedImage]) -> float:
    """The score of the image that the judge is surest of."""
    return float(images[int(np.argmax([image.p_yes for image in images]))].value)


def _point(
    trials: Sequence[Trial], rounds: int, best_values: Mapping[int, list[float]], n_fresh: int
) -> dict[str, Any]:
    """The curve at at most ``rounds`` rounds."""
    values, drawn, afresh_values, afresh_drawn = [], [], [], []
    for trial in trials:
        final, n = final_image(trial.rounds, rounds)
        values.append(float(trial.rounds[final].value))
        drawn.append(n)
        final, n = final_image(trial.fresh, rounds)
        afresh_values.append(float(trial.fresh[final].value))
        afresh_drawn.append(n)

    cost = float(np.mean(drawn))
    low = min(int(cost), n_fresh - 1) or 1
    high = min(low + 1, n_fresh)
    fraction = cost - low  # of the prompts that best-of-N spends one more image on
    equal_cost = []
    for less, more in zip(best_values[low], best_values[high], strict=True):
        equal_cost.append((1 - fraction) * less + fraction * more)

    until_yes = _mean(trials, afresh_values) | {"images": float(np.mean(afresh_drawn))}
    return {
        "rounds": rounds,
        "images": cost,
        "final": _mean(trials, values),
        "best_of_n": _mean(trials, equal_cost),
        "over_best_of_n": _mean(trials, np.subtract(values, equal_cost).tolist()),
        "until_yes": until_yes,
        "over_until_yes": _mean(trials, np.subtract(values, afresh_values).tolist()),
    }


def _mean(trials: Sequence[Trial], values: Sequence[float]) -> Interval:
    return mean_of_tasks(
        [Sample(t.task, t.prompt, value) for t, value in zip(trials, values, strict=True)]
    )


def plot_curves(curves: Mapping[str, dict[str, Any]], path: Path) -> None:
    """Score over mean images an episode: looking again (solid) and best-of-N (dashed), one colour a
    model."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6.4, 4.2))
    for i, (name, result) in enumerate(curves.items()):
        rounds = [(point["images"], point["final"]) for point in result["curve"]]
        best = [(point["n"], point["final"]) for point in result["best_of_n"]]
        for style, label, points in (
            ("-o", f"{name}: introspection", rounds),
            ("--s", f"{name}: best of N", best),
        ):
            x = [images for images, _ in points]
            y = [score["mean"] for _, score in points]
            axis.plot(x, y, style, color=f"C{i}", ms=4, label=label)
            low = [score["low"] for _, score in points]
            high = [score["high"] for _, score in points]
            axis.fill_between(x, low, high, color=f"C{i}", alpha=0.08)
    axis.set_xlabel("images drawn per episode (mean)")
    axis.set_ylabel("right, mean of tasks")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.tight_layout()
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    plt.close(figure)
