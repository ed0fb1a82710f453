"""Reading a judge's answer: P(yes) of its first token, its words without its thoughts, lists in
them. What is not what was asked for is no answer.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from secondlook.llm.replies import Refused, Unanswered, short

LEAST = 0.5
"""Probability that yes and no must hold together at the first token."""
MOST_MASS = 1.01
"""What rounded probabilities of all tokens may add up to."""
LARGEST_DOUBT = 0.1
"""By how much what a server does not list may change P(yes) at most."""
MOST_QUESTIONS = 40
TAGS = r"(?:\w+:)?(?:think(?:ing)?|thoughts?|reasoning|reflection|analysis)"
OPENED = re.compile(
    rf"<{TAGS}>|\[THINK\]|◁think▷|<\|begin_of_thought\|>|<\|START_THINKING\|>|<\|channel\|>analysis",
    re.I,
)
CLOSED = re.compile(
    rf"</{TAGS}>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>|<\|END_THINKING\|>|<\|channel\|>final<\|message\|>",
    re.I,
)
"""Marks of a model's thoughts, as Qwen, DeepSeek, Seed, Mistral, Kimi, Cohere, gpt-oss and others
write them."""
FRAMES = re.compile(
    r"</?answer>|<\|(?:begin|end)_of_(?:box|solution)\|>|<\|(?:START|END)_RESPONSE\|>", re.I
)


def p_yes(choice: dict) -> float:
    """P(yes) / (P(yes) + P(no)) over the variants of both words among the likeliest first tokens.

    Raises Unanswered where there are no log-probabilities, where one is no number, where both words
    together hold less than ``LEAST``, or where a word that is not listed could change the value by
    more than ``LARGEST_DOUBT``.
    """
    _not_stopped(choice)
    listed = _first_tokens(choice)
    mass: dict[str, float] = {}
    for token, raw, p in listed:
        word = next((w for w in (_word(token), _word(raw)) if w in ("yes", "no")), None)
        if word:
            mass[word] = mass.get(word, 0.0) + p
    total, held = sum(p for *_, p in listed), sum(mass.values())
    likeliest = ", ".join(
        f"{short(t or b)!r} {p:.2g}" for t, b, p in sorted(listed, key=lambda each: -each[2])[:2]
    )
    if total > MOST_MASS:
        raise Unanswered(
            f"the first token's probabilities are no probabilities: they add up to {total:.3g}"
        )
    if held < LEAST:
        raise Unanswered(
            f"yes and no hold {held:.2g} of the first token's probability, less than {LEAST}; "
            f"likeliest are {likeliest}"
        )
    unlisted = min(max(0.0, 1 - total), min(p for *_, p in listed)) if len(mass) < 2 else 0.0
    if unlisted / (held + unlisted) > LARGEST_DOUBT + 1e-6:
        raise Unanswered(
            f"only one of yes and no is listed, and the other may hold {unlisted:.2g}; likeliest "
            f"are {likeliest}"
        )
    return mass.get("yes", 0.0) / held


def _first_tokens(choice: dict) -> list[tuple[str, str, float]]:
    """Token, the text of its bytes, and probability of the likeliest first tokens."""
    try:
        told = choice["logprobs"]
        if isinstance(told.get("content"), list):
            first = told["content"][0]
            tokens = first.get("top_logprobs") or [first]
        else:  # the form of the older protocol
            tokens = [
                {"token": token, "logprob": value}
                for token, value in told["top_logprobs"][0].items()
            ]
        rows = [(t.get("token"), t.get("bytes"), t["logprob"]) for t in tokens]
    except (LookupError, TypeError, AttributeError) as error:
        raise Unanswered(
            "it gives no log-probabilities of the first token, and P(yes) is read from them"
        ) from error
    found: list[tuple[str, str, float]] = []
    for token, raw, value in rows:
        if isinstance(value, bool) or not isinstance(value, int | float) or not value <= 1e-3:
            raise Unanswered(
                f"a log-probability of the first token is {short(repr(value))}, which is none"
            )
        text = token if isinstance(token, str) else ""
        try:
            of_bytes = bytes(raw).decode(errors="replace") if isinstance(raw, list) else ""
        except (ValueError, TypeError):
            of_bytes = ""
        found.append((text, of_bytes, math.exp(max(min(value, 0), -1000))))
    if (
        sum(p for *_, p in found) > MOST_MASS
    ):  # some servers list the chosen token twice; two tokens may have one text, too
        found = list(dict.fromkeys(found))
    return found


def _word(token: str) -> str:
    """A token without spaces in any tokenizer's form, marks and case."""
    return re.sub(r"^[\W_]+|[\W_]+$", "", token.lstrip("ĠĊ▁ ")).lower()


