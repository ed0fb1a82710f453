"""What a task asks the engine for. A request is awaited, and the answer is what ``await`` gives.

A task is a coroutine that awaits nothing else. ``await GenerateRequest(…)`` suspends it and hands
the request to whoever drives the coroutine, which is the engine's scheduler; that resumes it with
the answer. No event loop takes part, so tasks run inside one as well as without.
"""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from PIL.Image import Image

from secondlook.types import Request, SamplingParams, Turn

R = TypeVar("R")
T = TypeVar("T")


class EngineRequest(Generic[R]):
    """Something to await in a task; ``R`` is the type of the answer."""

    def __await__(self) -> Generator[EngineRequest[R], R, R]:
        answer = yield self
        return answer


@dataclass(frozen=True)
class GenerateRequest(EngineRequest[Turn]):
    """A sequence to continue by at most ``max_tokens`` tokens."""

    request: Request
    sampling_params: SamplingParams
    max_tokens: int
    keep_prefix: bool = False
    """A later sequence of the same task may begin like this one and its tokens: keep their keys
    and values."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens: {self.max_tokens} is too few; ask for at least 1")


@dataclass(frozen=True)
class DecodeImage(EngineRequest[Image]):
    """Drawn codes (n_codes) to become a picture."""

    codes: tuple[int, ...]


@dataclass(frozen=True)
class EncodeImage(EngineRequest[tuple[int, ...]]):
    """A picture to become codes (n_codes)."""

    image: Image


Task = Coroutine[Any, Any, T]
"""A coroutine that awaits requests of the engine and returns a ``T``."""
