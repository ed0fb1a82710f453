"""Measures of a judge's verdicts on images whose truth is known, with intervals over prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
from sklearn.metrics import balanced_accuracy_score, precision_score, recall_score, roc_auc_score

from secondlook.errors import InputError
from secondlook.evals.intervals import (
    NO_DATA,
    Interval,
    agreement,
    bootstrap,
    group_by_prompt,
)

BINS = 10
MAX_CUTS = 400
"""Thresholds that are tried."""


@dataclass(frozen=True)
class ImageVerdict:
    """What the model said of one image."""

    prompt: str
    right: bool
    yes: bool
    """As sampled."""
    p_yes: float
    reason: str = ""
    reason_holds: bool | None = None
    """Whether the reason names what failed, where that can be checked: of a true No on an image of
    the miniature's world."""


def _right(verdicts: Sequence[ImageVerdict]) -> np.ndarray:
    return np.array([v.right for v in verdicts])


def _p_yes(verdicts: Sequence[ImageVerdict]) -> np.ndarray:
    return np.array([v.p_yes for v in verdicts])


def _balanced(right: np.ndarray, yes: np.ndarray) -> float:
    if not 0 < right.sum() < len(right):
        return NO_DATA
    return float(balanced_accuracy_score(right, yes))


def _area(right: np.ndarray, p_yes: np.ndarray) -> float:
    if not 0 < right.sum() < len(right):
        return NO_DATA
    return float(roc_auc_score(right, p_yes))


def _by_prompt(
    verdicts: Sequence[ImageVerdict], columns: Sequence[np.ndarray]
) -> dict[str, list[np.ndarray]]:
    """Rows of columns by prompt, the unit of resampling."""
    rows = np.stack(columns, 1)  # (images, columns)
    return {"all": [rows[places] for places in group_by_prompt([v.prompt for v in verdicts])]}


def auroc(verdicts: Sequence[ImageVerdict]) -> Interval:
    """Area under the ROC curve of P(Yes): the chance that a right image has more of it than a wrong
    one."""
    units = _by_prompt(verdicts, [_right(verdicts).astype(float), _p_yes(verdicts)])
    return bootstrap(units, lambda rows: _area(*rows["all"].T))


def reliability(verdicts: Sequence[ImageVerdict]) -> list[dict[str, float]]:
    """Bins of P(Yes) of equal width: mean P(Yes), share that is right, images."""
    p_yes, right = _p_yes(verdicts), _right(verdicts)
    bin_of = np.minimum((p_yes * BINS).astype(int), BINS - 1)
    bins = []
    for b in range(BINS):
        inside = bin_of == b
        if inside.any():
            bins.append(
                {
                    "p_yes": float(p_yes[inside].mean()),
                    "right": float(right[inside].mean()),
                    "images": int(inside.sum()),
                }
            )
    return bins


def ece(bins: Sequence[dict[str, float]]) -> float:
    """Expected calibration error: the bins' distance of P(Yes) from the share that is right,
    weighted by their images."""
    total = sum(b["images"] for b in bins)
    return float(sum(b["images"] * abs(b["p_yes"] - b["right"]) for b in bins) / total)


def best_threshold(verdicts: Sequence[ImageVerdict]) -> float:
    """The P(Yes) above which saying Yes has the best balanced accuracy: midway between two
    neighbours."""
    right, p_yes = _right(verdicts), _p_yes(verdicts)
    values = np.unique(p_yes)
    cuts = np.concatenate([[0.0], (values[1:] + values[:-1]) / 2, [1.0]])
    spread = np.linspace(0, len(cuts) - 1, min(len(cuts), MAX_CUTS)).astype(int)
    cuts = cuts[spread]
    return float(cuts[int(np.nanargmax([_balanced(right, p_yes > cut) for cut in cuts]))])


