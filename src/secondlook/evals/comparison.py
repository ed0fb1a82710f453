"""Image benchmarks of several models side by side: first and final image, what looking again
gained, and differences between the models, paired by prompt and sample. The paper's tables for
models of these names: base, sft, and grpo or ppo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

from secondlook.errors import InputError
from secondlook.evals import records
from secondlook.evals.benchmark import ImageBenchmark, get_benchmark
from secondlook.evals.intervals import Interval, Sample, above_zero, mean_of_tasks
from secondlook.evals.records import JobKey, job_key
from secondlook.io import read_json, versions, write_json, write_text
from secondlook.registry import benchmarks
from secondlook.report import page

Which = Literal["first", "final"]
IMAGES: tuple[Which, ...] = ("first", "final")
SAME_SETTINGS = ("samples", "rounds", "seed", "only", "judge", "options")
"""Settings that must be the same for all models."""


class EpisodeScores(NamedTuple):
    """The scores of one episode's first and final image."""

    task: str
    id: str
    first: float
    final: float


@dataclass(frozen=True)
class ModelResult:
    """One model's result of one benchmark."""

    model: str
    benchmark_name: str
    benchmark: type[ImageBenchmark]
    result: dict[str, Any]
    episodes: dict[JobKey, EpisodeScores]
    """By row and sample, of the tasks that the overall number counts."""


def read_results(model: str, folder: Path) -> list[ModelResult]:
    """What ``secondlook eval`` of image benchmarks wrote in ``folder`` itself or in its folders.
    Raises InputError where there is nothing."""
    known_names = set(benchmarks.names())
    model_results, unknown_name = [], ""
    for result_path in _result_paths(folder):
        result = read_json(result_path, dict)
        settings = result.get("settings")
        benchmark_name = settings.get("benchmark") if isinstance(settings, dict) else None
        if isinstance(benchmark_name, str) and benchmark_name not in known_names:
            unknown_name = benchmark_name  # of a plugin that is not named, or removed
        if not isinstance(benchmark_name, str) or benchmark_name not in known_names:
            continue  # another command's result
        benchmark = get_benchmark(benchmark_name)
        if issubclass(benchmark, ImageBenchmark):
            episodes = _episode_scores(result_path.parent, benchmark)
            model_results.append(ModelResult(model, benchmark_name, benchmark, result, episodes))
    if not model_results and unknown_name:
        raise InputError(
            f"results: {str(folder)!r} holds a result of {unknown_name!r}, which is no known "
            "benchmark; name the file that registers it with --plugin"
        )
    if not model_results:
        raise InputError(
            f"results: {str(folder)!r} holds no result.json of an image benchmark, and none of its "
            "folders does; give the folder that secondlook eval of one wrote, or one with several "
            "such folders"
        )
    return model_results


def _result_paths(folder: Path) -> list[Path]:
    """The folder's own result.json, where there is one, then those one level below."""
    own_path = folder / "result.json"
    paths_below = sorted(folder.glob("*/result.json"))
    return [own_path, *paths_below] if own_path.exists() else paths_below


def _episode_scores(folder: Path, benchmark: type[ImageBenchmark]) -> dict[JobKey, EpisodeScores]:
    """Of the episodes whose first and final image both have a score."""
    scores, metric = records.read_scores(folder, benchmark.metrics), benchmark.main_metric()
    scores_of_job = {}
    for record in records.read_records(folder):
        if not benchmark.counts(record["task"]):
            continue
        rounds = record["rounds"]
        first_value = scores.get(rounds[0]["picture"], {}).get(metric)
        final_value = scores.get(rounds[record["final"]]["picture"], {}).get(metric)
        if first_value is not None and final_value is not None:
            scores_of_job[job_key(record)] = EpisodeScores(
                record["task"], record["id"], first_value, final_value
            )
    return scores_of_job


def difference(after: ModelResult, before: ModelResult, image: Which) -> Interval:
    """``after`` less ``before``, over the samples that both have, resampled by prompt."""
    # a pair has the same row and sample, so the same prompt and seed
    common_jobs = sorted(set(after.episodes) & set(before.episodes))
    samples = []
    for job in common_jobs:
        after_scores, before_scores = after.episodes[job], before.episodes[job]
        task = after_scores.task if after.benchmark.mean_over == "tasks" else "all"
        value = getattr(after_scores, image) - getattr(before_scores, image)
        samples.append(Sample(task, after_scores.id, value))
    return mean_of_tasks(samples)


def write(out: Path, results: Sequence[ModelResult]) -> dict[str, Any]:
    """table.md, table.html and, last, result.json. Raises InputError where models were measured in
    different ways."""
    by_benchmark: dict[str, list[ModelResult]] = {}
    for result in results:
        by_benchmark.setdefault(result.benchmark_name, []).append(result)
    tables = [_table(name, model_results) for name, model_results in by_benchmark.items()]
    summary = {"benchmarks": tables, "versions": versions()}
    write_text(out / "table.md", page("table.md", result=summary))
    write_text(out / "table.html", page("table.html", result=summary))
    write_json(out / "result.json", summary)
    return summary


def _table(name: str, model_results: Sequence[ModelResult]) -> dict[str, Any]:
    """One benchmark's rows: every model, and the differences of neighbours."""
    _check_same_settings(name, model_results)
    model_rows = []
    for model_result in model_results:
        model_row = {"name": model_result.model}
        for key in ("overall", "tasks", "images", "missing", "mean_rounds"):
            model_row[key] = model_result.result[key]
        model_rows.append(model_row)
    differences = []
    for before, after in pairwise(model_results):  # as given: base and sft, sft and grpo
        for image in IMAGES:
            gain = difference(after, before, image)
            differences.append(
                {
                    "of": after.model,
                    "over": before.model,
                    "image": image,
                    "difference": gain,
                    "holds": above_zero(gain),
                }
            )
    first_result = model_results[0]
    return {
        "title": first_result.result["title"],
        "note": first_result.result["note"],
        "benchmark": name,
        "metric": first_result.benchmark.main_metric(),
        "settings": first_result.result["settings"],
        "models": model_rows,
        "differences": differences,
    }


def _check_same_settings(name: str, model_results: Sequence[ModelResult]) -> None:
    """Raises InputError that names the first setting in which a model differs from the first."""
    first, *others = model_results
    for other in others:
        for setting in SAME_SETTINGS:
            first_value = first.result["settings"].get(setting)
            other_value = other.result["settings"].get(setting)
            if other_value != first_value:
                raise InputError(
                    f"results: {name} of {other.model} has {setting} {other_value!r}, of "
                    f"{first.model} {first_value!r}; measure both in the same way"
                )
