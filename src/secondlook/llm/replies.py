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

MAX_SHOWN = 300
"""Characters of a server's words that are shown."""
MAX_DEPTH = 8
"""Levels of a JSON body that are looked through for the server's sentence."""
SENTENCE_FIELDS = (
    "error",
    "message",
    "msg",
    "detail",
    "errors",
    "error_description",
    "error_msg",
    "title",
    "reason",
)
"""Where providers put the sentence; an earlier name goes before a later one."""
AWAY_STATUSES = {502, 503, 504, 521, 522, 523, 530}
"""Of whoever stands before a server that is not there, or of one that is still loading."""
RETRY_STATUSES = {408, 409, 425}
"""Beside 5xx: of a server that may answer the next attempt."""
EMPTY_ACCOUNT_CODE = re.compile(
    r"insufficient_(user_)?(quota|balance|credit|fund)|exceeded_current_quota|"
    r"quota_(exceeded|exhausted)|billing|arrear|overdue|"
    r"(no|out_of|not_enough)_(quota|balance|credit)|payment_required|"
    r"(credits?|balance)_(exhausted|too_low|depleted)",
    re.IGNORECASE,
)
"""Codes and types of errors of an account that has nothing left: waiting does not help."""
EMPTY_ACCOUNT_WORDS = re.compile(
    r"insufficient (balance|credit|fund|quota)|"
    r"(balance|credits?|quota)[^.]* (too low|insufficient|exhausted|used up)|"
    r"exceeded your current quota",
    re.IGNORECASE,
)
"""The same in words."""
TOO_LARGE = re.compile(r"(request|prompt|input|image) (is |was )?too (large|long)", re.IGNORECASE)
"""A question beyond a whole minute's limit: no later attempt passes."""
UNKNOWN_FIELD = re.compile(
    r"unsupported|(not|n't) (be )?(supported?|known|permitted|allowed|valid|accepted)|"
    r"unknown|unrecogni[sz]ed|unexpected|"
    r"extra |additional propert|instead|deprecated|invalid (parameter|argument|field)|"
    r"only the default",
    re.IGNORECASE,
)
"""How servers say that they do not take a field."""
EXTRA_FIELD = re.compile(
    r"(extra|unknown|unrecogni|unexpected|additional)\w* (\w+ )?"
    r"(field|param|arg|input|key|propert)",
    re.IGNORECASE,
)
"""How they say so without the field's name."""
TOO_MANY_TOKENS = re.compile(r"too (large|long|many)|context|exceed")
NUMBER_WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
FEWER_LOGPROBS = (10, 5, 3, 2, 1)
"""Log-probabilities that are asked for where a server does not say how many it gives."""
THINKING_ROOM = 4096
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
    """One line of printable characters, cut off after ``MAX_SHOWN``."""
    printable = "".join(character if character.isprintable() else " " for character in text)
    line = " ".join(printable.split())
    return line if len(line) <= MAX_SHOWN else line[:MAX_SHOWN] + "…"


def words_of(response: httpx.Response) -> str:
    """The server's sentence, of JSON in any provider's form, of a web page, or as it stands; "" for
    an empty body."""
    body_text = response.text
    try:
        return short(_sentence(json.loads(body_text)))
    except (ValueError, RecursionError):  # no JSON
        pass
    if re.search(r"</?\w[^>]*>", body_text):
        # of a web page what is read: no scripts, styles and tags
        markup = r"(?is)<(script|style)\b.*?</\1\s*>|<[^>]*>"
        return short(html.unescape(re.sub(markup, " ", body_text)))
    return short(body_text)


def _sentence(value: Any, depth: int = 0) -> str:
    """The sentence in a JSON value; the value itself as JSON where none of the known fields is
    there."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and depth < MAX_DEPTH:
        sentences = [_sentence(element, depth + 1) for element in value[:3]]
        return "; ".join(sentence for sentence in sentences if sentence)
    if isinstance(value, dict) and depth < MAX_DEPTH:
        for name in SENTENCE_FIELDS:
            if not value.get(name):
                continue
            field_path = value.get("loc")  # pydantic's: the request's field that is meant
            prefix = ""
            if isinstance(field_path, list):
                prefix = ".".join(map(str, field_path)) + ": "
            return prefix + _sentence(value[name], depth + 1)
    return "" if value in (None, {}) else json.dumps(value, ensure_ascii=False)


def codes_of(response: httpx.Response) -> str:
    """The error's code, type, status and parameter, with "_" between words."""
    try:
        body = json.loads(response.text)
    except (ValueError, RecursionError):
        return ""
    error = body.get("error") if isinstance(body, dict) else None
    codes = []
    for part in (body, error):
        if not isinstance(part, dict):
            continue
        for name in ("code", "type", "status", "param", "reason"):
            if isinstance(part.get(name), str | int):
                codes.append(str(part[name]))
    # "InsufficientQuota", "insufficient-quota" and "insufficient quota" become alike
    camel_parted = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", ", ".join(codes))
    return re.sub(r"[\s.-]+", "_", camel_parted)


def seconds_to_wait(response: httpx.Response) -> float | None:
    """What the header Retry-After asks for, as seconds or as a date; None where it asks for
    nothing."""
    header = response.headers.get("retry-after", "").strip()
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return seconds if math.isfinite(seconds) and seconds > 0 else None


