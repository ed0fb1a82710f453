"""Noun phrases of T2I-CompBench's prompts, by which BLIP is asked about colours, shapes and
textures.

Source: T2I-CompBench (arXiv 2307.06350), its released evaluation: spaCy's noun chunks
(en_core_web_sm) but for a few words of place, the first eight. Scores are only comparable with
published ones where spaCy is used.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from secondlook.errors import InputError

NOT_ASKED = ("top", "the side", "the left", "the right")
MOST = 8


@cache
def chunker() -> Callable[[str], list[str]]:
    """spaCy's noun chunks of a sentence. Raises InputError where spaCy or its model is missing."""
    try:
        import spacy

        nlp = spacy.load("en_core_web_sm")
    except (ImportError, OSError) as error:
        raise InputError(
            "spacy: T2I-CompBench's questions need spaCy's noun chunks; run pip install spacy "
            "and python -m spacy download "
            "en_core_web_sm"
        ) from error
    return lambda text: [chunk.text for chunk in nlp(text).noun_chunks]


def phrases(prompt: str, chunks: Callable[[str], list[str]] | None = None) -> list[str]:
    """What a prompt's picture is asked for; none where the prompt has no noun phrase."""
    return [c for c in (chunks or chunker())(prompt) if c not in NOT_ASKED][:MOST]
