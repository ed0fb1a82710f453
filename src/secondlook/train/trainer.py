"""What every training job shares: a folder with its config, its metrics, and states from which it
resumes exactly.

A job's data depends only on (seed, step), so its state is that of its parts (weights, optimizer …)
and the number of finished steps. A killed job loses at most ``save_every`` steps and ends with the
weights of an uninterrupted one; it may go on with another number of ranks (``train base`` then has
other sequences).
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch.distributed.checkpoint.api import CheckpointException

from secondlook.end_request import EndRequest
from secondlook.errors import InputError, tell_user
from secondlook.io import (
    append_rows,
    finite,
    read_json,
    same_config,
    stored_rows,
    versions,
    writable_folder,
    write_json,
    write_text,
)
from secondlook.train.distributed import ProcessGroup
from secondlook.train.job_config import MAY_CHANGE, BasicRuntimeConfig
from secondlook.train.state_files import (
    STATES,
    load_state,
    remove_torn_states,
    save_state,
    saved_steps,
    state_folder,
)
from secondlook.train.termination import Saved
from secondlook.train.trackers import CaptionedImage, Tracker, check_trackers, open_trackers

CONFIG, METRICS, ORIGIN = "config.json", "metrics.jsonl", "origin.json"
"""Files of a run's folder; ORIGIN says what the run began with."""
LAYOUT = 2
"""Version of the folder; changes where states of an earlier one cannot be read any more."""
STATES_KEPT = 2
"""How many of the last states stay; those of ``keep_steps`` stay too."""


class Stateful(Protocol):
    """A part of a job with a state of its own: a network, an optimizer …"""

    def state_dict(self) -> Any: ...
    def load_state_dict(self, state: Any) -> Any: ...


class JobConfig(Protocol):
    """A dataclass with a section ``runtime``."""

    @property
    def runtime(self) -> BasicRuntimeConfig: ...


def set_up_process(runtime: BasicRuntimeConfig) -> None:
    """What a job does before it loads a model. Raises InputError for a tracker whose library is
    not installed."""
    check_trackers(runtime.report_to)
    torch.set_num_threads(runtime.threads)


