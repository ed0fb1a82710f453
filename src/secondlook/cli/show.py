"""Printing what a folder holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from secondlook.cli.common import NO_DATA, console, interval, say
from secondlook.errors import InputError
from secondlook.io import counted, read_json, stored_rows


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
            result = read_json(result_path, dict)
            result_lines = _lines_of_benchmark(folder, result)
            if result_lines:
                for line in result_lines:
                    say(line)
            else:
                _show_result(result)
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


def _lines_of_benchmark(folder: Path, result: dict) -> list[str]:
    """What the benchmark that wrote a folder prints of its result; nothing where the folder names
    none, or one that is not known here."""
    from secondlook.registry import benchmarks

    config_path = folder / "config.json"
    if not config_path.exists():
        return []
    name = read_json(config_path, dict).get("benchmark")
    if name not in benchmarks.names():
        return []
    return benchmarks.get(name).lines(result)  # type: ignore[attr-defined]


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
    from secondlook.mini.evals.sampled import redraws_text

    overall = result["overall"] | {"images": result.get("images", "")}
    _show_images("task", {"overall": overall, **result["tasks"]})
    binding, position = result["binding"], result["position"]
    table = _table("given both objects", "share", "chance", "images")
    bound_share, held_share = interval(binding["bound"]), interval(position["given_both"])
    table.add_row("each in its colour", bound_share, "0.50", str(binding["images"]))
    chance = f"{position['chance']:.2f}"
    table.add_row("relation holds", held_share, chance, str(position["images"]))
    _print_table(table)
    _show_judges(result["judge"])
    say(redraws_text(result["redraws"]))


def _show_public(result: dict) -> None:
    """Of an image benchmark."""
    settings, num_missing = result["settings"], result["missing"]
    counts = f"{counted(result['rows'], 'row')}, {counted(settings['samples'], 'sample')} each"
    say(
        (result["title"], "bold"),
        f": {settings['model']}, {counts}, scored by {settings['judge']}",
    )
    if result.get("number"):
        say((result["number"], "dim"))
    _show_images("task", {"overall": result["overall"], **result["tasks"]})
    if len(result["metrics"]) > 1:
        _show_images("metric", result["metrics"])
    if "judge" in result:
        _show_judges({"its own images": result["judge"]})
    num_samples = result["images"] + num_missing
    left_out = "every sample has its scores"
    if num_missing:
        left_out = (
            f"{num_missing} of {counted(num_samples, 'sample')} left out, for want of a score"
        )
    say(f"{result['mean_rounds']:.2f} images a sample; {left_out}")
    if result["note"]:
        say((result["note"], "dim"))


def _show_pope(result: dict) -> None:
    """Of ``eval pope``."""
    questions = counted(result["questions"], "question")
    say(("POPE", "bold"), f": {result['settings']['model']}, {questions}")
    table = _table("split", "F1", "accuracy", "says yes")
    for name, row in result["splits"].items():
        table.add_row(name, interval(row["f1"]), f"{row['accuracy']:.3f}", f"{row['yes_rate']:.3f}")
    _print_table(table)
    if result["left_out"]:
        say(f"{counted(len(result['left_out']), 'picture')} left out, for want of a readable file")


def _show_images(first_heading: str, rows: dict[str, dict]) -> None:
    """First and final image and gain of each row, the mean above its interval so that 80 columns
    hold them, with the samples that they are of where those are counted."""
    table = _table(first_heading, "first image", "final image", "gain", "samples")
    for name, row in rows.items():
        cells = []
        for measured in (row["first"], row["final"], row["gain"]):
            cells.append(interval(measured).replace(" [", "\n["))
        table.add_row(name, *cells, str(row.get("images", "")))
    _print_table(table)


def _show_judges(rows: dict[str, dict]) -> None:
    """The model's verdicts against the truth, by which verdicts they are."""
    table = _table("judge of", "accuracy", "balanced accuracy", "kappa", "says yes")
    is_undefined = False
    for name, row in rows.items():
        balanced_accuracy = interval(row["balanced_accuracy"])
        is_undefined |= balanced_accuracy == NO_DATA
        accuracy, kappa = f"{row['accuracy']:.3f}", f"{row['kappa']:.3f}"
        table.add_row(name, accuracy, balanced_accuracy, kappa, f"{row['always_yes_rate']:.3f}")
    _print_table(table)
    if is_undefined:
        say("  balanced accuracy needs right and wrong images; one kind is missing")


def _table(first_heading: str, *headings: str) -> Table:
    """Without lines between columns, whose cells are not broken; the first column may be."""
    table = Table(first_heading, box=None, padding=(0, 2, 0, 0))
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    return table


def _print_table(table: Table) -> None:
    """With an empty line above."""
    console.print()
    console.print(table)
