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
        typer.Argument(help="NAME=FOLDER, each with folders of image benchmarks' results."),
    ],
    out: Out = Path("out/table"),
) -> None:
    """Image benchmarks of several models side by side, with paired differences."""
    from secondlook.evals import comparison
    from secondlook.io import writable_folder

    measured = []
    for given in results:
        name, separator, folder = given.partition("=")
        if not (name and separator and folder):
            raise InputError(
                f"results: {given!r} is not NAME=FOLDER; write for example "
                "base=out/r1/benchmarks/base"
            )
        measured += comparison.read_results(name, Path(folder))
    writable_folder(out)
    for table in comparison.write(out, measured)["benchmarks"]:
        say((table["title"], "bold"))
        for model in table["models"]:
            first = interval(model["overall"]["first"])
            final = interval(model["overall"]["final"])
            say(f"  {model['name']:12} first {first}  final {final}")
    say(f"written to {out}: table.md, table.html, result.json")
