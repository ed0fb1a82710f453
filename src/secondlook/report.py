"""Episodes and results as folders that a person can open: JSON, pictures and self-contained
HTML."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape
from PIL import Image

from secondlook.io import (
    claim,
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


def embed(image: Image.Image) -> str:
    """A picture as a data URL."""
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()


def page(template: str, **values: Any) -> str:
    """One of the package's HTML pages."""
    return _PAGES.get_template(template).render(versions=versions(), **values)


def episode_json(episode: Episode, settings: dict[str, Any]) -> dict[str, Any]:
    """An episode without its pictures."""
    rounds = [
        {
            "image": f"round-{i}.png",
            "yes": r.yes,
            "p_yes": r.p_yes,
            "reason": r.reason,
            "codes": list(r.codes),
        }
        for i, r in enumerate(episode.rounds, 1)
    ]
    return {
        "prompt": episode.prompt.text,
        "seed": episode.seed,
        "final": episode.final + 1,
        "rounds": rounds,
        "settings": settings,
        "versions": versions(),
    }


def _strip(episode: Episode) -> dict[str, Any]:
    """What the pages' templates show of an episode, its pictures as data URLs."""
    rounds = [
        {"src": embed(r.image), "yes": r.yes, "p_yes": r.p_yes, "reason": r.reason}
        for r in episode.rounds
    ]
    source = episode.prompt.source
    return {
        "prompt": episode.prompt.text,
        "source": embed(source) if source else None,
        "seed": episode.seed,
        "final": episode.final,
        "rounds": rounds,
    }


def filmstrip(episodes: list[Episode], title: str) -> str:
    """Episodes as one page: a row of rounds each."""
    return page("episode.html", title=title, strips=[_strip(e) for e in episodes])


def episode_strip(episode: Episode) -> str:
    """An episode as a piece of HTML that brings its own styles, for a notebook's cell."""
    return page("episode_strip.html", strip=_strip(episode))


EPISODE_FILES = ("episode.json", "episode.html", "final.png", "source.png", "round-*.png")


def forget_episodes(folder: Path) -> None:
    """Remove the episodes that earlier calls wrote to ``folder`` and its numbered folders, so that
    none is taken for a new one's. Other files stay."""
    for place in (folder, *(p for p in folder.glob("*") if p.name.isdigit())):
        if (place / "episode.json").is_file():
            claim(place)
            for pattern in EPISODE_FILES:
                for stale in place.glob(pattern):
                    stale.unlink()


def write_episode(
    folder: Path, episode: Episode, settings: dict[str, Any], claimed: bool = True
) -> None:
    """round-N.png, final.png, of an edit source.png, episode.html and, last, episode.json. An
    earlier episode's pictures are removed. ``claimed``: the folder is this process's alone until
    it ends."""
    writable_folder(folder, claimed)
    for stale in (*folder.glob("round-*.png"), folder / "source.png", folder / "episode.json"):
        stale.unlink(missing_ok=True)
    if episode.prompt.source:
        write_image(folder / "source.png", episode.prompt.source)
    for i, r in enumerate(episode.rounds, 1):
        write_image(folder / f"round-{i}.png", r.image)
    write_image(folder / "final.png", episode.image)
    write_text(folder / "episode.html", filmstrip([episode], episode.prompt.text))
    write_json(folder / "episode.json", episode_json(episode, settings))


def curves(folder: Path, path: Path | None = None, names: Sequence[str] = ()) -> Path:
    """Plot ``names`` (default: all) of a run's metrics.jsonl into ``path`` (default: curves.png in
    the run's folder)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = stored_rows(folder / "metrics.jsonl")
    names = names or [
        n for n in dict.fromkeys(k for row in rows for k in row) if n not in ("step", "seconds")
    ]
    columns = min(3, max(1, len(names)))
    lines = -(-len(names) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(4.2 * columns, 2.8 * lines), squeeze=False)
    for axis in axes.flat[len(names) :]:
        axis.remove()
    for axis, name in zip(axes.flat, names, strict=False):
        points = [(row["step"], row[name]) for row in rows if name in row]
        axis.plot(*zip(*points, strict=True), marker="." if len(points) < 30 else None, lw=1.2)
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("step", fontsize=8)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    path = path or folder / "curves.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
