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
from secondlook.mini.evals.sampled import (
    SampledMiniBenchmark,
    redraws_text,
    shown_rounds,
    strips_of_groups,
)
from secondlook.mini.world.language import TASKS, Spec, benchmark
from secondlook.mini.world.reader import THRESHOLD, Detection, Reading, judge, read
from secondlook.mini.world.scene import CELL, place, relations
from secondlook.registry import register_benchmark
from secondlook.report import page
from secondlook.types import Episode, Prompt


@register_benchmark("mini-geneval")
class MiniGenEval(SampledMiniBenchmark):
    """Mini-GenEval: first and final image, per task and overall, with the model as its own
    judge."""

    title = "Mini-GenEval"
    files_written = "result.json, episodes.json, benchmark.html"
    page = "benchmark.html"

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
    first_rows = []
    for task in TASKS:
        task_rows = [spec for spec in benchmark(split) if spec.tag == task]
        first_rows += task_rows[:rows_per_task]
    return first_rows


def seeded_rows(settings: SampledMiniBenchmark, rows_per_task: int) -> list[tuple[Spec, int]]:
    """Every episode of the benchmark: its row and its seed."""
    seeded_specs: list[tuple[Spec, int]] = []
    for i, spec in enumerate(rows_of(settings.split, rows_per_task)):
        for seed in settings.seeds_of(i):
            seeded_specs.append((spec, seed))
    return seeded_specs


