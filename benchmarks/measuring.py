"""Clock, memory and the settings of a result: what the timing scripts share."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from secondlook.io import write_json


def clock(device: str) -> float:
    """Seconds, when all work given to a GPU is done."""
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def process_bytes(key: str) -> int:
    """Memory of this process, by a line of /proc/self/status: ``VmRSS:`` now, ``VmHWM:`` at
    most."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(key)[1].split()[0]) * 1024  # it is written in kB


def watch(device: str) -> Callable[[], int]:
    """Start to watch memory; the returned function says the peak since then, less what was used
    before, in bytes."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        bytes_before = torch.cuda.memory_allocated()
        return lambda: torch.cuda.max_memory_allocated() - bytes_before
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to what is used now
    bytes_before = process_bytes("VmRSS:")
    return lambda: process_bytes("VmHWM:") - bytes_before


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """The command line's arguments as JSON has them: paths as text."""
    settings = {}
    for name, value in vars(args).items():
        settings[name] = str(value) if isinstance(value, Path) else value
    return settings


def write_result(path: Path | None, result: Any) -> None:
    """Write a result to ``--json``'s file, where one was given."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, result)
