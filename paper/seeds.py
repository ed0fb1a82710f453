"""The headline rows of several reports that differ in nothing but the seed of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from secondlook.errors import InputError
from secondlook.evals.intervals import written_by
from secondlook.io import read_json, versions, write_json, write_text
from secondlook.report import page

Row = dict[str, Any]


def read(folder: Path) -> dict:
    """The result of a folder that ``bench compare`` wrote. Raises InputError."""
    path = folder / "result.json"
    with written_by("bench compare", path):
        result = read_json(path, dict)
        return {
            key: result[key] for key in ("models", "differences", "curves", "judges", "settings")
        }


def together(results: list[dict]) -> list[Row]:
    """Rows of a name, its value with each seed, their mean, and their standard deviation."""
    rows: list[Row] = []

    def add(name: str, values: list[float]) -> None:
        rows.append(
            {
                "name": name,
                "values": values,
                "mean": float(np.mean(values)),
                "std": float(np.std(values, ddof=1)),
            }
        )

    for model in results[0]["models"]:
        of = [r["models"][model] for r in results]
        for what in ("first", "final", "gain"):
            add(
                f"{model}: {what}" + (" image" if what != "gain" else ""),
                [m["overall"][what]["mean"] for m in of],
            )
        add(
            f"{model}: judge, own images",
            [m["judge"]["every round"]["balanced_accuracy"]["mean"] for m in of],
        )
        if model in results[0]["judges"]:
            add(
                f"{model}: judge, same images",
                [r["judges"][model]["sampled"]["balanced_accuracy"]["mean"] for r in results],
            )
        for what in ("fixed", "broken_of_all"):
            add(f"{model}: redraws {what.replace('_', ' ')}", [m["redraws"][what] for m in of])
    for i, d in enumerate(results[0]["differences"]):
        for what in ("first", "final", "judge", "judge_same"):
            if what in d:
                name = f"{d['of']} over {d['over']}: {what.replace('_same', ', same images')}"
                add(name, [r["differences"][i][what]["mean"] for r in results])
    rounds = results[0]["settings"]["rounds"]
    for model in results[0]["curves"]:
        points = [
            next(c for c in r["curves"][model]["curve"] if c["rounds"] == rounds) for r in results
        ]
        add(
            f"{model}: over best-of-N at equal images",
            [p["over_best_of_n"]["mean"] for p in points],
        )
    return rows


def write(out: Path, folders: list[Path]) -> list[Row]:
    """seeds.md and, last, result.json. Raises InputError for fewer than two reports, or other
    models or settings in one."""
    if len(folders) < 2:
        raise InputError(f"reports: {len(folders)} given; give two or more, of different seeds")
    results = [read(f) for f in folders]
    for folder, result in zip(folders[1:], results[1:], strict=True):
        for what in ("settings", "models"):
            if list(result[what]) != list(results[0][what]) or (
                what == "settings" and result[what] != results[0][what]
            ):
                raise InputError(
                    f"reports: {folder} has other {what} than {folders[0]}; compare runs that "
                    "differ only in the seed"
                )
    rows = together(results)
    write_text(
        out / "seeds.md", page("seeds.md", rows=rows, names=[f.parent.name for f in folders])
    )
    write_json(
        out / "result.json",
        {"rows": rows, "reports": [str(f) for f in folders], "versions": versions()},
    )
    return rows
