"""Reading a judge's answer: P(yes) of its first token, its words without its thoughts, lists in
them. What is not what was asked for is no answer.

Every reader takes the first choice of a chat completion, {"message": {"content": …}, "logprobs": …,
"finish_reason": …}. It raises Unanswered where that lacks what the reader wants, and Refused where
the model or its server declines to answer.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

from secondlook.llm.replies import Refused, Unanswered, short

MIN_YES_NO_MASS = 0.5
"""Probability that yes and no must hold together at the first token."""
MAX_TOTAL_MASS = 1.01
"""What rounded probabilities of all tokens may add up to."""
MAX_DOUBT = 0.1
"""By how much what a server does not list may change P(yes) at most."""
MAX_LOGPROB = 1e-3
"""A log-probability is at most 0; servers round."""
MAX_QUESTIONS = 40
TAGS = r"(?:\w+:)?(?:think(?:ing)?|thoughts?|reasoning|reflection|analysis)"
THOUGHTS_BEGIN = re.compile(
    rf"<{TAGS}>|\[THINK\]|◁think▷|<\|begin_of_thought\|>|<\|START_THINKING\|>|"
    r"<\|channel\|>analysis",
    re.IGNORECASE,
)
THOUGHTS_END = re.compile(
    rf"</{TAGS}>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>|<\|END_THINKING\|>|"
    r"<\|channel\|>final<\|message\|>",
    re.IGNORECASE,
)
"""Marks of a model's thoughts, as Qwen, DeepSeek, Seed, Mistral, Kimi, Cohere, gpt-oss and others
write them."""
ANSWER_MARKS = re.compile(
    r"</?answer>|<\|(?:begin|end)_of_(?:box|solution)\|>|<\|(?:START|END)_RESPONSE\|>",
    re.IGNORECASE,
)
"""Marks around the answer itself."""


class FirstToken(NamedTuple):
    """One of the likeliest first tokens of an answer."""

    text: str
    byte_text: str
    """The text of its bytes: a token may be a part of a character, or be written in the tokenizer's
    own letters."""
    probability: float


def p_yes(choice: dict) -> float:
    """P(yes) / (P(yes) + P(no)) over the variants of both words among the likeliest first tokens.

    Raises Unanswered where there are no log-probabilities, where one is no number, where both words
    together hold less than ``MIN_YES_NO_MASS``, or where a word that is not listed could change the
    value by more than ``MAX_DOUBT``.
    """
    _check_not_stopped(choice)
    first_tokens = _first_tokens(choice)
    word_mass: dict[str, float] = {}  # of "yes" and "no", where they are listed
    for token in first_tokens:
        word = _yes_or_no(token)
        if word:
            word_mass[word] = word_mass.get(word, 0.0) + token.probability
    yes_no_mass = sum(word_mass.values())
    total_mass = sum(token.probability for token in first_tokens)
    if total_mass > MAX_TOTAL_MASS:
        raise Unanswered(
            f"the first token's probabilities are no probabilities: they add up to {total_mass:.3g}"
        )
    if yes_no_mass < MIN_YES_NO_MASS:
        raise Unanswered(
            f"yes and no hold {yes_no_mass:.2g} of the first token's probability, less than "
            f"{MIN_YES_NO_MASS}; likeliest are {_likeliest(first_tokens)}"
        )
    if len(word_mass) < 2:
        # the other word may be any token that is not listed: those are less likely than the least
        # likely one that is, and share what is left of 1
        least_listed = min(token.probability for token in first_tokens)
        unlisted = min(max(0.0, 1 - total_mass), least_listed)
        if unlisted / (yes_no_mass + unlisted) > MAX_DOUBT + 1e-6:
            raise Unanswered(
                f"only one of yes and no is listed, and the other may hold {unlisted:.2g}; "
                f"likeliest are {_likeliest(first_tokens)}"
            )
    return word_mass.get("yes", 0.0) / yes_no_mass


def _likeliest(first_tokens: list[FirstToken]) -> str:
    """The two likeliest tokens in words."""
    by_probability = sorted(first_tokens, key=lambda token: -token.probability)
    shown_tokens = []
    for token in by_probability[:2]:
        shown_tokens.append(f"{short(token.text or token.byte_text)!r} {token.probability:.2g}")
    return ", ".join(shown_tokens)


def _first_tokens(choice: dict) -> list[FirstToken]:
    """The likeliest first tokens, as the server lists them. Raises Unanswered."""
    try:
        logprobs = choice["logprobs"]
        if isinstance(logprobs.get("content"), list):
            first_position = logprobs["content"][0]
            entries = first_position.get("top_logprobs") or [first_position]
        else:  # the older protocol: {"top_logprobs": [{token: log-probability}]}
            entries = []
            for text, logprob in logprobs["top_logprobs"][0].items():
                entries.append({"token": text, "logprob": logprob})
        fields = [(entry.get("token"), entry.get("bytes"), entry["logprob"]) for entry in entries]
    except (LookupError, TypeError, AttributeError) as error:
        raise Unanswered(
            "it gives no log-probabilities of the first token, and P(yes) is read from them"
        ) from error
    first_tokens = [_first_token(*entry_fields) for entry_fields in fields]
    if sum(token.probability for token in first_tokens) > MAX_TOTAL_MASS:
        # Some servers list the chosen token twice. Equal ones are only then dropped, for two
        # tokens may have one text, too.
        first_tokens = list(dict.fromkeys(first_tokens))
    return first_tokens


def _first_token(text: Any, token_bytes: Any, logprob: Any) -> FirstToken:
    """One listed token, checked. Raises Unanswered."""
    is_number = isinstance(logprob, int | float) and not isinstance(logprob, bool)
    if not is_number or not logprob <= MAX_LOGPROB:  # NaN is not
        raise Unanswered(
            f"a log-probability of the first token is {short(repr(logprob))}, which is none"
        )
    byte_text = ""
    if isinstance(token_bytes, list):
        with suppress(ValueError, TypeError):  # some are no numbers of 0 to 255
            byte_text = bytes(token_bytes).decode(errors="replace")
    # -1000: minus infinity too is a log-probability, and math.exp takes no integer of any size
    probability = math.exp(max(min(logprob, 0), -1000))
    return FirstToken(text if isinstance(text, str) else "", byte_text, probability)


def _yes_or_no(token: FirstToken) -> str | None:
    """The word, yes or no, that a token is a variant of; None: neither."""
    for text in (token.text, token.byte_text):
        word = _word(text)
        if word in ("yes", "no"):
            return word
    return None


def _word(token_text: str) -> str:
    """A token without spaces in any tokenizer's form, marks and case."""
    # tokenizers write a space as "Ġ" (a newline as "Ċ") or "▁"
    return re.sub(r"^[\W_]+|[\W_]+$", "", token_text.lstrip("ĠĊ▁ ")).lower()


