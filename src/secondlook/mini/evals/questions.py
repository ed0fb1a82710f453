"""Questions about pictures of unseen scenes: "is there a red star?", counts, colours and relations,
answered greedily."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from pydantic import Field

from secondlook.engine.engine import Engine
from secondlook.evals.benchmark import MODEL_HELP, Benchmark, EvalSession
from secondlook.evals.intervals import agreement, interval_text
from secondlook.io import versions, write_json
from secondlook.mini.world.render import render
from secondlook.mini.world.samples import question, sample_scene
from secondlook.registry import register_benchmark
from secondlook.types import Request, SamplingParams

SEED = 10**9
"""Of the scenes and questions, far from those of training."""


@register_benchmark("mini-questions")
class MiniQuestions(Benchmark):
    """Questions about pictures of unseen scenes."""

    title = "Questions about the miniature's pictures"
    suite = "mini"

    model: str = Field("mini", description=MODEL_HELP)
    questions: int = Field(1000, ge=1, description="How many.")

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"seed": SEED}

    def run(self, session: EvalSession) -> dict[str, Any]:
        result = ask_questions(session.load_engine(self.model), self)
        write_json(session.out / "result.json", result)
        return result

    @classmethod
    def lines(cls, result: dict[str, Any]) -> list[str]:
        text_lines = []
        for question_opening, row in result["kinds"].items():
            text_lines.append(
                f"  {question_opening:12} {row['accuracy']:.3f}  ({row['questions']})"
            )
        accuracy_text = interval_text(result["is_there"]["balanced_accuracy"])
        return [*text_lines, f"  is there …?  balanced accuracy {accuracy_text}"]

    @classmethod
    def headline(cls, result: dict[str, Any]) -> dict[str, Any]:
        return {"number": result["is_there"]["balanced_accuracy"]["mean"]}

    @classmethod
    def options_for_all(cls, rounds: int, only: int) -> dict[str, Any]:
        return {"questions": only * 10} if only else {}


def ask_questions(engine: Engine, settings: MiniQuestions) -> dict[str, Any]:
    """result.json: accuracy per kind of question (its first two words), and agreement on "is there
    …?"."""
    rng = np.random.default_rng(SEED)
    question_texts, true_answers, requests = [], [], []
    for _ in range(settings.questions):
        _, scene = sample_scene(rng)
        question_text, true_answer = question(rng, scene)
        question_texts.append(question_text)
        true_answers.append(true_answer)
        segments = engine.template.ask(Image.fromarray(render(scene)), question_text)
        requests.append(Request("ask", segments, 0))
    turns = engine.write(requests, SamplingParams("text", temperature=0.0), max_tokens=4)
    model_answers = [engine.template.words(turn.tokens) for turn in turns]

    all_right: list[bool] = []
    right_by_kind: dict[str, list[bool]] = {}  # by a question's first two words
    is_there_truth, is_there_answers = [], []
    for question_text, true_answer, model_answer in zip(
        question_texts, true_answers, model_answers, strict=True
    ):
        question_opening = " ".join(question_text.split()[:2])
        all_right.append(model_answer == true_answer)
        right_by_kind.setdefault(question_opening, []).append(model_answer == true_answer)
        if question_opening == "is there":
            is_there_truth.append(true_answer == "Yes")
            is_there_answers.append(model_answer == "Yes")
    result_of_kind = {}
    for question_opening, of_kind in right_by_kind.items():
        accuracy = float(np.mean(of_kind))
        result_of_kind[question_opening] = {"accuracy": accuracy, "questions": len(of_kind)}
    question_names = [str(i) for i in range(len(is_there_truth))]  # each is its own unit
    return {
        "overall": {"accuracy": float(np.mean(all_right))},
        "kinds": result_of_kind,
        "is_there": agreement(is_there_truth, is_there_answers, question_names),
        "settings": settings.settings(),
        "versions": versions(),
    }
