"""Numbers with their uncertainty: bootstrap intervals over prompts, and agreement of verdicts with
the truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import accuracy_score, balanced_accuracy_score, cohen_kappa_score

from secondlook.errors import InputError


@dataclass(frozen=True)
class Sample:
    """One scored image: its task, its prompt (the unit of resampling) and its value."""

    task: str
    prompt: str
    value: float


Interval = dict[str, float]
"""``mean``, and ``low`` and ``high`` of its 95 % interval; all NaN where there are no data."""
NO_DATA = float("nan")
RESAMPLES = 2000


def interval_text(interval: Interval) -> str:
    """ "0.850 [0.812, 0.883]"; "no data" where there was nothing to average."""
    if np.isnan(interval["mean"]):
        return "no data"
    return "{mean:.3f} [{low:.3f}, {high:.3f}]".format(**interval)


def signed_text(difference: Interval) -> str:
    """ "+0.015 [-0.002, +0.031]"; "no data" where there was nothing to average."""
    if np.isnan(difference["mean"]):
        return "no data"
    return "{mean:+.3f} [{low:+.3f}, {high:+.3f}]".format(**difference)


def above_zero(difference: Interval) -> str:
    """ "yes", "no", or "not shown" where the interval holds zero."""
    if difference["low"] > 0:
        return "yes"
    return "no" if difference["high"] < 0 else "not shown"


def bootstrap(
    units: Mapping[str, Sequence[np.ndarray]],
    statistic: Callable[[dict[str, np.ndarray]], float],
    seed: int = 0,
) -> Interval:
    """A statistic with its 95 % percentile interval.

    ``units`` has for each stratum (a task) one array of rows for each unit (a prompt). Units are
    resampled within their stratum; the statistic is given each stratum's rows together.
    """
    rng = np.random.default_rng(seed)
    all_rows: dict[str, np.ndarray] = {}  # of each stratum that has any: (rows, …)
    for stratum, unit_rows in units.items():
        if len(unit_rows):
            all_rows[stratum] = np.concatenate(list(unit_rows))
    if not all_rows:
        return {"mean": NO_DATA, "low": NO_DATA, "high": NO_DATA}
    resampled_values = []
    for _ in range(RESAMPLES):
        drawn_rows = {}
        for stratum in all_rows:
            unit_rows = units[stratum]
            # as many units as there are, with replacement; a unit brings all of its rows
            picks = rng.integers(len(unit_rows), size=len(unit_rows))
            drawn_rows[stratum] = np.concatenate([unit_rows[i] for i in picks])
        value = statistic(drawn_rows)
        if np.isfinite(value):  # it may be undefined: no wrong image in this resample
            resampled_values.append(value)
    low, high = NO_DATA, NO_DATA
    if resampled_values:
        low, high = np.percentile(resampled_values, [2.5, 97.5]).tolist()
    # the point estimate is of the data themselves, not the resamples' mean
    return {"mean": float(statistic(all_rows)), "low": low, "high": high}


def group_by_prompt(prompts: Sequence[str]) -> list[list[int]]:
    """The indices of each distinct prompt, in the prompts' order of appearance."""
    indices_of_prompt: dict[str, list[int]] = {}
    for i, prompt in enumerate(prompts):
        indices_of_prompt.setdefault(prompt, []).append(i)
    return list(indices_of_prompt.values())


def by_prompt(samples: Sequence[Sample]) -> dict[str, list[np.ndarray]]:
    """Samples as the units of `bootstrap`: task -> one array of values per distinct prompt."""
    values_of_task: dict[str, dict[str, list[float]]] = {}
    for sample in samples:
        values_of_prompt = values_of_task.setdefault(sample.task, {})
        values_of_prompt.setdefault(sample.prompt, []).append(sample.value)
    units = {}
    for task, values_of_prompt in values_of_task.items():
        units[task] = [np.array(values) for values in values_of_prompt.values()]  # (images,) each
    return units


def mean_of_tasks(samples: Sequence[Sample]) -> Interval:
    """GenEval's overall: the unweighted mean of the tasks' means over images."""

    def task_mean(values_of_task: dict[str, np.ndarray]) -> float:
        return float(np.mean([values.mean() for values in values_of_task.values()]))

    return bootstrap(by_prompt(samples), task_mean)


def agreement(
    truth: Sequence[bool], verdicts: Sequence[bool], prompts: Sequence[str]
) -> dict[str, Any]:
    """A model's yes or no against the truth: accuracy, balanced accuracy (with an interval over
    prompts), Cohen's kappa, and how often it says yes."""
    columns = np.stack([np.array(truth), np.array(verdicts)], 1)  # (images, 2)
    units = {"all": [columns[indices] for indices in group_by_prompt(prompts)]}

    def balanced(drawn_rows: dict[str, np.ndarray]) -> float:
        right, yes = drawn_rows["all"].T  # (images,) each
        if right.all() or not right.any():  # one of the two recalls is 0/0
            return NO_DATA
        return float(balanced_accuracy_score(right, yes))

    # kappa is 0/0 where truth and verdicts are one and the same constant
    varied = len(set(truth)) > 1 or len(set(verdicts)) > 1
    return {
        "verdicts": len(columns),
        "accuracy": float(accuracy_score(truth, verdicts)),
        "balanced_accuracy": bootstrap(units, balanced),
        "kappa": float(cohen_kappa_score(truth, verdicts)) if varied else 0.0,
        "always_yes_rate": float(columns[:, 1].mean()),
        "truly_right": float(columns[:, 0].mean()),
    }


def mean_by_prompt(samples: Sequence[Sample]) -> Interval:
    """The mean over all samples, whatever their task; prompts are resampled."""

    def mean(values_of_task: dict[str, np.ndarray]) -> float:
        return float(np.concatenate(list(values_of_task.values())).mean())

    return bootstrap(by_prompt(samples), mean)


@contextmanager
def written_by(command: str, path: Path) -> Iterator[None]:
    """A file that does not hold what this ``command`` writes is refused. Raises InputError that
    names it."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{error}; give a folder that {command} wrote") from error
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise InputError(
            f"file: {str(path)!r} is not what {command} writes ({error!r}); give another folder"
        ) from error
