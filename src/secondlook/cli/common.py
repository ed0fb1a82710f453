"""Options that commands share."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from secondlook.arguments import at_least as at_least

if TYPE_CHECKING:
    from secondlook import api
    from secondlook.engine.engine import Engine

CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]")
"""Characters that move a terminal's cursor or steer it, except the newline."""


def visible(text: str) -> str:
    """``text`` with control characters as Python's escapes (``\\t``, ``\\r``, ``\\x1b``); newlines
    stay."""
    return CONTROLS.sub(lambda match: repr(match.group())[1:-1], text)  # without the quotes


class VisibleConsole(Console):
    """Control characters of texts and of tables' cells are printed as escapes."""

    def render_str(self, text: str, **options: Any) -> Text:  # type: ignore[override]
        return super().render_str(visible(text), **options)


# Text is printed as users wrote it: no markup, no wrapping. Of torchrun's ranks the first speaks.
console = VisibleConsole(
    markup=False,
    highlight=False,
    emoji=False,
    soft_wrap=True,
    quiet=os.environ.get("RANK", "0") != "0",
)


def say(*parts: str | tuple[str, str]) -> None:
    """Print one line of texts, or of (text, style)."""
    line = Text()
    for part in parts:
        text, style = (part, "") if isinstance(part, str) else part
        line.append(visible(text), style)
    console.print(line)


NO_DATA = "no data"


def interval(measured: dict[str, float]) -> str:
    """A mean with its 95 % interval; `NO_DATA` where there was nothing to average, so that the mean
    is NaN."""
    if math.isnan(measured["mean"]):
        return NO_DATA
    return f"{measured['mean']:.3f} [{measured['low']:.3f}, {measured['high']:.3f}]"


def progress_bar() -> Progress:
    """A progress bar whose description is printed as it is."""
    bar_columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*bar_columns, console=console)


Model = Annotated[
    str, typer.Option(help="A shipped model's name, a checkpoint folder, or a hub id.")
]
Out = Annotated[Path, typer.Option(help="Folder for the results.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed; equal seeds give equal results.")]
Device = Annotated[
    str, typer.Option(help="auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:1, mps.")
]
Dtype = Annotated[
    str,
    typer.Option(
        help=(
            "float32, bfloat16, float16; auto: float32 on a CPU, half precision on a "
            "GPU; int8: small weights."
        )
    ),
]
Attention = Annotated[str, typer.Option(help="sdpa or eager.")]
Config = Annotated[Path, typer.Option("--config", help="TOML file of the job, or a recipe's name.")]
Set = Annotated[list[str], typer.Option("--set", help="key=value, overrides the file.")]


def own_device(device: str) -> str:
    """The device that a user's word means; of several processes each has a GPU of its own, as far
    as there are as many."""
    from secondlook.models.device import worker_device

    return str(worker_device(device))


def load_model(
    model: str,
    device: str = "auto",
    batch: int = 64,
    dtype: str = "auto",
    attention: str = "sdpa",
) -> api.Model:
    """A shipped model, a folder or a hub id; imports torch when it is called."""
    from secondlook import api

    return api.load(model, device, dtype, batch, attention)


def load_engine(
    model: str,
    device: str = "auto",
    batch: int = 64,
    dtype: str = "auto",
    attention: str = "sdpa",
) -> Engine:
    """The engine of ``load_model``."""
    return load_model(model, device, batch, dtype, attention).engine


def name_left_out(what: str, names: list[str], most: int = 5) -> None:
    """Print how many things were not used, and the first ones' names."""
    if names:
        others = f", and {len(names) - most} more" if len(names) > most else ""
        say(f"{what}: {len(names)} ({', '.join(names[:most])}{others})")
