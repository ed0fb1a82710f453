"""Public benchmarks of several models in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secondlook.cli.common import Out, say
from secondlook.errors import InputError


def bench_table(
    results: Annotated[
        list[str], typer.Argument(help="NAME=FOLDER, each with folders that bench public wrote.")
    ],
    out: Out = Path("out/table"),
) -> None:
    """Public benchmarks of several models side by side, with paired differences."""
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
        measured += comparison.read(name, Path(folder))
    writable_folder(out)
    for benchmark in comparison.write(out, measured)["benchmarks"]:
        say((benchmark["title"], "bold"))
        for model in benchmark["models"]:
            first, final = (
                "{mean:.3f} [{low:.3f}, {high:.3f}]".format(**model["overall"][n])
                for n in ("first", "final")
            )
            say(f"  {model['name']:12} first {first}  final {final}")
    say(f"written to {out}: table.md, table.html, result.json")
