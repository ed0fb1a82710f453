"""Asking an OpenAI-compatible endpoint (vLLM, SGLang, …): many questions at once, each until it is
answered or given up.

What goes wrong with one question is tried again a bounded number of times: broken connections,
hangs, 408, 409 and 5xx, responses that are cut off or hold no completion. A completion that cannot
be read (it lacks what was asked for) is asked for again only where it is sampled: at temperature 0
the same request gets the same answer, and the question is missing after one. A server that is there
and asks to wait (429; 503 with Retry-After) is waited for up to ``patience`` minutes: as long as it
says, else longer each time, drawn at random. A server that is away (nobody at its address, 502,
503, 504; 404 of one that is loading again) is waited for, for all questions together: ``patience``
minutes once it has answered, some seconds before that, because an address that never answered is
most often a wrong one. What no question can pass (an unknown host or key or model, no TLS, an empty
account) ends the job with the server's words, and so does a first part of the questions that gets
no answer at all. An answer is stored on disk under a hash of all it depends on and never asked for
again. What stays unanswered is None: missing, never 0, and ``missing`` says why.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, TypeVar

import httpx

from secondlook.end_request import sleep_unless_asked_to_end
from secondlook.errors import InputError, Stopped
from secondlook.llm import connection, replies
from secondlook.llm.answer_store import Answers
from secondlook.llm.missing import Missing
from secondlook.llm.replies import Away, Closed, GivenUp, Later, Refused, Unanswered

__all__ = ["Answers", "Asker", "Endpoint", "Question", "Refused", "Unanswered"]

T = TypeVar("T")
READING = 2
"""Version of how answers are read: stored ones of another version are not used. 2: yes and no must
hold half of the first token, and thoughts are no part of an answer in words."""
SCOUTS = 8
"""Questions of a kind that are asked before all others, until one was answered."""
LEAST_BACKOFF = 0.01
"""Seconds that a doubling pause starts from at least, so that no server is asked without a
break."""
MOST_HOPS = 5
LONGEST_PATIENCE = 90
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
        connection.address(self.url)
        for name in ("concurrency", "attempts"):
            if getattr(self, name) < 1:
                raise InputError(f"judge: {name} is {getattr(self, name)}; it must be at least 1")
        for name in ("timeout", "backoff", "patience", "start_patience"):
            value = getattr(self, name)
            if not 0 <= value < float("inf") or (name == "timeout" and not value):
                raise InputError(
                    f"judge: {name} is {value}; it must be a finite number, and not negative"
                )
        if self.patience > LONGEST_PATIENCE:
            raise InputError(
                f"judge: patience is {self.patience:g} minutes; at most {LONGEST_PATIENCE} are "
                "waited"
            )


@dataclass(frozen=True)
class Question:
    """A request's body, which with the endpoint is all that the answer depends on, and what reads
    it."""

    body: dict[str, Any]
    """Of ``POST /chat/completions``, without the model."""
    read: Callable[[dict], Any]
    """The first choice to a JSON value. Raises Unanswered or Refused."""


PROBE = {"messages": [{"role": "user", "content": "Say yes."}], "max_tokens": 1}
"""A question that any served model answers."""


def question_key(asked: Sequence[Any], question: Question) -> str:
    """A hash of all that an answer depends on: of who is ``asked``, of the question, and of how it
    is read."""
    reader = getattr(question.read, "__name__", "")
    return sha256(
        json.dumps([READING, *asked, question.body, reader], sort_keys=True).encode()
    ).hexdigest()


@dataclass
class Asker:
    """Asks one endpoint. ``counts`` says what happened: asked, attempts, too slow, from cache,
    missing; ``missing``: why."""

    endpoint: Endpoint
    answers: Answers = field(default_factory=Answers)
    counts: Counter = field(default_factory=Counter)

    def __post_init__(self) -> None:
        e = self.endpoint
        self._address = connection.address(e.url)
        self._client()  # what the environment says that does not serve is found now
        self._shown = connection.shown(e.url)
        self.missing = Missing(f"{self._shown} for model {e.model!r}")
        self._dialect = replies.Dialect(e.thinking)
        self._has_answered = self.answers.has_answered(f"{e.url} {e.model}")
        """In this process or an earlier one with the same file of answers."""
        self._answered_kinds: set[Callable] = set()
        self._seen = float("-inf")
        """When somebody was there last, on time.monotonic."""
        self._away: float | None = None
        """Since when nobody is."""
        self._put_off: float | None = None
        """Since when it answers nothing and asks to wait."""
        self._said: set[str] = set()

    def __call__(self, questions: Sequence[Question]) -> list[Any]:
        """One answer a question, in order; None where there is none. Equal questions are asked
        once.

        Raises InputError where no question to this endpoint can be answered, Stopped where it was
        away for too long, EndRequested where the job was asked to end while this one waited.
        """
        return _run(self._all(questions))

    def try_out(self, question: Question) -> None:
        """Ask one question before a job does work whose results others like it are about.

        Raises InputError where it will never be answered, and what a call raises; failures that
        may pass (server errors, no answer in time) say nothing.
        """
        _run(self._try_out(question))

    async def _try_out(self, question: Question) -> None:
        key = self._key(question)
        if self.answers.get(key) is not None:
            return
        try:
            async with self._client() as http:
                self.answers.put(key, await self._answer(http, question))
        except GivenUp:
            return
        except Refused as reason:
            raise InputError(
                f"judge: {self._shown} for model {self.endpoint.model!r} gave a trial question no "
                f"answer that can be used: {reason}"
            ) from reason

    def _key(self, question: Question) -> str:
        e = self.endpoint
        return question_key([e.url, e.model, e.thinking], question)

    async def _all(self, questions: Sequence[Question]) -> list[Any]:
        keys = [self._key(q) for q in questions]
        distinct = dict(zip(keys, questions, strict=True))
        found = {key: self.answers.get(key) for key in distinct}
        left = {key: q for key, q in distinct.items() if found[key] is None}
        self.counts["from cache"] += len(found) - len(left)
        if left:
            async with self._client() as http:
                scouts = self._scouts(left)
                found |= await self._ask(http, {key: left[key] for key in scouts})
                rest = {key: q for key, q in left.items() if key not in scouts}
                for kind in {q.read for q in rest.values()} - self._answered_kinds:
                    n = sum(left[key].read is kind for key in scouts)
                    raise InputError(
                        f"judge: the first {n} questions got no answer: {self.missing.commonest()}"
                    )
                found |= await self._ask(http, rest)
        return [found[key] for key in keys]

    def _client(self) -> httpx.AsyncClient:
        e = self.endpoint
        return connection.client(self._address, e.key_variable, e.timeout, e.concurrency)

    def _scouts(self, left: dict[str, Question]) -> set[str]:
        """Some questions, from everywhere in the list, of each kind that was never answered."""
        found: set[str] = set()
        for kind in {q.read for q in left.values()} - self._answered_kinds:
            those = [key for key, q in left.items() if q.read is kind]
            found |= set(those[:: -(-len(those) // SCOUTS)])
        return found

    async def _ask(self, http: httpx.AsyncClient, questions: dict[str, Question]) -> dict[str, Any]:
        places = asyncio.Semaphore(self.endpoint.concurrency)

        async def one(key: str, question: Question) -> Any:
            async with places:
                self.counts["asked"] += 1
                try:
                    found = await self._answer(http, question)
                except Refused as reason:
                    self.counts["missing"] += 1
                    self.missing.add(str(reason))
                    return None
            self.answers.put(key, found)
            self._answered_kinds.add(question.read)
            return found

        tasks = [asyncio.create_task(one(*each)) for each in questions.items()]
        try:
            return dict(zip(questions, await asyncio.gather(*tasks), strict=True))
        finally:
            for task in tasks:
                task.cancel()

    async def _answer(self, http: httpx.AsyncClient, question: Question) -> Any:
        """Raises Refused when the question is given up."""
        e = self.endpoint
        tried, waited, excused = 0, 0, False
        while True:
            began, pause, was_away = time.monotonic(), 0.0, self._away is not None
            self.counts["attempts"] += 1
            try:
                choice = await self._choice(http, question.body)
                try:
                    return question.read(choice)
                except Unanswered as failure:
                    if not self._dialect.varies(question.body):
                        raise Refused(str(failure)) from failure
                    last: Unanswered = failure
            except Later as failure:
                await self._wait_as_told(failure, began, waited)
                waited += 1
                continue
            except Away as failure:
                is_back = was_away and await self._answers_again(http)
                if not is_back and (was_away or self._seen < began):
                    await self._until_back(str(failure))
                    continue
                if is_back and not excused:
                    excused = True  # it came back while this question was on its way
                    continue
                last, pause = failure, self._pause(tried)
            except Unanswered as failure:
                last, pause = failure, self._pause(tried)
            tried += 1
            if tried >= e.attempts:
                raise GivenUp(str(last)) from last
            await asyncio.sleep(pause)

    async def _wait_as_told(self, asked: Later, began: float, waited: int) -> None:
        """Wait as a server asks to that has asked a question's latest ``waited`` attempts before;
        this one ``began`` on time.monotonic. Raises Refused where it has answered nothing for
        ``patience``."""
        e = self.endpoint
        self._put_off = began if self._put_off is None else self._put_off
        left = self._put_off + 60 * e.patience - time.monotonic()
        if left <= (asked.seconds or 0):
            told = f"wait {asked.seconds:.0f} s; " if asked.seconds else ""
            raise GivenUp(f"{asked} ({told}patience is {e.patience:g} minutes)") from asked
        self._say("later", f"asks to wait ({asked}); it is waited for up to {e.patience:g} minutes")
        if asked.seconds is None:
            await sleep_unless_asked_to_end(min(left, self._pause(waited)))
        else:
            pause = asked.seconds + random.uniform(0, min(e.backoff, asked.seconds))
            await sleep_unless_asked_to_end(pause)

    def _pause(self, tried: int) -> float:
        """Seconds until the next attempt, drawn at random below a bound that doubles up to a
        minute."""
        return random.uniform(
            0, min(60.0, max(self.endpoint.backoff, LEAST_BACKOFF) * 2 ** min(tried, 16))
        )

    async def _choice(self, http: httpx.AsyncClient, asked: dict[str, Any]) -> dict:
        """The first choice that the endpoint gives, in its own dialect. Raises Unanswered, Refused
        and InputError."""
        e = self.endpoint
        while True:
            sent = self._dialect.body(asked)
            try:
                response = await self._post(http, {"model": e.model, **sent})
                if response.status_code == 200:
                    choice = replies.completion(response)
                    self._is_back(answered=True)
                    return choice
                words = self._words(response)
                failed = replies.failure(response, words, self._has_answered)
            except Closed as closed:
                raise InputError(f"judge: {self._shown} {closed}") from closed
            if not isinstance(failed, Away):
                self._is_back()
            if isinstance(failed, Closed):
                status = response.status_code
                said = f"{words or response.reason_phrase}{self._hint(status)}"
                raise InputError(
                    f"judge: {self._shown} answers {status} for model {e.model!r}: {said}"
                )
            if not isinstance(failed, Refused):
                raise failed
            if (
                self._dialect.body(asked) == sent
            ):  # else another question has learnt meanwhile what to send
                said = f"{words} {replies.codes_of(response)}"
                change = self._dialect.learn(said, sent)
                if not change:
                    needed = (
                        "; P(yes) needs the log-probabilities"
                        if "logprobs" in sent and "logprobs" in said
                        else ""
                    )
                    raise Refused(f"{failed}{needed}")
                self._say(change, f"says: {words}; {change} from now on")

    async def _post(self, http: httpx.AsyncClient, body: dict[str, Any]) -> httpx.Response:
        """The answer to a request, wherever on the same server it was moved to. Raises Unanswered,
        Refused and Closed."""
        url = self._address
        try:
            content = json.dumps(body, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise Refused("the question is no Unicode text") from error
        for _ in range(MOST_HOPS):
            try:
                # httpx's own timeout is between two bytes; a server that drips would hold the place
                # for ever
                async with asyncio.timeout(self.endpoint.timeout):
                    response = await http.post(
                        url, content=content, headers={"Content-Type": "application/json"}
                    )
                if response.status_code not in (301, 302, 307, 308):
                    return response
                there = response.url.join(response.headers.get("location", ""))
            except (TimeoutError, httpx.ReadTimeout, httpx.WriteTimeout) as error:
                self.counts["too slow"] += 1
                raise Unanswered(f"no answer within {self.endpoint.timeout:g} seconds") from error
            except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
                raise self._not_reached(error) from error
            except httpx.InvalidURL as error:
                raise Closed("sends questions to another address, which is none") from error
            except httpx.RequestError as error:
                raise Unanswered(f"{type(error).__name__}: {replies.short(str(error))}") from error
            if (there.scheme, there.host, there.port) != (url.scheme, url.host, url.port):
                moved = f"has moved to {connection.shown(there).removesuffix('/chat/completions')}"
                raise (
                    Away(moved)
                    if self._has_answered
                    else Closed(f"{moved}; if that is right, give it as url")
                )
            self._say(
                "moved",
                f"has moved to {connection.shown(there).removesuffix('/chat/completions')}; give "
                "that as url",
            )
            url = there
        raise Closed(f"sends questions from one address to the next, more than {MOST_HOPS} times")

    def _not_reached(self, error: httpx.TransportError) -> Exception:
        why, may_come = connection.cause(error)
        if isinstance(error, httpx.ConnectTimeout):
            why = "no connection in time"
        proxy, variable = connection.proxy_of(self._address)
        if proxy:
            why += f" (by the proxy that {variable} names)"
        return Away(why) if may_come or self._has_answered else Closed(f"cannot be asked: {why}")

    def _words(self, response: httpx.Response) -> str:
        key = connection.key_in(self.endpoint.key_variable)
        words = replies.words_of(response)
        return words.replace(key, "***") if key else words

    def _hint(self, status: int) -> str:
        variable = self.endpoint.key_variable
        key = (
            f" (it does not accept the key in {variable})"
            if connection.key_in(variable)
            else f" (it wants a key, and {variable} is not set)"
        )
        return {
            401: key,
            403: key,
            404: " (there is no such address or model; url must be a base address, as http://localhost:8000/v1)",
        }.get(status, "")

    async def _answers_again(self, http: httpx.AsyncClient) -> bool:
        """Whether a server that was away is there: it has answered another question meanwhile, or
        answers any question at all. If so and one question fails still, it is that question that it
        cannot take."""
        if self._away is not None and self._has_answered:
            with contextlib.suppress(Unanswered, Refused):
                await self._choice(http, PROBE)
        return self._away is None

    async def _until_back(self, why: str) -> None:
        """Wait a little for a server that is away. Raises Stopped, or InputError for one that never
        answered, when it is away for too long."""
        e, now = self.endpoint, time.monotonic()
        self._away = now if self._away is None else self._away
        minutes = e.patience if self._has_answered else e.start_patience
        how_long = f"{minutes:g} minutes" if minutes >= 1 else f"{60 * minutes:g} seconds"
        left = self._away + 60 * minutes - now
        if left <= 0:
            if not self._has_answered:
                raise InputError(
                    f"judge: {self._shown} does not answer: {why}; start the server or correct "
                    "url; "
                    f"start_patience waits longer than {how_long}"
                )
            raise Stopped(
                f"judge: {self._shown} has not answered for {how_long}: {why}; start it, and the "
                "same command goes on"
            )
        self._say("away", f"does not answer ({why}); waiting up to {how_long}")
        await sleep_unless_asked_to_end(
            min(left, 10.0, random.uniform(0.5, 1) * (e.backoff + 0.2 * (now - self._away)))
        )

    def _is_back(self, answered: bool = False) -> None:
        """Somebody is there."""
        self._seen = time.monotonic()
        if self._away is not None and "away" in self._said:
            print(f"secondlook: judge: {self._shown} answers again", file=sys.stderr, flush=True)
            self._said.discard("away")
        self._away = None
        if answered:
            self._put_off = None
        if answered and not self._has_answered:
            self._has_answered = True
            self.answers.note_answered(f"{self.endpoint.url} {self.endpoint.model}")

    def _say(self, what: str, text: str) -> None:
        """Print to stderr, each thing once."""
        if what not in self._said:
            self._said.add(what)
            print(f"secondlook: judge: {self._shown} {text}", file=sys.stderr, flush=True)


def _run(asking: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine, also where a loop (a notebook's, a server's) runs already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(asking)
    with ThreadPoolExecutor(1) as alone:
        return alone.submit(asyncio.run, asking).result()
