"""Who has which colour: pairs of pictures of unseen scenes that differ only in that two objects
have swapped their colours, and whether the judge tells which one its prompt describes.

No colour and no class alone decides, so a judge that binds nothing is right in half of the pairs.
Prompts name one to four objects of the scene, in the order in which they stand in it or in another
one: a judge that compares the first clause with the first object, and so on, is right on the
former and wrong on the latter. Beside the verdicts the same is asked as a question ("is there a red
star?") of one object.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from pydantic import Field

from secondlook.engine.engine import Engine
from secondlook.episode import SamplingConfig
from secondlook.evals.benchmark import MODEL_HELP, Benchmark, EvalSession
from secondlook.evals.intervals import Interval, Sample, bootstrap, by_prompt, interval_text
from secondlook.io import versions, write_json
from secondlook.mini.world import binding, samples
from secondlook.mini.world.language import Spec, phrase
from secondlook.mini.world.render import render
from secondlook.mini.world.scene import Scene
from secondlook.registry import register_benchmark
from secondlook.types import Request

SEED = 10**9 + 1
"""Of the scenes, far from those of training."""
SHARES = {"color_attr": 0.2, "three_colored": 0.3, "compound": 0.5}
MAX_CLAUSES = 4


@register_benchmark("mini-binding")
class MiniBinding(Benchmark):
    """Pairs of pictures that differ in who has which colour: does the judge tell them apart?"""

    title = "Mini-binding"
    suite = "mini"

    model: str = Field("mini", description=MODEL_HELP)
    pairs: int = Field(100, ge=1, description="Pairs of pictures of each number of clauses.")

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"seed": SEED}

    def run(self, session: EvalSession) -> dict[str, Any]:
        result = tell_apart(session.load_engine(self.model), self)
        write_json(session.out / "result.json", result)
        return result

    @classmethod
    def lines(cls, result: dict[str, Any]) -> list[str]:
        text_lines = []
        for name, interval in (result["kinds"] | result["headline"]).items():
            text_lines.append(f"  {name}: {interval_text(interval)}")
        return text_lines

    @classmethod
    def headline(cls, result: dict[str, Any]) -> dict[str, Any]:
        return dict(result["headline"])

    @classmethod
    def options_for_all(cls, rounds: int, only: int) -> dict[str, Any]:
        return {"pairs": only} if only else {}


@dataclass(frozen=True)
class Pair:
    """A prompt, a scene that satisfies it, and the same scene with two colours swapped, which does
    not."""

    kind: str
    spec: Spec
    right: Scene
    wrong: Scene


def draw_pairs(rng: np.random.Generator, num_clauses: int, number: int) -> list[Pair]:
    """Pairs of one number of clauses: in the scene's order and, of the same scenes, in another."""
    pairs: list[Pair] = []
    while len(pairs) < number * (1 if num_clauses == 1 else 2):
        _, scene = samples.sample_scene(rng, SHARES)
        spec = binding.part_of(rng, scene, num_clauses)
        wrong = binding.mixed_up(rng, scene, spec, ("swap colors",)) if spec else None
        if spec is None or wrong is None:
            continue
        if num_clauses == 1:
            pairs.append(Pair("1 clause", spec, scene, wrong))
            continue
        other_order = spec
        while other_order.prompt == spec.prompt:
            other_order = binding.reordered(rng, spec)
        pairs.append(Pair(f"{num_clauses} clauses in order", spec, scene, wrong))
        pairs.append(Pair(f"{num_clauses} clauses in another order", other_order, scene, wrong))
    return pairs


def tell_apart(engine: Engine, settings: MiniBinding) -> dict[str, Any]:
    """result.json: of each kind of pair the share in which P(Yes) of the right picture is larger;
    equal ones count half."""
    rng = np.random.default_rng(SEED)
    pairs: list[Pair] = []
    for num_clauses in range(1, MAX_CLAUSES + 1):
        pairs += draw_pairs(rng, num_clauses, settings.pairs)
    template = engine.template
    requests: list[Request] = []
    for pair in pairs:
        for scene in (pair.right, pair.wrong):
            segments = template.judge(pair.spec.prompt, [_picture(scene)], [])
            requests.append(Request("judge", segments, len(requests)))
    asked_pairs = [pair for pair in pairs if pair.kind == "1 clause"]
    for pair in asked_pairs:
        (clause,) = pair.spec.include
        question = f"is there {phrase(clause.name, 1, clause.color)}?"
        for scene in (pair.right, pair.wrong):
            segments = template.ask(_picture(scene), question)
            requests.append(Request("ask", segments, len(requests)))
    # the same two answers, Yes and No, to verdicts and questions
    judge_params = SamplingConfig().judge_params(template.yes, template.no)
    p_yes = [turn.p_yes for turn in engine.write(requests, judge_params, max_tokens=1)]
    told: list[Sample] = []
    kinds = [pair.kind for pair in pairs] + ["asked"] * len(asked_pairs)
    for i, kind in enumerate(kinds):
        right, wrong = p_yes[2 * i], p_yes[2 * i + 1]
        assert right is not None and wrong is not None
        told.append(Sample(kind, f"pair {i}", 0.5 if right == wrong else float(right > wrong)))
    result_of_kind: dict[str, Interval] = {}
    for kind in dict.fromkeys(kinds):
        result_of_kind[kind] = _share([sample for sample in told if sample.task == kind])
    verdicts = [sample for sample in told if sample.task != "asked"]
    return {
        "headline": {
            "told_apart": _share(verdicts),
            "in_another_order": _share([s for s in verdicts if s.task.endswith("another order")]),
        },
        "kinds": result_of_kind,
        "settings": settings.settings(),
        "versions": versions(),
    }


def _share(told: list[Sample]) -> Interval:
    units = by_prompt([Sample("told", sample.prompt, sample.value) for sample in told])
    return bootstrap(units, lambda values: float(values["told"].mean()))


def _picture(scene: Scene) -> Image.Image:
    return Image.fromarray(render(scene))
