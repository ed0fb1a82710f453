"""Episodes and results as folders that a person can open: JSON, pictures and self-contained
HTML."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape
from PIL import Image

from secondlook.io import (
    counted,
    png,
    stored_rows,
    versions,
    writable_folder,
    write_image,
    write_json,
    write_text,
)
from secondlook.types import Episode

_PAGES = Environment(loader=PackageLoader("secondlook"), autoescape=select_autoescape())
_PAGES.filters["counted"] = counted


def embed(image: Image.Image) -> str:
    """A picture as a data URL."""
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()


def page(template: str, **values: Any) -> str:
    """One of the package's HTML pages."""
    return _PAGES.get_template(template).render(versions=versions(), **values)


def episode_json(episode: Episode, settings: dict[str, Any]) -> dict[str, Any]:
    """An episode without its pictures."""
    round_rows = []
    for number, episode_round in enumerate(episode.rounds, 1):
        round_rows.append(
            {
                "image": f"round-{number}.png",
                "yes": episode_round.yes,
                "p_yes": episode_round.p_yes,
                "reason": episode_round.reason,
                "codes": list(episode_round.codes),
            }
        )
    return {
        "prompt": episode.prompt.text,
        "seed": episode.seed,
        "final": episode.final + 1,  # counted from 1, as in the pictures' names
        "rounds": round_rows,
        "settings": settings,
        "versions": versions(),
    }


def strip_of(episode: Episode) -> dict[str, Any]:
    """What the pages' templates show of an episode, its pictures as data URLs."""
    round_rows = []
    for episode_round in episode.rounds:
        round_rows.append(
            {
                "src": embed(episode_round.image),
                "yes": episode_round.yes,
                "p_yes": episode_round.p_yes,
                "reason": episode_round.reason,
            }
        )
    edited_image = episode.prompt.source
    return {
        "prompt": episode.prompt.text,
        "source": embed(edited_image) if edited_image else None,
        "seed": episode.seed,
        "final": episode.final,  # counted from 0, as loop.index0 of a template
        "rounds": round_rows,
    }


def filmstrip(episode: Episode) -> str:
    """An episode as a page: a row of its rounds."""
    return page("episode.html", strip=strip_of(episode))


def episode_strip(episode: Episode) -> str:
    """An episode as a piece of HTML that brings its own styles, for a notebook's cell."""
    return page("episode_strip.html", strip=strip_of(episode))


def write_episode(
    folder: Path, episode: Episode, settings: dict[str, Any], claimed: bool = True
) -> None:
    """Write round-N.png, final.png, of an edit source.png, episode.html and episode.json.

    An earlier episode's pictures are removed. ``claimed``: the folder is this process's alone
    until it ends.
    """
    writable_folder(folder, claimed)
    stale_files = [*folder.glob("round-*.png"), folder / "source.png", folder / "episode.json"]
    for stale_file in stale_files:
        stale_file.unlink(missing_ok=True)
    if episode.prompt.source:
        write_image(folder / "source.png", episode.prompt.source)
    for number, episode_round in enumerate(episode.rounds, 1):
        write_image(folder / f"round-{number}.png", episode_round.image)
    write_image(folder / "final.png", episode.image)
    write_text(folder / "episode.html", filmstrip(episode))
    # last: a folder with this file holds a whole episode
    write_json(folder / "episode.json", episode_json(episode, settings))


def episode_files(folder: Path) -> list[Path]:
    """The episode.json of a folder, else those of the folders in it: 1, 2, …, 10."""
    own_path = folder / "episode.json"
    if own_path.exists():
        return [own_path]
    in_folders = folder.glob("*/episode.json")
    return sorted(in_folders, key=lambda path: (len(path.parent.name), path.parent.name))


def curves(run_folder: Path, image_path: Path | None = None, names: Sequence[str] = ()) -> Path:
    """Plot the metrics ``names`` (default: all that more than one step has) of a run's
    metrics.jsonl over its steps, three in a row, into ``image_path`` (default: curves.png in the
    run's folder), which is returned."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = stored_rows(run_folder / "metrics.jsonl")
    names = names or _metric_names(rows)
    num_columns = min(3, max(1, len(names)))
    num_lines = -(-len(names) // num_columns)  # rounded up
    figure, axes = plt.subplots(
        num_lines, num_columns, figsize=(4.2 * num_columns, 2.8 * num_lines), squeeze=False
    )
    for unused_axis in axes.flat[len(names) :]:
        unused_axis.remove()
    for axis, name in zip(axes.flat, names, strict=False):
        # some metrics are not there in every row: an evaluation's, a warm-up's
        measured_rows = [row for row in rows if name in row]
        marker = "." if len(measured_rows) < 30 else None
        steps = [row["step"] for row in measured_rows]
        axis.plot(steps, [row[name] for row in measured_rows], marker=marker, lw=1.2)
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("step", fontsize=8)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    image_path = image_path or run_folder / "curves.png"
    figure.savefig(image_path, dpi=110)
    plt.close(figure)
    return image_path


def _metric_names(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The metrics that more than one of a run's rows has, in the order in which they first come."""
    num_rows: Counter[str] = Counter()
    for row in rows:
        num_rows.update(name for name in row if name not in ("step", "seconds"))
    return [name for name, count in num_rows.items() if count > 1]
