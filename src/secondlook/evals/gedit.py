"""GEdit-Bench: edits scored by a vision-language model.

Source: arXiv 2504.17761, in VIEScore's form: semantic consistency SC and quality PQ are the lesser
of two scores each, and the whole is sqrt(SC PQ). The questions' words are our own: scores compare
among themselves only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from pydantic import Field

from secondlook.errors import InputError
from secondlook.evals import fetch
from secondlook.evals.benchmark import (
    AnsweredBenchmark,
    Metrics,
    Row,
    ScoreOrReason,
    Scorer,
    ValueRange,
)
from secondlook.evals.scorers import BLIP
from secondlook.io import read_image, read_json
from secondlook.llm.answer_store import Answers
from secondlook.llm.client import Asker
from secondlook.llm.endpoint import Endpoint, Question
from secondlook.llm.missing import Missing, missing_of, why_missing
from secondlook.llm.parsing import json_in, text_of
from secondlook.llm.replies import Unanswered
from secondlook.registry import register_benchmark
from secondlook.rewards.vlm import in_words

EDIT_QUESTION = (
    'Two pictures: the first is the source, the second an edit of it by the instruction "{}". '
    "Give two scores from 0 to 10: how far the edit succeeds (10: completely as instructed), and "
    "how little it changes beyond that (10: nothing that it should not). Answer with JSON and "
    'nothing else: {{"scores": [success, restraint]}}'
)
QUALITY_QUESTION = (
    "Give two scores from 0 to 10 for this picture: how natural it is (10: lighting, perspective "
    "and proportions are right), and how free of artefacts (10: none). Answer with JSON and "
    'nothing else: {"scores": [naturalness, cleanness]}'
)


@register_benchmark("gedit")
class GEdit(AnsweredBenchmark):
    """GEdit-Bench's 604 English instructions of 11 types."""

    title = "GEdit-Bench, English"
    suite = "public"
    files = ("gedit/gedit_edit.json",)
    edits = True
    metrics: ClassVar[Metrics] = {
        "overall": ValueRange(0, 10),
        "semantic_consistency": ValueRange(0, 10),
        "quality": ValueRange(0, 10),
    }
    note = "VIEScore's form with questions of our own: scores compare among themselves only."

    images: Path | None = Field(
        None, exclude=True, description="The folder of pictures, which the rows name by their ids."
    )

    def rows(self) -> list[Row]:
        edits_path = fetch.file(self.files[0], self.data)
        rows = []
        for key, edit in read_json(edits_path, dict).items():
            if self.images is None:
                raise InputError("images: GEdit-Bench's pictures are needed; give their folder")
            source = self.images / edit["id"]
            if not source.is_file():
                raise InputError(
                    f"images: {str(source)!r} is missing; GEdit-Bench's pictures must lie there"
                )
            where = f"{key!r} of {edits_path}"
            rows.append(Row(key, edit["prompt"], edit["edit_type"], source=source, where=where))
        return rows

    def judge(self) -> str:
        if not self.url and self.vqa == BLIP:
            raise InputError(
                "vqa: BLIP answers yes or no and gives no scores; name a vision-language model"
            )
        return super().judge()

    def try_out_judge(self) -> None:
        from secondlook.evals.scorers.vqa import try_answerer

        try_answerer(self.vqa, self.url, in_words=True)

    def scorer(self, device: str) -> Scorer:
        if self.url:
            return GEditScorer(Asker(Endpoint(self.url, self.vqa), Answers()))
        from secondlook.llm.local import LocalModel

        return GEditScorer(LocalModel(self.vqa, device))


class GEditScorer:
    """Two questions a picture, of two scores each."""

    def __init__(self, ask: Callable[[Sequence[Question]], list[Any]]):
        self.ask = ask

    @property
    def missing(self) -> list[Missing]:
        """Why answers are missing."""
        return missing_of(self.ask)

    def __call__(self, items: Sequence[tuple[Row, Image.Image]]) -> list[ScoreOrReason]:
        questions = []  # two an item: what was edited, then quality
        for row, image in items:
            assert row.source is not None
            about_edit = in_words(EDIT_QUESTION.format(row.prompt), read_image(row.source), image)
            about_quality = in_words(QUALITY_QUESTION, image)
            # the same bodies, but their answers are read as scores
            questions.append(Question(about_edit.body, two_scores))
            questions.append(Question(about_quality.body, two_scores))
        answers = self.ask(questions)  # all at once: they are answered together
        scores = []
        for edit_scores, quality_scores in zip(answers[::2], answers[1::2], strict=True):
            scores.append(self._score(edit_scores, quality_scores))
        return scores

    def _score(
        self, edit_scores: tuple[float, float] | None, quality_scores: tuple[float, float] | None
    ) -> ScoreOrReason:
        """VIEScore: of each question the lesser score, of both the geometric mean."""
        if edit_scores is None or quality_scores is None:
            unanswered = "what was edited" if edit_scores is None else "quality"
            return f"no two scores of {unanswered}{why_missing(self.ask)}"
        sc, pq = min(edit_scores), min(quality_scores)
        return {"overall": float(np.sqrt(sc * pq)), "semantic_consistency": sc, "quality": pq}


def two_scores(choice: dict[str, Any]) -> tuple[float, float]:
    """Two numbers from 0 to 10 of an answer: those of its last JSON object with scores. Raises
    Unanswered."""
    last_scores: list[Any] = []  # models think aloud: what comes last is the answer
    for json_object in json_in(text_of(choice), dict):
        if isinstance(json_object.get("scores"), list):
            last_scores = json_object["scores"]
    if len(last_scores) != 2:
        raise Unanswered("its answer has no two scores")
    first_score, second_score = map(_number, last_scores)
    if not (0 <= first_score <= 10 and 0 <= second_score <= 10):  # NaN is beyond too
        raise Unanswered("its answer has scores beyond 0 to 10")
    return first_score, second_score


def _number(value: Any) -> float:
    """A number, or a text that is one. Raises Unanswered for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise Unanswered("its answer has a score that is no number")
    try:
        return float(value)
    except (ValueError, OverflowError) as error:
        raise Unanswered("its answer has a score that is no number") from error
