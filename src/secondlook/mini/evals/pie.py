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
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydantic import Field

from secondlook.engine.engine import Engine
from secondlook.episode import SamplingConfig, run_episodes
from secondlook.evals.benchmark import MODEL_HELP, ROUNDS_HELP, EvalSession
from secondlook.evals.intervals import (
    Interval,
    Sample,
    agreement,
    interval_text,
    mean_of_tasks,
)
from secondlook.evals.scorers.background import background
from secondlook.io import versions, write_json, write_text
from secondlook.mini.evals.sampled import SampledMiniBenchmark
from secondlook.mini.world import edits
from secondlook.mini.world.edits import Edit
from secondlook.mini.world.reader import LEFTOVER, Reading, read
from secondlook.mini.world.render import render
from secondlook.mini.world.samples import caption
from secondlook.registry import register_benchmark
from secondlook.report import embed, page
from secondlook.types import Episode, Prompt

MEASURES = ("success", "exact", "followed", "preserved", "psnr", "ssim", "mse")


@register_benchmark("mini-pie")
class MiniPIE(SampledMiniBenchmark):
    """Mini-PIE: edits that are judged and made again: success, what was left alone, beside the
    identity and drawing afresh."""

    title = "Mini-PIE"
    files_written = "result.json, episodes.json, mini-pie.html"
    page = "mini-pie.html"
    guidance_scale = "edit_guidance"

    model: str = Field("mini-edit", description=MODEL_HELP)
    samples: int = Field(2, ge=1, le=1000, description="Edits of each row.")
    rounds: int = Field(3, ge=1, description=ROUNDS_HELP)
    rows_per_kind: int = Field(80, ge=1, description="Rows of each kind of edit.")

    def run(self, session: EvalSession) -> dict[str, Any]:
        engine = session.load_engine(self.model)
        sampling = self.sampling(engine)
        measured = edit_and_measure(engine, self, sampling, session.progress)
        beside = baselines(engine, self, sampling)
        return write(session.out, measured, self.with_guidance(sampling), beside)

    def lines(self, result: dict[str, Any]) -> list[str]:
        lines = []
        for name in ("first", "final", "gain"):
            row = result["overall"][name]
            lines.append(
                f"{name:6} success {interval_text(row['success'])}, exact "
                f"{interval_text(row['exact'])}, background PSNR {row['psnr']['mean']:.1f} dB"
            )
        balanced = result["judge"]["every round"]["balanced_accuracy"]
        return [*lines, f"judge, every round: balanced accuracy {interval_text(balanced)}"]

    @classmethod
    def headline(cls, result: dict[str, Any]) -> dict[str, Any]:
        return {name: result["overall"][name]["success"] for name in ("first", "final", "gain")}

    @classmethod
    def options_for_all(cls, rounds: int, only: int) -> dict[str, Any]:
        return {"rounds": rounds} | ({"rows_per_kind": only} if only else {})


@dataclass(frozen=True)
class MeasuredEpisode:
    """An episode with `MEASURES` of each of its images."""

    edit: Edit
    episode: Episode
    measures: tuple[dict[str, float], ...]

    @property
    def first(self) -> dict[str, float]:
        return self.measures[0]

    @property
    def final(self) -> dict[str, float]:
        return self.measures[self.episode.final]


def prompt_of(edit: Edit) -> str:
    """By which intervals resample."""
    return f"{edit.instruction} {edit.source}"


def succeeds(edit: Edit, reading: Reading) -> bool:
    """Whether a picture's reading passes the edit's target specification."""
    verdict = edits.judge(edit, reading)
    wanted = Counter((thing.name, thing.color) for thing in edit.target.things)
    there = Counter((detected.name, detected.color) for detected in reading.objects)
    placed = edit.kind not in ("add", "move") or verdict.followed
    return placed and wanted == there and reading.leftover <= LEFTOVER


def measure(edit: Edit, image: Image.Image) -> dict[str, float]:
    """MEASURES of a picture that is to be an edit."""
    reading = read(image)
    verdict = edits.judge(edit, reading)
    source = Image.fromarray(render(edit.source))
    return {
        "success": float(succeeds(edit, reading)),
        "exact": float(verdict.correct),
        "followed": float(verdict.followed),
        "preserved": float(verdict.preserved),
        **background(source, image, edit.mask()),
    }


