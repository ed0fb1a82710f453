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
from secondlook.mini.evals.sampled import (
    SampledMiniBenchmark,
    redraws_text,
    shown_rounds,
    strips_of_groups,
)
from secondlook.mini.world import edit_samples, edits
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
    files_written = "result.json, episodes.json, benchmark.html"
    page = "benchmark.html"
    guidance_scale = "edit_guidance"

    model: str = Field("mini-edit", description=MODEL_HELP)
    samples: int = Field(2, ge=1, le=1000, description="Edits of each row.")
    rounds: int = Field(3, ge=1, description=ROUNDS_HELP)
    rows_per_kind: int = Field(80, ge=1, description="Rows of each kind of edit.")

    def run(self, session: EvalSession) -> dict[str, Any]:
        engine = session.load_engine(self.model)
        sampling = self.sampling(engine)
        measured_episodes = edit_and_measure(engine, self, sampling, session.progress)
        baseline_means = baselines(engine, self, sampling)
        return write(session.out, measured_episodes, self.with_guidance(sampling), baseline_means)

    @classmethod
    def lines(cls, result: dict[str, Any]) -> list[str]:
        text_lines = [f"  {'':6} {'success':24}{'exact':24}PSNR of the background"]
        for name in ("first", "final", "gain"):
            row = result["overall"][name]
            success, exact = interval_text(row["success"]), interval_text(row["exact"])
            text_lines.append(f"  {name:6} {success:24}{exact:24}{row['psnr']['mean']:.1f} dB")
        accuracy_text = interval_text(result["judge"]["every round"]["balanced_accuracy"])
        return [*text_lines, f"judge, every round: balanced accuracy {accuracy_text}"]

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
    """The unit over which intervals resample: an instruction together with its source."""
    return f"{edit.instruction} {edit.source}"


def succeeds(edit: Edit, reading: Reading) -> bool:
    """Whether a picture's reading passes the edit's target specification."""
    wanted_objects = Counter((thing.name, thing.color) for thing in edit.target.things)
    read_objects = Counter((read_object.name, read_object.color) for read_object in reading.objects)
    # a place counts only where the instruction names one
    is_placed = edit.kind not in ("add", "move") or edits.judge(edit, reading).followed
    return is_placed and wanted_objects == read_objects and reading.leftover <= LEFTOVER


def measure(edit: Edit, image: Image.Image) -> dict[str, float]:
    """MEASURES of a picture that is to be an edit."""
    reading = read(image)
    verdict = edits.judge(edit, reading)
    source_image = Image.fromarray(render(edit.source))
    return {
        "success": float(succeeds(edit, reading)),
        "exact": float(verdict.correct),
        "followed": float(verdict.followed),
        "preserved": float(verdict.preserved),
        **background(source_image, image, edit.mask()),
    }


