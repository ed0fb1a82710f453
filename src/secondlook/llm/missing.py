"""Why answers are missing: counted by reason and told once each."""

from __future__ import annotations

import re
import sys
from collections import Counter
from typing import Any


class Missing:
    """Why one source of answers left questions unanswered: how many for each distinct reason, and
    one sentence of each.

    Reasons that differ in numbers and quotations only are one.
    """

    MOST = 100
    """Distinct reasons that are kept; further ones are counted together."""

    def __init__(self, who: str):
        self.who = who
        self.counts: Counter[str] = Counter()
        self.latest: Counter[str] = Counter()
        """Since ``begin``."""
        self._words: dict[str, str] = {}
        self._told: dict[str, int] = {}

    def begin(self) -> None:
        """A judge is called anew."""
        self.latest.clear()

    def add(self, words: str) -> None:
        """One more question without an answer."""
        kind = re.sub(r"'[^']*'|\"[^\"]*\"|[\w.+-]*\d[\w.+-]*", "#", words)
        if kind not in self._words and len(self._words) == self.MOST:
            kind = words = "other reasons"
        self._words.setdefault(kind, words)
        self.counts[kind] += 1
        self.latest[kind] += 1

    def commonest(self) -> str:
        """The commonest reason of the last call, else of all, in a sentence; "" where no answer is
        missing. It counts as told."""
        if not self.counts:
            return ""
        kind = (self.latest or self.counts).most_common(1)[0][0]
        self._told[kind] = self.counts[kind]
        return f"{self.who}: {self._words[kind]}"

    def untold(self) -> list[str]:
        """A line for each reason that was not told, or has become ten times as frequent since."""
        new = [kind for kind, n in self.counts.items() if n >= 10 * self._told.get(kind, 0.1)]
        self._told |= {kind: self.counts[kind] for kind in new}
        return [
            f"{self.who}: {self.counts[kind]} answers are missing: {self._words[kind]}"
            for kind in new
        ]


def missing_of(asking: Any) -> list[Missing]:
    """What is known of the answers that a judge, an asker or a scorer did not get."""
    found = getattr(asking, "missing", [])
    return [found] if isinstance(found, Missing) else list({id(m): m for m in found}.values())


def why_missing(asking: Any) -> str:
    """The commonest reason for missing answers, to end a sentence with; "" where none is known."""
    known = [m for m in missing_of(asking) if m.counts]
    return (
        f": {max(known, key=lambda m: max((m.latest or m.counts).values())).commonest()}"
        if known
        else ""
    )


def tell_missing(asking: Any) -> None:
    """Print each reason for missing answers once, with its count, to stderr."""
    for missing in missing_of(asking):
        for line in missing.untold():
            print(f"secondlook: {line}", file=sys.stderr, flush=True)
