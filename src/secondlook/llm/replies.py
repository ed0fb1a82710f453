"""What a server says instead of an answer: its own words, what they mean for the question, and
which of a request's fields it does not take.
"""

from __future__ import annotations

import html
import json
import math
import re
import time
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

LONGEST = 300
"""Characters of a server's words that are shown."""
AWAY = {502, 503, 504, 521, 522, 523, 530}
"""Statuses of whoever stands before a server that is not there, or of one that is still loading."""
AGAIN = {408, 409, 425}
"""Statuses, beside 5xx, of a server that may answer the next attempt."""
OVER = re.compile(
    r"insufficient_(user_)?(quota|balance|credit|fund)|exceeded_current_quota|quota_(exceeded|exhausted)|billing|arrear|overdue|"
    r"(no|out_of|not_enough)_(quota|balance|credit)|payment_required|"
    r"(credits?|balance)_(exhausted|too_low|depleted)",
    re.IGNORECASE,
)
"""Codes and types of errors of an account that has nothing left: waiting does not help."""
EMPTY = re.compile(
    r"insufficient (balance|credit|fund|quota)|"
    r"(balance|credits?|quota)[^.]* (too low|insufficient|exhausted|used up)|"
    r"exceeded your current quota",
    re.IGNORECASE,
)
"""The same in words."""
TOO_LARGE = re.compile(r"(request|prompt|input|image) (is |was )?too (large|long)", re.IGNORECASE)
"""A question beyond a whole minute's limit: no later attempt passes."""
UNKNOWN = re.compile(
    r"unsupported|(not|n't) (be )?(supported?|known|permitted|allowed|valid|accepted)|"
    r"unknown|unrecogni[sz]ed|unexpected|"
    r"extra |additional propert|instead|deprecated|invalid (parameter|argument|field)|"
    r"only the default",
    re.IGNORECASE,
)
"""How servers say that they do not take a field."""
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
FEWER = (10, 5, 3, 2, 1)
"""Log-probabilities that are asked for where a server does not say how many it gives."""
ROOM = 4096
"""More tokens for an answer in words where the model may think before it."""


class Unanswered(Exception):
    """This attempt gave no usable answer."""


class Away(Unanswered):
    """Nobody is there who could answer."""


class Later(Unanswered):
    """The server asks to wait: for so many ``seconds``, or, where they are None, without saying how
    long."""

    def __init__(self, words: str, seconds: float | None):
        super().__init__(words)
        self.seconds = seconds


class Refused(Exception):
    """This question will not be answered, however often it is asked."""


class GivenUp(Refused):
    """This question has failed in ways that pass, and is not asked again."""


class Closed(Exception):
    """No question to this endpoint will be answered until somebody changes something."""


