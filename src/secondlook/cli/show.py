"""Printing what a folder holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from secondlook.cli.common import console, say
from secondlook.files import read_json, stored_rows
from secondlook.types import InputError


def show(folder: Annotated[Path, typer.Argument(help="A folder that draw, bench or train wrote.")]) -> None:
    """Print what a folder holds: an episode, a benchmark's result, or a training run (plotted to curves.png)."""
    if not folder.is_dir():
        raise InputError(f"folder: {str(folder)!r} is not a folder; give one that draw, bench or train wrote")
    episodes = [folder / "episode.json"] if (folder / "episode.json").exists() else sorted(folder.glob("*/episode.json"))
    if episodes:
        for path in episodes:
            with foreign(path):
                _show_episode(path)
    elif (folder / "result.json").exists():
        with foreign(folder / "result.json"):
            _show_result(read_json(folder / "result.json", dict))
    elif (folder / "metrics.jsonl").exists():
        from secondlook.report import curves

        rows = stored_rows(folder / "metrics.jsonl")
        if not rows:
            raise InputError(f"folder: {str(folder)!r} has no metrics yet; wait for the first row")
        with foreign(folder / "metrics.jsonl"):
            for name, value in rows[-1].items():
                say(f"  {name:14} {value:.4g}")
            say(f"curves: {curves(folder)}")
    else:
        raise InputError(f"folder: {str(folder)!r} holds no episode.json, result.json or metrics.jsonl")


@contextmanager
def foreign(path: Path) -> Iterator[None]:
    """A file that has not what this package writes is refused. Raises InputError."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"file: {str(path)!r} is not what secondlook writes ({error!r}); give another folder") from error


def _show_episode(path: Path) -> None:
    e = read_json(path, dict)
    say((e["prompt"], "bold"), (f"  seed {e['seed']}, {path.parent}", "dim"))
    for i, r in enumerate(e["rounds"], 1):
        final = "  <- final" if i == e["final"] else ""
        say(f"  {r['image']}: {'Yes' if r['yes'] else 'No '} p(yes) {r['p_yes']:.2f}  {r['reason']}{final}")


def _show_result(result: dict) -> None:
    if "tasks" not in result:
        console.print_json(data=result)
        return

    def cell(x: dict) -> str:
        return f"{x['mean']:.3f} [{x['low']:.3f}, {x['high']:.3f}]"

    table = Table("task", "first image", "final image", "gain")
    for name, row in {"overall": result["overall"], **result["tasks"]}.items():
        table.add_row(name, cell(row["first"]), cell(row["final"]), cell(row["gain"]))
    console.print(table)
    b, p, j, r = result["binding"], result["position"], result["judge"], result["redraws"]
    console.print(f"bound, given both objects and colours: {cell(b['bound'])} (chance 0.5, {b['images']} images)")
    console.print(f"relation, given both objects: {cell(p['given_both'])} (chance {p['chance']:.2f}, {p['images']} images)")
    for name, row in j.items():
        console.print(
            f"judge, {name}: accuracy {row['accuracy']:.3f}, balanced {cell(row['balanced_accuracy'])}, "
            f"kappa {row['kappa']:.3f}, says yes {row['always_yes_rate']:.3f}"
        )
    console.print(f"redraws: fixed {r['fixed']:.3f} of {r['wrong']} wrong, broke {r['broken']:.3f} of {r['right']} right")
