"""Public benchmarks of several models side by side: first and final image, what looking again
gained, and differences between the models, paired by prompt and sample. The paper's tables for
models of these names: base, sft, and grpo or ppo."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

from secondlook.errors import InputError
from secondlook.evals import records, runner
from secondlook.evals.intervals import Interval, Sample, mean_of_tasks
from secondlook.io import read_json, versions, write_json, write_text
from secondlook.mini.evals.claims import holds
from secondlook.report import page

IMAGES: tuple[Literal["first", "final"], ...] = ("first", "final")
COMPARED = ("samples", "rounds", "seed", "only", "judge")
"""Settings that must be the same for all models."""


class Scored(NamedTuple):
    """One episode's scores."""

    task: str
    id: str
    first: float
    final: float


@dataclass(frozen=True)
class Measured:
    """One model's result of one benchmark."""

    model: str
    benchmark: str
    result: dict[str, Any]
    scored: dict[tuple[int, int], Scored]
    """By row and sample, of the tasks that the overall number counts."""


def read(model: str, folder: Path) -> list[Measured]:
    """What ``bench public`` wrote in the folders of ``folder``. Raises InputError where there is
    nothing."""
    found = []
    for path in sorted(folder.glob("*/result.json")):
        result = read_json(path, dict)
        name = result.get("settings", {}).get("benchmark")
        if name not in runner.BENCHMARKS:
            continue
        benchmark = runner.get(name)
        scores = records.scores_of(path.parent, benchmark.metrics)
        scored = {}
        for row in records.records_of(path.parent):
            first, final = (
                scores.get(row["rounds"][i]["picture"], {}).get(benchmark.main)
                for i in (0, row["final"])
            )
            if first is not None and final is not None and benchmark.counts(row["task"]):
                scored[row["row"], row["k"]] = Scored(row["task"], row["id"], first, final)
        found.append(Measured(model, name, result, scored))
    if not found:
        raise InputError(
            f"results: {str(folder)!r} has no folder with a result.json of bench public; run "
            "that first"
        )
    return found


def difference(a: Measured, b: Measured, image: Literal["first", "final"]) -> Interval:
    """``a`` less ``b``, over the samples that both have, resampled by prompt."""
    samples = []
    for key in sorted(set(a.scored) & set(b.scored)):
        ours, others = a.scored[key], b.scored[key]
        task = ours.task if runner.get(a.benchmark).over == "tasks" else "all"
        samples.append(Sample(task, ours.id, getattr(ours, image) - getattr(others, image)))
    return mean_of_tasks(samples)


def write(out: Path, measured: list[Measured]) -> dict[str, Any]:
    """table.md, table.html and, last, result.json. Raises InputError where models were measured in
    different ways."""
    benchmarks: dict[str, list[Measured]] = {}
    for m in measured:
        benchmarks.setdefault(m.benchmark, []).append(m)
    tables = []
    for name, of_models in benchmarks.items():
        for m in of_models[1:]:
            for key in COMPARED:
                ours, first = (
                    m.result["settings"].get(key),
                    of_models[0].result["settings"].get(key),
                )
                if ours != first:
                    raise InputError(
                        f"results: {name} of {m.model} has {key} {ours!r}, of "
                        f"{of_models[0].model} {first!r}; "
                        "measure both in the same way"
                    )
        differences = []
        for before, after in pairwise(of_models):
            for image in IMAGES:
                by = difference(after, before, image)
                row = {
                    "of": after.model,
                    "over": before.model,
                    "image": image,
                    "difference": by,
                    "holds": holds(by),
                }
                differences.append(row)
        models = [
            {
                "name": m.model,
                "overall": m.result["overall"],
                "tasks": m.result["tasks"],
                "images": m.result["images"],
            }
            | {"missing": m.result["missing"], "mean_rounds": m.result["mean_rounds"]}
            for m in of_models
        ]
        tables.append(
            {
                "title": of_models[0].result["title"],
                "note": of_models[0].result["note"],
                "benchmark": name,
                "metric": runner.get(name).main,
            }
        )
        tables[-1] |= {
            "settings": of_models[0].result["settings"],
            "models": models,
            "differences": differences,
        }
    result = {"benchmarks": tables, "versions": versions()}
    write_text(out / "table.md", page("table.md", result=result))
    write_text(out / "table.html", page("table.html", result=result))
    write_json(out / "result.json", result)
    return result