class Trainer:
    """One training job's folder, and the steps that are left of the job. The job has its own loop:

    trainer = Trainer(out, config, {"net": net, "optimizer": optimizer})
    for step in trainer.steps(config.steps):
        trainer.finish_step(job.step(step))
    """

    def __init__(
        self,
        out: str | Path,
        config: JobConfig,
        parts: Mapping[str, Stateful],
        ranks: ProcessGroup = ProcessGroup(),
        weights: str = "",
        keep_steps: Callable[[], Iterable[int]] = tuple,
    ):
        """``out`` is made, or resumed from its last state. ``parts``: names to whatever has a
        state_dict. ``weights``: the fingerprint of the checkpoint that the job starts from.
        ``keep_steps`` gives the steps whose states must not be removed.

        Raises InputError where a stored state does not fit the config, or the checkpoint has
        changed since.
        """
        self.out, self.parts, self.ranks, self.keep_steps = Path(out), parts, ranks, keep_steps
        self.runtime = config.runtime
        self.config: dict[str, Any] = json.loads(json.dumps(asdict(config)))  # type: ignore[call-overload]
        self.step = 0
        """Steps that are finished."""
        self._last_step = 0
        self._present_step = 0
        """The step that the loop is in, counted from 1."""
        self._is_finished = True
        """Whether the job has called finish_step in it."""
        self._saved_step: int | None = None
        """The last step whose state this process wrote."""
        self._averages = _Averages()
        self._trackers: list[Tracker] = []
        self._shown_metrics = ""
        """Beside the progress bar."""
        check_trackers(self.runtime.report_to)
        self._open_folder(weights)

    # --- the loop ---

    def steps(self, last_step: int) -> Iterator[int]:
        """Numbers (from 0) of the steps that are left of ``last_step``. After each one, which the
        job ends by ``finish_step``, the state is written where it is due.

        Raises Saved after a step during which one of the ranks was asked to end.
        """
        self._last_step = last_step
        with ExitStack() as stack:
            progress = stack.enter_context(_progress_bar(self.ranks.is_main))
            end_request = stack.enter_context(EndRequest())
            self._open_trackers(stack)
            self._averages.clear()
            bar = progress.add_task(self.out.name, total=last_step, completed=self.step)
            while self.step < last_step:
                self._present_step, self._is_finished = self.step + 1, False
                yield self.step
                if not self._is_finished:
                    raise RuntimeError("a job must call finish_step in each of its steps")
                # where one rank was asked, all leave after the same step
                is_asked = any(self.ranks.all_gather(end_request.came))
                is_due = is_asked or self.due(self.runtime.save_every)
                if is_due and self._saved_step != self.step:  # the job may have saved it itself
                    self.save()
                description = f"{self.out.name} {self._shown_metrics}"
                progress.update(bar, description=description, completed=self.step)
                if is_asked and self.step < last_step:
                    raise Saved(
                        f"asked to end; {self.out} has the state of step {self.step}, and the "
                        "same command goes on"
                    )

    def leave_step(self) -> NoReturn:
        """Give up the present step, which has changed nothing yet, because the run was asked to
        end: the same command does it again from its beginning, to the same bits.

        Raises Saved; the state is that of the finished steps.
        """
        if self.step and self.step not in saved_steps(self.out):
            self.save()
        state = f"{self.out} has the state of step {self.step}" if self.step else "no step is done"
        raise Saved(
            f"asked to end amid step {self.step + 1}, which is given up; {state}, and the same "
            "command goes on"
        )

    def due(self, period: int) -> bool:
        """Whether the present step is one of every ``period``, or the last one."""
        return self._present_step % period == 0 or self._present_step == self._last_step

    def finish_step(
        self, metrics: Mapping[str, float], probes: Mapping[str, float] | None = None
    ) -> None:
        """Count the step as done. ``metrics`` are averaged over ``log_every`` steps; ``probes`` are
        of this step alone, and are written at once."""
        self.step += 1
        self._is_finished = True
        self._averages.add(metrics)
        row: dict[str, float] = {}
        if self.due(self.runtime.log_every):
            row |= self._averages.take()
        row |= probes or {}
        if not row:
            return
        first_metrics = list(row.items())[:3]
        self._shown_metrics = " ".join(f"{name} {value:.3g}" for name, value in first_metrics)
        if self.ranks.is_main:
            rounded_row = {name: float(f"{value:.6g}") for name, value in row.items()}
            append_rows(self.out / METRICS, [{"step": self.step} | rounded_row])
        for tracker in self._trackers:
            tracker.log_metrics(row, self.step)

    def log_images(self, name: str, images: Sequence[CaptionedImage]) -> None:
        """Send pictures of the present step to the trackers."""
        for tracker in self._trackers:
            tracker.log_images(name, images, self.step)

    def _open_trackers(self, stack: ExitStack) -> None:
        if self.ranks.is_main:
            self._trackers = open_trackers(self.runtime.report_to, self.out, self.config, self.step)
        stack.callback(self._close_trackers)

    def _close_trackers(self) -> None:
        for tracker in self._trackers:
            tracker.close()
        self._trackers = []

    # --- states ---

    def save(self) -> None:
        """Write the state of the finished steps. The last states are kept, and those of
        ``keep_steps``."""
        save_state(self._state(), state_folder(self.out, self.step), self.ranks)
        self._saved_step = self.step
        if self.ranks.is_main:
            needed_steps = set(self.keep_steps())
            for old_step in saved_steps(self.out)[:-STATES_KEPT]:
                if old_step not in needed_steps:
                    shutil.rmtree(state_folder(self.out, old_step))

    def load(self, step: int | None = None) -> None:
        """Take over the state of ``step``, by default the last one; a state that cannot be read is
        passed over for the one before.

        Raises InputError where none can be read.
        """
        candidates = [step] if step is not None else reversed(saved_steps(self.out))
        for candidate in candidates:
            folder = state_folder(self.out, candidate)
            state = self._state()
            problem = ""
            try:
                load_state(state, folder, self.ranks)
            except (Exception, CheckpointException) as error:  # the latter is none of the former
                problem = _first_line(error)
            # all ranks take over the same state: one that all of them could read
            if not any(self.ranks.all_gather(problem)):
                for name, part in self.parts.items():
                    part.load_state_dict(state[name])
                self.step = state["step"]
                return
            tell_user(f"{folder} cannot be read ({problem})")
        raise InputError(
            f"out: no state in {str(self.out / STATES)!r} can be read; delete it to begin anew, "
            "or use another folder"
        )

    def forget_later_steps(self) -> None:
        """Remove states and metrics of later steps than the present one, after ``load`` went back
        to it and it was saved."""
        self._averages.clear()
        if self.ranks.is_main:
            for step in saved_steps(self.out):
                if step > self.step:
                    shutil.rmtree(state_folder(self.out, step))
            self._trim_metrics()
        self.ranks.barrier()

    def _state(self) -> dict[str, Any]:
        """State dicts of all parts, and the number of finished steps."""
        state = {name: part.state_dict() for name, part in self.parts.items()}
        return state | {"step": self.step}

    # --- the folder ---

    def _open_folder(self, weights: str) -> None:
        writable_folder(self.out)
        if self.ranks.is_main:
            remove_torn_states(self.out)
        if saved_steps(self.out):
            self._check_origin(weights)
            same_config(self.out, self.config, MAY_CHANGE)
            self.load()
        self.ranks.barrier()
        if self.ranks.is_main:
            origin = {"layout": LAYOUT, "weights": weights, "versions": versions()}
            write_json(self.out / CONFIG, self.config)
            write_json(self.out / ORIGIN, origin)
            self._trim_metrics()

    def _check_origin(self, weights: str) -> None:
        """Whether the folder can be gone on with: its layout and the weights that the run began
        with. Other versions of what it runs on are only worth a warning. Raises InputError."""
        origin_path = self.out / ORIGIN
        origin: dict[str, Any] = {}
        if origin_path.exists():
            origin = read_json(origin_path, dict)
        if origin.get("layout") != LAYOUT:
            raise InputError(
                f"out: {str(self.out)!r} was begun by another version of secondlook, whose states "
                "this one does not read; begin anew in another folder"
            )
        has_weights = isinstance(origin.get("weights"), str)
        if not has_weights or not isinstance(origin.get("versions"), dict):
            raise InputError(
                f"config: {str(origin_path)!r} is not what a run writes; begin in another folder"
            )
        if origin["weights"] != weights:
            raise InputError(
                f"config: the weights or settings of model {self.config.get('model')!r} are not "
                f"those that {self.out} was begun with; bring those back, or use another folder"
            )
        present_versions = versions()
        changed_versions = []
        for name, version in origin["versions"].items():
            if present_versions.get(name) != version:
                changed_versions.append(f"{name} {version}")
        if changed_versions and self.ranks.is_main:
            tell_user(
                f"{self.out} was begun with {', '.join(changed_versions)}: it goes on, perhaps not "
                "to the bit"
            )

    def _trim_metrics(self) -> None:
        """Remove rows of later steps than the present one, and torn lines."""
        metrics_path = self.out / METRICS
        if not metrics_path.exists():
            return
        kept_lines = []
        for row in stored_rows(metrics_path):
            if finite(row.get("step"), 0, self.step):
                kept_lines.append(json.dumps(row) + "\n")
        write_text(metrics_path, "".join(kept_lines))


class _Averages:
    """Means of metrics, each over the steps that had it."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self.start_seconds = time.perf_counter()

    def add(self, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """The means, and the seconds that the steps took; then a new average begins."""
        means = {name: total / self.counts[name] for name, total in self.sums.items()}
        means["seconds"] = time.perf_counter() - self.start_seconds
        self.clear()
        return means


def _progress_bar(is_shown: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        disable=not is_shown,
    )


def _first_line(error: BaseException) -> str:
    """What an error says, in one line; of torch's checkpoint errors, what the first rank said."""
    cause = error
    failures = getattr(error, "failures", None)  # by rank: (error, traceback)
    if failures:
        cause = next(iter(failures.values()))[0]
    return (str(cause) or repr(cause)).splitlines()[0]
