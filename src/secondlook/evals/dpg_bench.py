"""DPG-Bench: questions about long, dense prompts.

Source: arXiv 2403.05135 and its released code. A question whose parent is answered with no counts
as no, as in DSG, but in the table's order and in place, so that zeroes cascade. Categories are of
the raw answers, before that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from secondlook.errors import InputError
from secondlook.evals.benchmark import AnsweredBenchmark, Row, Scorer
from secondlook.evals.scorers.questions import DependentQuestions, Parents, question_rows
from secondlook.registry import register_benchmark


@register_benchmark("dpg")
class DPGBench(AnsweredBenchmark):
    """DPG-Bench's 1,065 prompts with their questions, from --data."""

    title = "DPG-Bench"
    suite = "public"
    default_samples = 4
    mean_over = "images"
    note = (
        "Published scores are these times 100, with mPLUG-large as the answering model. Categories "
        "differ from the released code's, which counts the last of a prompt's four pictures only "
        "and skips the table's first question: here all pictures and all questions count."
    )

    def rows(self) -> list[Row]:
        """From ``data``/dpg_bench/dpg_bench.csv. Its hash is not known here, so that it is taken as
        given."""
        if self.data is None:
            raise InputError(
                "data: DPG-Bench's questions are not fetched; give a folder with "
                "dpg_bench/dpg_bench.csv of its repository"
            )
        return question_rows(self.data / "dpg_bench" / "dpg_bench.csv", lambda item: "dpg")

    def scorer(self, device: str) -> Scorer:
        from secondlook.evals.scorers.vqa import answerer

        return DependentQuestions(answerer(self.vqa, self.url, device), dpg_score)

    def more_results(self, final_scores: Sequence[dict[str, Any]]) -> dict[str, Any]:
        tuples_and_answers = []
        try:  # scores come from files, which may be damaged
            for score in final_scores:
                for question_tuple, answer in score["answers"]:
                    tuples_and_answers.append((question_tuple, answer))
            return {"categories": categories(tuples_and_answers)}
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"scores: some hold no answers ({error!r}); remove scores-*.jsonl to score again"
            ) from error


def dpg_score(answers: Mapping[int, float], parents: Parents) -> float:
    """Mean over questions; in their order each becomes 0 where a parent has become 0."""
    values = dict(answers)  # in the table's order
    for question in values:
        for parent in parents.get(question, ()):
            if values.get(parent) == 0:  # also one that was set to 0 here
                values[question] = 0.0
    return float(np.mean(list(values.values())))


def categories(answers: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Mean raw answer of each category, from pairs of a question's tuple, as "attribute - color
    (cup, red)", and its answer: of the broad category before the dash, and of the detailed one
    before the bracket."""
    answers_of_category: dict[str, list[float]] = {}
    for question_tuple, answer in answers:
        detailed = question_tuple.split("(")[0].strip()  # "attribute - color"
        broad = detailed.split("-")[0].strip()  # "attribute"
        answers_of_category.setdefault(broad, []).append(answer)
        if detailed != broad:
            answers_of_category.setdefault(detailed, []).append(answer)
    return {name: float(np.mean(values)) for name, values in answers_of_category.items()}
