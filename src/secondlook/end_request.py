"""Whether this process was asked to save and end; whoever waits for something looks here."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any, ClassVar

from secondlook.errors import Stopped

LONGEST_SLEEP = 0.25
"""Seconds until a sleeping wait notices that it was asked to end."""


class EndRequested(Stopped):
    """A run was asked to end while it waited for somebody else."""


class EndRequest:
    """Whether this process was asked to save and end, from ``with`` on: by SIGUSR1, or without
    torchrun by SIGTERM too, whose second one ends it at once. (torchrun sends SIGTERM to the ranks
    that are left when one has failed: those must not wait for it.) ``loading``: around a job that
    has nothing to save yet; what comes there is known to the request inside it."""

    around: ClassVar[EndRequest | None] = None

    def __init__(self, loading: bool = False) -> None:
        self.came = False
        self.outer: EndRequest | None = None
        self.loading = loading
        self.signals: list[signal.Signals] = []
        if hasattr(signal, "SIGUSR1"):  # Windows has none
            self.signals.append(signal.SIGUSR1)
        if not loading and "TORCHELASTIC_RUN_ID" not in os.environ:
            self.signals.append(signal.SIGTERM)
        self.handlers_before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> EndRequest:
        self.outer, EndRequest.around = EndRequest.around, self
        self.came = self.outer is not None and self.outer.came
        with suppress(ValueError):  # only a process's main thread is told of signals
            for listened in self.signals:
                self.handlers_before[listened] = signal.signal(listened, self._note)
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        EndRequest.around = self.outer
        for listened, handler in self.handlers_before.items():
            signal.signal(listened, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        """The handler: remembers that the signal came. A second SIGTERM ends the process."""
        if self.came and number == signal.SIGTERM:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if not self.came and os.environ.get("RANK", "0") == "0":  # one rank tells it
            step = "the first step" if self.loading else "this step"
            at_once = ", a second TERM ends at once" if signal.SIGTERM in self.signals else ""
            line = f"secondlook: asked to end; saves after {step}{at_once}\n"
            with suppress(OSError):  # Python's own stderr may be amid a line in a handler
                os.write(2, line.encode())
        self.came = True


class TermInterrupts:
    """From ``with`` on, SIGTERM interrupts as Ctrl-C does (KeyboardInterrupt) and is noted in
    ``came``; a second one ends the process at once. A job that saves at TERM listens itself
    (``EndRequest``). Under torchrun nothing is changed: it sends SIGTERM to ranks that it gives
    up."""

    def __init__(self) -> None:
        self.came = False
        self.process = os.getpid()
        self.handler_before: Any = None

    def __enter__(self) -> TermInterrupts:
        is_default = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        if is_default and "TORCHELASTIC_RUN_ID" not in os.environ:
            with suppress(ValueError):  # only a process's main thread is told of signals
                self.handler_before = signal.signal(signal.SIGTERM, self._interrupt)
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.handler_before is not None:
            signal.signal(signal.SIGTERM, self.handler_before)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        if os.getpid() != self.process:  # a worker that was forked off ends as workers do
            os.kill(os.getpid(), number)
        self.came = True
        raise KeyboardInterrupt


def end_requested() -> bool:
    """Whether the job around was asked to save and end; no, where no job listens."""
    return EndRequest.around is not None and EndRequest.around.came


async def sleep_unless_asked_to_end(seconds: float) -> None:
    """Sleep. Raises EndRequested as soon as the job around is asked to end."""
    event_loop = asyncio.get_running_loop()
    wakes_at = event_loop.time() + seconds
    while True:
        if end_requested():
            raise EndRequested("asked to end while it waited")
        seconds_left = wakes_at - event_loop.time()
        if seconds_left <= 0:
            return
        await asyncio.sleep(min(seconds_left, LONGEST_SLEEP))
