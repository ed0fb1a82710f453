"""Where a model is served, how patiently it is asked, and what a question to it is."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from secondlook.errors import InputError
from secondlook.llm import connection

READER_VERSION = 2
"""Version of how answers are read: stored ones of another version are not used. 2: yes and no must
hold half of the first token, and thoughts are no part of an answer in words."""
MIN_BACKOFF = 0.01
"""Seconds that a doubling pause starts from at least, so that no server is asked without a
break."""
MAX_PAUSE = 60.0
"""Seconds between two attempts at most."""
MAX_PATIENCE = 90
"""Minutes. Ranks wait for one whose judge is away for longer than that
(``train.distributed.TIMEOUT``)."""


@dataclass(frozen=True)
class Endpoint:
    """Where a model is served, and how patiently it is asked."""

    url: str
    """The base address, as ``http://localhost:8000/v1``."""
    model: str
    key_variable: str = "OPENAI_API_KEY"
    """The environment variable that holds the key, where one is needed."""
    concurrency: int = 32
    """Questions under way at once."""
    timeout: float = 60.0
    """Seconds of an attempt."""
    attempts: int = 6
    """Of a question to a server that is there."""
    backoff: float = 0.5
    """Seconds before the second attempt at most; doubled each time, at most a minute, and drawn at
    random below that."""
    patience: float = 20.0
    """Minutes that a server is waited for which has answered before and is away, or answers nothing
    and asks to wait (429); at most an hour and a half, for other ranks wait for this one."""
    start_patience: float = 0.1
    """Minutes that a server is waited for which has never answered: more where it is started
    together with this job and takes minutes to load."""
    thinking: bool = False
    """Whether the model may think first. If not, chat templates that know the switch
    ``enable_thinking`` are told so; if it may, answers in words get room for it. A first token that
    is a thought is no yes or no."""

    def __post_init__(self) -> None:
        connection.completions_url(self.url)  # raises for what is no address
        for name in ("concurrency", "attempts"):
            count = getattr(self, name)
            if count < 1:
                raise InputError(f"judge: {name} is {count}; it must be at least 1")
        for name in ("timeout", "backoff", "patience", "start_patience"):
            duration = getattr(self, name)
            is_allowed = 0 <= duration < float("inf")  # NaN is not
            if not is_allowed or (name == "timeout" and duration == 0):
                raise InputError(
                    f"judge: {name} is {duration}; it must be a finite number, and not negative"
                )
        if self.patience > MAX_PATIENCE:
            raise InputError(
                f"judge: patience is {self.patience:g} minutes; at most {MAX_PATIENCE} are waited"
            )

    def retry_pause(self, num_before: int) -> float:
        """Seconds until the next attempt, where ``num_before`` pauses came before: drawn at random
        below a bound that doubles each time up to a minute."""
        # the exponent is bounded, for no float holds 2^1024
        bound = max(self.backoff, MIN_BACKOFF) * 2 ** min(num_before, 16)
        return random.uniform(0, min(MAX_PAUSE, bound))


@dataclass(frozen=True)
class Question:
    """A request's body, which with the endpoint is all that the answer depends on, and what reads
    it."""

    body: dict[str, Any]
    """Of ``POST /chat/completions``, without the model."""
    read: Callable[[dict], Any]
    """The first choice to a JSON value. Raises Unanswered or Refused."""


PROBE = {"messages": [{"role": "user", "content": "Say yes."}], "max_tokens": 1}
"""Body of a question that any served model answers."""


def question_key(model_identity: Sequence[Any], question: Question) -> str:
    """A hash of all that an answer depends on: of which model is asked, of the question's body, and
    of the function that reads the answer."""
    reader_name = getattr(question.read, "__name__", "")
    hashed_values = [READER_VERSION, *model_identity, question.body, reader_name]
    return sha256(json.dumps(hashed_values, sort_keys=True).encode()).hexdigest()
