"""An image benchmark's result: numbers with intervals as JSON, and a page to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from secondlook.evals import fetch, records
from secondlook.evals.benchmark import ImageBenchmark
from secondlook.evals.best_of_n import JudgedImage, Trial, curve, plot_curves
from secondlook.evals.intervals import Sample, agreement, mean_of_tasks
from secondlook.evals.records import EvalSettings, Record, pictures_of
from secondlook.io import read_image, versions, write_json, write_text
from secondlook.report import embed, page

Scores = Mapping[str, dict[str, Any]]
"""A picture's name -> its score."""


def write(
    out: Path,
    benchmark: ImageBenchmark,
    settings: EvalSettings,
    episodes: Sequence[Record],
) -> dict[str, Any]:
    """curve.png where there are fresh images, benchmark.html and, last, result.json; returns the
    result."""
    scores = records.read_scores(out, benchmark.metrics)
    result = summarize(benchmark, settings, episodes, scores, records.missing_reasons(out)) | {
        "rows": len({record["row"] for record in episodes}),
        "title": benchmark.title,
        "note": benchmark.note,
        "settings": asdict(settings),
        "sources": fetch.stated(benchmark.files),
        "versions": versions(),
    }
    picture = ""
    if "curve" in result:
        plot_curves({Path(settings.model).name: result}, out / "curve.png")
        picture = embed(read_image(out / "curve.png"))
    shown = gallery(out, benchmark.main_metric(), episodes, scores)
    write_text(
        out / "benchmark.html", page("benchmark.html", result=result, curve=picture, gallery=shown)
    )
    write_json(out / "result.json", result)
    return result


def summarize(
    benchmark: ImageBenchmark,
    settings: EvalSettings,
    episodes: Sequence[Record],
    scores: Scores,
    reasons: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """First image, final image and gain: overall, by task, and of every metric, with the number of
    samples that each is of; verdicts where the score is right or wrong; the curve over rounds
    beside best-of-N where there are fresh images.

    Episodes with a missing score are left out, counted and named, with the ``reasons`` of their
    pictures.
    """
    main = benchmark.main_metric()
    whole, left_out = [], []
    for record in episodes:
        missing = [name for name in pictures_of(record) if name not in scores]
        if not missing:
            whole.append(record)
        for name in missing:
            reason = reasons.get(name, "it was not scored")
            row = {"id": record["id"], "sample": record["k"], "picture": name, "why": reason}
            left_out.append(row)
    counted = [record for record in whole if benchmark.counts(record["task"])]

    tasks = {}
    for task in dict.fromkeys(record["task"] for record in episodes):
        of_task = [record for record in whole if record["task"] == task]
        tasks[task] = first_and_final(of_task, scores, main, benchmark.mean_over)
    result: dict[str, Any] = {
        "overall": first_and_final(counted, scores, main, benchmark.mean_over),
        "tasks": tasks,
        "metrics": {
            metric: first_and_final(counted, scores, metric, benchmark.mean_over)
            for metric in benchmark.metrics
        },
        "images": len(whole),
        "missing": len(episodes) - len(whole),
        "left_out": left_out,
        "mean_rounds": float(np.mean([len(record["rounds"]) for record in episodes])),
    }
    result |= judge_agreement(counted, scores, main)
    if settings.fresh and settings.fresh >= settings.rounds - 1 and counted:
        trials = [_trial(record, scores, main) for record in counted]
        result |= curve(trials, settings.rounds, settings.fresh + 1)
    finals = [scores[record["rounds"][record["final"]]["picture"]] for record in whole]
    return result | benchmark.more_results(finals)


def first_and_final(
    episodes: Sequence[Record], scores: Scores, metric: str, mean_over: str
) -> dict[str, Any]:
    """A metric's mean on first and final images and the mean gain, with the number of samples.
    Samples for which it is undefined (None) do not count."""
    samples: dict[str, list[Sample]] = {"first": [], "final": [], "gain": []}
    for record in episodes:
        rounds, final_round = record["rounds"], record["final"]
        first = scores[rounds[0]["picture"]][metric]
        final = scores[rounds[final_round]["picture"]][metric]
        if first is None or final is None:
            continue
        task = record["task"] if mean_over == "tasks" else "all"
        for name, value in (("first", first), ("final", final), ("gain", final - first)):
            samples[name].append(Sample(task, record["id"], value))
    means: dict[str, Any] = {name: mean_of_tasks(values) for name, values in samples.items()}
    return means | {"images": len(samples["first"])}


def judge_agreement(episodes: Sequence[Record], scores: Scores, metric: str) -> dict[str, Any]:
    """The model's verdicts on all its images against scores that are right or wrong, and how often
    first images are right; nothing where scores are in between."""
    truth, verdicts, ids = [], [], []
    first_values: list[float] = []
    by_id: dict[str, list[float]] = {}
    for record in episodes:
        for shown in record["rounds"]:
            truth.append(scores[shown["picture"]][metric])
            verdicts.append(shown["yes"])
            ids.append(record["id"])
        first_values.append(scores[record["rounds"][0]["picture"]][metric])
        by_id.setdefault(record["id"], []).append(first_values[-1])
    if not truth or not set(truth) <= {0.0, 1.0}:
        return {}
    return {
        "judge": agreement([value == 1.0 for value in truth], verdicts, ids),
        "images_right": float(np.mean(first_values)),
        "prompts_with_any_right": float(np.mean([max(values) for values in by_id.values()])),
    }


def _trial(record: Record, scores: Scores, metric: str) -> Trial:
    def judged(shown: dict[str, Any]) -> JudgedImage:
        return JudgedImage(shown["yes"], shown["p_yes"], scores[shown["picture"]][metric])

    rounds = tuple(judged(shown) for shown in record["rounds"])
    fresh = tuple(judged(shown) for shown in record["fresh"])
    return Trial(record["task"], record["id"], rounds, (rounds[0], *fresh))


def gallery(
    out: Path, metric: str, episodes: Sequence[Record], scores: Scores, n: int = 8
) -> list[dict[str, Any]]:
    """Some episodes to look at, spread over the rows."""
    first_samples = [record for record in episodes if record["k"] == 0]
    step = max(1, len(first_samples) // n)
    strips = []
    for record in first_samples[::step][:n]:
        rounds = []
        for shown in record["rounds"]:
            name = shown["picture"]
            picture = embed(read_image(out / "pictures" / name))
            rounds.append(shown | {"src": picture, "score": scores.get(name, {}).get(metric)})
        about = {key: record[key] for key in ("prompt", "task", "final")}
        strips.append(about | {"rounds": rounds})
    return strips
