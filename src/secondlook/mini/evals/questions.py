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

    def lines(self, result: dict[str, Any]) -> list[str]:
        lines = []
        for opening, row in result["kinds"].items():
            lines.append(f"  {opening:12} {row['accuracy']:.3f}  ({row['questions']})")
        balanced = interval_text(result["is_there"]["balanced_accuracy"])
        return [*lines, f"  is there …?  balanced accuracy {balanced}"]

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
    texts, truths, requests = [], [], []
    for _ in range(settings.questions):
        scene = sample_scene(rng)[1]
        text, truth = question(rng, scene)
        texts.append(text)
        truths.append(truth)
        segments = engine.template.ask(Image.fromarray(render(scene)), text)
        requests.append(Request("ask", segments, 0))
    turns = engine.write(requests, SamplingParams("text", temperature=0.0), max_tokens=4)
    answers = [engine.template.words(turn.tokens) for turn in turns]

    right_by_kind: dict[str, list[bool]] = {}
    is_there_truth, is_there_answers = [], []
    for text, truth, answer in zip(texts, truths, answers, strict=True):
        opening = " ".join(text.split()[:2])
        right_by_kind.setdefault(opening, []).append(answer == truth)
        if opening == "is there":
            is_there_truth.append(truth == "Yes")
            is_there_answers.append(answer == "Yes")
    all_right = [right for rights in right_by_kind.values() for right in rights]
    each_its_own = [str(i) for i in range(len(is_there_truth))]
    return {
        "overall": {"accuracy": float(np.mean(all_right))},
        "kinds": {
            opening: {"accuracy": float(np.mean(rights)), "questions": len(rights)}
            for opening, rights in right_by_kind.items()
        },
        "is_there": agreement(is_there_truth, is_there_answers, each_its_own),
        "settings": settings.settings(),
        "versions": versions(),
    }
