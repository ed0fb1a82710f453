"""A judge's answers with mishaps: each gives a score in [0, 1] that the answer says, or none."""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import httpx
from PIL import Image

from mutate import mutate
from secondlook.llm.client import Asker
from secondlook.llm.endpoint import Endpoint
from secondlook.rewards.reward import Score
from secondlook.rewards.vlm import VLMReward, in_words, yes_or_no

SHORT, LONG = "a red star", "a red star " * 12
LIKELIEST = [("Yes", 0.6), ("No", 0.25), (" yes", 0.1), ("no", 0.01), ("It", 0.01)]
HURRY: dict[str, Any] = {
    "attempts": 1,
    "backoff": 0.0,
    "patience": 0.0,
    "start_patience": 0.0,
    "timeout": 5.0,
}
"""An endpoint's settings under which nothing is waited for."""
STATUSES = (200, 200, 200, 200, 200, 200, 201, 204, 301, 400, 401, 404, 413, 429, 500, 503)
HEADERS = (
    {},
    {},
    {"content-type": "text/html"},
    {"content-type": "application/json; charset=latin-1"},
    {"content-encoding": "gzip"},
    {"retry-after": "x"},
    {"retry-after": "-5"},
    {"location": "http://["},
)


def completion(text: str, logprobs: Any = None) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": "stop"}
    return {
        "id": "x",
        "object": "chat.completion",
        "model": "judge",
        "choices": [choice],
        "usage": {"total_tokens": 9},
    }


def whole(body: dict[str, Any]) -> dict[str, Any]:
    """What a judge answers to a request."""
    if body.get("logprobs"):
        top_tokens = []
        for token, probability in LIKELIEST:
            logprob = math.log(probability)
            top_tokens.append({"token": token, "logprob": logprob, "bytes": list(token.encode())})
        return completion("Yes", {"content": [top_tokens[0] | {"top_logprobs": top_tokens}]})
    if "JSON list" in json.dumps(body):
        return completion('["Is there a star?", "Is it red?"]')
    return completion("There is a red star.")


def asked(rng: random.Random, given: list[bytes], ask: Callable[[Asker], Any]) -> Any:
    """``ask`` of a server whose every answer may have a mishap; ``given`` collects them."""

    async def handle(self: Any, request: httpx.Request) -> httpx.Response:
        whole_answer = json.dumps(whole(json.loads(request.content)))
        data = mutate(whole_answer.encode(), rng, json_lines=False)
        given.append(data)
        status, headers = rng.choice(STATUSES), rng.choice(HEADERS)
        return httpx.Response(
            status, headers=headers, stream=httpx.ByteStream(data), request=request
        )

    endpoint = Endpoint("http://127.0.0.1:9/v1", "judge", **HURRY)  # nobody listens there

    async def no_sleep(*_: Any) -> None:
        return None

    with (
        patch.object(httpx.AsyncHTTPTransport, "handle_async_request", handle),
        patch.object(asyncio, "sleep", no_sleep),
    ):
        return ask(Asker(endpoint))


@dataclass(frozen=True)
class Answer:
    """A question to a judge, and what may come of its answer."""

    name: str
    ask: Callable[[random.Random, list[bytes]], Any]
    check: Callable[[Any, list[bytes]], str]


def said_by(data: bytes) -> float | None:
    """P(yes) of an answer, read anew: of all forms of yes and no that are listed."""
    top_tokens = json.loads(data)["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    mass = {"yes": 0.0, "no": 0.0}
    for listed in top_tokens:
        word = str(listed["token"]).strip().lower()
        if word in mass:
            mass[word] += math.exp(listed["logprob"])
    return mass["yes"] / (mass["yes"] + mass["no"])


def right_probability(probabilities: list[Any], given: list[bytes]) -> str:
    [p_yes] = probabilities
    if p_yes is None:
        return ""
    if not isinstance(p_yes, float) or not 0 <= p_yes <= 1:
        return f"P(yes) is {p_yes!r}"
    given_p_yes = said_by(given[-1])
    if abs(p_yes - given_p_yes) < 1e-6:
        return ""
    return f"P(yes) is {p_yes}, the answer says {given_p_yes}"


def right_words(texts: list[Any], given: list[bytes]) -> str:
    [text] = texts
    if text is None:
        return ""
    content = json.loads(given[-1])["choices"][0]["message"]["content"]
    if isinstance(text, str) and text.strip() and text.strip() in content:
        return ""
    return f"{text!r} of {content!r}"


def right_scores(scores: list[Score | None], given: list[bytes]) -> str:
    for score in scores:
        if score is None:
            continue
        is_value = isinstance(score.value, float) and 0 <= score.value <= 1
        if not is_value or not isinstance(score.reason, str):
            return f"the score is {score}"
    return ""


def _judge(asker: Asker) -> list[Score | None]:
    image = Image.new("RGB", (8, 8), "red")
    return VLMReward(asker, asker, reasons=True)([(SHORT, image), (LONG, image)])


def _edits(asker: Asker) -> list[Score | None]:
    image = Image.new("RGB", (8, 8), "red")
    return VLMReward(asker, reasons=True).edits([(SHORT, image, image)])


def _yes_or_no(asker: Asker) -> list[Any]:
    return asker([yes_or_no(SHORT)])


def _words(asker: Asker) -> list[Any]:
    return asker([in_words(SHORT)])


ANSWERS = [
    Answer("answer/yes or no", partial(asked, ask=_yes_or_no), right_probability),
    Answer("answer/words", partial(asked, ask=_words), right_words),
    Answer("answer/judge", partial(asked, ask=_judge), right_scores),
    Answer("answer/edits", partial(asked, ask=_edits), right_scores),
]
