"""A folder of ``draw`` or ``edit``: one command's episodes, and no other's."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

from secondlook.errors import InputError
from secondlook.io import read_json, same_config, writable_folder
from secondlook.report import episode_files

CONFIG = "config.json"


def open_drawn_folder(out: Path | None, default: Path, config: dict[str, Any]) -> Path:
    """The folder for the episodes of ``config`` (as in ``check_drawn_folder``), which is this
    process's then: ``out``, or where there is none ``default``, ``default``-2, …, the first that
    holds no other command's. Raises InputError where ``out`` does."""
    if out is not None:
        writable_folder(out)
        check_drawn_folder(out, config)
        return out
    for number in count(1):
        numbered = default if number == 1 else default.with_name(f"{default.name}-{number}")
        try:
            check_drawn_folder(numbered, config)
        except InputError:
            continue
        return writable_folder(numbered)
    raise AssertionError("count has no end")


def check_drawn_folder(out: Path, config: dict[str, Any]) -> None:
    """Refuse a folder that holds another command's results. ``config`` is what a command's
    episodes depend on: "command" ("draw" or "edit"), its settings, and of an edit "image_digest";
    the image itself may have moved. Raises InputError."""
    if (out / CONFIG).exists():
        old_config = read_json(out / CONFIG, dict)
        if old_config.get("command") != config["command"]:
            raise InputError(f"out: {str(out)!r} is the folder of another job; use another folder")
        same_config(out, config, may_change=("image", "image_digest"))
        if old_config.get("image_digest") != config.get("image_digest"):
            raise InputError(
                f"image: {config['image']!r} is another picture than the one that {str(out)!r} was "
                "begun with; bring that back, or use another folder"
            )
    elif any(_is_own(path, out) for path in episode_files(out)):
        raise InputError(
            f"out: {str(out)!r} holds episodes of unknown settings, which would be lost; use "
            "another folder"
        )


def _is_own(episode_path: Path, out: Path) -> bool:
    """Whether a command that writes to ``out`` may have written this episode.json."""
    return episode_path.parent == out or episode_path.parent.name.isdigit()
