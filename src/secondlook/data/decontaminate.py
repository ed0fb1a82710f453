"""Prompts that a benchmark asks as well are not trained on."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from secondlook.errors import InputError
from secondlook.io import read_json, read_lines, read_rows, read_table

FIELDS = ("prompt", "text", "caption", "Prompt")
"""Names under which benchmarks' files have their prompts."""


def normal(prompt: str) -> str:
    """A prompt in lower case, without punctuation and articles."""
    words = re.findall(r"\w+", prompt.lower())
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def grams(text: str, n: int = 3) -> set[tuple[str, ...]]:
    """Runs of ``n`` words of a normal text; of a shorter one the whole."""
    words = text.split()
    runs = {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}
    return runs or {tuple(words)}


class Benchmarks:
    """Prompts of benchmarks. One overlaps another when they are the same but for case, punctuation
    and articles, or share more than ``share`` of their runs of three words (Jaccard)."""

    def __init__(self, prompts: Iterable[str], share: float = 0.7):
        self.share = share
        normal_prompts = list(dict.fromkeys(map(normal, prompts)))
        self._grams_of = [grams(prompt) for prompt in normal_prompts]
        self._places_of: dict[tuple[str, ...], list[int]] = {}
        """Of every run of words: which prompts have it."""
        for place, prompt_grams in enumerate(self._grams_of):
            for gram in prompt_grams:
                self._places_of.setdefault(gram, []).append(place)

    def __contains__(self, prompt: str) -> bool:
        own_grams = grams(normal(prompt))
        # only prompts with a run in common are compared: benchmarks have thousands
        near_places: set[int] = set()
        for gram in own_grams:
            near_places.update(self._places_of.get(gram, ()))
        for place in near_places:
            other_grams = self._grams_of[place]
            if len(own_grams & other_grams) > self.share * len(own_grams | other_grams):
                return True
        return False


def read(path: Path) -> list[str]:
    """Prompts of a benchmark's file: one a line, or a field "prompt", "text" or "caption" of JSON
    lines, JSON, CSV or TSV.

    Raises InputError that names the file.
    """
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        rows: list[Any] = [row for _, row in read_rows(path)]
    elif suffix == ".json":
        content = read_json(path)
        rows = list(content.values()) if isinstance(content, dict) else content
    elif suffix in (".csv", ".tsv"):
        rows = read_table(path)
    else:
        # what follows a tab is a category or a number
        return [line.split("\t")[0].strip() for _, line in read_lines(path)]
    prompts = []
    for number, row in enumerate(rows, 1):
        row_texts = []  # several fields may hold a prompt: all are left out
        for field_name in FIELDS:
            if isinstance(row, dict) and isinstance(row.get(field_name), str):
                row_texts.append(row[field_name])
        if not row_texts:
            raise InputError(
                f"config: against: row {number} of {str(path)!r} has no text named "
                f"{', '.join(FIELDS)}"
            )
        prompts += row_texts
    return prompts
