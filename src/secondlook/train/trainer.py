"""What every training job shares: a folder with its config, metrics, TensorBoard, and a state from
which it resumes exactly.

A job's data depends only on (seed, step), so the state is: weights, optimizer, step. It is written
by torch.distributed's checkpoint, each rank its parts, under a temporary name and renamed; it can
be resumed on another number of ranks. A killed job loses at most ``save_every`` steps and ends with
the weights of an uninterrupted one.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch.distributed.checkpoint as dcp
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch.distributed.checkpoint.api import CheckpointException

from secondlook.errors import InputError
from secondlook.io import (
    append_rows,
    finite,
    read_json,
    same_config,
    stored_rows,
    versions,
    writable_folder,
    write_text,
)
from secondlook.train.distributed import Ranks
from secondlook.train.state_files import load_state
from secondlook.train.termination import EndRequest, Saved

STATES, ORIGIN = "states", "origin.json"
MAY_CHANGE = ("steps", "device", "threads", "micro", "dtype", "shard", "log_every", "save_every")
"""Settings that a resumed run may have other values of: how long, on what, and how often it is
written down."""


def folder_of(out: Path, step: int) -> Path:
    return out / STATES / f"step-{step:08d}"


def saved_steps(out: Path) -> list[int]:
    """Steps of which a folder holds a whole state, in order."""
    named = (re.fullmatch(r"step-(\d{8,})", p.name) for p in (out / STATES).glob("step-*"))
    return sorted(int(found[1]) for found in named if found)


@contextmanager
def quiet() -> Iterator[None]:
    """Without torch's remark that a run of one has no process group."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is")
        yield


class Stateful(Protocol):
    def state_dict(self) -> Any: ...
    def load_state_dict(self, state: Any) -> Any: ...