def short(text: str) -> str:
    """One line of printable characters, cut off after ``LONGEST``."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= LONGEST else line[:LONGEST] + "…"


def words_of(response: httpx.Response) -> str:
    """The server's sentence, of JSON in any provider's form, of a web page, or as it stands; "" for
    an empty body."""
    text = response.text
    try:
        found = _sentence(json.loads(text))
    except (ValueError, RecursionError):
        found = text
        if re.search(r"</?\w[^>]*>", text):
            found = html.unescape(re.sub(r"(?is)<(script|style)\b.*?</\1\s*>|<[^>]*>", " ", text))
    return short(found)


def _sentence(value: Any, depth: int = 0) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and depth < 8:
        return "; ".join(filter(None, (_sentence(each, depth + 1) for each in value[:3])))
    if isinstance(value, dict) and depth < 8:
        for name in (
            "error",
            "message",
            "msg",
            "detail",
            "errors",
            "error_description",
            "error_msg",
            "title",
            "reason",
        ):
            if value.get(name):
                where = value.get("loc")  # pydantic's: the field that is meant
                field = ".".join(map(str, where)) + ": " if isinstance(where, list) else ""
                return field + _sentence(value[name], depth + 1)
    return "" if value in (None, {}) else json.dumps(value, ensure_ascii=False)


def codes_of(response: httpx.Response) -> str:
    """The error's code, type, status and parameter, with "_" between words."""
    try:
        body = json.loads(response.text)
    except (ValueError, RecursionError):
        return ""
    error = body.get("error") if isinstance(body, dict) else None
    found = [
        str(part[name])
        for part in (body, error)
        if isinstance(part, dict)
        for name in ("code", "type", "status", "param", "reason")
        if isinstance(part.get(name), str | int)
    ]
    return re.sub(r"[\s.-]+", "_", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", ", ".join(found)))


def seconds_to_wait(response: httpx.Response) -> float | None:
    """What the header Retry-After asks for, as seconds or as a date; None where it asks for
    nothing."""
    text = response.headers.get("retry-after", "").strip()
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return seconds if math.isfinite(seconds) and seconds > 0 else None


def failure(response: httpx.Response, words: str, answered: bool) -> Exception:
    """What a response that is no answer means; ``answered``: the endpoint has answered a question
    before."""
    status = response.status_code
    said = f"status {status}: {words or response.reason_phrase or 'an empty answer'}"
    wait = seconds_to_wait(response)
    codes = codes_of(response)
    over = OVER.search(codes) or EMPTY.search(words)
    if status == 402 or (
        status in (400, 403, 429) and over and not (wait and "rate" in codes.lower())
    ):
        return Closed(said)
    if status == 429 and TOO_LARGE.search(words):
        return Refused(said)
    if status == 429 or (wait and status == 503):
        return Later(said, wait)
    if status in AWAY or (status == 404 and answered):
        return Away(said)
    if status in AGAIN or status >= 500:
        return Unanswered(said)
    if status == 401 or (status in (403, 404, 405, 410) and not answered):
        return Closed(said)
    return Refused(said)


def completion(response: httpx.Response) -> dict:
    """The first choice of a response of status 200. Raises Unanswered, and Closed for an account
    that has nothing left."""
    charset = response.charset_encoding
    try:  # JSON is UTF-8, unless the server says that it is not
        body = json.loads(
            response.content.decode(charset).lstrip("\ufeff") if charset else response.content
        )
        choice = body["choices"][0]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        said = f"status 200, but no completion: {words_of(response) or 'an empty answer'}"
        if OVER.search(codes_of(response)):
            raise Closed(f"answers {said}") from error
        raise Unanswered(said) from error
    if not isinstance(choice, dict):
        raise Unanswered("status 200, but no completion: its first choice is no object")
    return choice


class Dialect:
    """Which fields of a request an endpoint takes. It is learnt from the endpoint's refusals."""

    def __init__(self, thinking: bool):
        self.thinking = thinking
        """Whether the model may think before it answers."""
        self.limit = "max_tokens"
        """The field that limits the answer's tokens."""
        self.top = 20
        """Likeliest first tokens asked for at most."""
        self.left_out: set[str] = set()

    def body(self, asked: dict[str, Any]) -> dict[str, Any]:
        """A question's body as this endpoint takes it."""
        sent = {name: value for name, value in asked.items() if name not in self.left_out}
        tokens = sent.pop("max_tokens")
        sent[self.limit] = tokens + (ROOM if self.thinking and not asked.get("logprobs") else 0)
        if "top_logprobs" in sent:
            sent["top_logprobs"] = min(self.top, sent["top_logprobs"])
        if not self.thinking and "chat_template_kwargs" not in self.left_out:
            sent["chat_template_kwargs"] = {"enable_thinking": False}
        return sent

    def varies(self, asked: dict[str, Any]) -> bool:
        """Whether a question may get another answer the next time: one in words, sampled at a
        temperature above 0 (which is a server's own where it takes none). Log-probabilities of the
        first token are not sampled."""
        sent = self.body(asked)
        return not sent.get("logprobs") and sent.get("temperature", 1) > 0

    def learn(self, said: str, sent: dict[str, Any]) -> str:
        """Send other fields from now on, as the refusal ``said`` of ``sent`` asks for. Returns what
        is changed; "": nothing."""
        unknown = UNKNOWN.search(said)
        too_many = re.search(r"too (large|long|many)|context|exceed", said)
        if (
            "max_tokens" in sent
            and not too_many
            and ("max_completion_tokens" in said or ("max_tokens" in said and unknown))
        ):
            self.limit = "max_completion_tokens"
            return "max_completion_tokens is sent in place of max_tokens"
        if "top_logprobs" in sent and "logprobs" in said:
            listed = [int(n) for n in re.findall(r"\b\d{1,2}\b", said)]
            listed += [
                n
                for n, name in enumerate(NUMBERS, 1)
                if re.search(rf"\b{name}\b", said, re.IGNORECASE)
            ]
            less = [
                n
                for n in listed or (FEWER if "top_logprobs" in said else ())
                if 0 < n < sent["top_logprobs"]
            ]
            if less:
                self.top = max(less)
                return f"top_logprobs is {self.top} in place of {sent['top_logprobs']}"
        if "temperature" in sent and "temperature" in said and unknown:
            self.left_out.add("temperature")
            return "temperature is left out"
        switch = "chat_template_kwargs" in sent and (
            "chat_template_kwargs" in said or "enable_thinking" in said
        )
        of_no_other = not any(name in said for name in ("logprobs", "temperature", "max_", "image"))
        extra = re.search(
            r"(extra|unknown|unrecogni|unexpected|additional)\w* "
            r"(\w+ )?(field|param|arg|input|key|propert)",
            said,
            re.I,
        )
        if switch or ("chat_template_kwargs" in sent and extra and of_no_other):
            self.left_out.add("chat_template_kwargs")
            return "chat_template_kwargs, which asks the model not to think, is left out"
        return ""
