"""DSG-1k: questions about a prompt that form a graph (Davidsonian scene graph).

Source: arXiv 2310.18235. A question whose parent is answered with no is not valid and counts as no;
parents are looked up in the raw answers.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from secondlook.evals import fetch
from secondlook.evals.benchmark import AnsweredBenchmark, Row, Scorer
from secondlook.evals.scorers.questions import DependentQuestions, Parents, question_rows
from secondlook.registry import register_benchmark


@register_benchmark("dsg")
class DSG(AnsweredBenchmark):
    """DSG-1k: 1,060 prompts of ten sources (the tasks), 8,182 questions."""

    title = "DSG-1k"
    suite = "public"
    files = ("dsg/dsg-1k-anns.csv",)
    mean_over = "images"

    def rows(self) -> list[Row]:
        return question_rows(fetch.file(self.files[0], self.data), source_of)

    def scorer(self, device: str) -> Scorer:
        from secondlook.evals.scorers.vqa import answerer

        return DependentQuestions(answerer(self.vqa, self.url, device), dsg_score)


def source_of(item_id: str) -> str:
    """Where a prompt is from: "tifa" of "tifa_12"."""
    return item_id.rstrip("0123456789").rstrip("_")


def dsg_score(answers: Mapping[int, float], parents: Parents) -> float:
    """Mean over questions, each 0 where a parent's raw answer is 0."""
    values = []
    for question, answer in answers.items():
        # raw answers: a parent that is not valid itself does not count as no
        parent_answers = [answers.get(parent) for parent in parents.get(question, ())]
        values.append(0.0 if 0 in parent_answers else answer)
    return float(np.mean(values))
