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
    distinct_rows = {record["row"] for record in episodes}
    result = summarize(benchmark, settings, episodes, scores, records.missing_reasons(out)) | {
        "rows": len(distinct_rows),
        "title": benchmark.title,
        "number": benchmark.number,
        "note": benchmark.note,
        "settings": asdict(settings),
        "sources": fetch.stated(benchmark.files),
        "versions": versions(),
    }
    curve_src = ""
    if "curve" in result:
        plot_curves({Path(settings.model).name: result}, out / "curve.png")
        curve_src = embed(read_image(out / "curve.png"))
    strips = gallery(out, benchmark.main_metric(), episodes, scores)
    html = page("benchmark.html", result=result, curve=curve_src, gallery=strips)
    write_text(out / "benchmark.html", html)
    write_json(out / "result.json", result)  # last: where it is, all of it is
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
    main_metric, mean_over = benchmark.main_metric(), benchmark.mean_over
    scored_episodes, left_out = _without_missing(episodes, scores, reasons)
    episodes_of_task: dict[str, list[Record]] = {record["task"]: [] for record in episodes}
    counted_episodes = []  # those of the overall number
    for record in scored_episodes:
        episodes_of_task[record["task"]].append(record)
        if benchmark.counts(record["task"]):
            counted_episodes.append(record)

    tasks = {}  # also those of which no episode has its scores
    for task, of_task in episodes_of_task.items():
        tasks[task] = first_and_final(of_task, scores, main_metric, mean_over)
    metrics = {}
    for metric in benchmark.metrics:
        metrics[metric] = first_and_final(counted_episodes, scores, metric, mean_over)
    result: dict[str, Any] = {
        "overall": first_and_final(counted_episodes, scores, main_metric, mean_over),
        "tasks": tasks,
        "metrics": metrics,
        "images": len(scored_episodes),
        "missing": len(episodes) - len(scored_episodes),
        "left_out": left_out,
        "mean_rounds": float(np.mean([len(record["rounds"]) for record in episodes])),
    }
    result |= judge_agreement(counted_episodes, scores, main_metric)
    # the curve needs as many independent images as an episode can have
    if settings.fresh and settings.fresh >= settings.rounds - 1 and counted_episodes:
        trials = [_trial(record, scores, main_metric) for record in counted_episodes]
        result |= curve(trials, settings.rounds, settings.fresh + 1)
    final_scores = []
    for record in scored_episodes:
        final_round = record["rounds"][record["final"]]
        final_scores.append(scores[final_round["picture"]])
    return result | benchmark.more_results(final_scores)


def _without_missing(
    episodes: Sequence[Record], scores: Scores, reasons: Mapping[str, str]
) -> tuple[list[Record], list[dict[str, Any]]]:
    """The episodes of which every picture has a score, and a row for each picture of the others
    that has none."""
    scored_episodes: list[Record] = []
    left_out: list[dict[str, Any]] = []
    for record in episodes:
        missing_rows = []
        for picture_name in pictures_of(record):
            if picture_name not in scores:
                reason = reasons.get(picture_name, "it was not scored")
                about_picture = {"picture": picture_name, "why": reason}
                missing_rows.append({"id": record["id"], "sample": record["k"], **about_picture})
        if not missing_rows:
            scored_episodes.append(record)
        left_out += missing_rows
    return scored_episodes, left_out


def first_and_final(
    episodes: Sequence[Record], scores: Scores, metric: str, mean_over: str
) -> dict[str, Any]:
    """A metric's mean on first and final images and the mean gain, with the number of samples.
    Samples for which it is undefined (None) do not count."""
    first_samples, final_samples, gain_samples = [], [], []
    for record in episodes:
        rounds, final_index = record["rounds"], record["final"]
        first_value = scores[rounds[0]["picture"]][metric]
        final_value = scores[rounds[final_index]["picture"]][metric]
        if first_value is None or final_value is None:
            continue
        # the mean over images is that of one task which has them all
        task, prompt_id = record["task"] if mean_over == "tasks" else "all", record["id"]
        first_samples.append(Sample(task, prompt_id, first_value))
        final_samples.append(Sample(task, prompt_id, final_value))
        gain_samples.append(Sample(task, prompt_id, final_value - first_value))  # paired
    return {
        "first": mean_of_tasks(first_samples),
        "final": mean_of_tasks(final_samples),
        "gain": mean_of_tasks(gain_samples),
        "images": len(first_samples),
    }


def judge_agreement(episodes: Sequence[Record], scores: Scores, metric: str) -> dict[str, Any]:
    """The model's verdicts on all its images against scores that are right or wrong, and how often
    first images are right; nothing where scores are in between."""
    # of every round of every episode
    true_values, verdicts, prompt_ids = [], [], []
    first_values: dict[str, list[float]] = {}  # of each prompt's first images
    for record in episodes:
        for shown in record["rounds"]:
            true_values.append(scores[shown["picture"]][metric])
            verdicts.append(shown["yes"])
            prompt_ids.append(record["id"])
        first_value = scores[record["rounds"][0]["picture"]][metric]
        first_values.setdefault(record["id"], []).append(first_value)
    if not true_values or not set(true_values) <= {0.0, 1.0}:
        return {}
    images_right, any_right = [], []
    for values in first_values.values():
        images_right += values
        any_right.append(max(values))
    return {
        "judge": agreement([value == 1.0 for value in true_values], verdicts, prompt_ids),
        "images_right": float(np.mean(images_right)),
        "prompts_with_any_right": float(np.mean(any_right)),
    }


def _trial(record: Record, scores: Scores, metric: str) -> Trial:
    """An episode's images beside best-of-N's: the episode's first and the fresh ones."""

    def judged(shown: dict[str, Any]) -> JudgedImage:
        return JudgedImage(shown["yes"], shown["p_yes"], scores[shown["picture"]][metric])

    of_episode = tuple(judged(shown) for shown in record["rounds"])
    best_of_n = (of_episode[0], *(judged(shown) for shown in record["fresh"]))
    return Trial(record["task"], record["id"], of_episode, best_of_n)


def gallery(
    out: Path, metric: str, episodes: Sequence[Record], scores: Scores, n: int = 8
) -> list[dict[str, Any]]:
    """Some episodes to look at, spread over the rows."""
    one_per_row = [record for record in episodes if record["k"] == 0]
    step = max(1, len(one_per_row) // n)
    strips = []
    for record in one_per_row[::step][:n]:
        shown_rounds = []
        for shown in record["rounds"]:
            picture_name = shown["picture"]
            image_src = embed(read_image(out / "pictures" / picture_name))
            score = scores.get(picture_name, {}).get(metric)  # None: the page says "missing"
            shown_rounds.append(shown | {"src": image_src, "score": score})
        about_episode = {key: record[key] for key in ("prompt", "task", "final")}
        strips.append(about_episode | {"rounds": shown_rounds})
    return strips
