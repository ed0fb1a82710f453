"""Looking again beside best-of-N by the model's own judge, at equal numbers of drawn images.

For every prompt and sample there is one episode of at most T rounds (its first t rounds are the
episode of t rounds), and as many independent first images, each judged alone. Best-of-N shows the
image with the highest P(Yes) among N; "until yes" draws afresh while the verdict is No, N images at
most, which is introspection without memory. Each takes N or N + 1, in the proportion that makes its
mean cost in images that of the episodes.
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


class _Baseline(NamedTuple):
    """A way of choosing among the independent images, with at most N of them."""

    values: list[float]
    """Each trial's score."""
    mean_cost: float
    """Images."""


def curve(trials: Sequence[Trial], max_rounds: int, n_fresh: int) -> dict[str, Any]:
    """``curve``: for each number of rounds up to ``max_rounds`` the score, the mean number of
    images, and the differences to both baselines at equal cost; ``best_of_n``: best-of-N for each N
    up to ``n_fresh``. Where even ``n_fresh`` images until Yes cost less than the episodes, that
    baseline has fewer: ``until_yes`` says how many ``images`` it has."""
    best_of_n: list[_Baseline] = []  # of N = 1, 2, …
    until_yes: list[_Baseline] = []
    for n in range(1, n_fresh + 1):
        best_values, yes_values, yes_costs = [], [], []
        for trial in trials:
            best_values.append(float(trial.fresh[_surest(trial.fresh[:n])].value))
            final_index, num_drawn = final_image(trial.fresh, n)
            yes_values.append(float(trial.fresh[final_index].value))
            yes_costs.append(num_drawn)
        best_of_n.append(_Baseline(best_values, n))
        until_yes.append(_Baseline(yes_values, float(np.mean(yes_costs))))
    curve_points = []
    for num_rounds in range(1, max_rounds + 1):
        curve_points.append(_point(trials, num_rounds, best_of_n, until_yes))
    finals = []
    for n, baseline in enumerate(best_of_n, start=1):
        finals.append({"n": n, "final": _mean(trials, baseline.values)})
    return {"curve": curve_points, "best_of_n": finals}


def _point(
    trials: Sequence[Trial],
    max_rounds: int,
    best_of_n: Sequence[_Baseline],
    until_yes: Sequence[_Baseline],
) -> dict[str, Any]:
    """The curve at at most ``max_rounds`` rounds."""
    # of each trial the final image's score, and how many images were drawn for it
    episode_values, episode_costs = [], []
    for trial in trials:
        final_index, num_drawn = final_image(trial.rounds, max_rounds)
        episode_values.append(float(trial.rounds[final_index].value))
        episode_costs.append(num_drawn)
    mean_cost = float(np.mean(episode_costs))
    best_values, _ = _at_cost(best_of_n, mean_cost)
    afresh_values, afresh_cost = _at_cost(until_yes, mean_cost)
    # the differences are paired: a resample takes both scores of a prompt
    over_best_of_n = np.subtract(episode_values, best_values).tolist()
    over_until_yes = np.subtract(episode_values, afresh_values).tolist()
    return {
        "rounds": max_rounds,
        "images": mean_cost,
        "final": _mean(trials, episode_values),
        "best_of_n": _mean(trials, best_values),
        "over_best_of_n": _mean(trials, over_best_of_n),
        "until_yes": _mean(trials, afresh_values) | {"images": afresh_cost},
        "over_until_yes": _mean(trials, over_until_yes),
    }


def _at_cost(baselines: Sequence[_Baseline], mean_cost: float) -> tuple[list[float], float]:
    """A baseline with N or N + 1 images at most, so that its mean cost is ``mean_cost``: each
    trial's score, expected over which of them have the one more, and what it costs then."""
    lower = baselines[0]
    for upper in baselines[1:]:
        if upper.mean_cost > mean_cost:
            upper_share = (mean_cost - lower.mean_cost) / (upper.mean_cost - lower.mean_cost)
            mixed = (1 - upper_share) * np.array(lower.values) + upper_share * np.array(
                upper.values
            )
            return mixed.tolist(), mean_cost
        lower = upper
    return lower.values, lower.mean_cost


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
