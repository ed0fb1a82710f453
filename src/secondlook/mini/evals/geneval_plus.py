"""Mini-GenEval-plus: held-out compound prompts of three to seven clauses, and whether a redraw
learns from its mistake.

First and final image, per task and per number of clauses, also as the share of clauses that hold.
Beside introspection two baselines at equal drawn codes, with the same first image: best-of-N by the
model's own judge, and drawing afresh until its Yes. ``repaired``: of wrong first images those that
end right; ``broken``: of right ones those that end wrong; ``kept``: of the clauses that hold in an
image those that still hold in its redraw, beside the same share of a fresh image. ``reason_true``:
of what the model's true Nos name, the share that is true, in the words of `world.repair`; the
shipped models were taught others, which count as false.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from secondlook.engine.engine import Engine
from secondlook.episode import SamplingConfig, run_episodes
from secondlook.evals.benchmark import ROUNDS_HELP, EvalSession
from secondlook.evals.best_of_n import Trial, curve
from secondlook.evals.intervals import (
    Interval,
    Sample,
    agreement,
    mean_by_prompt,
    mean_of_tasks,
)
from secondlook.io import versions, write_json, write_text
from secondlook.mini.evals.curve import draw_fresh, judged_image
from secondlook.mini.evals.sampled import HeadlineBenchmark, shown_rounds, strips_of_groups
from secondlook.mini.world.compound import TASKS, Compound, benchmark_plus, held_clauses
from secondlook.mini.world.reader import judge, read
from secondlook.mini.world.reasons import truth
from secondlook.registry import register_benchmark
from secondlook.report import page
from secondlook.types import Episode, Prompt, Round


@register_benchmark("mini-geneval-plus")
class MiniGenEvalPlus(HeadlineBenchmark):
    """Mini-GenEval-plus: compound prompts, and whether a redraw learns from its mistake."""

    title = "Mini-GenEval-plus"
    files_written = "result.json, episodes.json, benchmark.html"
    page = "benchmark.html"

    rounds: int = Field(3, ge=1, description=ROUNDS_HELP)
    rows_per_task: int = Field(60, ge=1, le=1000, description="Prompts a task.")

    def run(self, session: EvalSession) -> dict[str, Any]:
        engine = session.load_engine(self.model)
        sampling = self.sampling(engine)
        read_trials = draw_and_read(engine, self, sampling, session.progress)
        return write(session.out, read_trials, self.with_guidance(sampling))

    @classmethod
    def options_for_all(cls, rounds: int, only: int) -> dict[str, Any]:
        return {"rounds": rounds} | ({"rows_per_task": only} if only else {})


@dataclass(frozen=True)
class ReadRound:
    """What the reader says of an image: whether all is right, and which clauses hold."""

    is_right: bool
    held: tuple[bool, ...]
    reason_truth: float | None
    """Of a wrong image with a No: the share of what the reason names that is true. None elsewhere,
    and where it names nothing."""

    @property
    def graded(self) -> float:
        return float(np.mean(self.held))


@dataclass(frozen=True)
class ReadTrial:
    """One prompt and sample: the episode, as many independent first images, and what is read."""

    compound: Compound
    episode: Episode
    rounds: tuple[ReadRound, ...]
    fresh: tuple[ReadRound, ...]
    """Independent images, without the episode's own first one."""
    trial: Trial

    @property
    def first(self) -> ReadRound:
        return self.rounds[0]

    @property
    def final(self) -> ReadRound:
        return self.rounds[self.episode.final]


