"""Image benchmarks of several models in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secondlook.cli.common import Out, interval, say
from secondlook.errors import InputError


def eval_table(
    results: Annotated[
        list[str],
        typer.Argument(
            help="NAME=FOLDER of an image benchmark's result, or with several such folders."
        ),
    ],
    out: Out = Path("out/table"),
) -> None:
    """Image benchmarks of several models side by side, with paired differences."""
    from secondlook.evals import comparison
    from secondlook.io import writable_folder

    benchmark_results = []
    for named_folder in results:
        model_name, separator, folder = named_folder.partition("=")
        if not (model_name and separator and folder):
            raise InputError(
                f"results: {named_folder!r} is not NAME=FOLDER; write for example "
                "base=out/r1/benchmarks/base"
            )
        benchmark_results += comparison.read_results(model_name, Path(folder))
    writable_folder(out)
    for table in comparison.write(out, benchmark_results)["benchmarks"]:
        say((table["title"], "bold"))
        for model_row in table["models"]:
            first_score = interval(model_row["overall"]["first"])
            final_score = interval(model_row["overall"]["final"])
            say(f"  {model_row['name']:12} first {first_score}  final {final_score}")
    say(f"written to {out}: table.md, table.html, result.json")
