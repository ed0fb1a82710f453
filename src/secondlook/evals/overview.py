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
    known_names = set(benchmarks.names())
    result_of_benchmark = {}
    for result_path in sorted(out.glob("*/result.json")):
        folder_name = result_path.parent.name
        if folder_name in known_names:
            result_of_benchmark[folder_name] = read_json(result_path, dict)
    return result_of_benchmark


def write(out: Path, settings: dict[str, Any], skipped: dict[str, str]) -> dict[str, Any]:
    """all.html and, last, result.json over the results in ``out``; returns the result. ``skipped``
    says of each benchmark without one why there is none."""
    headlines, page_of_benchmark = {}, {}
    for benchmark_name, result in read_results(out).items():
        benchmark = get_benchmark(benchmark_name)
        headlines[benchmark_name] = benchmark.headline(result)
        page_of_benchmark[benchmark_name] = benchmark.page  # what the row's name links to
    overview = {
        "settings": settings,
        "benchmarks": headlines,
        "skipped": skipped,
        "versions": versions(),
    }
    write_text(out / "all.html", page("all.html", result=overview, pages=page_of_benchmark))
    write_json(out / "result.json", overview)
    return overview
