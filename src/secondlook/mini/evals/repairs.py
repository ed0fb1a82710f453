"""Mini-repairs: one redraw of wrong first images, told by the world what is wrong.

No verdict of the model takes part, so that what a redraw makes of picture and words is measured
alone. Each wrong first image of mini-GenEval-plus is redrawn with

- ``true``: the world's reason;
- ``none``: a bare No;
- ``other``: the reason of another prompt's image;
- ``blank``: the world's reason, and an empty picture in the image's place;
- ``as_edit``: the image as an edit's source, with the world's reason as its instruction;
- ``afresh``: a first image from another seed.

``repaired``: how many end right; ``kept``: of the clauses that held, the share that still does;
``copied``: how many are the wrong image again, code for code. ``counterfactual``: right first
images with a reason that asks for something else, and the share that becomes exactly that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from pydantic import Field

from secondlook.engine.engine import Engine
from secondlook.episode import SamplingConfig, turn_seed
from secondlook.evals.benchmark import EvalSession
from secondlook.evals.intervals import Interval, Sample, mean_by_prompt
from secondlook.io import versions, write_json, write_text
from secondlook.mini.evals.sampled import HeadlineBenchmark, strips_of_groups
from secondlook.mini.world.compound import Compound, benchmark_plus, held_clauses
from secondlook.mini.world.reader import judge, read, scene_of
from secondlook.mini.world.render import render
from secondlook.mini.world.repair import Diagnosis, counterfactual, try_diagnose
from secondlook.mini.world.scene import Scene
from secondlook.registry import register_benchmark
from secondlook.report import embed, page
from secondlook.types import Request, Segment

WAYS = ("true", "none", "other", "blank", "as_edit", "afresh")


@register_benchmark("mini-repairs")
class MiniRepairs(HeadlineBenchmark):
    """Mini-repairs: one redraw of wrong first images, told by the world what is wrong."""

    title = "Mini-repairs"
    files_written = "result.json, benchmark.html"
    page = "benchmark.html"

    samples: int = Field(2, ge=1, le=1000, description="First images a prompt.")
    rows_per_task: int = Field(60, ge=1, le=1000, description="Prompts a task.")

    def run(self, session: EvalSession) -> dict[str, Any]:
        engine = session.load_engine(self.model)
        sampling = self.sampling(engine)
        wrong, right = first_images(engine, self, sampling)
        session.progress("first images", 1, len(WAYS) + 2)
        redrawn: dict[str, list[Redrawn]] = {}
        for i, way in enumerate(WAYS):
            redrawn[way] = redraw(engine, wrong, way, sampling)
            session.progress(f"redraws: {way}", i + 2, len(WAYS) + 2)
        followed = follow_counterfactual(engine, right, sampling, self.seed)
        session.progress("counterfactual", len(WAYS) + 2, len(WAYS) + 2)
        result = summarize(wrong, right, redrawn, followed, self.with_guidance(sampling))
        gallery = strips_of_groups(_groups(wrong, redrawn["true"]), _strip, 8)
        write_text(
            session.out / "benchmark.html",
            page("mini-repairs.html", result=result, gallery=gallery, ways=WAYS),
        )
        write_json(session.out / "result.json", result)
        return result

    @classmethod
    def headline(cls, result: dict[str, Any]) -> dict[str, Any]:
        return super().headline(result) | {"number": result["headline"]["repaired"]}

    @classmethod
    def options_for_all(cls, rounds: int, only: int) -> dict[str, Any]:
        return {"rows_per_task": only} if only else {}


@dataclass(frozen=True)
class FirstImage:
    """A first image of a row, and what the world says of it."""

    row: Compound
    seed: int
    codes: tuple[int, ...]
    image: Image.Image
    held: tuple[bool, ...]
    diagnosis: Diagnosis | None
    """Of a wrong image."""

    @property
    def faults(self) -> tuple[str, ...]:
        return self.diagnosis.faults if self.diagnosis else ()

    @property
    def reason(self) -> str:
        """The verdict."""
        return f"No, {self.diagnosis.reason}." if self.diagnosis else "Yes."


@dataclass(frozen=True)
class Redrawn:
    """What became of a wrong first image."""

    codes: tuple[int, ...]
    image: Image.Image
    is_right: bool
    held: tuple[bool, ...]


def first_images(
    engine: Engine, settings: MiniRepairs, sampling: SamplingConfig
) -> tuple[list[FirstImage], list[FirstImage]]:
    """The wrong and the right first images of all rows. Wrong ones that no arrangement of their
    objects would mend are left out."""
    rows = benchmark_plus(settings.split, settings.rows_per_task)
    seeded_rows = [(row, seed) for i, row in enumerate(rows) for seed in settings.seeds_of(i)]
    contexts = [engine.template.draw(row.spec.prompt) for row, _ in seeded_rows]
    seeds = [turn_seed(seed, 0) for _, seed in seeded_rows]
    all_codes, images = _draw(engine, "draw", contexts, seeds, sampling)
    wrong: list[FirstImage] = []
    right: list[FirstImage] = []
    for (row, seed), codes, image in zip(seeded_rows, all_codes, images, strict=True):
        reading = read(image)
        held = tuple(held_clauses(row.spec, reading))
        if judge(row.spec, reading).correct:
            right.append(FirstImage(row, seed, codes, image, held, None))
        elif diagnosis := try_diagnose(row.spec, np.asarray(image)):
            wrong.append(FirstImage(row, seed, codes, image, held, diagnosis))
    return wrong, right


def redraw(
    engine: Engine, wrong: Sequence[FirstImage], way: str, sampling: SamplingConfig
) -> list[Redrawn]:
    """One redraw of each wrong first image, in one of ``WAYS``."""
    template = engine.template
    blank = engine.codes([Image.fromarray(render(Scene(())))])[0] if wrong else ()
    contexts: list[tuple[Segment, ...]] = []
    for i, first in enumerate(wrong):
        prompt = first.row.spec.prompt
        if way == "afresh":
            contexts.append(template.draw(prompt))
        elif way == "as_edit":
            contexts.append(template.repair(first.codes, prompt, first.reason))
        else:
            codes = blank if way == "blank" else first.codes
            reason = {"none": "No.", "other": _other_reason(wrong, i)}.get(way, first.reason)
            contexts.append(template.redraw(prompt, [codes], [reason]))
    # the turns of an episode are numbered: a redraw is its third one
    turn = 10**6 if way == "afresh" else 2
    seeds = [turn_seed(first.seed, turn) for first in wrong]
    kind = "draw" if way == "afresh" else "edit" if way == "as_edit" else "redraw"
    all_codes, images = _draw(engine, kind, contexts, seeds, sampling)
    redrawn = []
    for first, codes, image in zip(wrong, all_codes, images, strict=True):
        spec, reading = first.row.spec, read(image)
        is_right = judge(spec, reading).correct
        redrawn.append(Redrawn(codes, image, is_right, tuple(held_clauses(spec, reading))))
    return redrawn


def _other_reason(wrong: Sequence[FirstImage], i: int) -> str:
    """The reason of the next image of another prompt; a bare No where all are of one."""
    for step in range(1, len(wrong)):
        other = wrong[(i + step) % len(wrong)]
        if other.row != wrong[i].row:
            return other.reason
    return "No."


def follow_counterfactual(
    engine: Engine, right: Sequence[FirstImage], sampling: SamplingConfig, seed: int
) -> list[tuple[str, bool]]:
    """Of right first images with a reason that asks for another colour or class than the prompt:
    the prompt, and whether the redraw shows exactly what the reason asks for."""
    rng = np.random.default_rng([seed, 19])
    told: list[tuple[FirstImage, Diagnosis]] = []
    for first in right:
        diagnosis = counterfactual(rng, first.row.spec, scene_of(read(first.image)))
        if diagnosis is not None:
            told.append((first, diagnosis))
    contexts, seeds = [], []
    for first, diagnosis in told:
        reason = f"No, {diagnosis.reason}."
        contexts.append(engine.template.redraw(first.row.spec.prompt, [first.codes], [reason]))
        seeds.append(turn_seed(first.seed, 2))
    _, images = _draw(engine, "redraw", contexts, seeds, sampling)
    followed = []
    for (first, diagnosis), image in zip(told, images, strict=True):
        shown = scene_of(read(image))
        followed.append(
            (first.row.spec.prompt, set(shown.things) == set(diagnosis.repaired.things))
        )
    return followed


def _draw(
    engine: Engine,
    kind: str,
    contexts: Sequence[tuple[Segment, ...]],
    seeds: Sequence[int],
    sampling: SamplingConfig,
) -> tuple[list[tuple[int, ...]], list[Image.Image]]:
    """The codes and pictures of one image after each context."""
    if not contexts:
        return [], []
    requests = [Request(kind, c, seed) for c, seed in zip(contexts, seeds, strict=True)]
    turns = engine.draw(requests, sampling.draw_params(editing=kind == "edit"))
    all_codes = [turn.tokens for turn in turns]
    return all_codes, engine.pictures(all_codes)


def summarize(
    wrong: Sequence[FirstImage],
    right: Sequence[FirstImage],
    redrawn: dict[str, list[Redrawn]],
    followed: Sequence[tuple[str, bool]],
    settings: MiniRepairs,
) -> dict[str, Any]:
    """The numbers of result.json."""
    prompts = [first.row.spec.prompt for first in wrong]

    def mean(values: Sequence[float], of: Sequence[str] = prompts) -> Interval:
        pairs = zip(of, values, strict=True)
        return mean_by_prompt([Sample("all", prompt, float(value)) for prompt, value in pairs])

    ways: dict[str, dict[str, Interval]] = {}
    for way, of_way in redrawn.items():
        copies = [a.codes == b.codes for a, b in zip(wrong, of_way, strict=True)]
        kept_prompts, kept = _kept(wrong, of_way)
        ways[way] = {
            "repaired": mean([r.is_right for r in of_way]),
            "kept": mean(kept, kept_prompts),
            "copied": mean(copies),
        }
    by_faults: dict[str, Interval] = {}
    num_faults = np.array([len(first.faults) for first in wrong])
    for n in sorted(set(num_faults.tolist())):
        at = np.flatnonzero(num_faults == n)
        values = [redrawn["true"][i].is_right for i in at]
        by_faults[str(n)] = mean(values, [prompts[i] for i in at])

    def over(a: str, b: str) -> Interval:
        pairs = zip(redrawn[a], redrawn[b], strict=True)
        return mean([float(x.is_right) - float(y.is_right) for x, y in pairs])

    headline = {
        "repaired": ways["true"]["repaired"],
        "over_none": over("true", "none"),
        "over_other": over("true", "other"),
        "over_blank": over("true", "blank"),
        "over_afresh": over("true", "afresh"),
        "over_as_edit": over("true", "as_edit"),
        "kept": ways["true"]["kept"],
        "kept_afresh": ways["afresh"]["kept"],
        "counterfactual": mean([f for _, f in followed], [prompt for prompt, _ in followed]),
    }
    return {
        "headline": headline,
        "ways": ways,
        "by_faults": by_faults,
        "wrong": len(wrong),
        "right": len(right),
        "counterfactual_images": len(followed),
        "settings": settings.settings(),
        "versions": versions(),
    }


def _kept(wrong: Sequence[FirstImage], of_way: Sequence[Redrawn]) -> tuple[list[str], list[float]]:
    """Of each clause that held in a first image its prompt, and whether it still holds."""
    prompts: list[str] = []
    kept: list[float] = []
    for first, after in zip(wrong, of_way, strict=True):
        for held_before, held_after in zip(first.held, after.held, strict=True):
            if held_before:
                prompts.append(first.row.spec.prompt)
                kept.append(float(held_after))
    return prompts, kept


def _groups(
    wrong: Sequence[FirstImage], redrawn: Sequence[Redrawn]
) -> dict[str, list[tuple[FirstImage, Redrawn]]]:
    groups: dict[str, list[tuple[FirstImage, Redrawn]]] = {
        "Repaired": [],
        "Changed, not right": [],
        "Copied": [],
    }
    for first, after in zip(wrong, redrawn, strict=True):
        if after.is_right:
            groups["Repaired"].append((first, after))
        elif after.codes == first.codes:
            groups["Copied"].append((first, after))
        else:
            groups["Changed, not right"].append((first, after))
    return groups


def _strip(pair: tuple[FirstImage, Redrawn]) -> dict[str, Any]:
    first, after = pair
    return {
        "prompt": first.row.spec.prompt,
        "first": embed(first.image),
        "reason": first.reason,
        "redraw": embed(after.image),
        "right": after.is_right,
    }
