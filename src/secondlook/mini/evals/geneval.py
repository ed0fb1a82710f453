"""Mini-GenEval: held-out prompts, distinct samples each, first and final image, and how the model
judges them.

GenEval's rules with the world's own reader as detector (world/read.py). Its numbers are never
comparable with GenEval's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np

from secondlook.engine.engine import Engine
from secondlook.episode import SamplingConfig, run_episodes
from secondlook.evals.intervals import (
    Interval,
    Sample,
    agreement,
    bootstrap,
    by_prompt,
    check_counts,
    mean_of_tasks,
)
from secondlook.io import versions, write_json, write_text
from secondlook.mini.world.language import TASKS, Spec, benchmark, check_split
from secondlook.mini.world.reader import THRESHOLD, Detection, Reading, judge, read
from secondlook.mini.world.scene import CELL, place, relations
from secondlook.report import embed, page
from secondlook.types import Episode, Prompt


@dataclass(frozen=True)
class Settings:
    """Everything that a score depends on."""

    model: str
    samples: int = 4
    rounds: int = 3
    seed: int = 0
    split: str = "held-out"
    rows_per_task: int = 80
    guidance: float = 1.0

    def __post_init__(self) -> None:
        check_counts(self, "rounds", "rows_per_task")
        check_counts(self, "samples", most=1000)  # two pictures never have one seed
        check_split(self.split)


@dataclass(frozen=True)
class Scored:
    """An episode with what the reader says of each of its images."""

    spec: Spec
    episode: Episode
    readings: tuple[Reading, ...]
    right: tuple[bool, ...]


def seeded_rows(split: str, rows_per_task: int, samples: int, seed: int) -> list[tuple[Spec, int]]:
    """Every episode of the benchmark: its row, ``samples`` times, each with a seed of its own."""
    rows = [
        s for task in TASKS for s in [r for r in benchmark(split) if r.tag == task][:rows_per_task]
    ]
    return [
        (row, seed * 10**6 + i * 1000 + k) for i, row in enumerate(rows) for k in range(samples)
    ]


def run(
    engine: Engine,
    settings: Settings,
    sampling: SamplingConfig,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> list[Scored]:
    """Draw, judge and redraw every row of the benchmark; the truth is read from the pictures
    afterwards."""
    jobs = seeded_rows(settings.split, settings.rows_per_task, settings.samples, settings.seed)
    scored: list[Scored] = []
    for start in range(0, len(jobs), engine.batch):
        part = jobs[start : start + engine.batch]
        episodes = run_episodes(
            engine,
            [Prompt(s.prompt) for s, _ in part],
            [seed for _, seed in part],
            settings.rounds,
            sampling,
        )
        for (spec, _), episode in zip(part, episodes, strict=True):
            readings = tuple(read(r.image) for r in episode.rounds)
            scored.append(
                Scored(spec, episode, readings, tuple(judge(spec, r).correct for r in readings))
            )
        progress(len(scored), len(jobs))
    return scored


def summarize(scored: list[Scored], settings: Settings) -> dict:
    """The numbers of result.json."""
    first, final, gain = (
        [Sample(s.spec.tag, s.spec.prompt, float(value(s))) for s in scored]
        for value in (
            lambda s: s.right[0],
            lambda s: s.right[s.episode.final],
            lambda s: float(s.right[s.episode.final]) - float(s.right[0]),
        )
    )
    kinds = {"first": first, "final": final, "gain": gain}
    tasks = {
        task: {
            name: mean_of_tasks([s for s in samples if s.task == task])
            for name, samples in kinds.items()
        }
        | {"images": sum(s.task == task for s in first)}
        for task in TASKS
        if any(s.task == task for s in first)
    }
    return {
        "overall": {name: mean_of_tasks(samples) for name, samples in kinds.items()},
        "tasks": tasks,
        "images": len(scored),
        "binding": binding(scored),
        "position": position(scored),
        "judge": {
            "first": _agreement(scored, lambda n: [0]),
            "every round": _agreement(scored, lambda n: list(range(n))),
            "every round, greedy": _agreement(
                scored, lambda n: list(range(n)), lambda r: r.p_yes > 0.5
            ),
        },
        "redraws": redraws(scored),
        "settings": asdict(settings),
        "versions": versions(),
    }


def _agreement(scored: list[Scored], which, says=lambda r: r.yes) -> dict:
    """Verdicts on the images ``which`` of an episode: as sampled, or what ``says`` makes of a
    round."""
    picks = [(s, i) for s in scored for i in which(len(s.right))]
    return agreement(
        [s.right[i] for s, i in picks],
        [says(s.episode.rounds[i]) for s, i in picks],
        [s.spec.prompt for s, _ in picks],
    )


def redraws(scored: list[Scored]) -> dict:
    """Episodes whose first image was judged No: the share of wrong ones that end right, and of
    right ones that end wrong (this also of all right first images, doubted or not)."""
    doubted = [s for s in scored if len(s.right) > 1]
    wrong = [s.right[s.episode.final] for s in doubted if not s.right[0]]
    right = [not s.right[s.episode.final] for s in doubted if s.right[0]]
    return {
        "episodes": len(doubted),
        "wrong": len(wrong),
        "fixed": float(np.mean(wrong)) if wrong else 0.0,
        "right": len(right),
        "broken": float(np.mean(right)) if right else 0.0,
        "broken_of_all": sum(right) / max(1, sum(s.right[0] for s in scored)),
    }


def _best(reading: Reading, name: str) -> Detection | None:
    found = [d for d in reading.objects if d.name == name and d.confidence > THRESHOLD]
    return max(found, key=lambda d: d.confidence) if found else None


def binding(scored: list[Scored]) -> dict:
    """First images of color_attr rows that hold both objects in the two colours asked for: bound to
    the right ones, or swapped. Chance is 0.5."""
    samples = []
    for s in scored:
        if s.spec.tag != "color_attr":
            continue
        found = [_best(s.readings[0], c.name) for c in s.spec.include]
        wanted = [c.color for c in s.spec.include]
        if None in found:
            continue
        colors = [d.color for d in found if d]
        if sorted(colors) == sorted(str(w) for w in wanted):
            samples.append(Sample("bound", s.spec.prompt, float(colors == wanted)))
    bound = _share(samples)
    swapped = {"mean": 1 - bound["mean"], "low": 1 - bound["high"], "high": 1 - bound["low"]}
    return {"bound": bound, "swapped": swapped, "images": len(samples)}


def position(scored: list[Scored]) -> dict:
    """First images of position rows that hold both objects: the share whose relation holds, beside
    what random layouts give."""
    samples = []
    for s in scored:
        if s.spec.tag != "position":
            continue
        b, a = s.spec.include
        found_a, found_b = _best(s.readings[0], a.name), _best(s.readings[0], b.name)
        if found_a and found_b and a.position:
            held = a.position[0] in relations(found_a.box, found_b.box)
            samples.append(Sample("held", s.spec.prompt, float(held)))
    return {"given_both": _share(samples), "chance": chance_of_relation(), "images": len(samples)}


def _share(samples: list[Sample]) -> Interval:
    return bootstrap(by_prompt(samples), lambda v: float(next(iter(v.values())).mean()))


@cache
def chance_of_relation(draws: int = 4000) -> float:
    """How often one given relation holds between two objects placed at random."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(draws):
        (y1, x1), (y2, x2) = (lambda p: p if rng.random() < 0.5 else p[::-1])(place(rng, 2))
        held += "left of" in relations(
            (x1, y1, x1 + CELL - 2, y1 + CELL - 2), (x2, y2, x2 + CELL - 2, y2 + CELL - 2)
        )
    return held / draws


