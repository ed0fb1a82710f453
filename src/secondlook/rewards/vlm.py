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
from secondlook.llm.answer_store import Answers
from secondlook.llm.client import Asker
from secondlook.llm.endpoint import Endpoint, Question
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
    """The ``messages`` of a chat completion: the images, then the text."""
    if not images:
        return [{"role": "user", "content": text}]
    content: list[dict[str, Any]] = []
    for image in images:
        data_url = "data:image/png;base64," + b64encode(png(image)).decode()
        content.append({"type": "image_url", "image_url": {"url": data_url}})
    content.append({"type": "text", "text": text})
    return [{"role": "user", "content": content}]


def yes_or_no(text: str, *images: Image) -> Question:
    """A question that is answered by P(yes), from the log-probabilities of the first token."""
    request_body = {
        "messages": _message(text, images),
        "max_tokens": 1,  # the verdict alone
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": TOP,  # among them are the ways to write yes and no
    }
    return Question(request_body, p_yes)


def in_words(text: str, *images: Image, tokens: int = REASON_TOKENS) -> Question:
    """A question that is answered by a text of at most ``tokens`` tokens (greedy)."""
    request_body = {"messages": _message(text, images), "max_tokens": tokens, "temperature": 0}
    return Question(request_body, text_of)


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
        texts_of_items = self._question_texts([prompt for prompt, _ in items])
        questions: list[Question] = []
        for (_, image), texts in zip(items, texts_of_items, strict=True):
            for text in texts or ():  # None: nothing to ask, the score is missing
                questions.append(yes_or_no(text, image))
        if self.reasons:
            for prompt, image in items:
                questions.append(in_words(REASON.format(prompt), image))

        # answers come in the order of the questions: every item's P(yes), then every item's reason
        answers = iter(self.asker(questions))
        values_of_items: list[list[float | None] | None] = []
        for texts in texts_of_items:
            values_of_items.append(None if texts is None else [next(answers) for _ in texts])
        reasons = list(answers) if self.reasons else [""] * len(items)
        scores = []
        for values, reason in zip(values_of_items, reasons, strict=True):
            scores.append(self._mean_score(values, reason))
        return scores

    def try_out(self) -> None:
        """Ask an endpoint a trial question. Raises InputError where it can answer none."""
        if isinstance(self.asker, Asker):
            self.asker.try_out(trial_question())

    def _question_texts(self, prompts: list[str]) -> list[list[str] | None]:
        """The questions whose mean P(yes) is a prompt's S: the atomic ones of a long prompt, a
        single one for a short prompt and for one that the decomposer found no questions in; None
        where the decomposer gave no answer."""
        atomic_questions = self._atomic_questions(prompts)
        texts_of_prompts: list[list[str] | None] = []
        for prompt in prompts:
            atomic = atomic_questions.get(prompt, [])
            if atomic is None:
                texts_of_prompts.append(None)
            elif atomic:
                texts_of_prompts.append([ATOMIC.format(question) for question in atomic])
            else:
                texts_of_prompts.append([MATCHES.format(prompt)])
        return texts_of_prompts

    def _atomic_questions(self, prompts: list[str]) -> dict[str, list[str] | None]:
        """The decomposer's questions of each long prompt; None where they are missing."""
        if self.decomposer is None:
            return {}
        long_prompts = [prompt for prompt in prompts if len(prompt.split()) > self.long]
        if not long_prompts:
            return {}
        split_requests = []
        for prompt in long_prompts:
            # room for a JSON list of many questions
            request_body = in_words(SPLIT.format(prompt), tokens=1024).body
            split_requests.append(Question(request_body, questions_of))
        return dict(zip(long_prompts, self.decomposer(split_requests), strict=True))

    @staticmethod
    def _mean_score(values: list[float | None] | None, reason: str | None) -> Score | None:
        """S from the P(yes) of all questions about one picture; None where anything is missing."""
        if values is None or reason is None:
            return None
        known_values = [value for value in values if value is not None]
        if len(known_values) < len(values):
            return None
        mean_value = sum(known_values) / len(known_values)
        return Score(mean_value, mean_value >= 0.5, reason.strip().rstrip("."))

    def edits(self, items: Sequence[Edited]) -> list[Score | None]:
        """One score for each (instruction, source, edited picture); None where an answer is
        missing."""
        for missing in self.missing:
            missing.begin()
        questions: list[Question] = []
        for instruction, source, edited in items:
            questions.append(yes_or_no(FOLLOWED.format(instruction), source, edited))
            questions.append(yes_or_no(PRESERVED.format(instruction), source, edited))
        if self.reasons:
            for instruction, source, edited in items:
                questions.append(in_words(EDIT_REASON.format(instruction), source, edited))

        # two answers for each item, in the order of the questions, then every item's reason
        answers = iter(self.asker(questions))
        ratings = [(next(answers), next(answers)) for _ in items]
        reasons = list(answers) if self.reasons else [""] * len(items)
        scores = []
        for (following, preserving), reason in zip(ratings, reasons, strict=True):
            scores.append(self._edit_score(following, preserving, reason))
        return scores

    @staticmethod
    def _edit_score(
        following: float | None, preserving: float | None, reason: str | None
    ) -> Score | None:
        """The score of one edit from both P(yes); None where anything is missing."""
        if following is None or preserving is None or reason is None:
            return None
        # an edit is right only where both are: the smaller P(yes) decides
        return Score.of_edit(
            following, preserving, min(following, preserving) >= 0.5, reason.strip().rstrip(".")
        )


def file_of_this_rank(path: str) -> Path | None:
    """A file that only this process of several writes to (torchrun tells each its number); None for
    no path."""
    if not path:
        return None
    own_path, rank_number = Path(path), os.environ.get("RANK", "0")
    if rank_number == "0":
        return own_path
    return own_path.with_stem(f"{own_path.stem}.rank-{rank_number}")  # answers.rank-1.jsonl


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
        for field_name in ("url", "model"):
            _check_given("vlm", field_name, getattr(self, field_name))
        try:  # both check their own settings, but speak of a judge
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
        # one file for both: answers are kept by the question and the model
        stored_answers = Answers(file_of_this_rank(config.answers))
        split_endpoint = config.decomposer()
        super().__init__(
            Asker(config.endpoint(), stored_answers),
            Asker(split_endpoint, stored_answers) if split_endpoint else None,
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

        stored_answers = Answers(file_of_this_rank(config.answers))
        local_model = LocalModel(
            config.model, device, config.concurrency, stored_answers, thinking=config.thinking
        )
        super().__init__(local_model, reasons=reasons)


def _check_given(reward_kind: str, field_name: str, field_value: str) -> None:
    if not field_value:
        raise InputError(
            f"config: rewards: {field_name} is empty; a reward of kind {reward_kind!r} needs it"
        )
