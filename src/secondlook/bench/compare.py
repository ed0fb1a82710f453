"""Several models' mini-GenEval and curves side by side, with paired differences: a report in HTML and Markdown."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from secondlook.bench.base import Interval, Sample, mean_of_tasks
from secondlook.bench.curve import plot
from secondlook.files import write_json, write_text
from secondlook.report import embed, page
from secondlook.types import InputError


@dataclass(frozen=True)
class Measured:
    """One model's results: result, episodes and gallery of ``bench geneval``, and the result of ``bench curve``."""

    name: str
    result: dict
    episodes: dict[tuple[str, str, int], dict]
    """(task, prompt, seed) -> episode."""
    gallery: dict
    curve: dict | None


def read(name: str, folder: Path) -> Measured:
    """Results of one model in ``folder``/geneval and, where there is one, ``folder``/curve. Raises InputError."""
    geneval = folder / "geneval"
    for file in ("result.json", "episodes.json", "gallery.json"):
        if not (geneval / file).is_file():
            raise InputError(f"results: {str(geneval / file)!r} is missing; run bench geneval --out {geneval} first")
    episodes = json.loads((geneval / "episodes.json").read_text())
    curve = folder / "curve" / "result.json"
    return Measured(
        name,
        json.loads((geneval / "result.json").read_text()),
        {(e["tag"], e["prompt"], e["seed"]): e for e in episodes},
        json.loads((geneval / "gallery.json").read_text()),
        json.loads(curve.read_text()) if curve.is_file() else None,
    )


def first(episode: dict) -> float:
    """Whether the first image is right."""
    return float(episode["rounds"][0]["right"])


def final(episode: dict) -> float:
    """Whether the final image is right."""
    return float(episode["rounds"][episode["final"]]["right"])


def difference(a: Measured, b: Measured, value) -> Interval:
    """Mean over tasks of value(a) - value(b) on the same prompts and seeds, 95 % interval over prompts."""
    if a.episodes.keys() != b.episodes.keys():
        raise InputError(f"results: {a.name} and {b.name} have different prompts or seeds; run bench geneval with one setting")
    keys = list(a.episodes)
    return mean_of_tasks([Sample(k[0], k[1], value(a.episodes[k]) - value(b.episodes[k])) for k in keys])


def compare(models: list[Measured]) -> dict:
    """Every model's row, and each later model against each earlier one."""
    settings = [{k: v for k, v in m.result["settings"].items() if k != "model"} for m in models]
    for m, own in zip(models[1:], settings[1:], strict=True):
        changed = [k for k in own if own[k] != settings[0][k]]
        if changed:
            raise InputError(
                f"results: {m.name} has {changed[0]} {own[changed[0]]!r} and {models[0].name} {settings[0][changed[0]]!r}; "
                "results of different settings are not compared"
            )
    pairs = [(b, a) for i, a in enumerate(models) for b in models[i + 1 :]]
    return {
        "models": {m.name: m.result for m in models},
        "differences": [
            {"of": b.name, "over": a.name, "first": difference(b, a, first), "final": difference(b, a, final)} for b, a in pairs
        ],
        "curves": {m.name: m.curve for m in models if m.curve},
        "settings": settings[0],
    }


def write(out: Path, models: list[Measured], notes: str = "") -> dict:
    """report.html, report.md, curves.png and, last, result.json; returns the result."""
    result = compare(models)
    if result["curves"]:
        plot(result["curves"], out / "curves.png")
    picture = embed(Image.open(out / "curves.png")) if result["curves"] else ""
    gallery = {m.name: m.gallery for m in models}
    write_text(out / "report.html", page("compare.html", result=result, gallery=gallery, picture=picture, notes=notes))
    write_text(out / "report.md", page("compare.md", result=result, notes=notes))
    write_json(out / "result.json", result)
    return result
