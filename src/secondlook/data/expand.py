"""Captions that a language model makes of seed prompts, for ``data build``. Source: the data of
stage 1 in arXiv 2506.01480."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from secondlook.errors import InputError
from secondlook.io import read_rows, text_field, write_text
from secondlook.llm.answer_store import Answers
from secondlook.llm.client import Asker
from secondlook.llm.endpoint import Endpoint, Question
from secondlook.llm.missing import tell_missing, why_missing
from secondlook.llm.parsing import texts_of
from secondlook.rewards.vlm import in_words

EXPAND = (
    "Write {short} short (at most 12 words) and {long} long (30 to 60 words) descriptions of "
    "images about the seed below, each of a scene that can be drawn and checked: objects, colours, "
    "numbers, positions. Answer with a JSON list of {total} strings and nothing else.\n"
    "Seed: {seed}"
)
ANSWER_TOKENS = 1024
"""Most tokens of an answer: 5 captions of up to 60 words take a half."""


@dataclass(frozen=True)
class ExpandConfig:
    """A language model that makes captions of seed prompts."""

    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}  # noqa: RUF012

    url: str
    """The base address of an OpenAI-compatible endpoint."""
    model: str
    short: int = 2
    long: int = 3
    """Captions a seed (the paper has 80,000 short and 120,000 long ones)."""
    key_variable: str = "OPENAI_API_KEY"
    thinking: bool = False
    """Whether it may think before it answers."""


def captions_of(expand: ExpandConfig, seeds: list[str], path: Path) -> list[tuple[str, list[str]]]:
    """Each seed with the captions that a language model made of it: asked once, then kept at
    ``path``, for it would answer otherwise when a stopped build goes on. Raises InputError where no
    seed gets a caption, or the captions at ``path`` are of other seeds."""
    if not path.exists():
        _ask_captions(expand, seeds, path)
    captions_of_seeds: list[tuple[str, list[str]]] = []
    for number, row in read_rows(path):
        captions = row.get("captions")
        if not isinstance(captions, list) or not all(
            isinstance(caption, str) for caption in captions
        ):
            raise InputError(
                f"captions: they are {captions!r} in line {number} of {path}; they must be a "
                "list of texts"
            )
        seed_text = text_field(row, "seed", f"line {number} of {path}")
        stripped_captions = [caption.strip() for caption in captions if caption.strip()]
        captions_of_seeds.append((seed_text, stripped_captions))
    if [seed_text for seed_text, _ in captions_of_seeds] != seeds:
        raise InputError(
            f"prompts: they are not those that {str(path)!r} has captions of; use another folder"
        )
    return captions_of_seeds


def _ask_captions(expand: ExpandConfig, seeds: list[str], path: Path) -> None:
    """Write a line {"seed": …, "captions": […]} for each seed, with none where the model gave
    none."""
    endpoint = Endpoint(expand.url, expand.model, expand.key_variable, thinking=expand.thinking)
    asker = Asker(endpoint, Answers())
    total = expand.short + expand.long
    questions = []
    for seed_text in seeds:
        text = EXPAND.format(short=expand.short, long=expand.long, total=total, seed=seed_text)
        questions.append(Question(in_words(text, tokens=ANSWER_TOKENS).body, texts_of))
    answers = asker(questions)
    # with no answer at all nothing is written, so that the next call asks again
    if not any(answers):
        raise InputError(
            f"config: expand: not one of {len(seeds)} prompts was expanded{why_missing(asker)}"
        )
    tell_missing(asker)
    lines = []
    for seed_text, captions in zip(seeds, answers, strict=True):
        row = {"seed": seed_text, "captions": captions or []}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    write_text(path, "".join(lines))
