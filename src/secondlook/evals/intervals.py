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


def interval_text(x: Interval) -> str:
    """ "0.850 [0.812, 0.883]"; "none" where there was nothing to average."""
    if np.isnan(x["mean"]):
        return "none"
    return f"{x['mean']:.3f} [{x['low']:.3f}, {x['high']:.3f}]"


def signed_text(difference: Interval) -> str:
    """ "+0.015 [-0.002, +0.031]"."""
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
    together = {name: np.concatenate(list(parts)) for name, parts in units.items() if len(parts)}
    if not together:
        return {"mean": NO_DATA, "low": NO_DATA, "high": NO_DATA}
    resampled = []
    for _ in range(RESAMPLES):
        drawn = {}
        for name in together:
            parts = units[name]
            picks = rng.integers(len(parts), size=len(parts))
            drawn[name] = np.concatenate([parts[i] for i in picks])
        value = statistic(drawn)
        if np.isfinite(value):  # it may be undefined: no wrong image in this resample
            resampled.append(value)
    low, high = np.percentile(resampled, [2.5, 97.5]) if resampled else (NO_DATA, NO_DATA)
    return {"mean": float(statistic(together)), "low": float(low), "high": float(high)}


def group_by_prompt(prompts: Sequence[str]) -> list[list[int]]:
    """The places of each distinct prompt, in the prompts' order of appearance."""
    places: dict[str, list[int]] = {}
    for i, prompt in enumerate(prompts):
        places.setdefault(prompt, []).append(i)
    return list(places.values())


def by_prompt(samples: Sequence[Sample]) -> dict[str, list[np.ndarray]]:
    """Samples as the units of `bootstrap`: task -> one array of values per distinct prompt."""
    grouped: dict[str, dict[str, list[float]]] = {}
    for sample in samples:
        grouped.setdefault(sample.task, {}).setdefault(sample.prompt, []).append(sample.value)
    return {task: [np.array(v) for v in prompts.values()] for task, prompts in grouped.items()}


def mean_of_tasks(samples: Sequence[Sample]) -> Interval:
    """GenEval's overall: the unweighted mean of the tasks' means over images."""

    def mean(tasks: dict[str, np.ndarray]) -> float:
        return float(np.mean([values.mean() for values in tasks.values()]))

    return bootstrap(by_prompt(samples), mean)


def agreement(
    truth: Sequence[bool], verdicts: Sequence[bool], prompts: Sequence[str]
) -> dict[str, Any]:
    """A model's yes or no against the truth: accuracy, balanced accuracy (with an interval over
    prompts), Cohen's kappa, and how often it says yes."""
    columns = np.stack([np.array(truth), np.array(verdicts)], 1)  # (images, 2)
    units = {"all": [columns[places] for places in group_by_prompt(prompts)]}

    def balanced(rows: dict[str, np.ndarray]) -> float:
        right, yes = rows["all"].T
        if right.all() or not right.any():
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
