"""One page over a model's benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from secondlook.io import read_json, versions, write_json, write_text
from secondlook.report import page


def _headline(result: dict[str, Any]) -> dict[str, Any]:
    """A result's numbers that fit in a row."""
    found: dict[str, Any] = {}
    overall = result.get("overall", {})
    for name in ("first", "final", "gain"):
        if "mean" in overall.get(name, {}):
            found[name] = overall[name]
        elif "success" in overall.get(name, {}):
            found[name] = overall[name]["success"]
    if "curve" in result and "first" not in found:
        found = {"first": result["curve"][0]["final"], "final": result["curve"][-1]["final"]}
    if "f1" in overall:
        found["number"] = overall["f1"]
    if "is_there" in result:
        found["number"] = result["is_there"]["balanced_accuracy"]["mean"]
    best = [c for c in result.get("curve", []) if c["rounds"] > 1]
    if best:
        found["over_best_of_n"] = max(best, key=lambda c: c["rounds"])["over_best_of_n"]
    return found


def check(out: Path) -> None:
    """Raises InputError where a folder of ``out`` holds a result that cannot be read."""
    for path in sorted(out.glob("*/result.json")):
        read_json(path, dict)


def write(out: Path, settings: dict[str, Any], skipped: dict[str, str]) -> dict[str, Any]:
    """all.html and, last, result.json over the folders of ``out`` that hold a result; returns the
    result."""
    folders = sorted(p.parent for p in out.glob("*/result.json"))
    benchmarks = {f.name: _headline(read_json(f / "result.json", dict)) for f in folders}
    pages = {
        f.name: next((p.name for p in (*f.glob("*.html"), *f.glob("curve.png"))), "")
        for f in folders
    }
    result = {
        "settings": settings,
        "benchmarks": benchmarks,
        "skipped": skipped,
        "versions": versions(),
    }
    write_text(out / "all.html", page("all.html", result=result, pages=pages))
    write_json(out / "result.json", result)
    return result
