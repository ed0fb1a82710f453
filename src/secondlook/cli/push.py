"""A checkpoint to the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secondlook.cli.common import say


def push(
    folder: Annotated[
        str, typer.Argument(help="A checkpoint's folder, or a run's, whose final is taken.")
    ],
    repo: Annotated[str, typer.Argument(help="Where to on the hub: owner/name.")],
    results: Annotated[
        list[Path],
        typer.Option(help="result.json of `secondlook eval`, or its folder; for the card."),
    ] = [],  # noqa: B006
    license_: Annotated[
        str,
        typer.Option(
            "--license", help="The weights' licence, as mit; default: the base's if known."
        ),
    ] = "",
    private: Annotated[
        bool, typer.Option("--private", help="Make a new repository private.")
    ] = False,
    dry_run: Annotated[
        Path | None,
        typer.Option(help="Write what would be uploaded to this new folder, and upload nothing."),
    ] = None,
) -> None:
    """Upload a checkpoint with a model card made of its run's settings and of results."""
    from secondlook import hub

    destination = hub.push(folder, repo, results, license_, private, dry_run)
    say(f"written to {destination}" if dry_run else f"uploaded to {destination}")
