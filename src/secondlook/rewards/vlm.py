"""A vision-language model behind an endpoint as judge: P(yes) of the paper's question, of a
prompt's parts, and of an edit.

Source: arXiv 2506.01480, sections 3.1 and 3.2: "Does this image match the description …, please
directly respond with yes or no", P(yes) over the variants of both words; a long prompt is split
into atomic questions and S is their mean. For edits, whether the instruction is followed and
whether the rest is unchanged.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL.Image import Image

from secondlook.io import png
from secondlook.llm.client import Question
from secondlook.llm.missing import Missing, missing_of
from secondlook.llm.parsing import p_yes, questions_of, text_of
from secondlook.rewards.reward import Edited, Score

MATCHES = 'Does this image match the description "{}", please directly respond with yes or no.'
ATOMIC = "{} Please directly respond with yes or no."
REASON = (
    'In one short sentence: what of the description "{}" does this image show, and '
    "what does it not show?"
)
EDIT = 'The second image is an edit of the first one by the instruction "{}". '
FOLLOWED = (
    EDIT + "Does the second image follow the instruction, please directly respond with yes or no."
)
PRESERVED = (
    EDIT + "Apart from what the instruction asks for, is the second image consistent "
    "with the first one, please directly respond "
    "with yes or no."
)
EDIT_REASON = (
    EDIT + "In one short sentence: what of it was done, what was not, and what else has changed?"
)
SPLIT = (
    "Split the description of an image into atomic questions, one for every object, attribute, "
    "number and relation in it, each "
    "answered with yes if the image shows it. Answer with a JSON list of strings and nothing "
    'else.\nDescription: "{}"'
)
TOP = 20
"""Likeliest first tokens asked for: as many as the protocol allows."""
REASON_TOKENS = 256


def _message(text: str, images: Sequence[Image]) -> list[dict[str, Any]]:
    shown = [
        {
            "type": "image_url",
            "image_url": {"url": "data:image/png;base64," + b64encode(png(i)).decode()},
        }
        for i in images
    ]
    return [
        {"role": "user", "content": [*shown, {"type": "text", "text": text}] if shown else text}
    ]


def yes_or_no(text: str, *images: Image) -> Question:
    body = {
        "messages": _message(text, images),
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": TOP,
    }
    return Question(body, p_yes)


def in_words(text: str, *images: Image, tokens: int = REASON_TOKENS) -> Question:
    return Question(
        {"messages": _message(text, images), "max_tokens": tokens, "temperature": 0}, text_of
    )


@dataclass
class EndpointJudge:
    """S of pictures by a served model. ``decomposer`` splits prompts of more than ``long`` words;
    ``reasons`` asks for a sentence as well."""

    asker: Callable[[Sequence[Question]], list[Any]]
    """An endpoint (``Asker``) or a model of transformers (``local.LocalModel``)."""
    decomposer: Callable[[Sequence[Question]], list[Any]] | None = None
    long: int = 20
    reasons: bool = False

    @property
    def missing(self) -> list[Missing]:
        """Why answers are missing, of the judge and of the decomposer."""
        return missing_of(self.asker) + missing_of(self.decomposer)

    def __call__(self, items: Sequence[tuple[str, Image]]) -> list[Score | None]:
        """One score for each (prompt, picture); None where an answer is missing."""
        for missing in self.missing:
            missing.begin()
        parts = self._parts([prompt for prompt, _ in items])
        asked = [
            yes_or_no(q, image)
            for (prompt, image), atomic in zip(items, parts, strict=True)
            for q in (
                map(ATOMIC.format, atomic)
                if atomic
                else [MATCHES.format(prompt)]
                if atomic is not None
                else []
            )
        ]
        words = (
            [in_words(REASON.format(prompt), image) for prompt, image in items]
            if self.reasons
            else []
        )
        answers = iter(self.asker([*asked, *words]))
        values = [
            None if atomic is None else [next(answers) for _ in atomic or [""]] for atomic in parts
        ]
        said = list(answers) if words else [""] * len(items)
        return [self._score(v, reason) for v, reason in zip(values, said, strict=True)]

    def _parts(self, prompts: list[str]) -> list[list[str] | None]:
        """A long prompt's atomic questions, none for a short one, None where they are missing."""
        long = [p for p in prompts if self.decomposer and len(p.split()) > self.long]
        if not long or self.decomposer is None:
            return [[] for _ in prompts]
        body = [Question(in_words(SPLIT.format(p), tokens=1024).body, questions_of) for p in long]
        split = dict(zip(long, self.decomposer(body), strict=True))
        return [split.get(p, []) for p in prompts]

    @staticmethod
    def _score(values: list[float | None] | None, reason: str | None) -> Score | None:
        if values is None or reason is None or any(v is None for v in values):
            return None
        s = sum(v for v in values if v is not None) / len(values)
        return Score(s, s >= 0.5, reason.strip().rstrip("."))

    def edits(self, items: Sequence[Edited]) -> list[Score | None]:
        """One score for each (instruction, source, edited picture); None where an answer is
        missing."""
        for missing in self.missing:
            missing.begin()
        asked = [
            yes_or_no(q.format(i), source, edited)
            for i, source, edited in items
            for q in (FOLLOWED, PRESERVED)
        ]
        words = (
            [in_words(EDIT_REASON.format(i), source, edited) for i, source, edited in items]
            if self.reasons
            else []
        )
        answers = self.asker([*asked, *words])
        said = answers[len(asked) :] if words else [""] * len(items)
        return [
            self._edit(*each)
            for each in zip(
                answers[0 : len(asked) : 2], answers[1 : len(asked) : 2], said, strict=True
            )
        ]

    @staticmethod
    def _edit(
        following: float | None, preserving: float | None, reason: str | None
    ) -> Score | None:
        if following is None or preserving is None or reason is None:
            return None
        return Score.of_edit(
            following, preserving, min(following, preserving) >= 0.5, reason.strip().rstrip(".")
        )
