"""Options that commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from secondlook.types import InputError

console = Console(highlight=False)

Model = Annotated[str, typer.Option(help="A shipped model's name, a checkpoint folder, or a hub id.")]
Out = Annotated[Path, typer.Option(help="Folder for the results.")]
Seed = Annotated[int, typer.Option(help="Seed; equal seeds give equal results.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, …")]
Config = Annotated[Path, typer.Option("--config", help="TOML file of the job.")]
Set = Annotated[list[str], typer.Option("--set", help="key=value, overrides the file.")]


def load_engine(model: str, device: str = "cpu", batch: int = 64):
    """The engine of a shipped model, a folder or a hub id."""
    from secondlook.engine.decode import Engine
    from secondlook.model.janus import Janus

    return Engine(Janus.load(model, device), batch)


def at_least(name: str, value: int, least: int = 1) -> None:
    if value < least:
        raise InputError(f"{name}: {value} is too few; it must be at least {least}")