def _check_not_stopped(choice: dict) -> None:
    """Raises Refused where a filter or the model itself declines to answer."""
    if choice.get("finish_reason") in ("content_filter", "refusal", "safety"):
        raise Refused(f"it gives no answer: {choice['finish_reason']}")
    message = choice.get("message")
    refusal = message.get("refusal") if isinstance(message, dict) else None
    if refusal:
        raise Refused(f"it refuses: {short(str(refusal))}")


def text_of(choice: dict) -> str:
    """The answer's words, without the thoughts before them; of an answer that was cut off the whole
    sentences. Raises Unanswered where nothing is left."""
    answer_text = _words(choice)
    if choice.get("finish_reason") == "length":
        whole_sentences = re.match(r".*[.!?。！？](?=\s|$)", answer_text, re.DOTALL)
        if not whole_sentences:
            raise Unanswered("its answer was cut off before its first sentence ended")
        answer_text = whole_sentences[0]
    return answer_text


def _words(choice: dict) -> str:
    """The answer's words, without the thoughts before them. Raises Unanswered and Refused."""
    _check_not_stopped(choice)
    message = choice.get("message")
    content = _content(message)
    # the marks of a thought's beginning may be the template's, and so not in the content
    after_thoughts = THOUGHTS_END.split(content)[-1]
    answer_text = ANSWER_MARKS.sub("", after_thoughts).strip()
    has_only_thoughts = not answer_text and (content or _has_thoughts(message))
    if THOUGHTS_BEGIN.search(answer_text) or has_only_thoughts:
        raise Unanswered("it thinks and comes to no answer; thinking = true gives more room")
    if not answer_text:
        raise Unanswered("it answers without words")
    return _checked_unicode(answer_text)


def _content(message: Any) -> str:
    """A message's text; of one in parts those that are no thoughts; "" where there is none."""
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, list):
        part_texts = []
        for part in content:
            if not isinstance(part, dict) or part.get("type") not in ("text", "output_text"):
                continue
            if isinstance(part.get("text"), str):
                part_texts.append(part["text"])
        content = "".join(part_texts)
    return content if isinstance(content, str) else ""


def _has_thoughts(message: Any) -> bool:
    """Whether the server gives thoughts in a field of their own."""
    thought_fields = ("reasoning_content", "reasoning", "thinking")
    return isinstance(message, dict) and any(message.get(name) for name in thought_fields)


def _checked_unicode(text: str) -> str:
    """Raises Unanswered for a text with characters that are none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Unanswered("its words are no Unicode text") from error
    if "\ufffd" in text:
        raise Unanswered("its words have characters that are lost")
    return text


def json_in(text: str, json_type: type) -> Iterator[Any]:
    """Every JSON value of a type, list or dict, in a text, in order; what is inside one is not
    found again."""
    decoder = json.JSONDecoder()
    bracket = "[" if json_type is list else "{"
    position = text.find(bracket)
    while position >= 0:
        try:
            value, position = decoder.raw_decode(text, position)
        except ValueError:
            position += 1  # no JSON begins here; perhaps one does at the next bracket
        except RecursionError:
            return
        else:
            yield value
        position = text.find(bracket, position)


def texts_of(choice: dict) -> list[str]:
    """The last JSON list of texts in an answer, with or without words around it. Raises
    Unanswered."""
    last_texts: list[str] = []
    for values in json_in(_words(choice), list):
        if values and all(isinstance(value, str) and value.strip() for value in values):
            last_texts = values
    if not last_texts:
        raise Unanswered("its answer has no JSON list of texts")
    return [_checked_unicode(text.strip()) for text in last_texts]


def questions_of(choice: dict) -> list[str]:
    """A JSON list of questions, with or without words around it. Raises Unanswered."""
    questions = texts_of(choice)
    if len(questions) > MAX_QUESTIONS:
        raise Unanswered(
            f"its list has {len(questions)} questions; at most {MAX_QUESTIONS} are asked"
        )
    return questions
