"""Prompts that a benchmark asks as well are not trained on."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from secondlook.errors import InputError
from secondlook.io import read_json, read_lines, read_rows, read_table

FIELDS = ("prompt", "text", "caption", "Prompt")


def normal(prompt: str) -> str:
    """Without case, punctuation and articles that stand for nothing."""
    return " ".join(w for w in re.findall(r"\w+", prompt.lower()) if w not in ("a", "an", "the"))


def grams(text: str, n: int = 3) -> set[tuple[str, ...]]:
    """Runs of ``n`` words of a normal text; of a shorter one the whole."""
    words = text.split()
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)} or {tuple(words)}


class Benchmarks:
    """Prompts of benchmarks. One overlaps another when they are the same but for case, punctuation
    and articles, or share more than ``share`` of their runs of three words (Jaccard)."""

    def __init__(self, prompts: Iterable[str], share: float = 0.7):
        self.share = share
        self.known = list(dict.fromkeys(map(normal, prompts)))
        self.grams = [grams(k) for k in self.known]
        self.places: dict[tuple[str, ...], list[int]] = {}
        for i, found in enumerate(self.grams):
            for gram in found:
                self.places.setdefault(gram, []).append(i)

    def __contains__(self, prompt: str) -> bool:
        own = grams(normal(prompt))
        near = {i for gram in own for i in self.places.get(gram, ())}
        return any(len(own & self.grams[i]) > self.share * len(own | self.grams[i]) for i in near)


def read(path: Path) -> list[str]:
    """Prompts of a benchmark's file: one a line, or a field "prompt", "text" or "caption" of JSON
    lines, JSON, CSV or TSV.

    Raises InputError that names the file.
    """
    kind = path.suffix.lower()
    if kind == ".jsonl":
        rows: list[Any] = [row for _, row in read_rows(path)]
    elif kind == ".json":
        found = read_json(path)
        rows = list(found.values()) if isinstance(found, dict) else found
    elif kind in (".csv", ".tsv"):
        rows = read_table(path)
    else:
        return [line.split("\t")[0].strip() for _, line in read_lines(path)]
    prompts = []
    for number, row in enumerate(rows, 1):
        found = (
            [row[f] for f in FIELDS if isinstance(row.get(f), str)] if isinstance(row, dict) else []
        )
        if not found:
            raise InputError(
                f"config: against: row {number} of {str(path)!r} has no text named "
                f"{', '.join(FIELDS)}"
            )
        prompts += found
    return prompts
