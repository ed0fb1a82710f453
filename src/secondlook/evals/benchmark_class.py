"""Whether a benchmark's class says what it must, which is checked before anything is drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, get_args

from secondlook.errors import InputError
from secondlook.evals.benchmark import Benchmark, ImageBenchmark, MeanOver, Row, ValueRange
from secondlook.registry import origin

COMPUTING_OPTIONS = ("out", "batch", "device", "dtype", "attention")
"""Options of every benchmark's command, which its fields cannot be named as."""
MOST_SAMPLES = 1000
"""Of a row: more would share seeds with the next row's."""


class Rule(NamedTuple):
    """What a class attribute must be."""

    holds: Callable[[Any], bool]
    wanted: str
    """In words, after "give"."""


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and value != "" and not any(c.isspace() for c in value)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_names(value: Any) -> bool:
    """A text is a sequence of texts as well, and would name its letters."""
    return isinstance(value, tuple | list) and all(isinstance(name, str) for name in value)


def _is_number_from_1_to(most: float) -> Callable[[Any], bool]:
    def holds(value: Any) -> bool:
        return type(value) is int and 1 <= value <= most  # True is an int, but no number of these

    return holds


TEXT = Rule(_is_text, "a text")
TRUTH = Rule(_is_bool, "True or False")

RULES: dict[str, Rule] = {
    "title": Rule(
        lambda value: _is_text(value) and value.strip() != "",
        'a text for people, as "Red pictures"',
    ),
    "suite": Rule(
        lambda value: _is_word(value) and value != "auto",
        "one word that `eval all --suite` takes, as own; auto is taken",
    ),
    "argument": Rule(_is_text, 'the name of a field, or ""'),
    "resumes": TRUTH,
    "default_batch": Rule(_is_number_from_1_to(math.inf), "a whole number from 1 on"),
    "files_written": TEXT,
    "page": Rule(_is_text, 'the name of a file in the result\'s folder, or ""'),
}
"""Of every benchmark."""
IMAGE_RULES: dict[str, Rule] = {
    "default_samples": Rule(
        _is_number_from_1_to(MOST_SAMPLES), f"a whole number from 1 to {MOST_SAMPLES}"
    ),
    "files": Rule(_is_names, "a tuple of names of evals.fetch.FILES"),
    "metrics": Rule(
        lambda value: isinstance(value, Mapping) and len(value) > 0,
        'a dictionary of names and ranges, as {"value": ValueRange(0, 1)}',
    ),
    "counted_tasks": Rule(_is_names, "a tuple of tasks' names; () counts them all"),
    "mean_over": Rule(lambda value: value in get_args(MeanOver), '"tasks" or "images"'),
    "edits": TRUTH,
    "number": TEXT,
    "note": TEXT,
}
"""Of every image benchmark, beside those."""


def check_class(name: str, benchmark: Any) -> type[Benchmark]:
    """The class, which is registered as ``name``, where a benchmark can be made of it. Raises
    InputError that names the attribute, its value and what would be right."""
    if not (isinstance(benchmark, type) and issubclass(benchmark, Benchmark)):
        raise InputError(
            f"benchmarks: {name!r} is {origin(benchmark)}, which is no subclass of "
            "secondlook.evals.benchmark.Benchmark"
        )
    where = f"benchmarks: {name!r} ({origin(benchmark)})"
    missing_methods = sorted(benchmark.__abstractmethods__)
    if missing_methods:
        raise InputError(f"{where} lacks {', '.join(missing_methods)}; define what it lacks")
    rules = RULES | IMAGE_RULES if issubclass(benchmark, ImageBenchmark) else RULES
    for attribute, rule in rules.items():
        if attribute in benchmark.model_fields:
            raise InputError(
                f"{where}: {attribute} with a type is an option of the command line; write "
                f"{attribute} = … without one, or with ClassVar"
            )
        if not hasattr(benchmark, attribute):
            raise InputError(f"{where} has no {attribute}; give {rule.wanted}")
        value = getattr(benchmark, attribute)
        if not rule.holds(value):
            raise InputError(f"{where}: {attribute} = {value!r} is wrong; give {rule.wanted}")
    _check_fields(where, benchmark)
    if issubclass(benchmark, ImageBenchmark):
        _check_metrics(where, benchmark.metrics)
        _check_files(where, benchmark.files)
    return benchmark


def check_rows(benchmark: ImageBenchmark, rows: Any) -> list[Row]:
    """The rows that a benchmark's ``rows`` returned. Raises InputError for what is no row that can
    be drawn and scored."""
    where = f"benchmarks: {origin(benchmark)}"
    if not isinstance(rows, list | tuple):
        raise InputError(f"{where}: rows() returned {rows!r}; return a list of Row")
    for index, row in enumerate(rows):
        texts = [row.id, row.prompt, row.task] if isinstance(row, Row) else [None]
        if not all(map(_is_text, texts)):
            raise InputError(
                f"{where}: row {index} is {row!r}; give a secondlook.evals.benchmark.Row(id, "
                "prompt, task), each a text"
            )
        if benchmark.edits and row.source is None:
            raise InputError(f"{where}: row {index} edits nothing; give its Row a source")
    tasks = dict.fromkeys(row.task for row in rows)
    for task in benchmark.counted_tasks:
        if task not in tasks:
            raise InputError(
                f"{where}: counted_tasks names {task!r}, of which there is no row; rows are of "
                f"{', '.join(tasks)}"
            )
    return list(rows)


def _check_fields(where: str, benchmark: type[Benchmark]) -> None:
    """Raises InputError for fields of which the command line can make no options."""
    for field_name in benchmark.model_fields:
        if field_name in COMPUTING_OPTIONS:
            raise InputError(
                f"{where}: every benchmark has an option {field_name}; give the field another name"
            )
    if benchmark.argument and benchmark.argument not in benchmark.model_fields:
        raise InputError(
            f"{where}: argument = {benchmark.argument!r} is wrong; it has no field of this name"
        )


def _check_metrics(where: str, metrics: Mapping[Any, Any]) -> None:
    """Raises InputError for a name or a range that no score can have."""
    for metric_name, valid in metrics.items():
        if not isinstance(metric_name, str) or metric_name in ("", "picture"):
            raise InputError(
                f"{where}: metrics has the name {metric_name!r}; give a text other than 'picture'"
            )
        is_range = isinstance(valid, ValueRange) and all(
            type(bound) in (int, float) and not math.isnan(bound) for bound in valid[:2]
        )
        if not is_range or valid.low >= valid.high or not _is_bool(valid.optional):
            raise InputError(
                f"{where}: metrics = {dict(metrics)!r} is wrong at {metric_name!r}; give a range "
                "secondlook.evals.benchmark.ValueRange(low, high), as ValueRange(0, 1)"
            )


def _check_files(where: str, files: tuple[str, ...]) -> None:
    from secondlook.evals import fetch

    for file_name in files:
        if file_name not in fetch.FILES:
            raise InputError(
                f"{where}: files names {file_name!r}, which is not in evals.fetch.FILES; add it "
                "there, or read files of your own in rows()"
            )
