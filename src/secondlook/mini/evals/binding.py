"""Who has which colour: pairs of pictures of unseen scenes that differ only in that two objects
have swapped their colours, and whether the judge tells which one its prompt describes.

No colour, no class and no picture alone decides, so that a judge that binds nothing is right in
half of the pairs. A prompt names one to four objects of the scene: of one clause, one of the two;
of more, both, in the scene's order and with the two exchanged. A judge that compares the first
clause with the first object, and so on, is right on all of the former and wrong on all of the
latter. Beside the verdicts the same is asked as a question ("is there a red star?") of one object.
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
from secondlook.mini.world.language import Spec
from secondlook.mini.world.render import render
from secondlook.mini.world.scene import Scene
from secondlook.registry import register_benchmark
from secondlook.types import Request

SEED = 10**9 + 1
"""Of the scenes, far from those of training."""
TWO_OBJECTS = {"color_attr": 1.0}
SEVERAL_OBJECTS = {"three_colored": 0.4, "compound": 0.6}
GROUPS = (
    ("1 clause of 2 objects", 1, TWO_OBJECTS),
    ("2 clauses of 2 objects", 2, TWO_OBJECTS),
    ("1 clause of more", 1, SEVERAL_OBJECTS),
    ("2 clauses of more", 2, SEVERAL_OBJECTS),
    ("3 clauses of more", 3, SEVERAL_OBJECTS),
    ("4 clauses of more", 4, SEVERAL_OBJECTS),
)
"""Name, number of clauses, and of which prompts the scenes are."""


@register_benchmark("mini-binding")
class MiniBinding(Benchmark):
    """Pairs of pictures that differ in who has which colour: does the judge tell them apart?"""

    title = "Mini-binding"
    suite = "mini"

    model: str = Field("mini", description=MODEL_HELP)
    pairs: int = Field(100, ge=1, description="Pairs of pictures of each kind.")

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
        return {"number": result["headline"]["told_apart"]}

    @classmethod
    def options_for_all(cls, rounds: int, only: int) -> dict[str, Any]:
        return {"pairs": only} if only else {}


@dataclass(frozen=True)
class Pair:
    """A prompt, a scene that satisfies it, and the same scene with two colours swapped, which does
    not."""

    spec: Spec
    exchanged: Spec | None
    """The same prompt with the two objects' clauses exchanged; None where it names one."""
    right: Scene
    wrong: Scene


def draw_pairs(
    rng: np.random.Generator, num_clauses: int, shares: dict[str, float], number: int
) -> list[Pair]:
    """Pairs whose prompts have so many clauses, of scenes of prompts in ``shares``."""
    pairs: list[Pair] = []
    while len(pairs) < number:
        _, scene = samples.sample_scene(rng, shares)
        found = binding.swapped(rng, scene, num_clauses)
        if found:
            spec, wrong, names = found
            other = binding.exchanged(spec, names) if num_clauses > 1 else None
            pairs.append(Pair(spec, other, scene, wrong))
    return pairs


def tell_apart(engine: Engine, settings: MiniBinding) -> dict[str, Any]:
    """result.json: of each kind of pair the share in which P(Yes) of the right picture is larger;
    equal ones count half. ``told_apart`` is the mean over all verdicts, a scene's two orders being
    one unit; ``exchanged`` of those whose clauses are exchanged."""
    template = engine.template
    requests: list[Request] = []
    asked_of: list[tuple[str, str]] = []  # of every two requests: the kind, and the scene's name

    def ask(kind: str, scene_name: str, pair: Pair, spec: Spec | None) -> None:
        for scene in (pair.right, pair.wrong):
            picture = Image.fromarray(render(scene))
            if spec:
                segments = template.judge(spec.prompt, [picture], [])
            else:
                asked = pair.spec.prompt.removeprefix("a photo of ")
                segments = template.ask(picture, f"is there {asked}?")
            requests.append(Request("judge" if spec else "ask", segments, len(requests)))
        asked_of.append((kind, scene_name))

    for group_number, (group, num_clauses, shares) in enumerate(GROUPS):
        rng = np.random.default_rng([SEED, group_number])
        for i, pair in enumerate(draw_pairs(rng, num_clauses, shares, settings.pairs)):
            scene_name = f"{group} {i}"
            if pair.exchanged is None:
                ask(group, scene_name, pair, pair.spec)
                ask(f"asked, {group}", scene_name, pair, None)
            else:
                ask(f"{group}, in order", scene_name, pair, pair.spec)
                ask(f"{group}, exchanged", scene_name, pair, pair.exchanged)
    # the same two answers, Yes and No, to verdicts and questions
    judge_params = SamplingConfig().judge_params(template.yes, template.no)
    p_yes = [turn.p_yes for turn in engine.write(requests, judge_params, max_tokens=1)]
    told: list[Sample] = []
    for i, (kind, scene_name) in enumerate(asked_of):
        right, wrong = p_yes[2 * i], p_yes[2 * i + 1]
        assert right is not None and wrong is not None
        value = 0.5 if right == wrong else float(right > wrong)
        told.append(Sample(kind, scene_name, value))
    result_of_kind: dict[str, Interval] = {}
    for kind in dict.fromkeys(sample.task for sample in told):
        result_of_kind[kind] = _share([sample for sample in told if sample.task == kind])
    verdicts = [sample for sample in told if not sample.task.startswith("asked")]
    return {
        "headline": {
            "told_apart": _share(verdicts),
            "exchanged": _share([s for s in verdicts if s.task.endswith("exchanged")]),
        },
        "kinds": result_of_kind,
        "settings": settings.settings(),
        "versions": versions(),
    }


def _share(told: list[Sample]) -> Interval:
    """The mean, over scenes as units."""
    units = by_prompt([Sample("told", sample.prompt, sample.value) for sample in told])
    return bootstrap(units, lambda values: float(values["told"].mean()))
