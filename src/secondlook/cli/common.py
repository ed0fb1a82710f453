"""Options that commands share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from secondlook.types import InputError

console = Console(highlight=False, quiet=os.environ.get("RANK", "0") != "0")  # of torchrun's ranks the first speaks

Model = Annotated[str, typer.Option(help="A shipped model's name, a checkpoint folder, or a hub id.")]
Out = Annotated[Path, typer.Option(help="Folder for the results.")]
Seed = Annotated[int, typer.Option(help="Seed; equal seeds give equal results.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, …")]
Dtype = Annotated[
    str, typer.Option(help="float32, bfloat16, float16; auto: float32 on a CPU, else as stored; int8: small weights.")
]
Attention = Annotated[str, typer.Option(help="sdpa or eager.")]
Config = Annotated[Path, typer.Option("--config", help="TOML file of the job.")]
Set = Annotated[list[str], typer.Option("--set", help="key=value, overrides the file.")]


DTYPES = ("auto", "float32", "bfloat16", "float16", "int8")


def own_device(device: str) -> str:
    """Of several processes each has a GPU of its own, as far as there are as many."""
    import torch

    gpus, rank = torch.cuda.device_count(), os.environ.get("LOCAL_RANK")
    return f"cuda:{int(rank) % gpus}" if device == "cuda" and rank and gpus else device


def load_engine(model: str, device: str = "cpu", batch: int = 64, dtype: str = "auto", attention: str = "sdpa"):
    """The engine of a shipped model, a folder or a hub id."""
    import torch

    from secondlook.engine.decode import Engine
    from secondlook.model.checkpoint import at_hand
    from secondlook.model.janus import Janus

    if dtype not in DTYPES:
        raise InputError(f"dtype: {dtype!r} is unknown; choose one of {', '.join(DTYPES)}")
    # half precision is many times slower than float32 on a CPU
    auto = torch.float32 if at_hand(device).type == "cpu" else None
    kind = auto if dtype in ("auto", "int8") else getattr(torch, dtype)
    janus = Janus.load(model, device, kind, attention)
    return Engine(janus.in_8_bits() if dtype == "int8" else janus, batch)


def at_least(name: str, value: int, least: int = 1) -> None:
    if value < least:
        raise InputError(f"{name}: {value} is too few; it must be at least {least}")
