"""Asking an OpenAI-compatible endpoint (vLLM, SGLang, …): many questions at once, each until it is
answered or given up.

What goes wrong, and what is done:

- Broken connections, hangs, 408, 409, 5xx, responses that are cut off or hold no completion: the
  question is asked again, ``Endpoint.attempts`` times in all.
- A completion that lacks what was asked for: the question is asked again only where answers are
  sampled. At temperature 0 the same request gets the same answer, so one attempt decides.
- The server asks to wait (429; 503 with Retry-After): it is waited for as long as it says, else
  longer each time, drawn at random; ``patience`` minutes at most.
- The server is away (nobody at its address, 502, 503, 504; 404 of one that is loading again): all
  questions wait together; ``patience`` minutes where it has answered before, ``start_patience``
  where it has not, because an address that never answered is most often a wrong one.
- No question can pass (an unknown host or key or model, no TLS, an empty account): the job ends
  with the server's words. It also ends where the first questions of a kind get no answer at all.

An answer is stored under a hash of all it depends on and never asked for again. What stays
unanswered is None: missing, never 0, and ``missing`` says why.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx

from secondlook.errors import InputError
from secondlook.llm import connection
from secondlook.llm.answer_store import Answers
from secondlook.llm.availability import Availability
from secondlook.llm.endpoint import PROBE, Endpoint, Question, question_key
from secondlook.llm.exchange import Exchange
from secondlook.llm.missing import Missing
from secondlook.llm.replies import Away, GivenUp, Later, Refused, Unanswered

T = TypeVar("T")
NUM_SCOUTS = 8
"""Questions of a kind that are asked before all others, until one was answered."""


@dataclass
class Asker:
    """Asks one endpoint; ``missing`` says why answers are missing."""

    endpoint: Endpoint
    answers: Answers = field(default_factory=Answers)
    counts: Counter = field(default_factory=Counter)
    """What happened: asked, attempts, too slow, from cache, missing."""

    def __post_init__(self) -> None:
        endpoint = self.endpoint
        self._url = connection.completions_url(endpoint.url)
        self._shown_url = connection.without_password(endpoint.url)
        self._open_client()  # so that a proxy or key that cannot be used is found now
        self._availability = Availability(endpoint, self.answers)
        self._exchange = Exchange(endpoint, self._availability, self.counts)
        self.missing = Missing(f"{self._shown_url} for model {endpoint.model!r}")
        self._answered_kinds: set[Callable] = set()
        """The readers of questions that were answered."""

    def __call__(self, questions: Sequence[Question]) -> list[Any]:
        """One answer a question, in order; None where there is none. Equal questions are asked
        once.

        Raises InputError where no question to this endpoint can be answered, Stopped where it was
        away for too long, EndRequested where the job was asked to end while this one waited.
        """
        return _run(self._answer_all(questions))

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
            async with self._open_client() as http:
                self.answers.put(key, await self._answer(http, question))
        except GivenUp:
            return
        except Refused as reason:
            raise InputError(
                f"judge: {self._shown_url} for model {self.endpoint.model!r} gave a trial question "
                f"no answer that can be used: {reason}"
            ) from reason

    def _key(self, question: Question) -> str:
        endpoint = self.endpoint
        return question_key([endpoint.url, endpoint.model, endpoint.thinking], question)

    def _open_client(self) -> httpx.AsyncClient:
        endpoint = self.endpoint
        return connection.open_client(
            self._url, endpoint.key_variable, endpoint.timeout, endpoint.concurrency
        )

    async def _answer_all(self, questions: Sequence[Question]) -> list[Any]:
        keys = [self._key(question) for question in questions]
        distinct_questions = dict(zip(keys, questions, strict=True))
        answers = self.answers.known_of(distinct_questions)
        self.counts["from cache"] += len(answers)
        new_questions = {k: q for k, q in distinct_questions.items() if k not in answers}
        if new_questions:
            async with self._open_client() as http:
                scouts = self._choose_scouts(new_questions)
                answers |= await self._ask(http, scouts)
                for key in scouts:
                    del new_questions[key]
                self._check_scouts(scouts, new_questions)
                answers |= await self._ask(http, new_questions)
        return [answers[key] for key in keys]

    def _choose_scouts(self, questions: dict[str, Question]) -> dict[str, Question]:
        """Some questions, from everywhere in the list, of each kind that was never answered."""
        keys_of_kinds: dict[Callable, list[str]] = {}
        for key, question in questions.items():
            if question.read not in self._answered_kinds:
                keys_of_kinds.setdefault(question.read, []).append(key)
        scouts: dict[str, Question] = {}
        for keys in keys_of_kinds.values():
            step = -(-len(keys) // NUM_SCOUTS)  # rounded up: at most NUM_SCOUTS are taken
            for key in keys[::step]:
                scouts[key] = questions[key]
        return scouts

    def _check_scouts(self, scouts: dict[str, Question], others: dict[str, Question]) -> None:
        """Raises InputError where ``others`` are of a kind whose scouts got no answer."""
        for question in others.values():
            if question.read in self._answered_kinds:
                continue
            num_scouts = sum(scout.read is question.read for scout in scouts.values())
            raise InputError(
                f"judge: the first {num_scouts} questions got no answer: {self.missing.commonest()}"
            )

    async def _ask(self, http: httpx.AsyncClient, questions: dict[str, Question]) -> dict[str, Any]:
        """The answers by the questions' keys, None where one is missing; ``concurrency`` questions
        are under way at once."""
        slots = asyncio.Semaphore(self.endpoint.concurrency)
        tasks = []
        for key, question in questions.items():
            tasks.append(asyncio.create_task(self._ask_one(http, slots, key, question)))
        try:
            return dict(zip(questions, await asyncio.gather(*tasks), strict=True))
        finally:
            for task in tasks:  # those that are left when one has raised
                task.cancel()

    async def _ask_one(
        self, http: httpx.AsyncClient, slots: asyncio.Semaphore, key: str, question: Question
    ) -> Any:
        """The answer, which is stored; None where the question is given up, which is counted."""
        async with slots:
            self.counts["asked"] += 1
            try:
                answer = await self._answer(http, question)
            except Refused as reason:
                self.counts["missing"] += 1
                self.missing.add(str(reason))
                return None
        self.answers.put(key, answer)
        self._answered_kinds.add(question.read)
        return answer

    async def _answer(self, http: httpx.AsyncClient, question: Question) -> Any:
        """The answer as the question reads it, after as many attempts as it takes. Raises Refused
        when the question is given up."""
        num_failed = num_put_off = 0
        was_excused = False
        last_failure: Unanswered
        while True:
            began = time.monotonic()
            was_away = self._availability.is_away
            pause = 0.0
            self.counts["attempts"] += 1
            try:
                choice = await self._exchange.first_choice(http, question.body)
                try:
                    return question.read(choice)
                except Unanswered as unreadable:
                    if not self._exchange.dialect.varies(question.body):
                        raise Refused(str(unreadable)) from unreadable
                    last_failure = unreadable  # and no pause: the server is well
            except Later as reply:
                await self._availability.wait_as_told(reply, began, num_put_off)
                num_put_off += 1
                continue
            except Away as failure:
                is_back = was_away and await self._answers_again(http)
                nobody_since = self._availability.last_response < began
                if not is_back and (was_away or nobody_since):
                    await self._availability.wait_until_back(str(failure))
                    continue
                if is_back and not was_excused:
                    was_excused = True  # it came back while this question was on its way
                    continue
                last_failure, pause = failure, self.endpoint.retry_pause(num_failed)
            except Unanswered as failure:
                last_failure, pause = failure, self.endpoint.retry_pause(num_failed)
            num_failed += 1
            if num_failed >= self.endpoint.attempts:
                raise GivenUp(str(last_failure)) from last_failure
            await asyncio.sleep(pause)

    async def _answers_again(self, http: httpx.AsyncClient) -> bool:
        """Whether a server that was away is there: it has answered another question meanwhile, or
        answers any question at all. If so and one question fails still, it is that question that it
        cannot take."""
        if self._availability.is_away and self._availability.has_answered:
            with contextlib.suppress(Unanswered, Refused):
                await self._exchange.first_choice(http, PROBE)
        return not self._availability.is_away


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine, also where a loop (a notebook's, a server's) runs already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    # one loop a thread: where this thread's is taken, another thread gets its own
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(asyncio.run, coroutine).result()