def gallery(scored: list[Scored], n: int = 6) -> dict[str, list[dict]]:
    """Episodes to look at: where a redraw fixed the image, where it did not help, where a right
    image was doubted, where a wrong one was not. Groups without an episode are left out."""
    several = [s for s in scored if len(s.right) > 1]
    doubted = [s for s in scored if not s.episode.rounds[0].yes]
    groups = {
        "Fixed by looking again": [
            s for s in several if not s.right[0] and s.right[s.episode.final]
        ],
        "Still wrong": [s for s in doubted if not s.right[0] and not s.right[s.episode.final]],
        "Broken by redrawing": [s for s in several if s.right[0] and not s.right[s.episode.final]],
        "Wrong, and judged Yes at once": [
            s for s in scored if not s.right[0] and s.episode.rounds[0].yes
        ],
        "Right at once": [s for s in scored if len(s.right) == 1 and s.right[0]],
    }
    groups = {name: items for name, items in groups.items() if items}
    step = {name: max(1, len(items) // n) for name, items in groups.items()}
    return {name: [_strip(s) for s in items[:: step[name]][:n]] for name, items in groups.items()}


def _strip(s: Scored) -> dict:
    rounds = [
        {"src": embed(r.image), "yes": r.yes, "p_yes": r.p_yes, "reason": r.reason, "right": right}
        for r, right in zip(s.episode.rounds, s.right, strict=True)
    ]
    return {"prompt": s.spec.prompt, "final": s.episode.final, "rounds": rounds}


def write(out: Path, scored: list[Scored], settings: Settings) -> dict:
    """episodes.json, gallery.json, geneval.html and, last, result.json; returns the result."""
    result = summarize(scored, settings)
    rows = [
        {
            "tag": s.spec.tag,
            "prompt": s.spec.prompt,
            "seed": s.episode.seed,
            "final": s.episode.final,
            "rounds": [
                {
                    "yes": r.yes,
                    "p_yes": round(r.p_yes, 5),
                    "right": right,
                    "reason": r.reason,
                    "codes": list(r.codes),
                }
                for r, right in zip(s.episode.rounds, s.right, strict=True)
            ],
        }
        for s in scored
    ]
    write_json(out / "episodes.json", rows)
    shown = gallery(scored)
    write_json(out / "gallery.json", shown)
    write_text(out / "geneval.html", page("geneval.html", result=result, gallery=shown))
    write_json(out / "result.json", result)
    return result
