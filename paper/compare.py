"""Several models' mini-GenEval and curves side by side, with paired differences: a report in HTML
and Markdown.

python paper/compare.py base=out/mini/base rl=out/mini/rl --out out/report
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from claims import claims, goals
from script import named_folders, page, run_script
from secondlook.errors import InputError
from secondlook.evals.best_of_n import plot_curves
from secondlook.evals.intervals import (
    NO_DATA,
    Interval,
    Sample,
    bootstrap,
    mean_of_tasks,
    written_by,
)
from secondlook.io import read_image, read_json, writable_folder, write_json, write_text
from secondlook.mini.evals.judge_measures import ImageVerdict
from secondlook.mini.evals.judging import read_verdicts
from secondlook.report import curves, embed

Episode = dict[str, Any]
"""As episodes.json of mini-geneval has it."""
Verdict = tuple[str, bool, bool]
"""Prompt, whether the image is right, and whether the model said so."""
NEEDED = ("overall", "tasks", "settings", "judge", "redraws", "binding", "position")


@dataclass(frozen=True)
class ModelResults:
    """One model's results of mini-geneval (with episodes and gallery), mini-curve and
    mini-judging."""

    name: str
    result: dict[str, Any]
    episodes: dict[tuple[str, str, int], Episode]
    """By task, prompt and seed."""
    gallery: dict[str, Any]
    curve: dict[str, Any] | None
    judge: dict[str, Any] | None
    judge_verdicts: list[ImageVerdict]
    training_run: Path | None
    """The training run, where the folder is one."""


def read(name: str, folder: Path) -> ModelResults:
    """Results of one model in ``folder``/geneval and, where there are, ``folder``/curve and
    /judging. Raises InputError."""
    geneval = folder / "geneval"
    for file in ("result.json", "episodes.json", "gallery.json"):
        if not (geneval / file).is_file():
            raise InputError(
                f"results: {str(geneval / file)!r} is missing; run secondlook eval mini-geneval "
                f"--out {geneval} first"
            )
    result = read_json(geneval / "result.json", dict)
    with written_by("eval mini-geneval", geneval / "result.json"):
        for key in NEEDED:
            result[key]
    curve_path, judging_path = folder / "curve" / "result.json", folder / "judging" / "result.json"
    was_judging = judging_path.is_file()
    return ModelResults(
        name=name,
        result=result,
        episodes=_read_episodes(geneval / "episodes.json"),
        gallery=read_json(geneval / "gallery.json", dict),
        curve=read_json(curve_path, dict) if curve_path.is_file() else None,
        judge=read_json(judging_path, dict) if was_judging else None,
        judge_verdicts=read_verdicts(judging_path.parent) if was_judging else [],
        training_run=folder if (folder / "metrics.jsonl").is_file() else None,
    )


def _read_episodes(path: Path) -> dict[tuple[str, str, int], Episode]:
    episodes = {}
    with written_by("eval mini-geneval", path):
        for episode in read_json(path, list):
            first(episode), final(episode)  # what they need is there
            for shown in episode["rounds"]:
                if type(shown["right"]) is not bool or type(shown["yes"]) is not bool:
                    raise ValueError("right and yes must be true or false")
            episodes[episode["tag"], episode["prompt"], episode["seed"]] = episode
    return episodes


def first(episode: Episode) -> float:
    """Whether the first image is right."""
    return float(episode["rounds"][0]["right"])


def final(episode: Episode) -> float:
    """Whether the final image is right."""
    return float(episode["rounds"][episode["final"]]["right"])


def difference(a: ModelResults, b: ModelResults, value: Callable[[Episode], float]) -> Interval:
    """Mean over tasks of value(a) - value(b) on the same prompts and seeds. Raises InputError."""
    if a.episodes.keys() != b.episodes.keys():
        raise InputError(
            f"results: {a.name} and {b.name} have different prompts or seeds; run eval "
            "mini-geneval with one setting"
        )
    samples = []
    for key, episode in a.episodes.items():
        task, prompt, _ = key
        samples.append(Sample(task, prompt, value(episode) - value(b.episodes[key])))
    return mean_of_tasks(samples)


def own_verdicts(model: ModelResults) -> list[Verdict]:
    """A model's verdicts on every image of its own episodes."""
    verdicts = []
    for (_, prompt, _), episode in model.episodes.items():
        for shown in episode["rounds"]:
            verdicts.append((prompt, shown["right"], shown["yes"]))
    return verdicts


def same_verdicts(model: ModelResults) -> list[Verdict]:
    """A model's verdicts on the images that all models judge; none where they were not measured."""
    return [(each.prompt, each.right, each.yes) for each in model.judge_verdicts]


