"""Mini-GenEval: held-out prompts, distinct samples each, first and final image, and how the model
judges them.

GenEval's rules with the world's own reader as detector (world/reader.py). Its numbers are never
comparable with GenEval's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from secondlook.engine.engine import Engine
from secondlook.episode import SamplingConfig, run_episodes
from secondlook.evals.benchmark import ROUNDS_HELP, EvalSession
from secondlook.evals.intervals import (
    Interval,
    Sample,
    agreement,
    bootstrap,
    by_prompt,
    mean_of_tasks,
)
from secondlook.io import versions, write_json, write_text
from secondlook.mini.evals.sampled import SampledMiniBenchmark
from secondlook.mini.world.language import TASKS, Spec, benchmark
from secondlook.mini.world.reader import THRESHOLD, Detection, Reading, judge, read
from secondlook.mini.world.scene import CELL, place, relations
from secondlook.registry import register_benchmark
from secondlook.report import embed, page
from secondlook.types import Episode, Prompt


@register_benchmark("mini-geneval")
class MiniGenEval(SampledMiniBenchmark):
    """Mini-GenEval: first and final image, per task and overall, with the model as its own
    judge."""

    title = "Mini-GenEval"
    files_written = "result.json, episodes.json, mini-geneval.html"
    page = "mini-geneval.html"

    rounds: int = Field(3, ge=1, description=ROUNDS_HELP)
    rows_per_task: int = Field(80, ge=1, description="Prompts a task.")

    def run(self, session: EvalSession) -> dict[str, Any]:
        engine = session.load_engine(self.model)
        sampling = self.sampling(engine)
        scored = draw_and_read(engine, self, sampling, session.progress)
        return write(session.out, scored, self.with_guidance(sampling))

    @classmethod
    def options_for_all(cls, rounds: int, only: int) -> dict[str, Any]:
        return {"rounds": rounds} | ({"rows_per_task": only} if only else {})


@dataclass(frozen=True)
class ReadEpisode:
    """An episode with what the reader says of each of its images."""

    spec: Spec
    episode: Episode
    readings: tuple[Reading, ...]
    right: tuple[bool, ...]

    @property
    def first_right(self) -> bool:
        return self.right[0]

    @property
    def final_right(self) -> bool:
        return self.right[self.episode.final]


def rows_of(split: str, rows_per_task: int) -> list[Spec]:
    """The benchmark's rows, the first ones of each task."""
    rows = []
    for task in TASKS:
        of_task = [spec for spec in benchmark(split) if spec.tag == task]
        rows += of_task[:rows_per_task]
    return rows


def seeded_rows(settings: SampledMiniBenchmark, rows_per_task: int) -> list[tuple[Spec, int]]:
    """Every episode of the benchmark: its row and its seed."""
    jobs = []
    for i, spec in enumerate(rows_of(settings.split, rows_per_task)):
        jobs += [(spec, seed) for seed in settings.seeds_of(i)]
    return jobs