def _not_stopped(choice: dict) -> None:
    if choice.get("finish_reason") in ("content_filter", "refusal", "safety"):
        raise Refused(f"it gives no answer: {choice['finish_reason']}")
    message = choice.get("message")
    refusal = message.get("refusal") if isinstance(message, dict) else None
    if refusal:
        raise Refused(f"it refuses: {short(str(refusal))}")


def text_of(choice: dict) -> str:
    """The answer's words, without the thoughts before them; of an answer that was cut off the whole
    sentences. Raises Unanswered where nothing is left."""
    text = _words(choice)
    if choice.get("finish_reason") == "length":
        whole = re.match(r".*[.!?。！？](?=\s|$)", text, re.DOTALL)
        if not whole:
            raise Unanswered("its answer was cut off before its first sentence ended")
        text = whole[0]
    return text


def _words(choice: dict) -> str:
    _not_stopped(choice)
    message = choice.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, list):  # in parts, of which some may be thoughts
        kept = [
            p.get("text")
            for p in content
            if isinstance(p, dict) and p.get("type") in ("text", "output_text")
        ]
        content = "".join(t for t in kept if isinstance(t, str))
    if not isinstance(content, str):
        content = ""
    answer = FRAMES.sub("", CLOSED.split(content)[-1]).strip()
    if OPENED.search(answer) or (not answer and (content or _thoughts(message))):
        raise Unanswered("it thinks and comes to no answer; thinking = true gives more room")
    if not answer:
        raise Unanswered("it answers without words")
    return _whole(answer)


def _whole(text: str) -> str:
    """Raises Unanswered for a text with characters that are none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Unanswered("its words are no Unicode text") from error
    if "\ufffd" in text:
        raise Unanswered("its words have characters that are lost")
    return text


def _thoughts(message: Any) -> bool:
    return isinstance(message, dict) and any(
        message.get(n) for n in ("reasoning_content", "reasoning", "thinking")
    )


def json_in(text: str, kind: type) -> Iterator[Any]:
    """Every JSON value of a ``kind``, list or dict, in a text, in order; what is inside one is not
    found again."""
    decoder, at = json.JSONDecoder(), 0
    opening = "[" if kind is list else "{"
    while (at := text.find(opening, at)) >= 0:
        try:
            value, at = decoder.raw_decode(text, at)
        except ValueError:
            at += 1
            continue
        except RecursionError:
            return
        yield value


def texts_of(choice: dict) -> list[str]:
    """The last JSON list of texts in an answer, with or without words around it. Raises
    Unanswered."""
    found = [
        v
        for v in json_in(_words(choice), list)
        if v and all(isinstance(t, str) and t.strip() for t in v)
    ]
    if not found:
        raise Unanswered("its answer has no JSON list of texts")
    return [_whole(t.strip()) for t in found[-1]]


def questions_of(choice: dict) -> list[str]:
    """A JSON list of questions, with or without words around it. Raises Unanswered."""
    listed = texts_of(choice)
    if len(listed) > MOST_QUESTIONS:
        raise Unanswered(
            f"its list has {len(listed)} questions; at most {MOST_QUESTIONS} are asked"
        )
    return listed
