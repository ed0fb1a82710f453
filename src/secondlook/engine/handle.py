"""What a caller holds of a task that the engine runs."""

from __future__ import annotations

from concurrent.futures import CancelledError, InvalidStateError
from typing import Generic, TypeVar

T = TypeVar("T")


class Handle(Generic[T]):
    """A task that was submitted. It is done once it has returned, raised or been cancelled.

    Unlike a ``concurrent.futures.Future`` it is not waited on: the engine works only while
    somebody calls ``Engine.step``.
    """

    def __init__(self) -> None:
        self.done = False
        self.cancelled = False
        self._value: T | None = None
        self._error: BaseException | None = None

    def result(self) -> T:
        """What the task returned. Raises what the task raised, CancelledError where it was
        cancelled, InvalidStateError where it is not done."""
        if not self.done:
            raise InvalidStateError("handle: its task is not done; step the engine until it is")
        if self.cancelled:
            raise CancelledError("handle: its task was cancelled")
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]

    @property
    def failed(self) -> bool:
        """It is done because it raised."""
        return self._error is not None

    # called by the scheduler

    def set_result(self, value: T) -> None:
        self.done, self._value = True, value

    def set_error(self, error: BaseException) -> None:
        self.done, self._error = True, error

    def set_cancelled(self) -> None:
        self.done = self.cancelled = True
