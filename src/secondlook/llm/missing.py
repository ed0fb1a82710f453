"""Why answers are missing: counted by reason and told once each."""

from __future__ import annotations

import re
import sys
from collections import Counter
from typing import Any

MAX_REASONS = 100
"""Distinct reasons that are kept; further ones are counted together."""
VARYING = re.compile(r"'[^']*'|\"[^\"]*\"|[\w.+-]*\d[\w.+-]*")
"""Quotations and numbers: reasons that differ in these only are one."""


class Missing:
    """Why one source of answers left questions unanswered: how many for each distinct reason, and
    one sentence of each."""

    def __init__(self, source_name: str):
        self.source_name = source_name
        self.counts: Counter[str] = Counter()
        """Missing answers by reason, its varying parts replaced by "#"."""
        self.latest: Counter[str] = Counter()
        """Since ``begin``."""
        self._sentences: dict[str, str] = {}
        """The first sentence that was met of each reason."""
        self._told: dict[str, int] = {}
        """How many there were of each reason when it was told."""

    def begin(self) -> None:
        """A judge is called anew."""
        self.latest.clear()

    def add(self, sentence: str) -> None:
        """One more question without an answer."""
        reason = VARYING.sub("#", sentence)
        if reason not in self._sentences and len(self._sentences) == MAX_REASONS:
            reason = sentence = "other reasons"
        self._sentences.setdefault(reason, sentence)
        self.counts[reason] += 1
        self.latest[reason] += 1

    def commonest_count(self) -> int:
        """How many answers are missing for the reason that ``commonest`` gives; 0: none is."""
        return max((self.latest or self.counts).values(), default=0)

    def commonest(self) -> str:
        """The commonest reason of the last call, else of all, in a sentence; "" where no answer is
        missing. It counts as told."""
        if not self.counts:
            return ""
        reason, _ = (self.latest or self.counts).most_common(1)[0]
        self._told[reason] = self.counts[reason]
        return f"{self.source_name}: {self._sentences[reason]}"

    def untold(self) -> list[str]:
        """A line for each reason that was not told, or has become ten times as frequent since."""
        lines = []
        for reason, count in self.counts.items():
            # a reason that was never told is told from its first answer on
            if count >= 10 * self._told.get(reason, 0.1):
                self._told[reason] = count
                lines.append(
                    f"{self.source_name}: {count} answers are missing: {self._sentences[reason]}"
                )
        return lines


def missing_of(asker: Any) -> list[Missing]:
    """What is known of the answers that a judge, an asker or a scorer did not get: of each of its
    sources once."""
    sources = getattr(asker, "missing", [])
    if isinstance(sources, Missing):
        return [sources]
    distinct_sources = {id(source): source for source in sources}  # several judges may share one
    return list(distinct_sources.values())


def why_missing(asker: Any) -> str:
    """The commonest reason for missing answers, to end a sentence with; "" where none is known."""
    sources = [source for source in missing_of(asker) if source.counts]
    if not sources:
        return ""
    worst_source = max(sources, key=Missing.commonest_count)
    return f": {worst_source.commonest()}"


def tell_missing(asker: Any) -> None:
    """Print each reason for missing answers once, with its count, to stderr."""
    for source in missing_of(asker):
        for line in source.untold():
            print(f"secondlook: {line}", file=sys.stderr, flush=True)
