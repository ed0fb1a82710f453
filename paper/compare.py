"""Several models' mini-GenEval and curves side by side, with paired differences: a report in HTML
and Markdown."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from secondlook.errors import InputError
from secondlook.evals.intervals import Interval, Sample, bootstrap, mean_of_tasks, written_by
from secondlook.io import read_image, read_json, write_json, write_text
from secondlook.mini.evals import judging
from secondlook.mini.evals.best_of_n import plot
from secondlook.mini.evals.claims import claims, goals
from secondlook.report import curves, embed, page


@dataclass(frozen=True)
class Measured:
    """One model's results of ``bench geneval`` (with episodes and gallery), ``bench curve`` and
    ``bench judging``."""

    name: str
    result: dict
    episodes: dict[tuple[str, str, int], dict]
    """(task, prompt, seed) -> episode."""
    gallery: dict
    curve: dict | None
    judge: tuple[dict, list[dict]] | None
    """Result and verdicts of ``bench judging``."""
    run: Path | None
    """The training run, where the folder is one."""


def read(name: str, folder: Path) -> Measured:
    """Results of one model in ``folder``/geneval and, where there are, ``folder``/curve and
    /judging. Raises InputError."""
    geneval = folder / "geneval"
    for file in ("result.json", "episodes.json", "gallery.json"):
        if not (geneval / file).is_file():
            raise InputError(
                f"results: {str(geneval / file)!r} is missing; run bench geneval --out {geneval} "
                "first"
            )
    path = geneval / "episodes.json"
    with written_by("bench geneval", path):
        episodes = {(e["tag"], e["prompt"], e["seed"]): e for e in read_json(path, list)}
        for e in episodes.values():
            first(e), final(e)
            if not all(type(r["right"]) is bool and type(r["yes"]) is bool for r in e["rounds"]):
                raise ValueError("right and yes must be true or false")
    result = read_json(geneval / "result.json", dict)
    with written_by("bench geneval", geneval / "result.json"):
        for key in ("overall", "tasks", "settings", "judge", "redraws", "binding", "position"):
            result[key]
    curve, said = folder / "curve" / "result.json", folder / "judging" / "result.json"
    verdicts = said.parent / "verdicts.json"
    with written_by("bench judging", verdicts):
        judge = (
            (read_json(said, dict), [asdict(s) for s in judging.read(said.parent)])
            if said.is_file()
            else None
        )
    return Measured(
        name,
        result,
        episodes,
        read_json(geneval / "gallery.json", dict),
        read_json(curve, dict) if curve.is_file() else None,
        judge,
        folder if (folder / "metrics.jsonl").is_file() else None,
    )


def first(episode: dict) -> float:
    """Whether the first image is right."""
    return float(episode["rounds"][0]["right"])


def final(episode: dict) -> float:
    """Whether the final image is right."""
    return float(episode["rounds"][episode["final"]]["right"])


def difference(a: Measured, b: Measured, value) -> Interval:
    """Mean over tasks of value(a) - value(b) on the same prompts and seeds, 95 % interval over
    prompts."""
    if a.episodes.keys() != b.episodes.keys():
        raise InputError(
            f"results: {a.name} and {b.name} have different prompts or seeds; run bench geneval "
            "with one setting"
        )
    keys = list(a.episodes)
    return mean_of_tasks(
        [Sample(k[0], k[1], value(a.episodes[k]) - value(b.episodes[k])) for k in keys]
    )


Verdicts = list[tuple[str, bool, bool]]
"""Prompt, whether the image is right, and whether the model said so."""


def own_verdicts(m: Measured) -> Verdicts:
    """A model's verdicts on every image of its own episodes."""
    return [(k[1], r["right"], r["yes"]) for k, e in m.episodes.items() for r in e["rounds"]]


def same_verdicts(m: Measured) -> Verdicts:
    """A model's verdicts on the images that all models judge; none where they were not measured."""
    return [(v["prompt"], v["right"], v["yes"]) for v in m.judge[1]] if m.judge else []


def judge_difference(a: Verdicts, b: Verdicts) -> Interval:
    """Balanced accuracy of a's verdicts minus that of b's, 95 % interval over prompts."""
    units: dict[str, list[tuple[int, bool, bool]]] = {}
    for which, verdicts in enumerate((a, b)):
        for prompt, right, yes in verdicts:
            units.setdefault(prompt, []).append((which, right, yes))

    def statistic(rows: dict[str, np.ndarray]) -> float:
        which, right, yes = rows["all"].T
        each = [_balanced(right[which == k], yes[which == k]) for k in (0, 1)]
        return each[0] - each[1]

    return bootstrap({"all": [np.array(rows) for rows in units.values()]}, statistic)


def _balanced(right: np.ndarray, yes: np.ndarray) -> float:
    if right.all() or not right.any():
        return float("nan")
    return float((yes[right == 1].mean() + 1 - yes[right == 0].mean()) / 2)


def compare(models: list[Measured]) -> dict:
    """Every model's row, and each later model against each earlier one."""
    settings = [{k: v for k, v in m.result["settings"].items() if k != "model"} for m in models]
    for m, own in zip(models[1:], settings[1:], strict=True):
        changed = [k for k in own if own[k] != settings[0][k]]
        if changed:
            raise InputError(
                f"results: {m.name} has {changed[0]} {own[changed[0]]!r} and {models[0].name} "
                f"{settings[0][changed[0]]!r}; "
                "results of different settings are not compared"
            )
    judges = {m.name: m.judge[0] for m in models if m.judge}
    if len({(j["settings"]["images"], j["settings"]["seed"]) for j in judges.values()}) > 1:
        raise InputError(
            "results: the models did not judge the same images with one seed; run bench judging "
            "alike for all"
        )
    pairs = [(b, a) for i, a in enumerate(models) for b in models[i + 1 :]]
    result = {
        "models": {m.name: m.result for m in models},
        "differences": [
            {
                "of": b.name,
                "over": a.name,
                "first": difference(b, a, first),
                "final": difference(b, a, final),
                "judge": judge_difference(own_verdicts(b), own_verdicts(a)),
            }
            | (
                {"judge_same": judge_difference(same_verdicts(b), same_verdicts(a))}
                if a.judge and b.judge
                else {}
            )
            for b, a in pairs
        ],
        "curves": {m.name: m.curve for m in models if m.curve},
        "judges": judges,
        "settings": settings[0],
    }
    return result | {"claims": claims(result, settings[0]["rounds"]), "goals": goals(result)}


def write(out: Path, models: list[Measured], notes: str = "") -> dict:
    """report.html, report.md, curves.png, training curves and, last, result.json; returns the
    result."""
    result = compare(models)
    if result["curves"]:
        plot(result["curves"], out / "curves.png")
    picture = embed(read_image(out / "curves.png")) if result["curves"] else ""
    gallery = {m.name: m.gallery for m in models}
    training = {
        m.name: embed(read_image(curves(m.run, out / f"training-{m.name}.png")))
        for m in models
        if m.run
    }
    write_text(
        out / "report.html",
        page(
            "compare.html",
            result=result,
            gallery=gallery,
            picture=picture,
            training=training,
            notes=notes,
        ),
    )
    write_text(out / "report.md", page("compare.md", result=result, notes=notes))
    write_json(out / "result.json", result)
    return result
