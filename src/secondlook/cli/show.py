"""Printing what a folder holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from secondlook.cli.common import console, interval, say, share
from secondlook.errors import InputError
from secondlook.io import read_json, stored_rows


def show(
    folder: Annotated[Path, typer.Argument(help="A folder that draw, eval or train wrote.")],
) -> None:
    """Print what a folder holds: episodes, the summary of a list of prompts, a benchmark's result,
    or a training run (plotted to curves.png)."""
    if not folder.is_dir():
        raise InputError(
            f"folder: {str(folder)!r} is not a folder; give one that draw, eval or train wrote"
        )
    episodes = (
        [folder / "episode.json"]
        if (folder / "episode.json").exists()
        else sorted(folder.glob("*/episode.json"))
    )
    if (folder / "summary.json").exists():
        from secondlook.cli.draw_list import say_summary

        with foreign(folder / "summary.json"):
            say_summary(read_json(folder / "summary.json", dict))
    elif episodes:
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
        raise InputError(
            f"folder: {str(folder)!r} holds no episode.json, result.json or metrics.jsonl"
        )


@contextmanager
def foreign(path: Path) -> Iterator[None]:
    """A file that has not what this package writes is refused. Raises InputError."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"file: {str(path)!r} is not what secondlook writes ({error!r}); give another folder"
        ) from error


def _show_episode(path: Path) -> None:
    e = read_json(path, dict)
    say((e["prompt"], "bold"), (f"  seed {e['seed']}, {path.parent}", "dim"))
    for i, r in enumerate(e["rounds"], 1):
        final = "  <- final" if i == e["final"] else ""
        say(
            f"  {r['image']}: {'Yes' if r['yes'] else 'No '} p(yes) {r['p_yes']:.2f}  "
            f"{r['reason']}{final}"
        )


def _show_result(result: dict) -> None:
    if "splits" in result:
        _show_pope(result)
    elif "tasks" not in result:
        console.print_json(data=result)
    elif "redraws" in result:
        _show_miniature(result)
    else:
        _show_public(result)


def _show_miniature(result: dict) -> None:
    """Of ``eval mini-geneval``."""
    _show_images("task", {"overall": result["overall"], **result["tasks"]})
    b, p, r = result["binding"], result["position"], result["redraws"]
    console.print(
        f"bound, given both objects and colours: {interval(b['bound'])} (chance 0.5, "
        f"{b['images']} images)"
    )
    console.print(
        f"relation, given both objects: {interval(p['given_both'])} (chance {p['chance']:.2f}, "
        f"{p['images']} images)"
    )
    for name, row in result["judge"].items():
        _show_judge(f"judge, {name}", row)
    fixed, broken = share(r["fixed"], r["wrong"], "wrong"), share(r["broken"], r["right"], "right")
    console.print(f"redraws: fixed {fixed}, broke {broken}")


def _show_public(result: dict) -> None:
    """Of an image benchmark."""
    s, missing = result["settings"], result["missing"]
    counted = f"{result['rows']} rows, {s['samples']} samples each"
    say((result["title"], "bold"), f": {s['model']}, {counted}, scored by {s['judge']}")
    _show_images("task", {"overall": result["overall"], **result["tasks"]})
    if len(result["metrics"]) > 1:
        _show_images("metric", result["metrics"])
    if "judge" in result:
        _show_judge("judge of its own images", result["judge"])
    of = result["images"] + missing
    say(
        f"{result['mean_rounds']:.2f} images a sample; {missing or 'none'} of {of} samples left "
        "out, for want of a score"
    )
    if result["note"]:
        say((result["note"], "dim"))


def _show_pope(result: dict) -> None:
    """Of ``eval pope``."""
    say(("POPE", "bold"), f": {result['settings']['model']}, {result['questions']} questions")
    table = Table("split", "F1", "accuracy", "says yes")
    for name, row in result["splits"].items():
        table.add_row(name, interval(row["f1"]), f"{row['accuracy']:.3f}", f"{row['yes_rate']:.3f}")
    console.print(table)
    say(f"{len(result['left_out']) or 'none'} of the pictures left out, for they cannot be read")


def _show_images(head: str, rows: dict[str, dict]) -> None:
    """First and final image and gain of each row, with the samples that they are of where those are
    counted."""
    table = Table(head, "first image", "final image", "gain", "samples")
    for name, row in rows.items():
        table.add_row(
            name,
            *(interval(row[image]) for image in ("first", "final", "gain")),
            str(row.get("images", "")),
        )
    console.print(table)


def _show_judge(name: str, row: dict) -> None:
    console.print(
        f"{name}: accuracy {row['accuracy']:.3f}, balanced {interval(row['balanced_accuracy'])}, "
        f"kappa {row['kappa']:.3f}, says yes {row['always_yes_rate']:.3f}"
    )
