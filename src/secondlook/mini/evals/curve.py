"""Introspection over rounds beside best-of-N by the model's own judge, at equal numbers of drawn
codes, on mini-GenEval's rows (`evals.best_of_n`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from secondlook.engine.engine import Engine
from secondlook.episode import SamplingConfig, run_episodes
from secondlook.evals.benchmark import EvalSession
from secondlook.evals.best_of_n import JudgedImage, Trial, curve, plot_curves
from secondlook.evals.intervals import interval_text
from secondlook.io import versions, write_json
from secondlook.mini.evals.geneval import seeded_rows
from secondlook.mini.evals.sampled import SampledMiniBenchmark
from secondlook.mini.world.language import Spec
from secondlook.mini.world.reader import judge
from secondlook.registry import register_benchmark
from secondlook.types import Prompt, Round


@register_benchmark("mini-curve")
class MiniCurve(SampledMiniBenchmark):
    """Introspection over rounds beside best-of-N by the model's own judge, at equal numbers of
    drawn codes."""

    title = "Looking again beside best-of-N"
    files_written = "result.json, curve.png"
    page = "curve.png"

    max_rounds: int = Field(5, ge=1, description="Most rounds, and largest N.")
    rows_per_task: int = Field(80, ge=1, description="Prompts a task.")

    def run(self, session: EvalSession) -> dict[str, Any]:
        engine = session.load_engine(self.model)
        sampling = self.sampling(engine)
        trials = run_trials(engine, self, sampling, session.progress)
        return write(session.out, trials, self.with_guidance(sampling))

    @classmethod
    def lines(cls, result: dict[str, Any]) -> list[str]:
        text_lines = [f"  rounds  images  {'right':24}over best-of-N"]
        for curve_point in result["curve"]:
            final_text = interval_text(curve_point["final"])
            gain_text = interval_text(curve_point["over_best_of_n"])
            text_lines.append(
                f"  {curve_point['rounds']:6}  {curve_point['images']:6.2f}  {final_text:24}"
                f"{gain_text}"
            )
        return text_lines

    @classmethod
    def headline(cls, result: dict[str, Any]) -> dict[str, Any]:
        first_point, last_point = result["curve"][0], result["curve"][-1]
        headline_values = {"first": first_point["final"], "final": last_point["final"]}
        if last_point["rounds"] > 1:
            headline_values["over_best_of_n"] = last_point["over_best_of_n"]
        return headline_values

    @classmethod
    def options_for_all(cls, rounds: int, only: int) -> dict[str, Any]:
        return {"rows_per_task": only} if only else {}


def run_trials(
    engine: Engine,
    settings: MiniCurve,
    sampling: SamplingConfig,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> list[Trial]:
    """Sample the episodes and the independent images of every row of mini-GenEval."""
    seeded_specs = seeded_rows(settings, settings.rows_per_task)
    trials: list[Trial] = []
    for batch_start in range(0, len(seeded_specs), engine.batch):
        batch_rows = seeded_specs[batch_start : batch_start + engine.batch]
        prompts = [Prompt(spec.prompt) for spec, _ in batch_rows]
        seeds = [seed for _, seed in batch_rows]
        episodes = run_episodes(engine, prompts, seeds, settings.max_rounds, sampling)
        fresh_rounds = draw_fresh(engine, prompts, seeds, settings.max_rounds, sampling)
        for i, (spec, _) in enumerate(batch_rows):
            trials.append(_trial(spec, episodes[i].rounds, fresh_rounds[i]))
        progress("drawing", len(trials), len(seeded_specs))
    return trials


def draw_fresh(
    engine: Engine,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    max_rounds: int,
    sampling: SamplingConfig,
) -> list[list[Round]]:
    """``max_rounds`` - 1 independent images of each prompt, with the model's verdicts; best-of-N's
    first image is the episode's own."""
    num_fresh = max_rounds - 1
    if not num_fresh:
        return [[] for _ in prompts]
    fresh_prompts: list[Prompt] = []
    fresh_seeds: list[int] = []
    for prompt, seed in zip(prompts, seeds, strict=True):
        fresh_prompts += [prompt] * num_fresh
        first_seed = 10**9 + seed * max_rounds + 1  # seeds that no episode has
        fresh_seeds += range(first_seed, first_seed + num_fresh)
    verdict_only = replace(sampling, reason_tokens=1)
    fresh_episodes = run_episodes(engine, fresh_prompts, fresh_seeds, 1, verdict_only)
    rounds_of_prompts: list[list[Round]] = []
    for prompt_start in range(0, len(fresh_episodes), num_fresh):
        of_prompt = fresh_episodes[prompt_start : prompt_start + num_fresh]
        rounds_of_prompts.append([episode.rounds[0] for episode in of_prompt])
    return rounds_of_prompts


def judged_image(spec: Spec, judged_round: Round) -> JudgedImage:
    """The model's verdict on an image beside the truth."""
    is_right = judge(spec, judged_round.image).correct
    return JudgedImage(judged_round.yes, judged_round.p_yes, is_right)


def _trial(spec: Spec, rounds: Sequence[Round], fresh_rounds: Sequence[Round]) -> Trial:
    """An episode's images beside best-of-N's: the episode's first and the fresh ones."""
    first_rounds = [rounds[0], *fresh_rounds]
    of_episode = tuple(judged_image(spec, judged_round) for judged_round in rounds)
    best_of_n = tuple(judged_image(spec, judged_round) for judged_round in first_rounds)
    return Trial(spec.tag, spec.prompt, of_episode, best_of_n)


def summarize(trials: Sequence[Trial], settings: MiniCurve) -> dict[str, Any]:
    """The numbers of result.json."""
    return curve(trials, settings.max_rounds, settings.max_rounds) | {
        "settings": settings.settings(),
        "versions": versions(),
    }


def write(out: Path, trials: Sequence[Trial], settings: MiniCurve) -> dict[str, Any]:
    """curve.png and, last, result.json; returns the result."""
    result = summarize(trials, settings)
    plot_curves({Path(settings.model).name: result}, out / "curve.png")
    write_json(out / "result.json", result)
    return result
