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
from secondlook.io import read_json, versions, write_json, write_text
from secondlook.registry import benchmarks
from secondlook.report import page

Which = Literal["first", "final"]
IMAGES: tuple[Which, ...] = ("first", "final")
SAME = ("samples", "rounds", "seed", "only", "judge", "options")
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
    episodes: dict[tuple[int, int], EpisodeScores]
    """By row and sample, of the tasks that the overall number counts."""


def read_results(model: str, folder: Path) -> list[ModelResult]:
    """What ``secondlook eval`` of image benchmarks wrote in the folders of ``folder``. Raises
    InputError where there is nothing."""
    known = set(benchmarks.names())
    results = []
    for path in sorted(folder.glob("*/result.json")):
        result = read_json(path, dict)
        name = result.get("settings", {}).get("benchmark")
        if name not in known:
            continue
        benchmark = get_benchmark(name)
        if issubclass(benchmark, ImageBenchmark):
            episodes = _episode_scores(path.parent, benchmark)
            results.append(ModelResult(model, name, benchmark, result, episodes))
    if not results:
        raise InputError(
            f"results: {str(folder)!r} has no folder with the result.json of an image benchmark; "
            "run secondlook eval first"
        )
    return results


def _episode_scores(
    folder: Path, benchmark: type[ImageBenchmark]
) -> dict[tuple[int, int], EpisodeScores]:
    scores, metric = records.read_scores(folder, benchmark.metrics), benchmark.main_metric()
    episodes = {}
    for record in records.read_records(folder):
        if not benchmark.counts(record["task"]):
            continue
        rounds = record["rounds"]
        first = scores.get(rounds[0]["picture"], {}).get(metric)
        final = scores.get(rounds[record["final"]]["picture"], {}).get(metric)
        if first is not None and final is not None:
            job = record["row"], record["k"]
            episodes[job] = EpisodeScores(record["task"], record["id"], first, final)
    return episodes


def difference(a: ModelResult, b: ModelResult, image: Which) -> Interval:
    """``a`` less ``b``, over the samples that both have, resampled by prompt."""
    samples = []
    for job in sorted(set(a.episodes) & set(b.episodes)):
        ours, theirs = a.episodes[job], b.episodes[job]
        task = ours.task if a.benchmark.mean_over == "tasks" else "all"
        samples.append(Sample(task, ours.id, getattr(ours, image) - getattr(theirs, image)))
    return mean_of_tasks(samples)


def write(out: Path, results: Sequence[ModelResult]) -> dict[str, Any]:
    """table.md, table.html and, last, result.json. Raises InputError where models were measured in
    different ways."""
    by_benchmark: dict[str, list[ModelResult]] = {}
    for result in results:
        by_benchmark.setdefault(result.benchmark_name, []).append(result)
    tables = [_table(name, of_models) for name, of_models in by_benchmark.items()]
    summary = {"benchmarks": tables, "versions": versions()}
    write_text(out / "table.md", page("table.md", result=summary))
    write_text(out / "table.html", page("table.html", result=summary))
    write_json(out / "result.json", summary)
    return summary


def _table(name: str, of_models: Sequence[ModelResult]) -> dict[str, Any]:
    """One benchmark's rows: every model, and the differences of neighbours."""
    _check_same_settings(name, of_models)
    models = []
    for m in of_models:
        row = {key: m.result[key] for key in ("overall", "tasks", "images")}
        row |= {key: m.result[key] for key in ("missing", "mean_rounds")}
        models.append({"name": m.model, **row})
    differences = []
    for before, after in pairwise(of_models):
        for image in IMAGES:
            by = difference(after, before, image)
            differences.append(
                {
                    "of": after.model,
                    "over": before.model,
                    "image": image,
                    "difference": by,
                    "holds": above_zero(by),
                }
            )
    first = of_models[0]
    return {
        "title": first.result["title"],
        "note": first.result["note"],
        "benchmark": name,
        "metric": first.benchmark.main_metric(),
        "settings": first.result["settings"],
        "models": models,
        "differences": differences,
    }


def _check_same_settings(name: str, of_models: Sequence[ModelResult]) -> None:
    first = of_models[0]
    for other in of_models[1:]:
        for key in SAME:
            theirs, ours = other.result["settings"].get(key), first.result["settings"].get(key)
            if theirs != ours:
                raise InputError(
                    f"results: {name} of {other.model} has {key} {theirs!r}, of {first.model} "
                    f"{ours!r}; measure both in the same way"
                )
