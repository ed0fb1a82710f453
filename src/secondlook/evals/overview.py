"""One page over all benchmarks of a model: what ``secondlook eval all`` leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from secondlook.evals.benchmark import get_benchmark
from secondlook.io import read_json, versions, write_json, write_text
from secondlook.registry import benchmarks
from secondlook.report import page


def read_results(out: Path) -> dict[str, dict[str, Any]]:
    """The results in the folders of ``out`` that are named as benchmarks. Raises InputError for one
    that cannot be read."""
    known = set(benchmarks.names())
    results = {}
    for path in sorted(out.glob("*/result.json")):
        if path.parent.name in known:
            results[path.parent.name] = read_json(path, dict)
    return results


def write(out: Path, settings: dict[str, Any], skipped: dict[str, str]) -> dict[str, Any]:
    """all.html and, last, result.json over the results in ``out``; returns the result. ``skipped``
    says of each benchmark without one why there is none."""
    headlines, pages = {}, {}
    for name, result in read_results(out).items():
        benchmark = get_benchmark(name)
        headlines[name] = benchmark.headline(result)
        pages[name] = benchmark.page
    overview = {
        "settings": settings,
        "benchmarks": headlines,
        "skipped": skipped,
        "versions": versions(),
    }
    write_text(out / "all.html", page("all.html", result=overview, pages=pages))
    write_json(out / "result.json", overview)
    return overview
