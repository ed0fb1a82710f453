"""Mini-PIE: edits of the miniature's world, the model judging each and editing again while it says
No.

Source and instruction are given; the exact target and mask are known. An edit succeeds when its
target specification passes: what was asked for is there (an object added or moved at its place),
what was to go is gone, and the picture holds the target's objects and nothing else, wherever those
are that were not to move. "Exact" asks for their places as well. Beside it stand the identity edit,
perfect on the background and never a success, and a picture drawn afresh from the target's caption.
Its numbers are never comparable with PIE-Bench's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from secondlook.engine.engine import Engine
from secondlook.episode import SamplingConfig, run_episodes
from secondlook.evals.intervals import Interval, Sample, agreement, check_counts, mean_of_tasks
from secondlook.evals.scorers.background import background
from secondlook.io import versions, write_json, write_text
from secondlook.mini.world import edits
from secondlook.mini.world.edits import Edit
from secondlook.mini.world.language import check_split
from secondlook.mini.world.reader import LEFTOVER, Reading, read
from secondlook.mini.world.render import render
from secondlook.mini.world.samples import caption
from secondlook.report import embed, page
from secondlook.types import Episode, Prompt

MEASURES = ("success", "exact", "followed", "preserved", "psnr", "ssim", "mse")


@dataclass(frozen=True)
class Settings:
    """Everything that a score depends on."""

    model: str
    samples: int = 2
    rounds: int = 3
    seed: int = 0
    split: str = "held-out"
    rows_per_kind: int = 80
    guidance: float = 1.0

    def __post_init__(self) -> None:
        check_counts(self, "rounds", "rows_per_kind")
        check_counts(self, "samples", most=1000)  # two pictures never have one seed
        check_split(self.split)


@dataclass(frozen=True)
class Scored:
    """An episode with what is measured of each of its images."""

    edit: Edit
    episode: Episode
    measures: tuple[dict[str, float], ...]


def succeeds(edit: Edit, reading: Reading) -> bool:
    """Whether a picture's reading passes the edit's target specification."""
    verdict = edits.judge(edit, reading)
    wanted = Counter((t.name, t.color) for t in edit.target.things)
    there = Counter((d.name, d.color) for d in reading.objects)
    placed = edit.kind not in ("add", "move") or verdict.followed
    return placed and wanted == there and reading.leftover <= LEFTOVER


def measure(edit: Edit, image: Image.Image) -> dict[str, float]:
    """MEASURES of a picture that is to be an edit."""
    reading = read(image)
    verdict = edits.judge(edit, reading)
    found = {"success": succeeds(edit, reading), "exact": verdict.correct}
    found |= {"followed": verdict.followed, "preserved": verdict.preserved}
    return {n: float(v) for n, v in found.items()} | background(
        Image.fromarray(render(edit.source)), image, edit.mask()
    )


def run(
    engine: Engine,
    settings: Settings,
    sampling: SamplingConfig,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> list[Scored]:
    """Edit, judge and edit again every row of the benchmark; the truth is read from the pictures
    afterwards."""
    rows = edits.benchmark(settings.rows_per_kind, settings.split)
    jobs = [
        (e, settings.seed * 10**6 + i * 1000 + k)
        for i, e in enumerate(rows)
        for k in range(settings.samples)
    ]
    scored: list[Scored] = []
    for start in range(0, len(jobs), engine.batch):
        part = jobs[start : start + engine.batch]
        prompts = [Prompt(e.instruction, Image.fromarray(render(e.source))) for e, _ in part]
        episodes = run_episodes(
            engine, prompts, [seed for _, seed in part], settings.rounds, sampling
        )
        for (edit, _), episode in zip(part, episodes, strict=True):
            scored.append(
                Scored(edit, episode, tuple(measure(edit, r.image) for r in episode.rounds))
            )
        progress(len(scored), len(jobs))
    return scored


def baselines(
    engine: Engine, settings: Settings, sampling: SamplingConfig
) -> dict[str, dict[str, Interval]]:
    """The identity edit, the source merely encoded and decoded, and a picture drawn from the
    target's caption."""
    rows = edits.benchmark(settings.rows_per_kind, settings.split)
    sources = [Image.fromarray(render(e.source)) for e in rows]
    prompts = [Prompt(f"a photo of {caption(e.target)}") for e in rows]
    drawn = run_episodes(
        engine, prompts, [settings.seed * 10**6 + i for i in range(len(rows))], 1, sampling
    )
    pictures = {
        "identity": sources,
        "the source encoded and decoded": engine.pictures(engine.codes(sources)),
        "drawn from the target's caption": [e.rounds[0].image for e in drawn],
    }
    return {
        name: {m: _mean(rows, [found[m] for found in each]) for m in MEASURES}
        for name, images in pictures.items()
        for each in [[measure(e, image) for e, image in zip(rows, images, strict=True)]]
    }