def calibrated(verdicts: Sequence[ImageVerdict]) -> dict[str, Any]:
    """A threshold found on one half of the prompts, and what it gives on the other; nothing where a
    half has no right or no wrong image."""
    halves: list[list[ImageVerdict]] = [[], []]
    for v in verdicts:
        halves[sha256(v.prompt.encode()).digest()[0] % 2].append(v)
    if any(len({v.right for v in half}) < 2 for half in halves):
        return {}
    one, other = halves
    cut = best_threshold(one)
    return {
        "threshold": cut,
        "balanced_accuracy": verdict_agreement(other, _p_yes(other) > cut)["balanced_accuracy"],
        "at_half": verdict_agreement(other, _p_yes(other) > 0.5)["balanced_accuracy"],
    }


def verdict_agreement(verdicts: Sequence[ImageVerdict], yes: np.ndarray) -> dict[str, Any]:
    prompts = [v.prompt for v in verdicts]
    return agreement(_right(verdicts).tolist(), yes.tolist(), prompts)


def overall(verdicts: Sequence[ImageVerdict]) -> dict[str, Any]:
    """Of greedy verdicts (P(Yes) above a half)."""
    right, yes = _right(verdicts), _p_yes(verdicts) > 0.5
    bins = reliability(verdicts)
    measures = verdict_agreement(verdicts, yes) | {
        "auroc": auroc(verdicts),
        "ece": ece(bins),
        "precision_of_no": float(precision_score(~right, ~yes, zero_division=0.0)),
        "recall_of_no": float(recall_score(~right, ~yes, zero_division=0.0)),
        "always_yes_would_agree": float(np.mean(right)),
        "calibrated": calibrated(verdicts),
        "reliability": bins,
    }
    checked = [v for v in verdicts if v.reason_holds is not None]
    if checked:
        units = _by_prompt(checked, [np.array([float(bool(v.reason_holds)) for v in checked])])
        held = bootstrap(units, lambda rows: float(rows["all"].mean()))
        measures["reason_names_a_failure"] = held
        measures["reasons"] = len(checked)
    return measures


def differences(
    verdicts: Sequence[ImageVerdict], others: Sequence[ImageVerdict], name: str
) -> dict[str, Any]:
    """This judge minus another on the same images: balanced accuracy of greedy and of sampled
    verdicts, AUROC, and the share of true No whose reasons name what failed. Raises InputError for
    other images."""
    if [(v.prompt, v.right) for v in verdicts] != [(v.prompt, v.right) for v in others]:
        raise InputError(
            f"over: {name!r} judged other images; run eval mini-judging on the same ones"
        )
    units = {"all": [np.array(places) for places in group_by_prompt([v.prompt for v in verdicts])]}

    def difference(statistic: Callable[[Sequence[ImageVerdict]], float]) -> Interval:
        def of_resample(rows: dict[str, np.ndarray]) -> float:
            places = rows["all"].astype(int)
            ours, theirs = [verdicts[i] for i in places], [others[i] for i in places]
            return statistic(ours) - statistic(theirs)

        return bootstrap(units, of_resample)

    measured: dict[str, Any] = {
        "other": name,
        "balanced_accuracy": difference(_greedy_balanced),
        "sampled_balanced_accuracy": difference(_sampled_balanced),
        "auroc": difference(lambda those: _area(_right(those), _p_yes(those))),
    }
    if not np.isnan(_reasons_hold(verdicts)):
        measured["reasons"] = difference(_reasons_hold)
    return measured


def _greedy_balanced(verdicts: Sequence[ImageVerdict]) -> float:
    return _balanced(_right(verdicts), _p_yes(verdicts) > 0.5)


def _sampled_balanced(verdicts: Sequence[ImageVerdict]) -> float:
    return _balanced(_right(verdicts), np.array([v.yes for v in verdicts]))


def _reasons_hold(verdicts: Sequence[ImageVerdict]) -> float:
    """The share of reasons that name what failed, of those that can be checked."""
    checked = [bool(v.reason_holds) for v in verdicts if v.reason_holds is not None]
    return float(np.mean(checked)) if checked else NO_DATA
