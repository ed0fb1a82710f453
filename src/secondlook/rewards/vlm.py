"""A vision-language model as reward, served (``vlm``) or loaded here (``local``): P(yes) of the
paper's question, of a prompt's parts, and of an edit.

Source: arXiv 2506.01480, sections 3.1 and 3.2: "Does this image match the description …, please
directly respond with yes or no", P(yes) over the variants of both words; a long prompt is split
into atomic questions and S is their mean. For edits, whether the instruction is followed and
whether the rest is unchanged.
"""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image as PILImage
from PIL.Image import Image

from secondlook.errors import InputError
from secondlook.io import png
from secondlook.llm.client import Answers, Asker, Endpoint, Question
from secondlook.llm.missing import Missing, missing_of
from secondlook.llm.parsing import p_yes, questions_of, text_of
from secondlook.registry import register_reward
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


def trial_question(words: bool = False) -> Question:
    """A question about a small grey picture in the form of the real ones: for P(yes), or for an
    answer in ``words``."""
    grey, text = PILImage.new("RGB", (224, 224), (128, 128, 128)), "Is this image plain grey?"
    return in_words(text, grey) if words else yes_or_no(ATOMIC.format(text), grey)


@dataclass
class VLMReward:
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

    def try_out(self) -> None:
        """Ask an endpoint a trial question. Raises InputError where it can answer none."""
        if isinstance(self.asker, Asker):
            self.asker.try_out(trial_question())

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


def file_of_this_rank(path: str) -> Path | None:
    """A file that only this process of several writes to (torchrun tells each its number); None for
    no path."""
    if not path:
        return None
    rank = os.environ.get("RANK", "0")
    return Path(path) if rank == "0" else Path(path).with_stem(f"{Path(path).stem}.rank-{rank}")


@dataclass(frozen=True)
class ServedConfig:
    """``[[rewards]] kind = "vlm"``: a model behind an OpenAI-compatible endpoint."""

    url: str = ""
    """The base address, as http://localhost:8000/v1."""
    model: str = ""
    """The served model's name."""
    decomposer_model: str = ""
    """The language model that splits long prompts into questions; empty: they are asked whole."""
    decomposer_url: str = ""
    """Default: the same as ``url``."""
    decomposer_thinking: bool = False
    """Whether it may think before it answers."""
    long: int = 20
    """Words from which on, exclusively, a prompt is long."""
    answers: str = ""
    """A file where answers are kept from run to run; empty: in memory."""
    key_variable: str = "OPENAI_API_KEY"
    """The environment variable of the server's key."""
    concurrency: int = 32
    """Questions under way at the same time."""
    timeout: float = 60.0
    """Seconds that one answer may take."""
    attempts: int = 6
    """Times that a question is asked before its answer is missing."""
    patience: float = 20.0
    """Minutes that a server is waited for which has answered before."""
    start_patience: float = 0.1
    """Minutes that one is waited for which has never answered, as where it is started together with
    the job."""
    thinking: bool = False
    """Whether the model may think before it answers."""

    def __post_init__(self) -> None:
        for name in ("url", "model"):
            _check_given("vlm", name, getattr(self, name))
        try:
            self.endpoint()
            self.decomposer()
        except InputError as error:
            raise InputError(f"config: {error}".replace("judge: ", "rewards: ", 1)) from error

    def endpoint(self) -> Endpoint:
        """Where the judge is served. Raises InputError for settings that cannot be used."""
        return Endpoint(
            self.url,
            self.model,
            self.key_variable,
            self.concurrency,
            self.timeout,
            self.attempts,
            patience=self.patience,
            start_patience=self.start_patience,
            thinking=self.thinking,
        )

    def decomposer(self) -> Endpoint | None:
        """Where the model that splits long prompts is served."""
        if not self.decomposer_model:
            return None
        return replace(
            self.endpoint(),
            url=self.decomposer_url or self.url,
            model=self.decomposer_model,
            thinking=self.decomposer_thinking,
        )


@register_reward("vlm")
class ServedVLMReward(VLMReward):
    """A vision-language model behind an OpenAI-compatible endpoint."""

    Config = ServedConfig

    def __init__(self, config: ServedConfig, reasons: bool = False):
        answers = Answers(file_of_this_rank(config.answers))
        decomposer = config.decomposer()
        super().__init__(
            Asker(config.endpoint(), answers),
            Asker(decomposer, answers) if decomposer else None,
            config.long,
            reasons,
        )


@dataclass(frozen=True)
class LocalConfig:
    """``[[rewards]] kind = "local"``: a model that transformers loads in this process."""

    model: str = ""
    """A folder or a hub id."""
    answers: str = ""
    """A file where answers are kept from run to run; empty: in memory."""
    concurrency: int = 32
    """Questions that are answered together."""
    thinking: bool = False
    """Whether the model may think before it answers."""

    def __post_init__(self) -> None:
        _check_given("local", "model", self.model)


@register_reward("local")
class LocalVLMReward(VLMReward):
    """A vision-language model of transformers on the job's device."""

    Config = LocalConfig

    def __init__(self, config: LocalConfig, device: str, reasons: bool = False):
        from secondlook.llm.local import LocalModel

        answers = Answers(file_of_this_rank(config.answers))
        model = LocalModel(
            config.model, device, config.concurrency, answers, thinking=config.thinking
        )
        super().__init__(model, reasons=reasons)


def _check_given(kind: str, name: str, value: str) -> None:
    if not value:
        raise InputError(f"config: rewards: {name} is empty; a reward of kind {kind!r} needs it")
