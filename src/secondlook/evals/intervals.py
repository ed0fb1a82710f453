"""What every benchmark shares: bootstrap intervals over prompts, and agreement of verdicts with the
truth."""

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
    """One scored image: the task and prompt it belongs to (the prompt is the unit of resampling)
    and its value."""

    task: str
    prompt: str
    value: float


def check_counts(settings: Any, *names: str, least: int = 1, most: int | None = None) -> None:
    """Refuse settings that count too little or too much. Raises InputError."""
    for name in names:
        value = getattr(settings, name)
        if value < least:
            raise InputError(f"{name}: {value} is too few; it must be at least {least}")
        if most is not None and value > most:
            raise InputError(f"{name}: {value} is too many; it must be at most {most}")


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


Interval = dict[str, float]
RESAMPLES = 2000


def bootstrap(
    units: Mapping[str, Sequence[np.ndarray]],
    statistic: Callable[[dict[str, np.ndarray]], float],
    seed: int = 0,
) -> Interval:
    """Mean and 95 % percentile interval of a statistic; ``units`` are, per stratum, one array of
    rows per prompt, and prompts are resampled within each stratum."""
    rng = np.random.default_rng(seed)
    together = {name: np.concatenate(list(parts)) for name, parts in units.items() if len(parts)}
    if not together:
        return {"mean": float("nan"), "low": float("nan"), "high": float("nan")}
    values = []
    for _ in range(RESAMPLES):
        draw = {
            name: np.concatenate(
                [units[name][i] for i in rng.integers(len(units[name]), size=len(units[name]))]
            )
            for name in together
        }
        values.append(statistic(draw))
    finite = [
        v for v in values if np.isfinite(v)
    ]  # a resample may leave a statistic undefined (no wrong image in it)
    low, high = np.percentile(finite, [2.5, 97.5]) if finite else (float("nan"), float("nan"))
    return {"mean": float(statistic(together)), "low": float(low), "high": float(high)}


def by_prompt(samples: list[Sample]) -> dict[str, list[np.ndarray]]:
    """Samples as the units of `bootstrap`: task -> one array of values per distinct prompt."""
    grouped: dict[str, dict[str, list[float]]] = {}
    for s in samples:
        grouped.setdefault(s.task, {}).setdefault(s.prompt, []).append(s.value)
    return {task: [np.array(v) for v in prompts.values()] for task, prompts in grouped.items()}


def mean_of_tasks(samples: list[Sample]) -> Interval:
    """GenEval's overall: the unweighted mean of the tasks' mean over images."""
    return bootstrap(
        by_prompt(samples), lambda tasks: float(np.mean([v.mean() for v in tasks.values()]))
    )


def agreement(truth: list[bool], says: list[bool], prompts: list[str]) -> dict:
    """The model's yes/no against the truth: accuracy, balanced accuracy (with interval), kappa, and
    how often it says yes."""
    t, s = np.array(truth), np.array(says)
    grouped: dict[str, list[int]] = {}
    for i, prompt in enumerate(prompts):
        grouped.setdefault(prompt, []).append(i)
    units = {"all": [np.stack([t[i], s[i]], 1) for i in grouped.values()]}

    def balanced(rows: dict[str, np.ndarray]) -> float:
        both = rows["all"]
        if both[:, 0].all() or not both[:, 0].any():
            return float("nan")
        return float(balanced_accuracy_score(both[:, 0], both[:, 1]))

    return {
        "verdicts": len(t),
        "accuracy": float(accuracy_score(t, s)),
        "balanced_accuracy": bootstrap(units, balanced),
        "kappa": float(cohen_kappa_score(t, s))
        if len(set(truth)) > 1 or len(set(says)) > 1
        else 0.0,
        "always_yes_rate": float(s.mean()),
        "truly_right": float(t.mean()),
    }