def edit_and_measure(
    engine: Engine,
    settings: MiniPIE,
    sampling: SamplingConfig,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> list[MeasuredEpisode]:
    """Edit, judge and edit again every row of the benchmark; the truth is read from the pictures
    afterwards."""
    seeded_edits: list[tuple[Edit, int]] = []
    for i, edit in enumerate(edit_samples.benchmark(settings.rows_per_kind, settings.split)):
        for seed in settings.seeds_of(i):
            seeded_edits.append((edit, seed))
    measured_episodes: list[MeasuredEpisode] = []
    for batch_start in range(0, len(seeded_edits), engine.batch):
        batch_rows = seeded_edits[batch_start : batch_start + engine.batch]
        prompts, seeds = [], []
        for edit, seed in batch_rows:
            prompts.append(Prompt(edit.instruction, Image.fromarray(render(edit.source))))
            seeds.append(seed)
        episodes = run_episodes(engine, prompts, seeds, settings.rounds, sampling)
        for (edit, _), episode in zip(batch_rows, episodes, strict=True):
            round_measures = tuple(
                measure(edit, episode_round.image) for episode_round in episode.rounds
            )
            measured_episodes.append(MeasuredEpisode(edit, episode, round_measures))
        progress("editing", len(measured_episodes), len(seeded_edits))
    return measured_episodes


def baselines(
    engine: Engine, settings: MiniPIE, sampling: SamplingConfig
) -> dict[str, dict[str, Interval]]:
    """The identity edit, the source merely encoded and decoded, and a picture drawn from the
    target's caption."""
    benchmark_edits = edit_samples.benchmark(settings.rows_per_kind, settings.split)
    source_images, prompts, seeds = [], [], []
    for i, edit in enumerate(benchmark_edits):
        source_images.append(Image.fromarray(render(edit.source)))
        prompts.append(Prompt(f"a photo of {caption(edit.target)}"))
        seeds.append(settings.seed * 10**6 + i)
    drawn_episodes = run_episodes(engine, prompts, seeds, 1, sampling)
    images_of_baseline = {
        "identity": source_images,
        "the source encoded and decoded": engine.pictures(engine.codes(source_images)),
        "drawn from the target's caption": [episode.rounds[0].image for episode in drawn_episodes],
    }
    means_of_baseline = {}
    for name, images in images_of_baseline.items():
        measures_of_images = []
        for edit, image in zip(benchmark_edits, images, strict=True):
            measures_of_images.append(measure(edit, image))
        means_of_baseline[name] = _means(benchmark_edits, measures_of_images)
    return means_of_baseline


def _means(
    measured_edits: Sequence[Edit], measures: Sequence[dict[str, float]]
) -> dict[str, Interval]:
    """Each measure's unweighted mean of the kinds of edits; where it is undefined it does not
    count."""
    mean_of_measure = {}
    for name in MEASURES:
        samples = []
        for edit, image_measures in zip(measured_edits, measures, strict=True):
            if np.isfinite(image_measures[name]):  # an exact copy's PSNR is infinite
                samples.append(Sample(edit.kind, prompt_of(edit), image_measures[name]))
        mean_of_measure[name] = mean_of_tasks(samples)
    return mean_of_measure


def first_and_final(measured: Sequence[MeasuredEpisode]) -> dict[str, dict[str, Interval]]:
    """All measures of first images, of final ones, and of the gain."""
    measured_edits, first_measures, final_measures, measure_gains = [], [], [], []
    for measured_episode in measured:
        measured_edits.append(measured_episode.edit)
        first_measures.append(measured_episode.first)
        final_measures.append(measured_episode.final)
        measure_gains.append(
            {name: measured_episode.final[name] - measured_episode.first[name] for name in MEASURES}
        )
    return {
        "first": _means(measured_edits, first_measures),
        "final": _means(measured_edits, final_measures),
        "gain": _means(measured_edits, measure_gains),
    }


def verdicts_of(
    measured: Sequence[MeasuredEpisode], first_only: bool = False
) -> tuple[list[bool], list[bool], list[str]]:
    """Whether each image is exact, the model's verdict on it, and what was asked for."""
    image_truths, verdicts, prompts = [], [], []
    for measured_episode in measured:
        for episode_round, round_measures in zip(
            measured_episode.episode.rounds, measured_episode.measures, strict=True
        ):
            image_truths.append(bool(round_measures["exact"]))
            verdicts.append(episode_round.yes)
            prompts.append(prompt_of(measured_episode.edit))
            if first_only:
                break
    return image_truths, verdicts, prompts


def redraws(measured: Sequence[MeasuredEpisode]) -> dict[str, Any]:
    """Edits that were made again: the share of wrong ones that end right, and of right ones that
    end wrong."""
    edited_again = [
        measured_episode for measured_episode in measured if len(measured_episode.measures) > 1
    ]
    fixed: list[float] = []  # 1 or 0, of the wrong first edits
    broken: list[float] = []  # 1 or 0, of the right ones
    for measured_episode in edited_again:
        if measured_episode.first["exact"]:
            broken.append(1 - measured_episode.final["exact"])
        else:
            fixed.append(measured_episode.final["exact"])
    return {
        "episodes": len(edited_again),
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
    result_of_kind = {}
    for kind in edits.KINDS:
        result_of_kind[kind] = first_and_final(
            [
                measured_episode
                for measured_episode in measured
                if measured_episode.edit.kind == kind
            ]
        )
    final = overall["final"]
    return {
        "overall": {"success": final["success"], "psnr": final["psnr"], **overall},
        "kinds": result_of_kind,
        "images": len(measured),
        "mean_rounds": float(
            np.mean([len(measured_episode.measures) for measured_episode in measured])
        ),
        "baselines": beside,
        "judge": {
            "first": agreement(*verdicts_of(measured, first_only=True)),
            "every round": agreement(*verdicts_of(measured)),
        },
        "redraws": redraws(measured),
        "settings": settings.settings(),
        "versions": versions(),
    }


def gallery(
    measured: Sequence[MeasuredEpisode], num_shown: int = 6
) -> dict[str, list[dict[str, Any]]]:
    """Episodes to look at. Groups without an episode are left out."""
    groups: dict[str, list[MeasuredEpisode]] = {
        "Right at once": [],
        "Made good by looking again": [],
        "Still wrong": [],
        "Spoilt by editing again": [],
    }
    for measured_episode in measured:
        was_redrawn = len(measured_episode.measures) > 1
        first_right = bool(measured_episode.first["exact"])
        final_right = bool(measured_episode.final["exact"])
        if first_right and not was_redrawn:
            groups["Right at once"].append(measured_episode)
        elif final_right and not first_right:
            groups["Made good by looking again"].append(measured_episode)
        elif not final_right:
            groups["Spoilt by editing again" if first_right else "Still wrong"].append(
                measured_episode
            )
    return strips_of_groups(groups, _strip, num_shown)


def _strip(measured_episode: MeasuredEpisode) -> dict[str, Any]:
    """An episode as the page's template shows it."""
    is_right = [bool(round_measures["exact"]) for round_measures in measured_episode.measures]
    assert measured_episode.episode.prompt.source is not None
    return {
        "prompt": measured_episode.edit.instruction,
        "source": embed(measured_episode.episode.prompt.source),
        "final": measured_episode.episode.final,
        "rounds": shown_rounds(measured_episode.episode, is_right),
    }


def episode_row(measured_episode: MeasuredEpisode) -> dict[str, Any]:
    """An episode as episodes.json has it."""
    rounds = []
    for episode_round, round_measures in zip(
        measured_episode.episode.rounds, measured_episode.measures, strict=True
    ):
        round_row = {
            "yes": episode_round.yes,
            "p_yes": round(episode_round.p_yes, 5),
            "reason": episode_round.reason,
            "codes": list(episode_round.codes),
        }
        rounds.append(round_row | round_measures)
    return {
        "kind": measured_episode.edit.kind,
        "instruction": measured_episode.edit.instruction,
        "source": [asdict(thing) for thing in measured_episode.edit.source.things],
        "seed": measured_episode.episode.seed,
        "final": measured_episode.episode.final,
        "rounds": rounds,
    }


def write(
    out: Path, measured: Sequence[MeasuredEpisode], settings: MiniPIE, beside: dict[str, Any]
) -> dict[str, Any]:
    """episodes.json, benchmark.html and, last, result.json; returns the result."""
    result = summarize(measured, settings, beside)
    write_json(
        out / "episodes.json", [episode_row(measured_episode) for measured_episode in measured]
    )
    redrawn = redraws_text(result["redraws"], "edited")
    html = page("mini-pie.html", result=result, redraws=redrawn, gallery=gallery(measured))
    write_text(out / "benchmark.html", html)
    write_json(out / "result.json", result)
    return result
