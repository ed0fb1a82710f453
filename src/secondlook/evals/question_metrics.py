"""The arithmetic of benchmarks that ask questions about an image: DSG, DPG-Bench, TIFA and POPE. No
model is needed here.

Sources:

- DSG (arXiv 2310.18235): a question whose parent is answered with no is not valid and counts as no;
  parents are looked up in the raw answers.
- DPG-Bench (arXiv 2403.05135, released code): the same in the table's order and in place, so that
  zeroes cascade; its categories are taken before that.
- TIFA (arXiv 2303.11897): of its own check, the correlations.
- POPE (arXiv 2305.10355, released evaluate.py): F1 of "yes".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau, spearmanr
from sklearn.metrics import f1_score

from secondlook.errors import InputError
from secondlook.io import read_json, read_table

STORED = (
    "dsg/tifa160-likert-anns.csv",
    "dsg/vqa_answers/mplug_dsg.csv",
    "tifa/human_annotations_with_scores.json",
)
"""Files with people's ratings and stored answers."""
Parents = Mapping[int, tuple[int, ...]]


def parents_of(text: str) -> tuple[int, ...] | None:
    """Numbers of a dependency field, "0" for none; None where it is malformed."""
    parts = [p.strip() for p in str(text).split(",") if p.strip()]
    if not parts or not all(re.fullmatch(r"\d+", p) for p in parts):
        return None
    return tuple(int(p) for p in parts if p != "0")


def dsg(answers: Mapping[int, float], parents: Parents) -> float:
    """Mean over questions, each 0 where a parent's raw answer is 0."""
    return float(
        np.mean(
            [
                0.0 if any(answers.get(p) == 0 for p in parents.get(q, ())) else a
                for q, a in answers.items()
            ]
        )
    )


def dpg(answers: Mapping[int, float], parents: Parents) -> float:
    """Mean over questions; in their order each becomes 0 where a parent has become 0."""
    found = dict(answers)
    for q in found:
        if any(found.get(p) == 0 for p in parents.get(q, ())):
            found[q] = 0.0
    return float(np.mean(list(found.values())))


def dpg_categories(rows: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Mean raw answer of each category, from pairs of a question's tuple, as "attribute - color
    (cup, red)", and its answer: the broad one before the dash, and the detailed one before the
    bracket."""
    found: dict[str, list[float]] = {}
    for text, answer in rows:
        detailed = text.split("(")[0].strip()
        for name in dict.fromkeys((detailed.split("-")[0].strip(), detailed)):
            found.setdefault(name, []).append(answer)
    return {name: float(np.mean(values)) for name, values in found.items()}


def pope_answer(text: str) -> str:
    """ "no" where the first sentence has the word No, no or not, else "yes": as POPE's released
    evaluate.py reads answers."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def is_clear(text: str) -> bool:
    """Whether an answer has one of the words yes and no (or not), and not the other. What
    `pope_answer` makes of others is its rule, not what was said; VLMEvalKit and lmms-eval count
    them as wrong."""
    words = set(re.findall(r"[a-z]+", text.lower()))
    return ("yes" in words) != ("no" in words or "not" in words)


def pope(labels: Sequence[str], texts: Sequence[str]) -> dict[str, float]:
    """F1 of yes, accuracy, share of yes, and share of answers that are not clear (and are read by
    the rule all the same)."""
    said = [pope_answer(t) for t in texts]
    return {
        "f1": float(
            f1_score(
                [label == "yes" for label in labels], [s == "yes" for s in said], zero_division=0.0
            )
        ),
        "accuracy": float(np.mean([s == label for s, label in zip(said, labels, strict=True)])),
        "yes_rate": said.count("yes") / len(said),
        "unclear_rate": float(np.mean([not is_clear(t) for t in texts])),
    }


def correlations(scores: Sequence[float], people: Sequence[float]) -> dict[str, float]:
    """Spearman's rho and Kendall's tau-b."""
    return {
        "spearman": float(spearmanr(scores, people).statistic),
        "kendall": float(kendalltau(scores, people).statistic),
    }


def table(path: Path, columns: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """The rows of a CSV file, each with where it stands. Raises InputError where it has no row or
    lacks one of the ``columns``."""
    rows = read_table(path)
    lacking = [c for c in columns if not rows or c not in rows[0]]
    if lacking:
        raise InputError(
            f"data: {str(path)!r} has no row with a column {lacking[0]}; it must have "
            f"{', '.join(columns)}"
        )
    return [(f"row {i} of {str(path)!r}", row) for i, row in enumerate(rows, 1)]


def stored_dsg(ratings: Path, stored: Path) -> dict[str, dict[str, float]]:
    """DSG's own check: stored answers of a VQA model against people's ratings of TIFA-160's 800
    images, with dependencies as DSG has them, as DPG-Bench has them, and without. Raises
    InputError."""
    people: dict[tuple[str, str], list[float]] = {}
    for _, row in table(ratings, ("t2i_model", "item_id", "answer")):
        people.setdefault((row["t2i_model"], row["item_id"]), []).append(float(row["answer"]))
    answers: dict[tuple[str, str], dict[int, float]] = {}
    parents: dict[str, dict[int, tuple[int, ...] | None]] = {}
    asked = ("t2i_model", "item_id", "dsg_prompt_split", "question_id", "answer", "dependency_id")
    for _, row in table(stored, asked):
        if row["dsg_prompt_split"] != "tifa160":
            continue
        q = int(row["question_id"])
        answers.setdefault((row["t2i_model"], row["item_id"]), {})[q] = float(
            row["answer"].strip().lower() == "yes"
        )
        parents.setdefault(row["item_id"], {})[q] = parents_of(row["dependency_id"])
    # an item with a malformed dependency gets none
    whole = {
        item: {q: p or () for q, p in of.items()} if None not in of.values() else {}
        for item, of in parents.items()
    }
    rules = {
        "dsg": dsg,
        "cascading": dpg,
        "without dependencies": lambda a, _: float(np.mean(list(a.values()))),
    }
    images = sorted(people)
    rated = [float(np.mean(people[i])) for i in images]
    return {
        name: correlations(
            [sampling_params(answers[i], whole[i[1]]) if i in answers else 0.0 for i in images],
            rated,
        )
        for name, sampling_params in rules.items()
    } | {
        "images": {
            "n": float(len(images)),
            "without answers": float(sum(i not in answers for i in images)),
        }
    }


def stored_tifa(path: Path) -> dict[str, dict[str, float]]:
    """Stored scores of other metrics against people's ratings of TIFA's 800 images. Raises
    InputError."""
    rows: list[dict[str, Any]] = list(read_json(path, dict).values())
    names = [
        k
        for k in rows[0]
        if k not in ("text_id", "image_path", "text", "human_scores", "human_avg")
    ]
    return {
        name: correlations([r[name] for r in rows], [r["human_avg"] for r in rows])
        for name in names
    }
