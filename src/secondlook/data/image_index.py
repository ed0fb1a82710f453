"""What there is to teach from: of every stored picture where it is, of which prompt, how good, and
why it is not used.

An index is a few numbers a picture, in arrays: 30 bytes, so that the paper's 3.6 million are 0.1 GB
a process. Words and pictures stay in the files (``data.stored``).
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from secondlook.data.stored_images import WORDS, Folders, Kept, Listed, Place, Shard, Words
from secondlook.errors import InputError

BAD = 0.5
VERDICT = re.compile(r"(yes|no)\s*(?=[,.:]|$)", re.IGNORECASE)
FAULTY = 0.01
"""Most of the pictures that may be missing or damaged."""
OPENED = 256
"""Pictures that are opened before training, evenly spaced; the rest are as they are needed."""


def taught(reason: str, right: bool) -> str | None:
    """The answer that is taught: the verdict, which the score decides, and the reason. A reason has
    a verdict of its own where it begins with the word "yes" or "no" and a comma, colon or full
    stop, or says nothing else; None: it is the other one."""
    reason, verdict = reason.strip(), "Yes" if right else "No"
    found = VERDICT.match(reason)
    if found and found[1].capitalize() != verdict:
        return None
    rest = reason[found.end() :] if found else f", {reason}"
    return verdict + (rest if rest.strip(" ,.:") else ".")


class Use(IntEnum):
    """Whether a picture is used, or why not."""

    YES = 0
    NO_SCORE = 1
    NO_REASON = 2
    CONTRADICTION = 3
    MISSING = 4
    DAMAGED = 5
    PROMPT = 6
    BETWEEN = 7
    ALONE = 8
    REASON = 9


WHY = {
    Use.NO_SCORE: "without a score",
    Use.NO_REASON: "without a reason",
    Use.CONTRADICTION: "whose reason says the opposite of their score",
    Use.MISSING: "that are not there",
    Use.DAMAGED: "that cannot be read",
    Use.PROMPT: "with a prompt that the model cannot read",
    Use.REASON: "with a reason that the model cannot read",
    Use.BETWEEN: "between the scores that are taught",
    Use.ALONE: "of prompts that have no others to teach them with",
}


class Index:
    """The pictures of several places, in order. ``problem`` says what keeps the model from reading
    a prompt (of an edit: True), "" if nothing does; ``reason_problem`` says so of a reason as it is
    taught. Raises InputError that names the file and the row or line."""

    def __init__(
        self,
        places: Sequence[Path],
        problem: Callable[[str, bool], str],
        reason_problem: Callable[[str], str],
    ):
        self._kept, folders = Kept(), Folders()
        self.stored: list[Shard | Listed] = []
        self.sources: dict[str, tuple[Shard, Place]] = {}
        """Of Parquet: the pictures that are edited, by name."""
        self._first: dict[Use, str] = {}
        self.ends: list[int] = []
        """Of every place: how many pictures it and those before it have."""
        columns = {
            name: array(kind)
            for name, kind in (("file", "i"), ("at", "i"), ("item", "i"), ("key", "i"))
        }
        qualities, use, edits = array("d"), array("B"), array("B")
        keys: dict[str, int] = {}
        for place in places:
            for stored in self._open(place):
                self.stored.append(stored)
                for where, words in stored.scan():
                    quality = words.quality
                    key = (
                        f"{words.prompt}\n{self.source_name(stored, words)}"
                        if words.source
                        else words.prompt
                    )
                    for column, value in zip(
                        columns.values(),
                        (len(self.stored) - 1, *where, keys.setdefault(key, len(keys))),
                        strict=True,
                    ):
                        column.append(value)
                    qualities.append(np.nan if quality is None else quality)
                    edits.append(words.source is not None)
                    use.append(self._use(stored, where, words, quality, folders, reason_problem))
            self.ends.append(len(use))
        self.file, self.at, self.item, key_of = (
            np.array(c, dtype=np.int32) for c in columns.values()
        )
        self.quality = np.array(qualities)
        """S, of an edit the lesser of following and preserving; NaN: nobody has scored it."""
        self.edit, self.use = np.array(edits, dtype=bool), np.array(use, dtype=np.uint8)
        names = sorted(keys)
        order = np.empty(len(names), dtype=np.int32)
        order[[keys[name] for name in names]] = np.arange(len(names))
        self.key = order[key_of] if len(key_of) else key_of
        """What each is a picture of: a prompt, or an instruction and its source, numbered in the
        order of their texts."""
        self.n_keys = len(names)
        self._check_prompts(names, problem)

    def _open(self, place: Path) -> Iterator[Shard | Listed]:
        if place.suffix.lower() == ".jsonl":
            yield Listed(place)
            return
        shards = sorted(place.glob("images-*.parquet"))
        if not shards:
            raise InputError(
                f"config: data = {str(place)!r} holds no images-*.parquet; run data build first"
            )
        for path in sorted(place.glob("sources-*.parquet")):
            source = Shard(path, self._kept, ("id", "image"))
            self.sources |= {name: (source, Place(at)) for at, name in enumerate(source.ids())}
        for path in shards:
            yield Shard(path, self._kept)

    def _use(
        self,
        stored: Shard | Listed,
        place: Place,
        words: Words,
        quality: float | None,
        folders: Folders,
        reason_problem: Callable[[str], str],
    ) -> Use:
        """Whether a picture may be used, as far as it says itself."""
        use, why = Use.YES, ""
        if quality is None:
            use = Use.NO_SCORE
        elif words.reason is None:
            use = Use.NO_REASON
        elif (answer := taught(words.reason, quality >= BAD)) is None:
            use, why = Use.CONTRADICTION, f": {words.reason!r} at {quality:.3g}"
        elif unfit := reason_problem(answer):
            use, why = Use.REASON, f": {unfit}"
        elif isinstance(stored, Listed):
            if lacking := stored.lacking(words, folders):
                use, why = Use.MISSING, f": {lacking!r}"
        elif words.source is not None and words.source not in self.sources:
            use, why = Use.MISSING, f": source {words.source!r}"
        if use:
            self._first.setdefault(use, stored.where(place) + why)
        return use

    def _check_prompts(self, names: list[str], problem: Callable[[str, bool], str]) -> None:
        rows = np.unique(self.key, return_index=True)[1]  # the first of each
        unfit = []
        for key, (name, row) in enumerate(zip(names, rows.tolist(), strict=True)):
            if why := problem(
                name.rpartition("\n")[0] if self.edit[row] else name, bool(self.edit[row])
            ):
                unfit.append(key)
                self._first.setdefault(Use.PROMPT, f"{self.where(row)}: {why}")
        self.leave(np.flatnonzero(np.isin(self.key, unfit)), Use.PROMPT)

    def __len__(self) -> int:
        return len(self.use)

    def where(self, row: int) -> str:
        """ "line 3 of data.jsonl" """
        return self.stored[self.file[row]].where(self.place(row))

    def place(self, row: int) -> Place:
        return Place(int(self.at[row]), int(self.item[row]))

    def words(self, row: int) -> Words:
        """What is said of a picture, the reason as it is taught."""
        words = self.stored[self.file[row]].read(self.place(row))
        return self.as_taught(words)

    @staticmethod
    def as_taught(words: Words) -> Words:
        quality = words.quality
        if quality is None or words.reason is None:
            return words
        return words._replace(reason=taught(words.reason, quality >= BAD))

    def image(self, row: int) -> Image.Image:
        """The picture. Raises InputError that names its row or line."""
        return self.stored[self.file[row]].image(self.place(row))

    def file_of(self, row: int) -> bytes:
        """The picture's file."""
        return self.stored[self.file[row]].file_of(self.place(row))

    def source_name(self, stored: Shard | Listed, words: Words) -> str:
        """What the source of an edit is known by: a path, or its name in a folder of data build."""
        return (
            str(stored.path.parent / str(words.source))
            if isinstance(stored, Listed)
            else str(words.source)
        )

    def source_image(self, row: int, words: Words) -> Image.Image:
        """The picture that one is an edit of."""
        stored = self.stored[self.file[row]]
        if isinstance(stored, Listed):
            return stored.image(self.place(row), str(words.source))
        source, place = self.sources[str(words.source)]
        return source.image(place)

    def leave(self, rows: np.ndarray, why: Use) -> None:
        """Do not use these, those that already are not excepted."""
        rows = rows[self.use[rows] == Use.YES]
        self.use[rows] = why
        if len(rows):
            self._first.setdefault(why, self.where(int(rows[0])))

    def open_some(self, rows: np.ndarray) -> None:
        """Open some of ``rows``, evenly spaced, and leave out those that cannot be read. Raises
        InputError where more than ``FAULTY`` of the pictures are missing or damaged."""
        opened = (
            rows[np.linspace(0, len(rows) - 1, min(len(rows), OPENED)).astype(int)]
            if len(rows)
            else rows
        )
        damaged = []
        for row in opened.tolist():
            try:
                self.image(row)
            except InputError as error:
                damaged.append(row)
                self._first.setdefault(Use.DAMAGED, str(error))
        missing = int((self.use == Use.MISSING).sum())
        for use, n, of in (
            (Use.MISSING, missing, len(self)),
            (Use.DAMAGED, len(damaged), len(opened)),
        ):
            if n > FAULTY * of:
                what = "not there" if use is Use.MISSING else "damaged"
                raise InputError(
                    f"data: {n} of {of} pictures are {what}, at most {FAULTY:.0%} may be; the "
                    f"first: {self._first[use]}"
                )
        self.leave(np.array(damaged, dtype=int), Use.DAMAGED)

    @property
    def unused(self) -> str:
        """One sentence about the pictures that are not used; "" where all are."""
        counts = np.bincount(self.use, minlength=len(Use))
        parts = [
            f"{counts[use]} {why} (the first: {self._first[use]})"
            for use, why in WHY.items()
            if counts[use]
        ]
        return (
            f"{sum(counts[1:])} of {len(self)} pictures are not used: {', '.join(parts)}"
            if parts
            else ""
        )

    def table(self) -> Any:
        """The words of all pictures as an Arrow table, reasons as they are taught."""
        import pyarrow as pa

        numbers = ("score", "following", "preserving")
        schema = pa.schema(
            [(name, pa.float64() if name in numbers else pa.string()) for name in WORDS]
        )
        tables = []
        for stored in self.stored:
            rows = []
            for _, words in stored.scan():
                source = self.source_name(stored, words) if words.source else None
                rows.append(self.as_taught(words)._replace(source=source)[:-1])
            columns = list(zip(*rows, strict=True)) or [()] * len(schema)
            tables.append(
                pa.table(
                    [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)],
                    schema=schema,
                )
            )
        return pa.concat_tables(tables)
