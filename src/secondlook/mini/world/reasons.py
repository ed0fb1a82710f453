"""The words of a wrong picture: a verdict that says what to change and where, and how true such a
sentence is."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np

from secondlook.mini.world.language import Spec
from secondlook.mini.world.reader import Reading, judge, names_a_failure
from secondlook.mini.world.repair import Diagnosis, diagnose, try_diagnose
from secondlook.mini.world.scene import Scene


def faults_of(reason: str) -> list[str]:
    """The faults that a reason names, as they are written."""
    text = re.sub(r"^(yes|no)\b[,.]?\s*", "", reason.strip(), flags=re.IGNORECASE).rstrip(".")
    return [fault.strip() for fault in text.split(";") if fault.strip()]


def truth_of(reason: str, diagnosis: Diagnosis) -> float | None:
    """Share of the faults a reason names that are true; None where it names none."""
    named = Counter(_without_suggestion(fault) for fault in faults_of(reason))
    if not named:
        return None
    true_faults = Counter(_without_suggestion(fault) for fault in diagnosis.faults)
    for lacking in diagnosis.lacking:
        # also where another object is in its stead, which may be told as well
        true_faults[f"{lacking} is missing"] = max(1, true_faults[f"{lacking} is missing"])
    return (named & true_faults).total() / named.total()  # a fault told twice is true once


def _without_suggestion(fault: str) -> str:
    """A fault without the place that is free for what is missing, or to which a thing may move:
    another place would do as well."""
    missing, _, _ = fault.partition(" is missing at the ")
    if missing != fault:
        return f"{missing} is missing"
    return re.sub(r" belongs at the [a-z ]+, ", " belongs ", fault)


def verdict(spec: Spec, picture: Reading | Scene | np.ndarray) -> str:
    """ "Yes, there is …." or "No, the cat at the top is blue, not red." """
    judged = judge(spec, picture)
    if judged.correct:
        return f"Yes, {judged.reason}."
    return f"No, {faults_in(spec, picture) or judged.reason}."


def faults_in(spec: Spec, picture: Reading | Scene | np.ndarray) -> str:
    """The reason of a wrong picture; "" where no arrangement of its objects would satisfy what is
    asked."""
    diagnosis = try_diagnose(spec, picture)
    return diagnosis.reason if diagnosis else ""


def truth(spec: Spec, picture: np.ndarray, reason: str) -> float | None:
    """Share of what a reason says of a wrong picture that is true, in these words or in those of
    ``judge``'s reasons, which name one failure and no place; None where it says nothing."""
    if not faults_of(reason):
        return None
    has_judges_words = ";" not in reason and " at the " not in reason
    if has_judges_words and names_a_failure(spec, picture, reason):
        return 1.0
    try:
        diagnosis = diagnose(spec, picture)
    except ValueError:
        return 0.0
    return truth_of(reason, diagnosis)


def holds_true(spec: Spec, picture: np.ndarray, reason: str) -> bool:
    """Whether all that a reason says of a wrong picture is true."""
    return truth(spec, picture, reason) == 1