def draw_and_read(
    engine: Engine,
    settings: MiniGenEvalPlus,
    sampling: SamplingConfig,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> list[ReadTrial]:
    """The episodes and the independent images of every row; the truth is read from the pictures."""
    rows = benchmark_plus(settings.split, settings.rows_per_task)
    seeded_rows = [(row, seed) for i, row in enumerate(rows) for seed in settings.seeds_of(i)]
    read_trials: list[ReadTrial] = []
    for batch_start in range(0, len(seeded_rows), engine.batch):
        batch_rows = seeded_rows[batch_start : batch_start + engine.batch]
        prompts = [Prompt(row.spec.prompt) for row, _ in batch_rows]
        seeds = [seed for _, seed in batch_rows]
        episodes = run_episodes(engine, prompts, seeds, settings.rounds, sampling)
        fresh_rounds = draw_fresh(engine, prompts, seeds, settings.rounds, sampling)
        for i, (row, _) in enumerate(batch_rows):
            read_trials.append(_read_trial(row, episodes[i], fresh_rounds[i]))
        progress("drawing", len(read_trials), len(seeded_rows))
    return read_trials


def _read_trial(row: Compound, episode: Episode, fresh_rounds: Sequence[Round]) -> ReadTrial:
    first_rounds = [episode.rounds[0], *fresh_rounds]
    trial = Trial(
        row.task,
        row.spec.prompt,
        tuple(judged_image(row.spec, episode_round) for episode_round in episode.rounds),
        tuple(judged_image(row.spec, fresh_round) for fresh_round in first_rounds),
    )
    return ReadTrial(
        row,
        episode,
        tuple(_read_round(row, episode_round) for episode_round in episode.rounds),
        tuple(_read_round(row, fresh_round) for fresh_round in fresh_rounds),
        trial,
    )


def _read_round(row: Compound, episode_round: Round) -> ReadRound:
    reading = read(episode_round.image)
    is_right = judge(row.spec, reading).correct
    reason_truth = None
    if not is_right and not episode_round.yes and episode_round.reason:
        reason_truth = truth(row.spec, np.asarray(episode_round.image), episode_round.reason)
    return ReadRound(is_right, tuple(held_clauses(row.spec, reading)), reason_truth)


def summarize(read_trials: Sequence[ReadTrial], settings: MiniGenEvalPlus) -> dict[str, Any]:
    """The numbers of result.json."""
    result_of_task, result_of_clauses = {}, {}
    for task in TASKS:
        of_task = [trial for trial in read_trials if trial.compound.task == task]
        if of_task:
            result_of_task[task] = scores(of_task)
    for num_clauses in sorted({trial.compound.num_clauses for trial in read_trials}):
        of_number = [t for t in read_trials if t.compound.num_clauses == num_clauses]
        result_of_clauses[str(num_clauses)] = scores(of_number)
    at_rounds = curve([trial.trial for trial in read_trials], settings.rounds, settings.rounds)
    last_point = at_rounds["curve"][-1]
    overall = scores(read_trials)
    headline = {
        "first": overall["first"],
        "final": overall["final"],
        "gain": overall["gain"],
        "over_best_of_n": last_point["over_best_of_n"],
        "over_until_yes": last_point["over_until_yes"],
    } | repairs(read_trials)
    return {
        "headline": headline,
        "overall": overall,
        "tasks": result_of_task,
        "clauses": result_of_clauses,
        "curve": at_rounds["curve"],
        "judge": judge_agreement(read_trials),
        "images": len(read_trials),
        "settings": settings.settings(),
        "versions": versions(),
    }


def scores(read_trials: Sequence[ReadTrial]) -> dict[str, Any]:
    """First, final and gain, of right images and (``graded_…``) of clauses that hold; unweighted
    means of the tasks."""
    samples: dict[str, list[Sample]] = {}
    for trial in read_trials:
        values = {
            "first": float(trial.first.is_right),
            "final": float(trial.final.is_right),
            "graded_first": trial.first.graded,
            "graded_final": trial.final.graded,
        }
        values["gain"] = values["final"] - values["first"]
        for name, value in values.items():
            sample = Sample(trial.compound.task, trial.compound.spec.prompt, value)
            samples.setdefault(name, []).append(sample)
    results: dict[str, Any] = {name: mean_of_tasks(of_name) for name, of_name in samples.items()}
    return results | {"images": len(read_trials)}


def repairs(read_trials: Sequence[ReadTrial]) -> dict[str, Interval]:
    """``repaired``, ``broken``, ``kept``, ``kept_afresh`` and ``reason_true``, over all tasks
    together; NaN where there is nothing to count."""
    samples: dict[str, list[Sample]] = {
        name: [] for name in ("repaired", "broken", "kept", "kept_afresh", "reason_true")
    }

    def add(name: str, trial: ReadTrial, value: float) -> None:
        samples[name].append(Sample("all", trial.compound.spec.prompt, value))

    for trial in read_trials:
        if trial.first.is_right:
            add("broken", trial, float(not trial.final.is_right))
        else:
            add("repaired", trial, float(trial.final.is_right))
        for before, after in zip(trial.rounds, trial.rounds[1:], strict=False):
            for held_before, held_after in zip(before.held, after.held, strict=True):
                if held_before:
                    add("kept", trial, float(held_after))
        if trial.fresh:
            for held_before, held_after in zip(trial.first.held, trial.fresh[0].held, strict=True):
                if held_before:
                    add("kept_afresh", trial, float(held_after))
        for read_round in trial.rounds:
            if read_round.reason_truth is not None:
                add("reason_true", trial, read_round.reason_truth)
    return {name: mean_by_prompt(of_name) for name, of_name in samples.items()}


def judge_agreement(read_trials: Sequence[ReadTrial]) -> dict[str, Any]:
    """The model's sampled verdicts on first images and on all, against the truth."""
    results = {}
    for name, most in (("first", 1), ("every round", None)):
        truths, verdicts, prompts = [], [], []
        for trial in read_trials:
            pairs = zip(trial.rounds, trial.episode.rounds, strict=True)
            for read_round, episode_round in list(pairs)[:most]:
                truths.append(read_round.is_right)
                verdicts.append(episode_round.yes)
                prompts.append(trial.compound.spec.prompt)
        results[name] = agreement(truths, verdicts, prompts)
    return results


def gallery(read_trials: Sequence[ReadTrial], num_shown: int = 6) -> dict[str, Any]:
    """Episodes to look at, by what became of them. Groups without an episode are left out."""
    groups: dict[str, list[ReadTrial]] = {
        "Repaired": [],
        "Better, not right": [],
        "Still wrong": [],
        "Broken by redrawing": [],
        "Wrong, and judged Yes at once": [],
        "Right at once": [],
    }
    for trial in read_trials:
        was_redrawn = len(trial.rounds) > 1
        if trial.first.is_right:
            broken = was_redrawn and not trial.final.is_right
            groups["Broken by redrawing" if broken else "Right at once"].append(trial)
        elif not was_redrawn:
            groups["Wrong, and judged Yes at once"].append(trial)
        elif trial.final.is_right:
            groups["Repaired"].append(trial)
        elif trial.final.graded > trial.first.graded:
            groups["Better, not right"].append(trial)
        else:
            groups["Still wrong"].append(trial)
    return strips_of_groups(groups, _strip, num_shown)


def _strip(trial: ReadTrial) -> dict[str, Any]:
    """An episode as the page's template shows it."""
    is_right = [read_round.is_right for read_round in trial.rounds]
    return {
        "prompt": trial.compound.spec.prompt,
        "final": trial.episode.final,
        "rounds": shown_rounds(trial.episode, is_right),
    }


def episode_row(trial: ReadTrial) -> dict[str, Any]:
    """An episode as episodes.json has it."""
    rounds = []
    for read_round, episode_round in zip(trial.rounds, trial.episode.rounds, strict=True):
        rounds.append(
            {
                "yes": episode_round.yes,
                "p_yes": round(episode_round.p_yes, 5),
                "right": read_round.is_right,
                "held": list(read_round.held),
                "reason": episode_round.reason,
                "reason_true": read_round.reason_truth,
                "codes": list(episode_round.codes),
            }
        )
    return {
        "task": trial.compound.task,
        "prompt": trial.compound.spec.prompt,
        "seed": trial.episode.seed,
        "final": trial.episode.final,
        "rounds": rounds,
    }


def write(out: Path, read_trials: Sequence[ReadTrial], settings: MiniGenEvalPlus) -> dict[str, Any]:
    """episodes.json, benchmark.html and, last, result.json; returns the result."""
    result = summarize(read_trials, settings)
    write_json(out / "episodes.json", [episode_row(trial) for trial in read_trials])
    html = page("mini-geneval-plus.html", result=result, gallery=gallery(read_trials))
    write_text(out / "benchmark.html", html)
    write_json(out / "result.json", result)
    return result
