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
    """(images,) bool."""
    return np.array([verdict.right for verdict in verdicts])


def _p_yes(verdicts: Sequence[ImageVerdict]) -> np.ndarray:
    """(images,) float in [0, 1]."""
    return np.array([verdict.p_yes for verdict in verdicts])


def _prompts(verdicts: Sequence[ImageVerdict]) -> list[str]:
    return [verdict.prompt for verdict in verdicts]


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
    """Each prompt's rows (its images, columns): a prompt is the unit of resampling."""
    table = np.stack(columns, 1)  # (images, columns)
    return {"all": [table[indices] for indices in group_by_prompt(_prompts(verdicts))]}


def auroc(verdicts: Sequence[ImageVerdict]) -> Interval:
    """Area under the ROC curve of P(Yes): the chance that a right image has more of it than a wrong
    one."""
    units = _by_prompt(verdicts, [_right(verdicts).astype(float), _p_yes(verdicts)])
    return bootstrap(units, lambda rows: _area(*rows["all"].T))


def reliability(verdicts: Sequence[ImageVerdict]) -> list[dict[str, float]]:
    """Bins of P(Yes) of equal width: mean P(Yes), share that is right, images."""
    p_yes, is_right = _p_yes(verdicts), _right(verdicts)
    bin_of_image = np.minimum((p_yes * BINS).astype(int), BINS - 1)  # 1.0 is in the last bin
    filled_bins = []
    for bin_index in range(BINS):
        in_bin = bin_of_image == bin_index
        if in_bin.any():
            filled_bins.append(
                {
                    "p_yes": float(p_yes[in_bin].mean()),
                    "right": float(is_right[in_bin].mean()),
                    "images": int(in_bin.sum()),
                }
            )
    return filled_bins


def ece(bins: Sequence[dict[str, float]]) -> float:
    """Expected calibration error: the bins' distance of P(Yes) from the share that is right,
    weighted by their images."""
    num_images = sum(row["images"] for row in bins)
    weighted_error = sum(row["images"] * abs(row["p_yes"] - row["right"]) for row in bins)
    return float(weighted_error / num_images)


def best_threshold(verdicts: Sequence[ImageVerdict]) -> float:
    """The P(Yes) above which saying Yes has the best balanced accuracy: midway between two
    neighbours."""
    is_right, p_yes = _right(verdicts), _p_yes(verdicts)
    distinct_p_yes = np.unique(p_yes)
    thresholds = np.concatenate([[0.0], (distinct_p_yes[1:] + distinct_p_yes[:-1]) / 2, [1.0]])
    num_tried = min(len(thresholds), MAX_CUTS)
    thresholds = thresholds[np.linspace(0, len(thresholds) - 1, num_tried).astype(int)]
    accuracies = [_balanced(is_right, p_yes > threshold) for threshold in thresholds]
    return float(thresholds[int(np.nanargmax(accuracies))])


def calibrated(verdicts: Sequence[ImageVerdict]) -> dict[str, Any]:
    """A threshold found on one half of the prompts, and what it gives on the other; nothing where a
    half has no right or no wrong image."""
    halves: list[list[ImageVerdict]] = [[], []]
    for verdict in verdicts:  # by a hash, so that a prompt is always in the same half
        halves[sha256(verdict.prompt.encode()).digest()[0] % 2].append(verdict)
    for half in halves:
        if _right(half).all() or not _right(half).any():
            return {}
    fitted_half, other_half = halves
    threshold = best_threshold(fitted_half)
    p_yes = _p_yes(other_half)
    at_threshold = verdict_agreement(other_half, p_yes > threshold)
    at_half = verdict_agreement(other_half, p_yes > 0.5)
    return {
        "threshold": threshold,
        "balanced_accuracy": at_threshold["balanced_accuracy"],
        "at_half": at_half["balanced_accuracy"],
    }


def verdict_agreement(verdicts: Sequence[ImageVerdict], yes: np.ndarray) -> dict[str, Any]:
    """How often ``yes`` (images,) is the truth (`evals.intervals.agreement`)."""
    return agreement(_right(verdicts).tolist(), yes.tolist(), _prompts(verdicts))


def overall(verdicts: Sequence[ImageVerdict]) -> dict[str, Any]:
    """All measures of greedy verdicts (P(Yes) above a half)."""
    is_right, says_yes = _right(verdicts), _p_yes(verdicts) > 0.5
    bins = reliability(verdicts)
    measures = verdict_agreement(verdicts, says_yes) | {
        "auroc": auroc(verdicts),
        "ece": ece(bins),
        "precision_of_no": float(precision_score(~is_right, ~says_yes, zero_division=0.0)),
        "recall_of_no": float(recall_score(~is_right, ~says_yes, zero_division=0.0)),
        "always_yes_would_agree": float(np.mean(is_right)),
        "calibrated": calibrated(verdicts),
        "reliability": bins,
    }
    checked_verdicts = [verdict for verdict in verdicts if verdict.reason_holds is not None]
    if checked_verdicts:
        reason_holds = np.array([bool(verdict.reason_holds) for verdict in checked_verdicts], float)
        units = _by_prompt(checked_verdicts, [reason_holds])
        share_held = bootstrap(units, lambda rows: float(rows["all"].mean()))
        measures["reason_names_a_failure"] = share_held
        measures["reasons"] = len(checked_verdicts)
    return measures


def differences(
    verdicts: Sequence[ImageVerdict], others: Sequence[ImageVerdict], name: str
) -> dict[str, Any]:
    """This judge minus another on the same images: balanced accuracy of greedy and of sampled
    verdicts, AUROC, and the share of true No whose reasons name what failed. Raises InputError for
    other images."""
    same_prompts = _prompts(verdicts) == _prompts(others)
    if not same_prompts or not np.array_equal(_right(verdicts), _right(others)):
        raise InputError(
            f"over: {name!r} judged other images; run eval mini-judging on the same ones"
        )
    # a prompt's images by their indices, so that a resample takes the same of both judges
    units = {"all": [np.array(indices) for indices in group_by_prompt(_prompts(verdicts))]}

    def difference(statistic: Callable[[Sequence[ImageVerdict]], float]) -> Interval:
        def of_resample(rows: dict[str, np.ndarray]) -> float:
            indices = rows["all"].astype(int)
            own_verdicts = [verdicts[i] for i in indices]
            other_verdicts = [others[i] for i in indices]
            return statistic(own_verdicts) - statistic(other_verdicts)

        return bootstrap(units, of_resample)

    difference_of: dict[str, Any] = {
        "other": name,
        "balanced_accuracy": difference(_greedy_balanced),
        "sampled_balanced_accuracy": difference(_sampled_balanced),
        "auroc": difference(lambda resampled: _area(_right(resampled), _p_yes(resampled))),
    }
    if not np.isnan(_reasons_hold(verdicts)):
        difference_of["reasons"] = difference(_reasons_hold)
    return difference_of


def _greedy_balanced(verdicts: Sequence[ImageVerdict]) -> float:
    return _balanced(_right(verdicts), _p_yes(verdicts) > 0.5)


def _sampled_balanced(verdicts: Sequence[ImageVerdict]) -> float:
    return _balanced(_right(verdicts), np.array([verdict.yes for verdict in verdicts]))


def _reasons_hold(verdicts: Sequence[ImageVerdict]) -> float:
    """The share of reasons that name what failed, of those that can be checked."""
    holds_of_checked = []
    for verdict in verdicts:
        if verdict.reason_holds is not None:
            holds_of_checked.append(bool(verdict.reason_holds))
    return float(np.mean(holds_of_checked)) if holds_of_checked else NO_DATA
