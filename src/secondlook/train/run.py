"""What every training job shares: a folder with its config, metrics, TensorBoard, and a state from which it resumes exactly.

A job's data depends only on (seed, step), so the state is: weights, optimizer, step. Files are written under a temporary
name and renamed; a killed job loses at most ``save_every`` steps and ends with the weights of an uninterrupted one.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from secondlook.files import write_text
from secondlook.types import InputError


class Stateful(Protocol):
    def state_dict(self) -> Any: ...
    def load_state_dict(self, state: Any) -> Any: ...


class Run:
    """One training job's folder. ``state`` maps names to whatever has a state_dict."""

    def __init__(self, out: str | Path, config: Any, state: dict[str, Stateful], may_change: tuple[str, ...] = ()):
        self.out, self.state = Path(out), state
        self.config = json.loads(json.dumps(asdict(config)))  # as it will be read back
        self.step = 0
        self.out.mkdir(parents=True, exist_ok=True)
        stored = self.out / "config.json"
        if (self.out / "state.pt").exists():
            before = json.loads(stored.read_text())
            changed = sorted(k for k, v in self.config.items() if before.get(k) != v and k not in may_change)
            if changed:
                raise InputError(
                    f"config: {changed[0]} is {self.config[changed[0]]!r} but {out} was begun with "
                    f"{before.get(changed[0])!r}; use the same value to resume it, or another folder"
                )
            saved = torch.load(self.out / "state.pt", weights_only=True)
            for name, part in state.items():
                part.load_state_dict(saved[name])
            self.step = saved["step"]
        write_text(stored, json.dumps(self.config, indent=1))
        self._trim_metrics()

    def _trim_metrics(self) -> None:
        path = self.out / "metrics.jsonl"
        if path.exists():
            lines = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= self.step]
            write_text(path, "".join(line + "\n" for line in lines))

    def save(self) -> None:
        """Write the state."""
        parts = {name: part.state_dict() for name, part in self.state.items()} | {"step": self.step}
        torch.save(parts, self.out / "state.pt.tmp")
        os.replace(self.out / "state.pt.tmp", self.out / "state.pt")

    def loop(
        self,
        steps: int,
        step: Callable[[int], dict[str, float]],
        *,
        log_every: int,
        save_every: int,
        every: dict[int, Callable[[int], dict[str, float]]] | None = None,
    ) -> None:
        """Run ``step`` for steps self.step … steps-1, logging the mean of its metrics; ``every`` maps a period to a probe."""
        from torch.utils.tensorboard import SummaryWriter

        board = SummaryWriter(str(self.out / "tensorboard"), purge_step=self.step)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        sums: dict[str, float] = {}
        counts: dict[str, int] = {}
        began = time.perf_counter()
        with Progress(*columns) as progress, open(self.out / "metrics.jsonl", "a") as metrics:
            bar = progress.add_task(self.out.name, total=steps, completed=self.step)
            while self.step < steps:
                for name, value in step(self.step).items():
                    sums[name] = sums.get(name, 0.0) + value
                    counts[name] = counts.get(name, 0) + 1
                self.step += 1
                row: dict[str, float] = {}
                if self.step % log_every == 0 or self.step == steps:
                    row |= {name: sums[name] / counts[name] for name in sums}
                    row["seconds"] = time.perf_counter() - began
                    sums, counts, began = {}, {}, time.perf_counter()
                for period, probe in (every or {}).items():
                    if self.step % period == 0 or self.step == steps:
                        row |= probe(self.step)
                if row:
                    metrics.write(json.dumps({"step": self.step} | {k: float(f"{v:.6g}") for k, v in row.items()}) + "\n")
                    metrics.flush()
                    for name, value in row.items():
                        board.add_scalar(name, value, self.step)
                    shown = " ".join(f"{k} {v:.3g}" for k, v in list(row.items())[:3])
                    progress.update(bar, description=f"{self.out.name} {shown}")
                if self.step % save_every == 0 or self.step == steps:
                    self.save()
                progress.update(bar, completed=self.step)
        board.close()


def schedule(step: int, steps: int, warmup: int, floor: float = 0.0) -> float:
    """Learning-rate factor: linear warm-up, then cosine to ``floor``."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
