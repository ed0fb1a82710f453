"""Whether a server is there, and the waiting for it, for all questions together."""

from __future__ import annotations

import random
import sys
import time

from secondlook.end_request import sleep_unless_asked_to_end
from secondlook.errors import InputError, Stopped
from secondlook.llm import connection
from secondlook.llm.answer_store import Answers
from secondlook.llm.endpoint import Endpoint
from secondlook.llm.replies import GivenUp, Later

MAX_AWAY_PAUSE = 10.0
"""Seconds between two attempts to reach a server that is away, at most."""


class Availability:
    """What is known of one endpoint's server: since when it is away or puts questions off, and
    whether it has ever answered. All times are of ``time.monotonic``."""

    def __init__(self, endpoint: Endpoint, answers: Answers):
        self.endpoint = endpoint
        self.shown_url = connection.without_password(endpoint.url)
        self._answers = answers
        self._stored_name = f"{endpoint.url} {endpoint.model}"
        self.has_answered = answers.has_answered(self._stored_name)
        """In this process or an earlier one with the same file of answers."""
        self.last_response = float("-inf")
        """When anything came from the server, a refusal too."""
        self.away_since: float | None = None
        self._put_off_since: float | None = None
        """Since when it answers nothing and asks to wait."""
        self._announced: set[str] = set()
        """Topics that were printed."""

    @property
    def is_away(self) -> bool:
        return self.away_since is not None

    def note_response(self, is_answer: bool = False) -> None:
        """The server is there: it has answered a question, or refused one."""
        self.last_response = time.monotonic()
        if self.is_away and "away" in self._announced:
            print(f"secondlook: judge: {self.shown_url} answers again", file=sys.stderr, flush=True)
            self._announced.discard("away")
        self.away_since = None
        if is_answer:
            self._put_off_since = None
            if not self.has_answered:
                self.has_answered = True
                self._answers.note_answered(self._stored_name)

    def announce(self, topic: str, text: str) -> None:
        """Print to stderr, each topic once."""
        if topic not in self._announced:
            self._announced.add(topic)
            print(f"secondlook: judge: {self.shown_url} {text}", file=sys.stderr, flush=True)

    async def wait_as_told(self, reply: Later, began: float, num_before: int) -> None:
        """Wait as a server asks to that has put off the same question ``num_before`` times before;
        this attempt ``began`` then. Raises GivenUp where it has answered nothing for
        ``patience``."""
        patience = self.endpoint.patience
        if self._put_off_since is None:
            self._put_off_since = began
        seconds_left = self._put_off_since + 60 * patience - time.monotonic()
        if seconds_left <= (reply.seconds or 0):
            told = f"wait {reply.seconds:.0f} s; " if reply.seconds else ""
            raise GivenUp(f"{reply} ({told}patience is {patience:g} minutes)") from reply
        self.announce(
            "later", f"asks to wait ({reply}); it is waited for up to {patience:g} minutes"
        )
        if reply.seconds is None:
            pause = min(seconds_left, self.endpoint.retry_pause(num_before))
        else:
            # a random addition, so that the waiting questions do not all come back at one moment
            jitter = random.uniform(0, min(self.endpoint.backoff, reply.seconds))
            pause = reply.seconds + jitter
        await sleep_unless_asked_to_end(pause)

    async def wait_until_back(self, why: str) -> None:
        """Wait a little for a server that is away. Raises Stopped, or InputError for one that never
        answered, when it is away for too long."""
        endpoint, now = self.endpoint, time.monotonic()
        if self.away_since is None:
            self.away_since = now
        # an address that never answered is most often a wrong one
        minutes = endpoint.patience if self.has_answered else endpoint.start_patience
        how_long = f"{minutes:g} minutes" if minutes >= 1 else f"{60 * minutes:g} seconds"
        seconds_left = self.away_since + 60 * minutes - now
        if seconds_left <= 0:
            if not self.has_answered:
                raise InputError(
                    f"judge: {self.shown_url} does not answer: {why}; start the server or correct "
                    f"url; start_patience waits longer than {how_long}"
                )
            raise Stopped(
                f"judge: {self.shown_url} has not answered for {how_long}: {why}; start it, and "
                "the same command goes on"
            )
        self.announce("away", f"does not answer ({why}); waiting up to {how_long}")
        # pauses grow with the time that it is away, and differ between the waiting questions
        pause = random.uniform(0.5, 1) * (endpoint.backoff + 0.2 * (now - self.away_since))
        await sleep_unless_asked_to_end(min(seconds_left, MAX_AWAY_PAUSE, pause))
