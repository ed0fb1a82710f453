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
    num_drawn = min(max_images, len(images))
    return _surest(images[:num_drawn]), num_drawn


def _surest(images: Sequence[JudgedImage]) -> int:
    """The index of the highest P(Yes), the first of equal ones."""
    return int(np.argmax([image.p_yes for image in images]))


def curve(trials: Sequence[Trial], max_rounds: int, n_fresh: int) -> dict[str, Any]:
    """``curve``: for each number of rounds up to ``max_rounds`` the score, the mean number of
    images, and the differences to both baselines at equal cost; ``best_of_n``: best-of-N for each N
    up to ``n_fresh``."""
    best_values: dict[int, list[float]] = {}  # N -> each trial's score of its best of N
    best_of_n = []
    for n in range(1, n_fresh + 1):
        best_values[n] = []
        for trial in trials:
            chosen_image = trial.fresh[_surest(trial.fresh[:n])]
            best_values[n].append(float(chosen_image.value))
        best_of_n.append({"n": n, "final": _mean(trials, best_values[n])})
    curve_points = []
    for num_rounds in range(1, max_rounds + 1):
        curve_points.append(_point(trials, num_rounds, best_values, n_fresh))
    return {"curve": curve_points, "best_of_n": best_of_n}


def _point(
    trials: Sequence[Trial], max_rounds: int, best_values: Mapping[int, list[float]], n_fresh: int
) -> dict[str, Any]:
    """The curve at at most ``max_rounds`` rounds."""
    # of each trial the final image's score, and how many images were drawn for it
    episode_values, episode_costs = [], []
    afresh_values, afresh_costs = [], []
    for trial in trials:
        final_index, num_drawn = final_image(trial.rounds, max_rounds)
        episode_values.append(float(trial.rounds[final_index].value))
        episode_costs.append(num_drawn)
        final_index, num_drawn = final_image(trial.fresh, max_rounds)
        afresh_values.append(float(trial.fresh[final_index].value))
        afresh_costs.append(num_drawn)

    mean_cost = float(np.mean(episode_costs))
    # best-of-N takes N = lower_n or one more, so that its mean cost is the same
    lower_n = min(int(mean_cost), n_fresh - 1) or 1
    upper_n = min(lower_n + 1, n_fresh)
    upper_share = mean_cost - lower_n  # of the prompts that get the one more
    equal_cost_values = []  # the expected score over which prompts these are
    for lower, upper in zip(best_values[lower_n], best_values[upper_n], strict=True):
        equal_cost_values.append((1 - upper_share) * lower + upper_share * upper)

    # the differences are paired: a resample takes both scores of a prompt
    over_best_of_n = np.subtract(episode_values, equal_cost_values).tolist()
    over_until_yes = np.subtract(episode_values, afresh_values).tolist()
    until_yes = _mean(trials, afresh_values) | {"images": float(np.mean(afresh_costs))}
    return {
        "rounds": max_rounds,
        "images": mean_cost,
        "final": _mean(trials, episode_values),
        "best_of_n": _mean(trials, equal_cost_values),
        "over_best_of_n": _mean(trials, over_best_of_n),
        "until_yes": until_yes,
        "over_until_yes": _mean(trials, over_until_yes),
    }


def _mean(trials: Sequence[Trial], trial_values: Sequence[float]) -> Interval:
    """Of one value a trial."""
    samples = []
    for trial, trial_value in zip(trials, trial_values, strict=True):
        samples.append(Sample(trial.task, trial.prompt, trial_value))
    return mean_of_tasks(samples)


def plot_curves(curves: Mapping[str, dict[str, Any]], image_path: Path) -> None:
    """Score over mean images an episode: looking again (solid) and best-of-N (dashed), one colour a
    model. ``curves`` has the result of `curve` by the model's name."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6.4, 4.2))

    def plot(points: list[dict[str, Any]], x_key: str, **style: Any) -> None:
        x = [point[x_key] for point in points]
        scores = {}
        for bound in ("mean", "low", "high"):
            scores[bound] = [point["final"][bound] for point in points]
        axis.plot(x, scores["mean"], ms=4, **style)
        axis.fill_between(x, scores["low"], scores["high"], color=style["color"], alpha=0.08)

    for i, (name, result) in enumerate(curves.items()):
        color = f"C{i}"  # matplotlib's i-th of its cycle
        introspection_label, best_label = f"{name}: introspection", f"{name}: best of N"
        plot(result["curve"], "images", color=color, label=introspection_label, ls="-", marker="o")
        plot(result["best_of_n"], "n", color=color, label=best_label, ls="--", marker="s")
    axis.set_xlabel("images drawn per episode (mean)")
    axis.set_ylabel("right, mean of tasks")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.tight_layout()
    with whole_file(image_path) as temporary_path:
        figure.savefig(temporary_path, dpi=120, format="png")
    plt.close(figure)
