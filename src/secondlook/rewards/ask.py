"""Asking an OpenAI-compatible endpoint (vLLM, SGLang, …): many questions at once, each until it is answered or given up.

What goes wrong is tried again a bounded number of times: refused and broken connections, hangs, 408, 409, 429 and 5xx, answers
that are cut off, are no JSON, or lack what was asked for. An answer is stored on disk under a hash of all it depends on and
never asked for again. What stays unanswered is None: missing, never 0.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
from tenacity import AsyncRetrying, RetryError, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from secondlook.types import InputError

AGAIN = {408, 409, 429, *range(500, 600)}
"""Statuses of a server that may answer later."""
WRONG = {401: "the key is not accepted", 403: "the key is not accepted", 404: "there is no such address or model"}


class Unanswered(Exception):
    """This attempt gave no usable answer."""


class Refused(Exception):
    """This question will not be answered, however often it is asked."""


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
    backoff: float = 0.5
    """Seconds before the second attempt at most; doubled each time, at most a minute, and drawn at random below that."""

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise InputError(f"judge: url is {self.url!r}; it must begin with http:// or https://")
        for name in ("concurrency", "attempts"):
            if getattr(self, name) < 1:
                raise InputError(f"judge: {name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True)
class Question:
    """A request's body, which with the endpoint is all that the answer depends on, and what reads it."""

    body: dict[str, Any]
    """Of ``POST /chat/completions``, without the model."""
    read: Callable[[dict], Any]
    """The first choice to a JSON value. Raises Unanswered."""


class Answers:
    """Answers on disk: an SQLite file; without a path they are remembered as long as the object lives."""

    def __init__(self, path: Path | None = None):
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path or ":memory:", isolation_level=None)
        self._db.execute("create table if not exists answers (key text primary key, value text not null)")

    def get(self, key: str) -> Any:
        """The stored value, or None."""
        row = self._db.execute("select value from answers where key = ?", (key,)).fetchone()
        return json.loads(row[0]) if row else None

    def put(self, key: str, value: Any) -> None:
        self._db.execute("insert or replace into answers values (?, ?)", (key, json.dumps(value)))


@dataclass
class Asker:
    """Asks one endpoint. ``counts`` says what happened: asked, attempts, from cache, missing."""

    endpoint: Endpoint
    answers: Answers = field(default_factory=Answers)
    counts: Counter = field(default_factory=Counter)

    def __call__(self, questions: Sequence[Question]) -> list[Any]:
        """One answer a question, in order; None where there is none. Equal questions are asked once. Raises InputError when the
        endpoint does not know the key, the address or the model."""
        return asyncio.run(self._all(questions))

    async def _all(self, questions: Sequence[Question]) -> list[Any]:
        e = self.endpoint
        key = os.environ.get(e.key_variable, "")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx.Limits(max_connections=e.concurrency, max_keepalive_connections=e.concurrency)
        keys = [self._key(q) for q in questions]
        distinct = dict(zip(keys, questions, strict=True))
        places = asyncio.Semaphore(e.concurrency)
        async with httpx.AsyncClient(
            base_url=e.url.rstrip("/") + "/", headers=headers, timeout=e.timeout, limits=limits
        ) as http:

            async def one(key: str, question: Question) -> Any:
                known = self.answers.get(key)
                if known is not None:
                    self.counts["from cache"] += 1
                    return known
                async with places:
                    self.counts["asked"] += 1
                    try:
                        found = await self._answer(http, question)
                    except (RetryError, Refused):
                        self.counts["missing"] += 1
                        return None
                self.answers.put(key, found)
                return found

            tasks = [asyncio.create_task(one(*each)) for each in distinct.items()]
            try:
                found = dict(zip(distinct, await asyncio.gather(*tasks), strict=True))
            finally:
                for task in tasks:
                    task.cancel()
        return [found[key] for key in keys]

    async def _answer(self, http: httpx.AsyncClient, question: Question) -> Any:
        e = self.endpoint
        retrying = AsyncRetrying(
            stop=stop_after_attempt(e.attempts),
            wait=wait_random_exponential(multiplier=e.backoff, max=60),
            retry=retry_if_exception_type((Unanswered, httpx.RequestError)),
        )
        async for attempt in retrying:
            with attempt:
                self.counts["attempts"] += 1
                try:
                    # httpx's own timeout is between two bytes; a server that drips would hold the place for ever
                    async with asyncio.timeout(e.timeout):
                        response = await http.post("chat/completions", json={"model": e.model, **question.body})
                except TimeoutError as error:
                    raise Unanswered("too slow") from error
                return question.read(self._choice(response))
        raise AssertionError("tenacity raises RetryError")

    def _choice(self, response: httpx.Response) -> dict:
        if response.status_code in AGAIN:
            raise Unanswered(f"status {response.status_code}")
        if response.status_code in WRONG:
            e = self.endpoint
            raise InputError(
                f"judge: {e.url} answers {response.status_code} for model {e.model!r}: {WRONG[response.status_code]}"
            )
        if response.status_code != 200:
            raise Refused(f"status {response.status_code}")
        try:
            return response.json()["choices"][0]
        except (ValueError, LookupError, TypeError) as error:
            raise Unanswered("not a completion") from error

    def _key(self, question: Question) -> str:
        said = json.dumps([self.endpoint.url, self.endpoint.model, question.body], sort_keys=True)
        return sha256(said.encode()).hexdigest()