def failure(response: httpx.Response, words: str, has_answered: bool) -> Exception:
    """What a response that is no answer means; ``has_answered``: the endpoint has answered a
    question before, so that its address, key and model are right."""
    status = response.status_code
    told = f"status {status}: {words or response.reason_phrase or 'an empty answer'}"
    seconds = seconds_to_wait(response)
    codes = codes_of(response)
    is_account_empty = EMPTY_ACCOUNT_CODE.search(codes) or EMPTY_ACCOUNT_WORDS.search(words)
    # a quota of each minute is called a quota, too
    is_rate_limit = seconds and "rate" in codes.lower()
    if status == 402 or (status in (400, 403, 429) and is_account_empty and not is_rate_limit):
        return Closed(told)
    if status == 429 and TOO_LARGE.search(words):
        return Refused(told)
    if status == 429 or (seconds and status == 503):
        return Later(told, seconds)
    if status in AWAY_STATUSES or (status == 404 and has_answered):
        return Away(told)
    if status in RETRY_STATUSES or status >= 500:
        return Unanswered(told)
    if status == 401 or (status in (403, 404, 405, 410) and not has_answered):
        return Closed(told)
    return Refused(told)


def completion(response: httpx.Response) -> dict:
    """The first choice of a response of status 200. Raises Unanswered, and Closed for an account
    that has nothing left."""
    charset = response.charset_encoding
    try:
        # JSON is UTF-8, unless the server says that it is not
        content = response.content
        body = json.loads(content.decode(charset).lstrip("\ufeff") if charset else content)
        choice = body["choices"][0]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        told = f"status 200, but no completion: {words_of(response) or 'an empty answer'}"
        if EMPTY_ACCOUNT_CODE.search(codes_of(response)):
            raise Closed(f"answers {told}") from error
        raise Unanswered(told) from error
    if not isinstance(choice, dict):
        raise Unanswered("status 200, but no completion: its first choice is no object")
    return choice


class Dialect:
    """Which fields of a request an endpoint takes. It is learnt from the endpoint's refusals."""

    def __init__(self, thinking: bool):
        self.thinking = thinking
        """Whether the model may think before it answers."""
        self.limit_field = "max_tokens"
        """The field that limits the answer's tokens."""
        self.max_logprobs = 20
        """Likeliest first tokens asked for at most."""
        self.left_out: set[str] = set()

    def body(self, asked_body: dict[str, Any]) -> dict[str, Any]:
        """A question's body as this endpoint takes it."""
        sent_body = {}
        for name, value in asked_body.items():
            if name not in self.left_out:
                sent_body[name] = value
        num_tokens = sent_body.pop("max_tokens")
        # of an answer whose first token alone is read no thought is wanted
        if self.thinking and not asked_body.get("logprobs"):
            num_tokens += THINKING_ROOM
        sent_body[self.limit_field] = num_tokens
        if "top_logprobs" in sent_body:
            sent_body["top_logprobs"] = min(self.max_logprobs, sent_body["top_logprobs"])
        if not self.thinking and "chat_template_kwargs" not in self.left_out:
            sent_body["chat_template_kwargs"] = {"enable_thinking": False}
        return sent_body

    def varies(self, asked_body: dict[str, Any]) -> bool:
        """Whether a question may get another answer the next time: one in words, sampled at a
        temperature above 0 (which is a server's own where it takes none). Log-probabilities of the
        first token are not sampled."""
        sent_body = self.body(asked_body)
        return not sent_body.get("logprobs") and sent_body.get("temperature", 1) > 0

    def learn(self, refusal: str, sent_body: dict[str, Any]) -> str:
        """Send other fields from now on, as the ``refusal`` of ``sent_body`` asks for. Returns what
        is changed; "": nothing."""
        names_unknown = UNKNOWN_FIELD.search(refusal)
        is_limit_unknown = "max_completion_tokens" in refusal or (
            "max_tokens" in refusal and names_unknown
        )
        if "max_tokens" in sent_body and is_limit_unknown and not TOO_MANY_TOKENS.search(refusal):
            self.limit_field = "max_completion_tokens"
            return "max_completion_tokens is sent in place of max_tokens"
        if "top_logprobs" in sent_body and "logprobs" in refusal:
            fewer = self._fewer_logprobs(refusal, sent_body["top_logprobs"])
            if fewer:
                self.max_logprobs = fewer
                return f"top_logprobs is {fewer} in place of {sent_body['top_logprobs']}"
        if "temperature" in sent_body and "temperature" in refusal and names_unknown:
            self.left_out.add("temperature")
            return "temperature is left out"
        if "chat_template_kwargs" in sent_body and self._is_of_switch(refusal):
            self.left_out.add("chat_template_kwargs")
            return "chat_template_kwargs, which asks the model not to think, is left out"
        return ""

    @staticmethod
    def _fewer_logprobs(refusal: str, num_sent: int) -> int:
        """The largest number below ``num_sent`` that a refusal names, in digits or words; 0 where
        there is none."""
        numbers = [int(digits) for digits in re.findall(r"\b\d{1,2}\b", refusal)]
        for number, word in enumerate(NUMBER_WORDS, 1):
            if re.search(rf"\b{word}\b", refusal, re.IGNORECASE):
                numbers.append(number)
        if not numbers and "top_logprobs" in refusal:
            numbers += FEWER_LOGPROBS
        return max((number for number in numbers if 0 < number < num_sent), default=0)

    @staticmethod
    def _is_of_switch(refusal: str) -> bool:
        """Whether a refusal means the field that asks the model not to think: it names the field,
        or an extra one and none of the others."""
        if "chat_template_kwargs" in refusal or "enable_thinking" in refusal:
            return True
        names_other = any(name in refusal for name in ("logprobs", "temperature", "max_", "image"))
        return bool(EXTRA_FIELD.search(refusal)) and not names_other