def draw_and_read(
    engine: Engine,
    settings: MiniGenEval,
    sampling: SamplingConfig,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> list[ReadEpisode]:
    """Draw, judge and redraw every row of the benchmark; the truth is read from the pictures
    afterwards."""
    seeded_specs = seeded_rows(settings, settings.rows_per_task)
    read_episodes: list[ReadEpisode] = []
    for batch_start in range(0, len(seeded_specs), engine.batch):
        batch_rows = seeded_specs[batch_start : batch_start + engine.batch]
        prompts = [Prompt(spec.prompt) for spec, _ in batch_rows]
        seeds = [seed for _, seed in batch_rows]
        episodes = run_episodes(engine, prompts, seeds, settings.rounds, sampling)
        for (spec, _), episode in zip(batch_rows, episodes, strict=True):
            read_episodes.append(read_episode(spec, episode))
        progress("drawing", len(read_episodes), len(seeded_specs))
    return read_episodes


def read_episode(spec: Spec, episode: Episode) -> ReadEpisode:
    """Read each of an episode's images and judge it by its row."""
    readings, is_right = [], []
    for episode_round in episode.rounds:
        reading = read(episode_round.image)
        readings.append(reading)
        is_right.append(judge(spec, reading).correct)
    return ReadEpisode(spec, episode, tuple(readings), tuple(is_right))


def summarize(scored: Sequence[ReadEpisode], settings: MiniGenEval) -> dict[str, Any]:
    """The numbers of result.json."""
    result_of_task = {}
    for task in TASKS:
        of_task = [scored_episode for scored_episode in scored if scored_episode.spec.tag == task]
        if of_task:
            result_of_task[task] = first_and_final(of_task) | {"images": len(of_task)}
    sampled_verdicts, greedy_verdicts = verdicts_of(scored), verdicts_of(scored, greedy=True)
    return {
        "overall": first_and_final(scored),
        "tasks": result_of_task,
        "images": len(scored),
        "binding": binding(scored),
        "position": position(scored),
        "judge": {
            "first": agreement(*verdicts_of(scored, first_only=True)),
            "every round": agreement(*sampled_verdicts),
            "every round, greedy": agreement(*greedy_verdicts),
        },
        "redraws": redraws(scored),
        "settings": settings.settings(),
        "versions": versions(),
    }


def first_and_final(scored: Sequence[ReadEpisode]) -> dict[str, Any]:
    """The share of right first and final images and of the gain, unweighted means of the tasks."""
    samples: dict[str, list[Sample]] = {"first": [], "final": [], "gain": []}
    for scored_episode in scored:
        spec = scored_episode.spec
        first_right = float(scored_episode.first_right)
        final_right = float(scored_episode.final_right)
        samples["first"].append(Sample(spec.tag, spec.prompt, first_right))
        samples["final"].append(Sample(spec.tag, spec.prompt, final_right))
        samples["gain"].append(Sample(spec.tag, spec.prompt, final_right - first_right))
    return {name: mean_of_tasks(of_measure) for name, of_measure in samples.items()}


def verdicts_of(
    scored: Sequence[ReadEpisode], first_only: bool = False, greedy: bool = False
) -> tuple[list[bool], list[bool], list[str]]:
    """Truth, verdict (as sampled, or P(Yes) above a half) and prompt of every image."""
    image_truths, verdicts, prompts = [], [], []
    for scored_episode in scored:
        for episode_round, is_right in zip(
            scored_episode.episode.rounds, scored_episode.right, strict=True
        ):
            image_truths.append(is_right)
            verdicts.append(episode_round.p_yes > 0.5 if greedy else episode_round.yes)
            prompts.append(scored_episode.spec.prompt)
            if first_only:
                break
    return image_truths, verdicts, prompts


def redraws(scored: Sequence[ReadEpisode]) -> dict[str, Any]:
    """Episodes whose first image was judged No: the share of wrong ones that end right, and of
    right ones that end wrong (this also of all right first images, doubted or not)."""
    # a second image is drawn only after a No
    doubted_episodes = [
        scored_episode for scored_episode in scored if len(scored_episode.right) > 1
    ]
    fixed: list[bool] = []  # of the wrong first images
    broken: list[bool] = []  # of the right ones
    for scored_episode in doubted_episodes:
        if scored_episode.first_right:
            broken.append(not scored_episode.final_right)
        else:
            fixed.append(scored_episode.final_right)
    num_first_right = sum(scored_episode.first_right for scored_episode in scored)
    return {
        "episodes": len(doubted_episodes),
        "wrong": len(fixed),
        "fixed": float(np.mean(fixed)) if fixed else 0.0,
        "right": len(broken),
        "broken": float(np.mean(broken)) if broken else 0.0,
        "broken_of_all": sum(broken) / max(1, num_first_right),
    }


def _surest(reading: Reading, name: str) -> Detection | None:
    """The most confident object of a class."""
    surest_object: Detection | None = None
    for read_object in reading.objects:
        if read_object.name != name or read_object.confidence <= THRESHOLD:
            continue
        if surest_object is None or read_object.confidence > surest_object.confidence:
            surest_object = read_object
    return surest_object


def binding(scored: Sequence[ReadEpisode]) -> dict[str, Any]:
    """First images of color_attr rows that hold both objects in the two colours asked for: bound to
    the right ones, or swapped. Chance is 0.5."""
    samples = []
    for scored_episode in scored:
        if scored_episode.spec.tag != "color_attr":
            continue
        read_colors, wanted_colors = [], []  # of each object that is there, in the prompt's order
        for clause in scored_episode.spec.include:
            surest_object = _surest(scored_episode.readings[0], clause.name)
            if surest_object:
                read_colors.append(surest_object.color)
            wanted_colors.append(str(clause.color))
        # unequal too where an object is missing
        if sorted(read_colors) == sorted(wanted_colors):
            bound_right = float(read_colors == wanted_colors)
            samples.append(Sample("bound", scored_episode.spec.prompt, bound_right))
    bound = _mean(samples)
    swapped = {"mean": 1 - bound["mean"], "low": 1 - bound["high"], "high": 1 - bound["low"]}
    return {"bound": bound, "swapped": swapped, "images": len(samples)}


def position(scored: Sequence[ReadEpisode]) -> dict[str, Any]:
    """First images of position rows that hold both objects: the share whose relation holds, beside
    what random layouts give."""
    samples = []
    for scored_episode in scored:
        if scored_episode.spec.tag != "position":
            continue
        target_clause, placed_clause = scored_episode.spec.include
        found_target = _surest(scored_episode.readings[0], target_clause.name)
        found_placed = _surest(scored_episode.readings[0], placed_clause.name)
        if found_placed and found_target and placed_clause.position:
            relation_holds = placed_clause.position[0] in relations(
                found_placed.box, found_target.box
            )
            samples.append(Sample("held", scored_episode.spec.prompt, float(relation_holds)))
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
    num_held = 0
    for _ in range(draws):
        corners = place(rng, 2)  # in reading order, so either may be the first object
        if rng.random() >= 0.5:
            corners = corners[::-1]
        boxes = [(x, y, x + CELL - 2, y + CELL - 2) for y, x in corners]  # less the margin
        num_held += "left of" in relations(*boxes)
    return num_held / draws


def gallery(scored: Sequence[ReadEpisode], num_shown: int = 6) -> dict[str, list[dict[str, Any]]]:
    """Episodes to look at: where a redraw fixed the image, where it did not help, where a right
    image was doubted, where a wrong one was not. Groups without an episode are left out."""
    groups: dict[str, list[ReadEpisode]] = {
        "Fixed by looking again": [],
        "Still wrong": [],
        "Broken by redrawing": [],
        "Wrong, and judged Yes at once": [],
        "Right at once": [],
    }
    for scored_episode in scored:
        was_redrawn = len(scored_episode.right) > 1
        is_doubted = not scored_episode.episode.rounds[0].yes
        if was_redrawn and scored_episode.first_right != scored_episode.final_right:
            group_name = (
                "Broken by redrawing" if scored_episode.first_right else "Fixed by looking again"
            )
            groups[group_name].append(scored_episode)
        if is_doubted and not scored_episode.first_right and not scored_episode.final_right:
            groups["Still wrong"].append(scored_episode)
        if not is_doubted and not scored_episode.first_right:
            groups["Wrong, and judged Yes at once"].append(scored_episode)
        if not was_redrawn and scored_episode.first_right:
            groups["Right at once"].append(scored_episode)
    return strips_of_groups(groups, _strip, num_shown)


def _strip(scored_episode: ReadEpisode) -> dict[str, Any]:
    """An episode as the page's template shows it."""
    return {
        "prompt": scored_episode.spec.prompt,
        "final": scored_episode.episode.final,
        "rounds": shown_rounds(scored_episode.episode, scored_episode.right),
    }


def episode_row(scored_episode: ReadEpisode) -> dict[str, Any]:
    """An episode as episodes.json has it."""
    rounds = []
    for episode_round, is_right in zip(
        scored_episode.episode.rounds, scored_episode.right, strict=True
    ):
        rounds.append(
            {
                "yes": episode_round.yes,
                "p_yes": round(episode_round.p_yes, 5),
                "right": is_right,
                "reason": episode_round.reason,
                "codes": list(episode_round.codes),
            }
        )
    return {
        "tag": scored_episode.spec.tag,
        "prompt": scored_episode.spec.prompt,
        "seed": scored_episode.episode.seed,
        "final": scored_episode.episode.final,
        "rounds": rounds,
    }


def write(out: Path, scored: Sequence[ReadEpisode], settings: MiniGenEval) -> dict[str, Any]:
    """episodes.json, gallery.json, benchmark.html and, last, result.json; returns the result."""
    result = summarize(scored, settings)
    write_json(out / "episodes.json", [episode_row(scored_episode) for scored_episode in scored])
    shown_episodes = gallery(scored)
    write_json(out / "gallery.json", shown_episodes)
    redrawn = redraws_text(result["redraws"])
    html = page("mini-geneval.html", result=result, redraws=redrawn, gallery=shown_episodes)
    write_text(out / "benchmark.html", html)
    write_json(out / "result.json", result)
    return result
