"""One request to a server and what comes back: a completion, or the reason why there is none."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import httpx

from secondlook.errors import InputError
from secondlook.llm import connection, replies
from secondlook.llm.availability import Availability
from secondlook.llm.endpoint import Endpoint
from secondlook.llm.replies import Away, Closed, Refused, Unanswered

MAX_REDIRECTS = 5
REDIRECTS = (301, 302, 307, 308)


class Exchange:
    """Sends requests to one endpoint in the fields that it takes, and tells ``availability`` when
    somebody was there. ``counts["too slow"]`` is raised for each request without an answer in
    time."""

    def __init__(self, endpoint: Endpoint, availability: Availability, counts: Counter):
        self.endpoint = endpoint
        self.availability = availability
        self.counts = counts
        self.dialect = replies.Dialect(endpoint.thinking)
        self._url = connection.completions_url(endpoint.url)
        self._shown_url = connection.without_password(endpoint.url)

    async def first_choice(self, http: httpx.AsyncClient, asked_body: dict[str, Any]) -> dict:
        """The first choice of the completion of a question's body.

        Raises Unanswered (Away, Later) where another attempt may do better, Refused where this
        question will not be answered, and InputError where no question will.
        """
        while True:
            sent_body = self.dialect.body(asked_body)
            try:
                response = await self._post(http, {"model": self.endpoint.model, **sent_body})
                if response.status_code == 200:
                    choice = replies.completion(response)
                    self.availability.note_response(is_answer=True)
                    return choice
            except Closed as reason:
                raise InputError(f"judge: {self._shown_url} {reason}") from reason
            words = self._words(response)
            failure = replies.failure(response, words, self.availability.has_answered)
            if not isinstance(failure, Away):
                self.availability.note_response()
            if isinstance(failure, Closed):
                status = response.status_code
                raise InputError(
                    f"judge: {self._shown_url} answers {status} for model "
                    f"{self.endpoint.model!r}: {words or response.reason_phrase}"
                    f"{self._hint(status)}"
                )
            if not isinstance(failure, Refused):
                raise failure
            # otherwise another question has learnt meanwhile which fields to send
            if self.dialect.body(asked_body) == sent_body:
                self._learn(failure, words, replies.codes_of(response), sent_body)

    def _learn(self, failure: Refused, words: str, codes: str, sent_body: dict[str, Any]) -> None:
        """Send other fields from now on, as the server's ``words`` and ``codes`` ask for. Raises
        Refused where they ask for none."""
        refusal = f"{words} {codes}"
        change = self.dialect.learn(refusal, sent_body)
        if not change:
            needed = ""
            if "logprobs" in sent_body and "logprobs" in refusal:
                needed = "; P(yes) needs the log-probabilities"
            raise Refused(f"{failure}{needed}")
        self.availability.announce(change, f"says: {words}; {change} from now on")

    async def _post(self, http: httpx.AsyncClient, body: dict[str, Any]) -> httpx.Response:
        """The response to a request, wherever on the same server it was moved to. Raises
        Unanswered, Refused and Closed."""
        try:
            content = json.dumps(body, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise Refused("the question is no Unicode text") from error
        url = self._url
        for _ in range(MAX_REDIRECTS):
            try:
                # httpx's own timeout is between two bytes; a server that drips would hold the place
                # for ever
                async with asyncio.timeout(self.endpoint.timeout):
                    response = await http.post(
                        url, content=content, headers={"Content-Type": "application/json"}
                    )
                if response.status_code not in REDIRECTS:
                    return response
                new_url = response.url.join(response.headers.get("location", ""))
            except (TimeoutError, httpx.ReadTimeout, httpx.WriteTimeout) as error:
                self.counts["too slow"] += 1
                raise Unanswered(f"no answer within {self.endpoint.timeout:g} seconds") from error
            except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
                raise self._not_reached(error) from error
            except httpx.InvalidURL as error:
                raise Closed("sends questions to another address, which is none") from error
            except httpx.RequestError as error:
                raise Unanswered(f"{type(error).__name__}: {replies.short(str(error))}") from error
            self._check_redirect(url, new_url)
            url = new_url
        raise Closed(
            f"sends questions from one address to the next, more than {MAX_REDIRECTS} times"
        )

    def _check_redirect(self, old_url: httpx.URL, new_url: httpx.URL) -> None:
        """Raises Closed or Away for another server: the key and the pictures are for this one."""
        moved = (
            f"has moved to {connection.without_password(new_url).removesuffix('/chat/completions')}"
        )
        old_server = (old_url.scheme, old_url.host, old_url.port)
        if (new_url.scheme, new_url.host, new_url.port) != old_server:
            # a server that has answered may send to a page of its provider's for a while
            if self.availability.has_answered:
                raise Away(moved)
            raise Closed(f"{moved}; if that is right, give it as url")
        self.availability.announce("moved", f"{moved}; give that as url")

    def _not_reached(self, error: httpx.TransportError) -> Exception:
        """What it means that no connection was made: Away, or Closed where waiting does not
        help."""
        why, may_come = connection.failure_cause(error)
        if isinstance(error, httpx.ConnectTimeout):
            why = "no connection in time"
        proxy, variable = connection.proxy_of(self._url)
        if proxy:
            why += f" (by the proxy that {variable} names)"
        if may_come or self.availability.has_answered:
            return Away(why)
        return Closed(f"cannot be asked: {why}")

    def _words(self, response: httpx.Response) -> str:
        """The server's sentence, without the key that it may repeat."""
        key = connection.key_in(self.endpoint.key_variable)
        words = replies.words_of(response)
        return words.replace(key, "***") if key else words

    def _hint(self, status: int) -> str:
        """What a user may look at, in parentheses; "" for most statuses."""
        if status in (401, 403):
            variable = self.endpoint.key_variable
            if connection.key_in(variable):
                return f" (it does not accept the key in {variable})"
            return f" (it wants a key, and {variable} is not set)"
        if status == 404:
            return (
                " (there is no such address or model; url must be a base address, as "
                "http://localhost:8000/v1)"
            )
        return ""