class Trainer:
    """One training job's folder. ``state`` maps names to whatever has a state_dict."""

    def __init__(
        self,
        out: str | Path,
        config: Any,
        state: dict[str, Stateful],
        may_change: tuple[str, ...] = (),
        ranks: Ranks = Ranks(),
        start: str = "",
    ):
        """``start``: the fingerprint of the weights that the run begins with (and has as its
        reference).

        Raises InputError where a stored state does not fit the config, or those weights have
        changed.
        """
        self.out, self.state, self.ranks = Path(out), state, ranks
        self.config = json.loads(json.dumps(asdict(config)))  # as it will be read back
        self.step = 0
        self.keep: Callable[[], tuple[int, ...]] = tuple
        writable_folder(self.out)
        if ranks.first:
            for torn in (self.out / STATES).glob(
                "*.tmp"
            ):  # of a process that was killed while it wrote
                shutil.rmtree(torn, ignore_errors=True)
        if saved_steps(self.out):
            same_config(self.out, self.config, may_change)
            self._same_origin(start)
            self.resume()
        ranks.wait()
        if ranks.first:
            write_text(self.out / "config.json", json.dumps(self.config, indent=1))
            write_text(
                self.out / ORIGIN, json.dumps({"start": start, "versions": versions()}, indent=1)
            )
            self._trim_metrics()

    def _same_origin(self, start: str) -> None:
        """The weights that a run began with are still the same; other versions of what it runs on
        are only worth a word."""
        path = self.out / ORIGIN
        before: dict[str, Any] = (
            read_json(path, dict) if path.exists() else {"start": start, "versions": versions()}
        )
        if not isinstance(before.get("start"), str) or not isinstance(before.get("versions"), dict):
            raise InputError(
                f"config: {str(path)!r} is not what a run writes; begin in another folder"
            )
        if before["start"] != start:
            raise InputError(
                f"config: the weights of model {self.config.get('model')!r} are not those that "
                f"{self.out} was begun with; "
                "bring those back, or use another folder"
            )
        other = [f"{n} {was}" for n, was in before["versions"].items() if versions().get(n) != was]
        if other:
            warnings.warn(
                f"{self.out} was begun with {', '.join(other)}: it goes on, perhaps not to the bit",
                stacklevel=3,
            )

    def resume(self, step: int | None = None) -> None:
        """Take over the state of ``step``, default the last one; a state that cannot be read is
        passed over for the one before.

        Raises InputError where none can be read.
        """
        for found in [step] if step is not None else reversed(saved_steps(self.out)):
            parts = {name: part.state_dict() for name, part in self.state.items()} | {"step": 0}
            problem = ""
            try:
                with quiet():
                    load_state(parts, folder_of(self.out, found), self.ranks.size == 1)
            except (Exception, CheckpointException) as error:  # the latter is none of the former
                first = next(iter(getattr(error, "failures", {0: (error,)}).values()))[0]
                problem = (str(first) or repr(first)).splitlines()[0]
            if not any(self.ranks.gather(problem)):
                for name, part in self.state.items():
                    part.load_state_dict(parts[name])
                self.step = parts["step"]
                return
            warnings.warn(f"{folder_of(self.out, found)} cannot be read ({problem})", stacklevel=2)
        raise InputError(
            f"out: no state in {str(self.out / STATES)!r} can be read; delete it to begin anew, "
            "or use another folder"
        )

    def _trim_metrics(self) -> None:
        path = self.out / "metrics.jsonl"
        if path.exists():
            rows = [row for row in stored_rows(path) if finite(row.get("step"), 0, self.step)]
            write_text(path, "".join(json.dumps(row) + "\n" for row in rows))

    def forget_later(self) -> None:
        """Take away what is of later steps than the run is at, after it has gone back and been
        saved."""
        if self.ranks.first:
            for later in (s for s in saved_steps(self.out) if s > self.step):
                shutil.rmtree(folder_of(self.out, later))
            self._trim_metrics()
        self.ranks.wait()

    def save(self) -> None:
        """Write the state: whole under a temporary name, then renamed. The last two are kept, and
        those of ``keep``."""
        parts = {name: part.state_dict() for name, part in self.state.items()} | {"step": self.step}
        final = folder_of(self.out, self.step)
        temporary = final.with_name(final.name + ".tmp")
        if self.ranks.first:
            shutil.rmtree(temporary, ignore_errors=True)
        self.ranks.wait()
        try:
            with quiet():
                dcp.save(parts, checkpoint_id=temporary, no_dist=self.ranks.size == 1)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        if self.ranks.first:
            if final.exists():
                shutil.rmtree(final)
            os.replace(temporary, final)
            for old in saved_steps(self.out)[:-2]:
                if old not in self.keep():
                    shutil.rmtree(folder_of(self.out, old))
        self.ranks.wait()

    def loop(
        self,
        steps: int,
        step: Callable[[int], dict[str, float]],
        *,
        log_every: int,
        save_every: int,
        every: dict[int, Callable[[int], dict[str, float]]] | None = None,
        watch: Callable[[dict[str, float], bool], bool] | None = None,
    ) -> None:
        """Run ``step`` for steps self.step … steps-1, logging the mean of its metrics; ``every``
        maps a period to a probe. ``watch`` is told each step's metrics and whether the state will
        be written, and may act and write it itself, at whatever step: then it returns True. Raises
        Saved after a step during which one of the ranks was asked to end."""
        from torch.utils.tensorboard import SummaryWriter

        board = (
            SummaryWriter(str(self.out / "tensorboard"), purge_step=self.step)
            if self.ranks.first
            else None
        )
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        sums: dict[str, float] = {}
        counts: dict[str, int] = {}
        began = time.perf_counter()
        written = closing(board) if board else nullcontext()
        with (
            written,
            Progress(*columns, disable=not self.ranks.first) as progress,
            EndRequest() as request,
        ):
            bar = progress.add_task(self.out.name, total=steps, completed=self.step)
            while self.step < steps:
                found = step(self.step)
                for name, value in found.items():
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
                    if board:
                        rounded = {k: float(f"{v:.6g}") for k, v in row.items()}
                        append_rows(self.out / "metrics.jsonl", [{"step": self.step} | rounded])
                        for name, value in row.items():
                            board.add_scalar(name, value, self.step)
                    shown = " ".join(f"{k} {v:.3g}" for k, v in list(row.items())[:3])
                    progress.update(bar, description=f"{self.out.name} {shown}")
                asked = any(self.ranks.gather(request.came))
                due = self.step % save_every == 0 or self.step == steps
                if watch and watch(found, due):
                    sums, counts = {}, {}
                elif due or asked:
                    self.save()
                progress.update(bar, completed=self.step)
                if asked and self.step < steps:
                    raise Saved(
                        f"asked to end; {self.out} has the state of step {self.step}, and the "
                        "same command goes on"
                    )


def schedule(step: int, steps: int, warmup: int, floor: float = 0.0) -> float:
    """Learning-rate factor: linear warm-up, then cosine to ``floor``."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
