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
    folder: Annotated[
        Path, typer.Argument(help="A folder that draw, edit, eval, train or data build wrote.")
    ],
) -> None:
    """Print what a folder holds: episodes, the summary of a list of prompts, a benchmark's result,
    a build's counts, or a training run (plotted to curves.png)."""
    from secondlook.report import episode_files

    if not folder.is_dir():
        raise InputError(
            f"folder: {str(folder)!r} is not a folder; give one that draw, edit, eval, train or "
            "data build wrote"
        )
    episode_paths = episode_files(folder)
    summary_path, result_path = folder / "summary.json", folder / "result.json"
    manifest_path = folder / "manifest.json"
    if summary_path.exists():  # before the episodes that it sums up
        from secondlook.cli.draw_list import say_summary

        with foreign(summary_path):
            say_summary(read_json(summary_path, dict))
    elif episode_paths:
        for episode_path in episode_paths:
            with foreign(episode_path):
                _show_episode(episode_path)
    elif result_path.exists():
        with foreign(result_path):
            _show_result(read_json(result_path, dict))
    elif manifest_path.exists():
        with foreign(manifest_path):
            _show_build(folder, read_json(manifest_path, dict))
    elif (folder / "metrics.jsonl").exists():
        _show_training_run(folder)
    else:
        raise InputError(
            f"folder: {str(folder)!r} holds no episode.json, result.json, manifest.json or "
            "metrics.jsonl, one of which draw, eval, data build and train write"
        )


def _show_build(folder: Path, manifest: dict) -> None:
    """The counts of a build's pictures by who drew them, and its page of samples."""
    say(f"prompts: {manifest['prompts']}")
    table = Table("pictures of", "pictures", "right", "to draw", "to judge No", "no score")
    for name, counts in manifest["sources"].items():
        columns = ("pictures", "right", "positives", "negatives", "missing")
        table.add_row(name, *(str(counts[column]) for column in columns))
    console.print(table)
    for reason, num_prompts in manifest["left_out"].items():
        if num_prompts:
            say(f"prompts left out ({reason}): {num_prompts}")
    if (folder / "samples.html").exists():
        say(f"samples: {folder / 'samples.html'}")


def _show_training_run(folder: Path) -> None:
    """The last row of its metrics and where to see more; all of them are plotted to curves.png."""
    from secondlook.report import curves

    metrics_path = folder / "metrics.jsonl"
    rows = stored_rows(metrics_path)
    if not rows:
        raise InputError(f"folder: {str(folder)!r} has no metrics yet; wait for the first row")
    with foreign(metrics_path):
        for name, value in rows[-1].items():
            say(f"  {name:14} {value:.4g}")
        if len(rows) > 1:
            say(f"curves: {curves(folder)}")
        else:
            say("curves: none of a single step")
    episode_pages = list(folder.glob("episodes/step-*.html"))
    episode_pages.sort(key=lambda path: (len(path.name), path.name))  # step-9 before step-10
    if episode_pages:
        num_earlier = len(episode_pages) - 1
        earlier = f" (and {num_earlier} of earlier steps)" if num_earlier else ""
        say(f"best and worst episodes: {episode_pages[-1]}{earlier}")
    if (folder / "tensorboard").is_dir():
        say(f"tensorboard --logdir {folder / 'tensorboard'}")
    if (folder / "final").is_dir():
        say(f"checkpoint: {folder / 'final'}")


@contextmanager
def foreign(path: Path) -> Iterator[None]:
    """Reading inside: a file that has not what this package writes is refused. Raises
    InputError."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"file: {str(path)!r} is not what secondlook writes ({error!r}); give another folder"
        ) from error


def _show_episode(path: Path) -> None:
    """``path`` is an episode.json."""
    episode = read_json(path, dict)
    say((episode["prompt"], "bold"), (f"  seed {episode['seed']}, {path.parent}", "dim"))
    for round_number, round_row in enumerate(episode["rounds"], 1):
        verdict = "Yes" if round_row["yes"] else "No "
        final_mark = "  <- final" if round_number == episode["final"] else ""
        say(
            f"  {round_row['image']}: {verdict} p(yes) {round_row['p_yes']:.2f}  "
            f"{round_row['reason']}{final_mark}"
        )


def _show_result(result: dict) -> None:
    """A result.json, told from others by the keys that it has. Raises ValueError for an empty
    one."""
    if not result:
        raise ValueError("it is empty")
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
    binding, position, redraws = result["binding"], result["position"], result["redraws"]
    console.print(
        f"bound, given both objects and colours: {interval(binding['bound'])} (chance 0.5, "
        f"{binding['images']} images)"
    )
    console.print(
        f"relation, given both objects: {interval(position['given_both'])} (chance "
        f"{position['chance']:.2f}, {position['images']} images)"
    )
    for name, row in result["judge"].items():
        _show_judge(f"judge, {name}", row)
    fixed_share = share(redraws["fixed"], redraws["wrong"], "wrong")
    broken_share = share(redraws["broken"], redraws["right"], "right")
    console.print(f"redraws: fixed {fixed_share}, broke {broken_share}")


def _show_public(result: dict) -> None:
    """Of an image benchmark."""
    settings, num_missing = result["settings"], result["missing"]
    counts = f"{result['rows']} rows, {settings['samples']} samples each"
    say(
        (result["title"], "bold"),
        f": {settings['model']}, {counts}, scored by {settings['judge']}",
    )
    _show_images("task", {"overall": result["overall"], **result["tasks"]})
    if len(result["metrics"]) > 1:
        _show_images("metric", result["metrics"])
    if "judge" in result:
        _show_judge("judge of its own images", result["judge"])
    num_samples = result["images"] + num_missing
    say(
        f"{result['mean_rounds']:.2f} images a sample; {num_missing or 'none'} of {num_samples} "
        "samples left out, for want of a score"
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


def _show_images(first_heading: str, rows: dict[str, dict]) -> None:
    """First and final image and gain of each row, with the samples that they are of where those are
    counted."""
    table = Table(first_heading, "first image", "final image", "gain", "samples")
    for name, row in rows.items():
        first, final, gain = interval(row["first"]), interval(row["final"]), interval(row["gain"])
        table.add_row(name, first, final, gain, str(row.get("images", "")))
    console.print(table)


def _show_judge(name: str, row: dict) -> None:
    console.print(
        f"{name}: accuracy {row['accuracy']:.3f}, balanced {interval(row['balanced_accuracy'])}, "
        f"kappa {row['kappa']:.3f}, says yes {row['always_yes_rate']:.3f}"
    )
