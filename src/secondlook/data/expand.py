"""Captions that a language model makes of seed prompts, for ``data build``. Source: the data of
stage 1 in arXiv 2506.01480."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from secondlook.errors import InputError
from secondlook.io import read_rows, text_field, write_text
from secondlook.llm.client import Answers, Asker, Endpoint, Question
from secondlook.llm.missing import tell_missing, why_missing
from secondlook.llm.parsing import texts_of
from secondlook.rewards.vlm import in_words

EXPAND = (
    "Write {short} short (at most 12 words) and {long} long (30 to 60 words) descriptions of "
    "images about the seed below, each "
    "of a scene that can be drawn and checked: objects, colours, numbers, positions. Answer "
    "with a JSON list of {total} "
    "strings and nothing else.\nSeed: {seed}"
)


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
    ``path``, for it would answer otherwise when a stopped build goes on."""
    if not path.exists():
        total = expand.short + expand.long
        asker = Asker(
            Endpoint(expand.url, expand.model, expand.key_variable, thinking=expand.thinking),
            Answers(),
        )
        texts = [
            EXPAND.format(short=expand.short, long=expand.long, total=total, seed=seed)
            for seed in seeds
        ]
        answers = asker([Question(in_words(text, tokens=1024).body, texts_of) for text in texts])
        if not any(answers):
            raise InputError(
                f"config: expand: not one of {len(seeds)} prompts was expanded{why_missing(asker)}"
            )
        tell_missing(asker)
        rows = [
            {"seed": seed, "captions": answer or []}
            for seed, answer in zip(seeds, answers, strict=True)
        ]
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    kept: list[tuple[str, list[str]]] = []
    for number, row in read_rows(path):
        captions = row.get("captions")
        if not isinstance(captions, list) or not all(isinstance(c, str) for c in captions):
            raise InputError(
                f"captions: they are {captions!r} in line {number} of {path}; they must be a "
                "list of texts"
            )
        kept.append(
            (
                text_field(row, "seed", f"line {number} of {path}"),
                [c.strip() for c in captions if c.strip()],
            )
        )
    if [seed for seed, _ in kept] != seeds:
        raise InputError(
            f"prompts: they are not those that {str(path)!r} has captions of; use another folder"
        )
    return kept