def judge_difference(a: Sequence[Verdict], b: Sequence[Verdict]) -> Interval:
    """Balanced accuracy of a's verdicts minus that of b's, resampled by prompt."""
    rows_of_prompt: dict[str, list[tuple[int, bool, bool]]] = {}
    for model_index, verdicts in enumerate((a, b)):
        for prompt, right, yes in verdicts:
            rows_of_prompt.setdefault(prompt, []).append((model_index, right, yes))

    def statistic(rows: dict[str, np.ndarray]) -> float:
        model_index, right, yes = rows["all"].T  # each (verdicts,)
        of_a, of_b = model_index == 0, model_index == 1
        return _balanced(right[of_a], yes[of_a]) - _balanced(right[of_b], yes[of_b])

    return bootstrap({"all": [np.array(rows) for rows in rows_of_prompt.values()]}, statistic)


def _balanced(right: np.ndarray, yes: np.ndarray) -> float:
    """Balanced accuracy; no number where all images are right, or all wrong."""
    if right.all() or not right.any():
        return NO_DATA
    return float((yes[right == 1].mean() + 1 - yes[right == 0].mean()) / 2)


def compare(models: Sequence[ModelResults]) -> dict[str, Any]:
    """Every model's row, and each later model against each earlier one. Raises InputError where
    they were measured in different ways."""
    settings = _same_settings(models)
    judges = _same_judged_images(models)
    differences = []
    for earlier, later in combinations(models, 2):
        row: dict[str, Any] = {
            "of": later.name,
            "over": earlier.name,
            "first": difference(later, earlier, first),
            "final": difference(later, earlier, final),
            "judge": judge_difference(own_verdicts(later), own_verdicts(earlier)),
        }
        if later.judge and earlier.judge:
            row["judge_same"] = judge_difference(same_verdicts(later), same_verdicts(earlier))
        differences.append(row)
    result = {
        "models": {model.name: model.result for model in models},
        "differences": differences,
        "curves": {model.name: model.curve for model in models if model.curve},
        "judges": judges,
        "settings": settings,
    }
    return result | {"claims": claims(result, settings["rounds"]), "goals": goals(result)}


def _same_settings(models: Sequence[ModelResults]) -> dict[str, Any]:
    """The settings of all models but for their names. Raises InputError where they differ."""
    settings = dict(models[0].result["settings"])
    del settings["model"]
    for model in models[1:]:
        for key, value in settings.items():
            other_value = model.result["settings"].get(key)
            if other_value != value:
                raise InputError(
                    f"results: {model.name} has {key} {other_value!r} and {models[0].name} "
                    f"{value!r}; results of different settings are not compared"
                )
    return settings


def _same_judged_images(models: Sequence[ModelResults]) -> dict[str, dict[str, Any]]:
    """The models' results as judges. Raises InputError where they judged other images."""
    judges = {model.name: model.judge for model in models if model.judge}
    image_sets = set()
    for judge in judges.values():
        image_sets.add((judge["settings"]["images"], judge["settings"]["seed"]))
    if len(image_sets) > 1:
        raise InputError(
            "results: the models did not judge the same images with one seed; run eval "
            "mini-judging alike for all"
        )
    return judges


def write(out: Path, models: Sequence[ModelResults], notes: str = "") -> dict[str, Any]:
    """report.html, report.md, curves.png, training curves and, last, result.json; returns the
    result."""
    result = compare(models)
    picture = ""
    if result["curves"]:
        plot_curves(result["curves"], out / "curves.png")
        picture = embed(read_image(out / "curves.png"))
    training = {}
    for model in models:
        if model.training_run:
            plot_path = curves(model.training_run, out / f"training-{model.name}.png")
            training[model.name] = embed(read_image(plot_path))
    html = page(
        "compare.html",
        result=result,
        gallery={model.name: model.gallery for model in models},
        picture=picture,
        training=training,
        notes=notes,
    )
    write_text(out / "report.html", html)
    write_text(out / "report.md", page("compare.md", result=result, notes=notes))
    write_json(out / "result.json", result)
    return result


def main(
    results: Annotated[
        list[str],
        typer.Argument(help="NAME=FOLDER, each with geneval/, perhaps curve/ and judging/ in it."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("out/report"),
    notes: Annotated[str, typer.Option(help="A sentence for the head of the report.")] = "",
) -> None:
    """A report of several models' results side by side, with paired differences."""
    models = [read(name, folder) for name, folder in named_folders(results)]
    writable_folder(out)
    write(out, models, notes)
    print(f"written to {out}: report.html, report.md, result.json")


if __name__ == "__main__":
    run_script(main)