def edit_and_measure(
    engine: Engine,
    settings: MiniPIE,
    sampling: SamplingConfig,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> list[MeasuredEpisode]:
    """Edit, judge and edit again every row of the benchmark; the truth is read from the pictures
    afterwards."""
    jobs = []
    for i, edit in enumerate(edits.benchmark(settings.rows_per_kind, settings.split)):
        jobs += [(edit, seed) for seed in settings.seeds_of(i)]
    measured: list[MeasuredEpisode] = []
    for start in range(0, len(jobs), engine.batch):
        part = jobs[start : start + engine.batch]
        prompts = []
        for edit, _ in part:
            prompts.append(Prompt(edit.instruction, Image.fromarray(render(edit.source))))
        seeds = [seed for _, seed in part]
        episodes = run_episodes(engine, prompts, seeds, settings.rounds, sampling)
        for (edit, _), episode in zip(part, episodes, strict=True):
            measures = tuple(measure(edit, shown.image) for shown in episode.rounds)
            measured.append(MeasuredEpisode(edit, episode, measures))
        progress("editing", len(measured), len(jobs))
    return measured


def baselines(
    engine: Engine, settings: MiniPIE, sampling: SamplingConfig
) -> dict[str, dict[str, Interval]]:
    """The identity edit, the source merely encoded and decoded, and a picture drawn from the
    target's caption."""
    rows = edits.benchmark(settings.rows_per_kind, settings.split)
    sources = [Image.fromarray(render(edit.source)) for edit in rows]
    prompts = [Prompt(f"a photo of {caption(edit.target)}") for edit in rows]
    seeds = [settings.seed * 10**6 + i for i in range(len(rows))]
    drawn = run_episodes(engine, prompts, seeds, 1, sampling)
    pictures = {
        "identity": sources,
        "the source encoded and decoded": engine.pictures(engine.codes(sources)),
        "drawn from the target's caption": [episode.rounds[0].image for episode in drawn],
    }
    found = {}
    for name, images in pictures.items():
        measures = [measure(edit, image) for edit, image in zip(rows, images, strict=True)]
        found[name] = _means(rows, measures)
    return found


def _means(rows: Sequence[Edit], measures: Sequence[dict[str, float]]) -> dict[str, Interval]:
    """Each measure's unweighted mean of the kinds of edits; where it is undefined it does not
    count."""
    means = {}
    for name in MEASURES:
        samples = []
        for edit, values in zip(rows, measures, strict=True):
            if np.isfinite(values[name]):
                samples.append(Sample(edit.kind, prompt_of(edit), values[name]))
        means[name] = mean_of_tasks(samples)
    return means


def first_and_final(measured: Sequence[MeasuredEpisode]) -> dict[str, dict[str, Interval]]:
    """All measures of first images, of final ones, and of the gain."""
    rows = [m.edit for m in measured]
    gains = []
    for m in measured:
        gains.append({name: m.final[name] - m.first[name] for name in MEASURES})
    return {
        "first": _means(rows, [m.first for m in measured]),
        "final": _means(rows, [m.final for m in measured]),
        "gain": _means(rows, gains),
    }


def verdicts_of(
    measured: Sequence[MeasuredEpisode], first_only: bool = False
) -> tuple[list[bool], list[bool], list[str]]:
    """Whether each image is exact, the model's verdict on it, and what was asked for."""
    truth, verdicts, prompts = [], [], []
    for m in measured:
        for shown, measures in zip(m.episode.rounds, m.measures, strict=True):
            truth.append(bool(measures["exact"]))
            verdicts.append(shown.yes)
            prompts.append(prompt_of(m.edit))
            if first_only:
                break
    return truth, verdicts, prompts


def redraws(measured: Sequence[MeasuredEpisode]) -> dict[str, Any]:
    """Edits that were made again: the share of wrong ones that end right, and of right ones that
    end wrong."""
    again = [m for m in measured if len(m.measures) > 1]
    fixed = [m.final["exact"] for m in again if not m.first["exact"]]
    broken = [1 - m.final["exact"] for m in again if m.first["exact"]]
    return {
        "episodes": len(again),
        "wrong": len(fixed),
        "fixed": float(np.mean(fixed)) if fixed else 0.0,
        "right": len(broken),
        "broken": float(np.mean(broken)) if broken else 0.0,
    }


def summarize(
    measured: Sequence[MeasuredEpisode], settings: MiniPIE, beside: dict[str, Any]
) -> dict[str, Any]:
    """The numbers of result.json. ``overall`` has the final image's success and psnr, and all
    measures of the first image, the final one and their difference."""
    overall = first_and_final(measured)
    by_kind = {}
    for kind in edits.KINDS:
        by_kind[kind] = first_and_final([m for m in measured if m.edit.kind == kind])
    final = overall["final"]
    return {
        "overall": {"success": final["success"], "psnr": final["psnr"], **overall},
        "kinds": by_kind,
        "images": len(measured),
        "mean_rounds": float(np.mean([len(m.measures) for m in measured])),
        "baselines": beside,
        "judge": {
            "first": agreement(*verdicts_of(measured, first_only=True)),
            "every round": agreement(*verdicts_of(measured)),
        },
        "redraws": redraws(measured),
        "settings": settings.settings(),
        "versions": versions(),
    }


def gallery(measured: Sequence[MeasuredEpisode], n: int = 6) -> dict[str, list[dict[str, Any]]]:
    """Episodes to look at. Groups without an episode are left out."""
    groups: dict[str, list[MeasuredEpisode]] = {
        "Right at once": [],
        "Made good by looking again": [],
        "Still wrong": [],
        "Spoilt by editing again": [],
    }
    for m in measured:
        several = len(m.measures) > 1
        first, final = bool(m.first["exact"]), bool(m.final["exact"])
        if first and not several:
            groups["Right at once"].append(m)
        elif final and not first:
            groups["Made good by looking again"].append(m)
        elif not final:
            groups["Spoilt by editing again" if first else "Still wrong"].append(m)
    shown = {}
    for name, episodes in groups.items():
        if episodes:
            step = max(1, len(episodes) // n)
            shown[name] = [_strip(m) for m in episodes[::step][:n]]
    return shown


def _strip(m: MeasuredEpisode) -> dict[str, Any]:
    rounds = []
    for shown, measures in zip(m.episode.rounds, m.measures, strict=True):
        rounds.append(
            {
                "src": embed(shown.image),
                "yes": shown.yes,
                "p_yes": shown.p_yes,
                "reason": shown.reason,
                "right": bool(measures["exact"]),
            }
        )
    assert m.episode.prompt.source is not None
    return {
        "prompt": m.edit.instruction,
        "source": embed(m.episode.prompt.source),
        "final": m.episode.final,
        "rounds": rounds,
    }


def episode_row(m: MeasuredEpisode) -> dict[str, Any]:
    """An episode as episodes.json has it."""
    rounds = []
    for shown, measures in zip(m.episode.rounds, m.measures, strict=True):
        about = {
            "yes": shown.yes,
            "p_yes": round(shown.p_yes, 5),
            "reason": shown.reason,
            "codes": list(shown.codes),
        }
        rounds.append(about | measures)
    return {
        "kind": m.edit.kind,
        "instruction": m.edit.instruction,
        "source": [asdict(thing) for thing in m.edit.source.things],
        "seed": m.episode.seed,
        "final": m.episode.final,
        "rounds": rounds,
    }


def write(
    out: Path, measured: Sequence[MeasuredEpisode], settings: MiniPIE, beside: dict[str, Any]
) -> dict[str, Any]:
    """episodes.json, mini-pie.html and, last, result.json; returns the result."""
    result = summarize(measured, settings, beside)
    write_json(out / "episodes.json", [episode_row(m) for m in measured])
    html = page("mini-pie.html", result=result, gallery=gallery(measured))
    write_text(out / "mini-pie.html", html)
    write_json(out / "result.json", result)
    return result
