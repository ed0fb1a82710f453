"""A judge's answers with mishaps: each gives a score in [0, 1] that the answer says, or none."""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, fields
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
HURRY = {"attempts": 1, "backoff": 0.0, "patience": 0.0, "start_patience": 0.0, "timeout": 5.0}
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
        top = [
            {"token": t, "logprob": math.log(p), "bytes": list(t.encode())} for t, p in LIKELIEST
        ]
        return completion("Yes", {"content": [top[0] | {"top_logprobs": top}]})
    if "JSON list" in json.dumps(body):
        return completion('["Is there a star?", "Is it red?"]')
    return completion("There is a red star.")


def asked(rng: random.Random, given: list[bytes], ask: Callable[[Asker], Any]) -> Any:
    """``ask`` of a server whose every answer may have a mishap; ``given`` collects them."""

    async def handle(self: Any, request: httpx.Request) -> httpx.Response:
        data = mutate(
            json.dumps(whole(json.loads(request.content))).encode(), rng, json_lines=False
        )
        given.append(data)
        status, headers = rng.choice(STATUSES), rng.choice(HEADERS)
        return httpx.Response(
            status, headers=headers, stream=httpx.ByteStream(data), request=request
        )

    known = {f.name for f in fields(Endpoint)}
    endpoint = Endpoint(
        "http://127.0.0.1:9/v1", "judge", **{k: v for k, v in HURRY.items() if k in known}
    )

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
    """P(yes) of an answer, read anew."""
    top = json.loads(data)["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    mass = [
        sum(math.exp(t["logprob"]) for t in top if str(t["token"]).strip().lower() == word)
        for word in ("yes", "no")
    ]
    return mass[0] / sum(mass)


def right_probability(found: list[Any], given: list[bytes]) -> str:
    [p] = found
    if p is None:
        return ""
    if not isinstance(p, float) or not 0 <= p <= 1:
        return f"P(yes) is {p!r}"
    return (
        ""
        if abs(p - said_by(given[-1])) < 1e-6
        else f"P(yes) is {p}, the answer says {said_by(given[-1])}"
    )


def right_words(found: list[Any], given: list[bytes]) -> str:
    [text] = found
    if text is None:
        return ""
    wanted = json.loads(given[-1])["choices"][0]["message"]["content"]
    return (
        ""
        if isinstance(text, str) and text.strip() and text.strip() in wanted
        else f"{text!r} of {wanted!r}"
    )


def right_scores(found: list[Score | None], given: list[bytes]) -> str:
    for score in found:
        if score is not None and not (
            isinstance(score.value, float)
            and 0 <= score.value <= 1
            and isinstance(score.reason, str)
        ):
            return f"the score is {score}"
    return ""


def _judge(asker: Asker) -> list[Score | None]:
    image = Image.new("RGB", (8, 8), "red")
    return VLMReward(asker, asker, reasons=True)([(SHORT, image), (LONG, image)])


def _edits(asker: Asker) -> list[Score | None]:
    image = Image.new("RGB", (8, 8), "red")
    return VLMReward(asker, reasons=True).edits([(SHORT, image, image)])


ANSWERS = [
    Answer(
        "answer/yes or no",
        lambda rng, given: asked(rng, given, lambda a: a([yes_or_no(SHORT)])),
        right_probability,
    ),
    Answer(
        "answer/words",
        lambda rng, given: asked(rng, given, lambda a: a([in_words(SHORT)])),
        right_words,
    ),
    Answer("answer/judge", lambda rng, given: asked(rng, given, _judge), right_scores),
    Answer("answer/edits", lambda rng, given: asked(rng, given, _edits), right_scores),
]
