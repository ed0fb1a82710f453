"""The headline rows of several reports that differ in nothing but the seed of training.

python paper/seeds.py out/seed-0/report out/seed-1/report --out out/seeds
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from script import page, run_script
from secondlook.errors import InputError
from secondlook.evals.intervals import written_by
from secondlook.io import read_json, versions, writable_folder, write_json, write_text

Report = dict[str, Any]
"""The result of compare.py."""
NEEDED = ("models", "differences", "curves", "judges", "settings")


def read(folder: Path) -> Report:
    """The result of a folder that compare.py wrote. Raises InputError."""
    path = folder / "result.json"
    with written_by("paper/compare.py", path):
        result = read_json(path, dict)
        return {key: result[key] for key in NEEDED}


def headline_rows(reports: Sequence[Report]) -> list[dict[str, Any]]:
    """Rows of a name, its value with each seed, their mean, and their standard deviation."""
    rows: list[dict[str, Any]] = []

    def add(name: str, value_of: Callable[[Report], float]) -> None:
        values = [value_of(report) for report in reports]
        # of the seeds as a sample: divided by their number less one
        mean, std = float(np.mean(values)), float(np.std(values, ddof=1))
        rows.append({"name": name, "values": values, "mean": mean, "std": std})

    any_report = reports[0]
    for model in any_report["models"]:
        for key, name in (("first", "first image"), ("final", "final image"), ("gain", "gain")):
            add(f"{model}: {name}", _model_value(model, "overall", key, "mean"))
        own = _model_value(model, "judge", "every round", "balanced_accuracy", "mean")
        add(f"{model}: judge, own images", own)
        if model in any_report["judges"]:
            same = _value("judges", model, "sampled", "balanced_accuracy", "mean")
            add(f"{model}: judge, same images", same)
        add(f"{model}: redraws fixed", _model_value(model, "redraws", "fixed"))
        add(f"{model}: redraws broken of all", _model_value(model, "redraws", "broken_of_all"))
    for i, row in enumerate(any_report["differences"]):
        for key in ("first", "final", "judge", "judge_same"):
            if key in row:
                measured = key.replace("_same", ", same images")
                value_of = _value("differences", i, key, "mean")
                add(f"{row['of']} over {row['over']}: {measured}", value_of)
    rounds = any_report["settings"]["rounds"]
    for model in any_report["curves"]:
        add(f"{model}: over best-of-N at equal images", _over_best_of_n(model, rounds))
    return rows


def _value(*keys: Any) -> Callable[[Report], float]:
    """Takes the value at a path of keys out of a report."""

    def value_of(report: Report) -> float:
        value: Any = report
        for key in keys:
            value = value[key]
        return value

    return value_of


def _model_value(model: str, *keys: str) -> Callable[[Report], float]:
    return _value("models", model, *keys)


def _over_best_of_n(model: str, rounds: int) -> Callable[[Report], float]:
    def value_of(report: Report) -> float:
        points = report["curves"][model]["curve"]
        [point] = [point for point in points if point["rounds"] == rounds]
        return point["over_best_of_n"]["mean"]

    return value_of


def write(out: Path, folders: Sequence[Path]) -> list[dict[str, Any]]:
    """seeds.md and, last, result.json. Raises InputError for fewer than two reports, or other
    models or settings in one."""
    if len(folders) < 2:
        raise InputError(f"reports: {len(folders)} given; give two or more, of different seeds")
    reports = [read(folder) for folder in folders]
    for folder, report in zip(folders, reports, strict=True):
        different_part = ""
        if report["settings"] != reports[0]["settings"]:
            different_part = "settings"
        elif list(report["models"]) != list(reports[0]["models"]):
            different_part = "models"
        if different_part:
            raise InputError(
                f"reports: {folder} has other {different_part} than {folders[0]}; compare runs "
                "that differ only in the seed"
            )
    rows = headline_rows(reports)
    run_names = [folder.parent.name for folder in folders]
    write_text(out / "seeds.md", page("seeds.md", rows=rows, names=run_names))
    report_paths = [str(folder) for folder in folders]
    result = {"rows": rows, "reports": report_paths, "versions": versions()}
    write_json(out / "result.json", result)
    return rows


def main(
    reports: Annotated[
        list[Path],
        typer.Argument(help="Folders that compare.py wrote, of runs that differ in the seed."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the table.")] = Path("out/seeds"),
) -> None:
    """The headline rows of several seeds side by side."""
    writable_folder(out)
    write(out, reports)
    print(f"written to {out}: seeds.md, result.json")


if __name__ == "__main__":
    run_script(main)