def draw_and_read(
    engine: Engine,
    settings: MiniGenEval,
    sampling: SamplingConfig,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> list[ReadEpisode]:
    """Draw, judge and redraw every row of the benchmark; the truth is read from the pictures
    afterwards."""
    jobs = seeded_rows(settings, settings.rows_per_task)
    scored: list[ReadEpisode] = []
    for start in range(0, len(jobs), engine.batch):
        part = jobs[start : start + engine.batch]
        prompts, seeds = [Prompt(spec.prompt) for spec, _ in part], [seed for _, seed in part]
        episodes = run_episodes(engine, prompts, seeds, settings.rounds, sampling)
        for (spec, _), episode in zip(part, episodes, strict=True):
            readings = tuple(read(shown.image) for shown in episode.rounds)
            right = tuple(judge(spec, reading).correct for reading in readings)
            scored.append(ReadEpisode(spec, episode, readings, right))
        progress("drawing", len(scored), len(jobs))
    return scored


def summarize(scored: Sequence[ReadEpisode], settings: MiniGenEval) -> dict[str, Any]:
    """The numbers of result.json."""
    tasks = {}
    for task in TASKS:
        of_task = [s for s in scored if s.spec.tag == task]
        if of_task:
            tasks[task] = first_and_final(of_task) | {"images": len(of_task)}
    sampled, greedy = verdicts_of(scored), verdicts_of(scored, greedy=True)
    return {
        "overall": first_and_final(scored),
        "tasks": tasks,
        "images": len(scored),
        "binding": binding(scored),
        "position": position(scored),
        "judge": {
            "first": agreement(*verdicts_of(scored, first_only=True)),
            "every round": agreement(*sampled),
            "every round, greedy": agreement(*greedy),
        },
        "redraws": redraws(scored),
        "settings": settings.settings(),
        "versions": versions(),
    }


def first_and_final(scored: Sequence[ReadEpisode]) -> dict[str, Any]:
    """The share of right first and final images and of the gain, unweighted means of the tasks."""
    samples: dict[str, list[Sample]] = {"first": [], "final": [], "gain": []}
    for s in scored:
        first, final = float(s.first_right), float(s.final_right)
        for name, value in (("first", first), ("final", final), ("gain", final - first)):
            samples[name].append(Sample(s.spec.tag, s.spec.prompt, value))
    return {name: mean_of_tasks(values) for name, values in samples.items()}


def verdicts_of(
    scored: Sequence[ReadEpisode], first_only: bool = False, greedy: bool = False
) -> tuple[list[bool], list[bool], list[str]]:
    """Truth, verdict (as sampled, or P(Yes) above a half) and prompt of every image."""
    truth, verdicts, prompts = [], [], []
    for s in scored:
        for shown, right in zip(s.episode.rounds, s.right, strict=True):
            truth.append(right)
            verdicts.append(shown.p_yes > 0.5 if greedy else shown.yes)
            prompts.append(s.spec.prompt)
            if first_only:
                break
    return truth, verdicts, prompts


def redraws(scored: Sequence[ReadEpisode]) -> dict[str, Any]:
    """Episodes whose first image was judged No: the share of wrong ones that end right, and of
    right ones that end wrong (this also of all right first images, doubted or not)."""
    doubted = [s for s in scored if len(s.right) > 1]
    fixed = [s.final_right for s in doubted if not s.first_right]
    broken = [not s.final_right for s in doubted if s.first_right]
    return {
        "episodes": len(doubted),
        "wrong": len(fixed),
        "fixed": float(np.mean(fixed)) if fixed else 0.0,
        "right": len(broken),
        "broken": float(np.mean(broken)) if broken else 0.0,
        "broken_of_all": sum(broken) / max(1, sum(s.first_right for s in scored)),
    }


def _surest(reading: Reading, name: str) -> Detection | None:
    """The most confident object of a class."""
    found = [d for d in reading.objects if d.name == name and d.confidence > THRESHOLD]
    return max(found, key=lambda d: d.confidence) if found else None


def binding(scored: Sequence[ReadEpisode]) -> dict[str, Any]:
    """First images of color_attr rows that hold both objects in the two colours asked for: bound to
    the right ones, or swapped. Chance is 0.5."""
    samples = []
    for s in scored:
        if s.spec.tag != "color_attr":
            continue
        found = [_surest(s.readings[0], clause.name) for clause in s.spec.include]
        if None in found:
            continue
        colors = [detection.color for detection in found if detection]
        wanted = [clause.color for clause in s.spec.include]
        if sorted(colors) == sorted(str(color) for color in wanted):
            samples.append(Sample("bound", s.spec.prompt, float(colors == wanted)))
    bound = _mean(samples)
    swapped = {"mean": 1 - bound["mean"], "low": 1 - bound["high"], "high": 1 - bound["low"]}
    return {"bound": bound, "swapped": swapped, "images": len(samples)}


def position(scored: Sequence[ReadEpisode]) -> dict[str, Any]:
    """First images of position rows that hold both objects: the share whose relation holds, beside
    what random layouts give."""
    samples = []
    for s in scored:
        if s.spec.tag != "position":
            continue
        target, placed = s.spec.include
        found_target = _surest(s.readings[0], target.name)
        found_placed = _surest(s.readings[0], placed.name)
        if found_placed and found_target and placed.position:
            held = placed.position[0] in relations(found_placed.box, found_target.box)
            samples.append(Sample("held", s.spec.prompt, float(held)))
    return {
        "given_both": _mean(samples),
        "chance": chance_of_relation(),
        "images": len(samples),
    }


def _mean(samples: Sequence[Sample]) -> Interval:
    return bootstrap(by_prompt(samples), lambda v: float(next(iter(v.values())).mean()))


@cache
def chance_of_relation(draws: int = 4000) -> float:
    """How often one given relation holds between two objects placed at random."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(draws):
        corners = place(rng, 2)  # in reading order, so either may be the first object
        if rng.random() >= 0.5:
            corners = corners[::-1]
        boxes = [(x, y, x + CELL - 2, y + CELL - 2) for y, x in corners]
        held += "left of" in relations(*boxes)
    return held / draws


def gallery(scored: Sequence[ReadEpisode], n: int = 6) -> dict[str, list[dict[str, Any]]]:
    """Episodes to look at: where a redraw fixed the image, where it did not help, where a right
    image was doubted, where a wrong one was not. Groups without an episode are left out."""
    groups: dict[str, list[ReadEpisode]] = {
        "Fixed by looking again": [],
        "Still wrong": [],
        "Broken by redrawing": [],
        "Wrong, and judged Yes at once": [],
        "Right at once": [],
    }
    for s in scored:
        several, doubted = len(s.right) > 1, not s.episode.rounds[0].yes
        if several and s.first_right != s.final_right:
            name = "Broken by redrawing" if s.first_right else "Fixed by looking again"
            groups[name].append(s)
        if doubted and not s.first_right and not s.final_right:
            groups["Still wrong"].append(s)
        if not doubted and not s.first_right:
            groups["Wrong, and judged Yes at once"].append(s)
        if not several and s.first_right:
            groups["Right at once"].append(s)
    shown = {}
    for name, episodes in groups.items():
        if episodes:
            step = max(1, len(episodes) // n)
            shown[name] = [_strip(s) for s in episodes[::step][:n]]
    return shown


def _strip(s: ReadEpisode) -> dict[str, Any]:
    rounds = []
    for shown, right in zip(s.episode.rounds, s.right, strict=True):
        rounds.append(
            {
                "src": embed(shown.image),
                "yes": shown.yes,
                "p_yes": shown.p_yes,
                "reason": shown.reason,
                "right": right,
            }
        )
    return {"prompt": s.spec.prompt, "final": s.episode.final, "rounds": rounds}


def episode_row(s: ReadEpisode) -> dict[str, Any]:
    """An episode as episodes.json has it."""
    rounds = []
    for shown, right in zip(s.episode.rounds, s.right, strict=True):
        rounds.append(
            {
                "yes": shown.yes,
                "p_yes": round(shown.p_yes, 5),
                "right": right,
                "reason": shown.reason,
                "codes": list(shown.codes),
            }
        )
    return {
        "tag": s.spec.tag,
        "prompt": s.spec.prompt,
        "seed": s.episode.seed,
        "final": s.episode.final,
        "rounds": rounds,
    }


def write(out: Path, scored: Sequence[ReadEpisode], settings: MiniGenEval) -> dict[str, Any]:
    """episodes.json, gallery.json, mini-geneval.html and, last, result.json; returns the result."""
    result = summarize(scored, settings)
    write_json(out / "episodes.json", [episode_row(s) for s in scored])
    shown = gallery(scored)
    write_json(out / "gallery.json", shown)
    write_text(out / "mini-geneval.html", page("mini-geneval.html", result=result, gallery=shown))
    write_json(out / "result.json", result)
    return result