def _mean(rows: list[Edit] | tuple[Edit, ...], values: list[float]) -> Interval:
    samples = [
        Sample(e.kind, f"{e.instruction} {e.source}", v) for e, v in zip(rows, values, strict=True)
    ]
    return mean_of_tasks([s for s in samples if np.isfinite(s.value)])


def summarize(scored: list[Scored], settings: Settings, beside: dict[str, Any]) -> dict:
    """The numbers of result.json. ``overall`` has the final image's success and psnr, and all
    measures of the first image, the final one and their difference: unweighted means of the kinds
    of edits."""

    def of(items: list[Scored]) -> dict[str, dict[str, Interval]]:
        rows = [s.edit for s in items]
        first = {m: [s.measures[0][m] for s in items] for m in MEASURES}
        final = {m: [s.measures[s.episode.final][m] for s in items] for m in MEASURES}
        gain = {m: [b - a for a, b in zip(first[m], final[m], strict=True)] for m in MEASURES}
        named = {"first": first, "final": final, "gain": gain}
        return {
            name: {m: _mean(rows, v) for m, v in values.items()} for name, values in named.items()
        }

    whole = of(scored)
    picks = [(s, i) for s in scored for i in range(len(s.measures))]
    verdicts = {"first": [(s, 0) for s in scored], "every round": picks}
    again = [s for s in scored if len(s.measures) > 1]
    wrong = [s.measures[s.episode.final]["exact"] for s in again if not s.measures[0]["exact"]]
    right = [1 - s.measures[s.episode.final]["exact"] for s in again if s.measures[0]["exact"]]
    return {
        "overall": {"success": whole["final"]["success"], "psnr": whole["final"]["psnr"]} | whole,
        "kinds": {kind: of([s for s in scored if s.edit.kind == kind]) for kind in edits.KINDS},
        "images": len(scored),
        "mean_rounds": float(np.mean([len(s.measures) for s in scored])),
        "baselines": beside,
        "judge": {
            name: agreement(
                [bool(s.measures[i]["exact"]) for s, i in those],
                [s.episode.rounds[i].yes for s, i in those],
                [f"{s.edit.instruction} {s.edit.source}" for s, _ in those],
            )
            for name, those in verdicts.items()
        },
        "redraws": {
            "episodes": len(again),
            "wrong": len(wrong),
            "fixed": float(np.mean(wrong)) if wrong else 0.0,
            "right": len(right),
            "broken": float(np.mean(right)) if right else 0.0,
        },
        "settings": asdict(settings),
        "versions": versions(),
    }


def gallery(scored: list[Scored], n: int = 6) -> dict[str, list[dict]]:
    """Episodes to look at."""

    def exact(s: Scored, i: int) -> bool:
        return bool(s.measures[i]["exact"])

    several = [s for s in scored if len(s.measures) > 1]
    groups = {
        "Right at once": [s for s in scored if len(s.measures) == 1 and exact(s, 0)],
        "Made good by looking again": [
            s for s in several if not exact(s, 0) and exact(s, s.episode.final)
        ],
        "Still wrong": [s for s in scored if not exact(s, s.episode.final) and not exact(s, 0)],
        "Spoilt by editing again": [
            s for s in several if exact(s, 0) and not exact(s, s.episode.final)
        ],
    }
    groups = {name: items for name, items in groups.items() if items}
    step = {name: max(1, len(items) // n) for name, items in groups.items()}
    return {name: [_strip(s) for s in items[:: step[name]][:n]] for name, items in groups.items()}


def _strip(s: Scored) -> dict:
    rounds = [
        {
            "src": embed(r.image),
            "yes": r.yes,
            "p_yes": r.p_yes,
            "reason": r.reason,
            "right": bool(m["exact"]),
        }
        for r, m in zip(s.episode.rounds, s.measures, strict=True)
    ]
    assert s.episode.prompt.source is not None
    source = embed(s.episode.prompt.source)
    return {
        "prompt": s.edit.instruction,
        "source": source,
        "final": s.episode.final,
        "rounds": rounds,
    }


def write(out: Path, scored: list[Scored], settings: Settings, beside: dict[str, Any]) -> dict:
    """episodes.json, editing.html and, last, result.json; returns the result."""
    result = summarize(scored, settings, beside)
    rows = [
        {
            "kind": s.edit.kind,
            "instruction": s.edit.instruction,
            "source": [asdict(t) for t in s.edit.source.things],
            "seed": s.episode.seed,
            "final": s.episode.final,
            "rounds": [
                {
                    "yes": r.yes,
                    "p_yes": round(r.p_yes, 5),
                    "reason": r.reason,
                    "codes": list(r.codes),
                }
                | m
                for r, m in zip(s.episode.rounds, s.measures, strict=True)
            ],
        }
        for s in scored
    ]
    write_json(out / "episodes.json", rows)
    write_text(out / "editing.html", page("editing.html", result=result, gallery=gallery(scored)))
    write_json(out / "result.json", result)
    return result
