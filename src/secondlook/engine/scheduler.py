"""Which tasks begin, which sequences enter the batch, and who gets what has come out of it.

Tasks under way go first; new ones begin as places fall free, so that judging and redrawing run
beside drawing in one batch. Decisions depend on what was submitted and on the number of steps,
never on the time, so that the same submissions give the same batches.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from secondlook.engine.capacity import REFILL
from secondlook.engine.handle import Handle
from secondlook.engine.image_codec import ImageCodec
from secondlook.engine.requests import DecodeImage, EncodeImage, GenerateRequest, Task
from secondlook.engine.sequence import CachedPrefix, Sequence, StepOutput
from secondlook.errors import Stopped
from secondlook.types import ImageInput, Request, Turn

T = TypeVar("T")
OnTokens = Callable[[Request, tuple[int, ...]], None]
"""Called with a request and the tokens that were sampled for it so far."""
TEXT_INTERVAL = 1
"""Tokens between two reports of a text."""


@dataclass(eq=False)
class ScheduledTask:
    """A task that is not done."""

    coroutine: Task
    handle: Handle
    on_tokens: OnTokens | None
    prefixes: dict[str, list[CachedPrefix]] = field(default_factory=dict)
    """What was kept of its latest sequence of each head ("code", "text")."""


class Scheduler:
    """Queues of tasks and of their requests.

    A task is first ``waiting``; once begun it is at any time in one of three places: its sequence
    is ``ready`` to enter, it is in the batch, or a picture of its is with the image codec.
    """

    def __init__(self, codec: ImageCodec[ScheduledTask], image_row: int):
        """``image_row`` is the number of codes between two reports of a drawing."""
        self.codec, self.image_row = codec, image_row
        self.max_tasks = 1
        """Tasks that are under way together, and sequences in the batch, at most."""
        self.tasks: dict[Handle, ScheduledTask] = {}
        """All that are not done, in the order of their submission."""
        self._waiting: deque[ScheduledTask] = deque()
        self._ready: deque[tuple[ScheduledTask, Sequence]] = deque()
        self._decoding: dict[Sequence, ScheduledTask] = {}
        """The sequences in the batch, with their tasks."""
        self._done: list[Handle] = []
        """Told by the next ``take_done``."""
        self._abandoned: list[Sequence] = []
        """Still in the batch, told by the next ``take_abandoned``."""
        self._step = 0

    def submit(self, coroutine: Task[T], on_tokens: OnTokens | None) -> Handle[T]:
        handle: Handle[T] = Handle()
        task = ScheduledTask(coroutine, handle, on_tokens)
        self.tasks[handle] = task
        self._waiting.append(task)
        return handle

    # schedule

    def schedule(self) -> list[Sequence]:
        """Hand out pictures and codes that are due, begin tasks where places are free, and choose
        the sequences that enter the batch."""
        self._hand_out_images()
        num_free = self.max_tasks - len(self._decoding)
        # a prefill stops all that decode, so it waits until several can enter
        if self._decoding and num_free < max(1, REFILL * self.max_tasks):
            return []
        while self._may_begin:
            self._resume(self._waiting.popleft(), None)
        self._hand_out_images()  # the new ones may have asked for codes of their sources
        entering: list[Sequence] = []
        while self._ready and len(entering) < num_free:
            task, sequence = self._ready.popleft()
            # of the task's latest sequence of this head: a redraw begins like the drawing before
            sequence.prefixes = task.prefixes.pop(sequence.spec.sampling_params.head, [])
            self._decoding[sequence] = task
            entering.append(sequence)
        return entering

    @property
    def _may_begin(self) -> bool:
        num_under_way = len(self.tasks) - len(self._waiting)
        return bool(self._waiting) and num_under_way < self.max_tasks

    def _hand_out_images(self) -> None:
        # a task that gets its picture may ask for the next one at once
        while True:
            is_idle = not (self._decoding or self._ready or self._may_begin)
            due_answers = self.codec.collect(self._step, is_idle)
            if not due_answers:
                return
            for task, image_or_codes in due_answers:
                if not task.handle.done:
                    self._resume(task, image_or_codes)

    # postprocess

    def postprocess(self, output: StepOutput) -> None:
        """Report tokens to those who listen, and resume the tasks whose sequences have ended."""
        # what has ended is in the batch no more: a listener that ends tasks must not take it out
        ended: list[tuple[ScheduledTask, Sequence, Turn | Stopped]] = []
        for sequence, turn in output.finished:
            ended.append((self._decoding.pop(sequence), sequence, turn))
        for sequence, tokens in output.partial:
            if sequence in self._decoding:  # else its task was ended by an earlier listener
                self._report(self._decoding[sequence], sequence, tokens)
        for task, sequence, turn in ended:
            if isinstance(turn, Turn) and not task.handle.done:
                self._report(task, sequence, turn.tokens)
            if task.handle.done:
                continue
            if sequence.spec.keep_prefix:
                task.prefixes[sequence.spec.sampling_params.head] = sequence.prefixes
                sequence.prefixes = []
            self._resume(task, turn)
        self._step += 1

    def _report(self, task: ScheduledTask, sequence: Sequence, tokens: tuple[int, ...]) -> None:
        if task.on_tokens is None:
            return
        try:
            task.on_tokens(sequence.spec.request, tokens)
        except Exception as error:
            self._end_early(task, error)

    def take_done(self) -> list[Handle]:
        """The handles of tasks that have ended since the last call."""
        done, self._done = self._done, []
        return done

    def take_abandoned(self) -> list[Sequence]:
        """Sequences in the batch that nobody wants any more."""
        abandoned, self._abandoned = self._abandoned, []
        return abandoned

    # tasks

    def _resume(self, task: ScheduledTask, answer: Any) -> None:
        """Give a task its answer, or raise the answer in it where that is an exception, and note
        what it asks for next."""
        # again where the request is refused: the task may catch that and ask for something else
        while True:
            try:
                if isinstance(answer, Exception):
                    request = task.coroutine.throw(answer)
                else:
                    request = task.coroutine.send(answer)
            except StopIteration as stop:
                self._forget(task)
                task.handle.set_result(stop.value)
                return
            except Exception as error:
                self._forget(task)
                task.handle.set_error(error)
                return
            try:
                self._accept(task, request)
                return
            except Exception as error:
                answer = error

    def _accept(self, task: ScheduledTask, request: Any) -> None:
        """Queue what a task asks for. Raises what is wrong with it."""
        if isinstance(request, DecodeImage | EncodeImage):
            self.codec.submit(task, request)
            return
        if not isinstance(request, GenerateRequest):
            raise TypeError(f"task: it awaits {request!r}, which is no request of the engine's")
        for segment in request.request.segments:
            if isinstance(segment, ImageInput):
                segment.image.load()  # a file that cannot be read ends its own task only
        sequence = Sequence(request)
        if task.on_tokens is not None:
            is_image = request.sampling_params.head == "code"
            sequence.report_every = self.image_row if is_image else TEXT_INTERVAL
        self._ready.append((task, sequence))

    def cancel(self, handle: Handle) -> None:
        """End a task; nothing where it is done already. Raises RuntimeError where the task cancels
        itself."""
        task = self.tasks.get(handle)
        if task is None:
            return
        if inspect.getcoroutinestate(task.coroutine) == inspect.CORO_RUNNING:  # type: ignore[arg-type]
            raise RuntimeError("task: it cannot cancel itself; let it return or raise")
        self._end_early(task, None)

    def cancel_all(self, error: Exception | None) -> None:
        """End every task, with this error where there is one."""
        for task in list(self.tasks.values()):
            self._end_early(task, error)

    def _end_early(self, task: ScheduledTask, error: Exception | None) -> None:
        """Take a task out of whatever queue it is in. Its handle is cancelled, or has the error, or
        what the coroutine raised when it was closed."""
        if task in self._waiting:
            self._waiting.remove(task)
        self._ready = deque(
            ready_entry for ready_entry in self._ready if ready_entry[0] is not task
        )
        self.codec.cancel(task)
        for sequence, owning_task in list(self._decoding.items()):
            if owning_task is task:
                del self._decoding[sequence]
                self._abandoned.append(sequence)
        self._forget(task)
        try:
            task.coroutine.close()
        except Exception as raised:
            error = error or raised
        if error is None:
            task.handle.set_cancelled()
        else:
            task.handle.set_error(error)

    def _forget(self, task: ScheduledTask) -> None:
        """Nothing of a task that has ended is kept but its handle."""
        del self.tasks[task.handle]
        task.prefixes.clear()
        self._done.append(task.handle)
