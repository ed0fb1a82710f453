"""Questions about pictures of unseen scenes: "is there a red star?", counts, colours and relations,
answered greedily."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from secondlook.engine.engine import Engine
from secondlook.errors import InputError
from secondlook.evals.intervals import agreement
from secondlook.io import versions, write_json
from secondlook.mini.world.render import render
from secondlook.mini.world.samples import question, sample_scene
from secondlook.types import Request, SamplingParams


@dataclass(frozen=True)
class Settings:
    """Everything that a score depends on."""

    model: str
    questions: int = 1000
    seed: int = 10**9

    def __post_init__(self) -> None:
        if self.questions < 1:
            raise InputError(f"questions: {self.questions} is too few; it must be at least 1")


def run(engine: Engine, settings: Settings) -> dict:
    """result.json: accuracy per kind of question, and agreement on "is there …?"."""
    rng = np.random.default_rng(settings.seed)
    asked = []
    for _ in range(settings.questions):
        scene = sample_scene(rng)[1]
        asked.append((Image.fromarray(render(scene)), *question(rng, scene)))
    requests = [Request("ask", engine.template.ask(image, text), 0) for image, text, _ in asked]
    turns = engine.write(requests, SamplingParams("text", temperature=0.0), max_tokens=4)
    answers = [engine.template.words(t.tokens) for t in turns]
    kinds: dict[str, list[bool]] = {}
    for (_, text, truth), answer in zip(asked, answers, strict=True):
        kinds.setdefault(" ".join(text.split()[:2]), []).append(answer == truth)
    there = [
        (truth == "Yes", answer == "Yes", text)
        for (_, text, truth), answer in zip(asked, answers, strict=True)
        if text.startswith("is there")
    ]
    return {
        "overall": {"accuracy": float(np.mean([hit for hits in kinds.values() for hit in hits]))},
        "kinds": {
            kind: {"accuracy": float(np.mean(hits)), "questions": len(hits)}
            for kind, hits in kinds.items()
        },
        "is_there": agreement(
            [t for t, _, _ in there], [a for _, a, _ in there], [str(i) for i in range(len(there))]
        ),
        "settings": asdict(settings),
        "versions": versions(),
    }


def write(out: Path, result: dict) -> None:
    """result.json."""
    write_json(out / "result.json", result)
