"""Index of the pictures that SFT learns from: where each is stored, of which prompt it is, how good
it is, and whether it is used or why not.

An index is a few numbers a picture, in arrays: 34 bytes, so that the paper's 3.6 million are 0.1 GB
a process. Words and pictures stay in the files (``data.stored_images``,
``data.listed_images``).
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from secondlook.data.listed_images import Folders, Listed
from secondlook.data.stored_images import WORDS, ParquetCache, Place, Shard, Words
from secondlook.errors import InputError

BAD = 0.5
"""S below which a picture is wrong: context to draw better than, and judged No."""
VERDICT = re.compile(r"(yes|no)\s*(?=[,.:]|$)", re.IGNORECASE)
FAULTY = 0.01
"""Most of the pictures that may be missing or damaged."""
NUM_OPENED = 256
"""Pictures that are opened before training, evenly spaced; the rest are as they are needed."""


def taught(reason: str, right: bool) -> str | None:
    """The answer that is taught: the verdict, which the score decides, and the reason. A reason has
    a verdict of its own where it begins with the word "yes" or "no" and a comma, colon or full
    stop, or says nothing else. Returns None where that is the other verdict."""
    reason = reason.strip()
    verdict = "Yes" if right else "No"
    stated_verdict = VERDICT.match(reason)
    if stated_verdict and stated_verdict[1].capitalize() != verdict:
        return None
    explanation = reason[stated_verdict.end() :] if stated_verdict else f", {reason}"
    # "Yes" and "Yes, ." alike become "Yes."
    if not explanation.strip(" ,.:"):
        return f"{verdict}."
    return verdict + explanation


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


@dataclass
class _Columns:
    """What a scan notes of every picture, in arrays: lists take several times the memory."""

    file: array[int] = field(default_factory=lambda: array("i"))
    """Number of its shard or list in ``Index.stored``."""
    at: array[int] = field(default_factory=lambda: array("i"))
    item: array[int] = field(default_factory=lambda: array("i"))
    """``at`` and ``item`` are its ``Place`` there."""
    key_number: array[int] = field(default_factory=lambda: array("i"))
    """Number of what it is a picture of (``Index.key``), in the order in which keys are met."""
    quality: array[float] = field(default_factory=lambda: array("d"))
    edit: array[int] = field(default_factory=lambda: array("B"))
    """1: it is an edit of another picture."""
    use: array[int] = field(default_factory=lambda: array("B"))
    """Members of ``Use``."""
    target: array[int] = field(default_factory=lambda: array("i"))
    """Row that a redraw of this one is taught to become; -1: any right one of its prompt."""


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
        self._parquet_cache = ParquetCache()
        self.stored: list[Shard | Listed] = []
        self.sources: dict[str, tuple[Shard, Place]] = {}
        """Of Parquet: the pictures that are edited, by name."""
        self._first_unused: dict[Use, str] = {}
        """For every reason the first picture that is not used: where it is, and why."""
        self.ends: list[int] = []
        """Of every place: how many pictures it and those before it have."""
        columns, key_numbers = self._scan(places, reason_problem)
        # All of the arrays below are (pictures,).
        self.file = np.array(columns.file, dtype=np.int32)
        self.at = np.array(columns.at, dtype=np.int32)
        self.item = np.array(columns.item, dtype=np.int32)
        self.quality = np.array(columns.quality)
        """S, of an edit the lesser of following and preserving; NaN: nobody has scored it."""
        self.edit = np.array(columns.edit, dtype=bool)
        self.use = np.array(columns.use, dtype=np.uint8)
        self.target = np.array(columns.target, dtype=np.int32)
        """Row of the picture that a redraw of this one is taught to become; -1: any right one."""
        key_texts = sorted(key_numbers)
        # Keys are numbered anew in the order of their texts: what a seed draws does not depend on
        # the order of the files.
        new_number_of = np.empty(len(key_texts), dtype=np.int32)  # (keys,), by the old number
        for new_number, key_text in enumerate(key_texts):
            new_number_of[key_numbers[key_text]] = new_number
        old_keys = np.array(columns.key_number, dtype=np.int32)
        self.key = new_number_of[old_keys] if len(old_keys) else old_keys
        """What each is a picture of: a prompt, or an instruction and its source, numbered in the
        order of their texts."""
        self.n_keys = len(key_texts)
        self._check_prompts(key_texts, problem)

    def _scan(
        self, places: Sequence[Path], reason_problem: Callable[[str], str]
    ) -> tuple[_Columns, dict[str, int]]:
        """Read the words of all pictures once. Returns what is noted of them, and the keys' numbers
        in the order in which they are met."""
        columns = _Columns()
        key_numbers: dict[str, int] = {}
        folders = Folders()
        for place_path in places:
            for stored in self._open(place_path):
                self.stored.append(stored)
                first_row = len(columns.use)
                has_targets = isinstance(stored, Shard) and stored.has_targets
                row_of_id: dict[str, int] = {}
                target_ids: dict[int, str] = {}
                for place, words in stored.scan():
                    if words.redraw_target is not None:
                        target_ids[len(columns.use)] = words.redraw_target
                    if has_targets:
                        row_of_id[words.id] = len(columns.use)
                    key_text = words.prompt
                    if words.source:
                        key_text += f"\n{self.source_name(stored, words)}"
                    columns.file.append(len(self.stored) - 1)
                    columns.at.append(place.at)
                    columns.item.append(place.item)
                    columns.key_number.append(key_numbers.setdefault(key_text, len(key_numbers)))
                    quality = words.quality
                    columns.quality.append(np.nan if quality is None else quality)
                    columns.edit.append(words.source is not None)
                    columns.use.append(self._use(stored, place, words, folders, reason_problem))
                # a picture and its target are in one shard
                for row in range(first_row, len(columns.use)):
                    columns.target.append(row_of_id.get(target_ids.get(row, ""), -1))
            self.ends.append(len(columns.use))
        return columns, key_numbers

    def _open(self, place: Path) -> Iterator[Shard | Listed]:
        if place.suffix.lower() == ".jsonl":
            yield Listed(place)
            return
        shards = sorted(place.glob("images-*.parquet"))
        if not shards:
            raise InputError(
                f"config: data = {str(place)!r} holds no images-*.parquet; run data build first"
            )
        # sources first: while a shard is scanned its edits are looked up among them
        for path in sorted(place.glob("sources-*.parquet")):
            source_shard = Shard(path, self._parquet_cache, ("id", "image"))
            for row_number, source_id in enumerate(source_shard.ids()):
                self.sources[source_id] = (source_shard, Place(row_number))
        for path in shards:
            yield Shard(path, self._parquet_cache)

    def _use(
        self,
        stored: Shard | Listed,
        place: Place,
        words: Words,
        folders: Folders,
        reason_problem: Callable[[str], str],
    ) -> Use:
        """Whether a picture may be used, as far as its words tell; nothing is opened."""
        use, detail = Use.YES, ""
        # the first reason of this order is the one that is counted
        quality = words.quality
        if quality is None:
            use = Use.NO_SCORE
        elif words.reason is None:
            use = Use.NO_REASON
        elif (answer := taught(words.reason, quality >= BAD)) is None:
            use, detail = Use.CONTRADICTION, f": {words.reason!r} at {quality:.3g}"
        elif answer_problem := reason_problem(answer):
            use, detail = Use.REASON, f": {answer_problem}"
        elif isinstance(stored, Listed):
            if missing_file := stored.lacking(words, folders):
                use, detail = Use.MISSING, f": {missing_file!r}"
        elif words.source is not None and words.source not in self.sources:
            use, detail = Use.MISSING, f": source {words.source!r}"
        if use:
            self._first_unused.setdefault(use, stored.where(place) + detail)
        return use

    def _check_prompts(self, key_texts: list[str], problem: Callable[[str, bool], str]) -> None:
        """Leave out the pictures of prompts that the model cannot read."""
        first_rows = np.unique(self.key, return_index=True)[1].tolist()  # (keys,)
        unreadable_keys = []
        for key, row in enumerate(first_rows):
            is_edit = bool(self.edit[row])
            prompt = key_texts[key]
            if is_edit:
                prompt = prompt.rpartition("\n")[0]  # without the source's name
            if prompt_problem := problem(prompt, is_edit):
                unreadable_keys.append(key)
                self._first_unused.setdefault(Use.PROMPT, f"{self.where(row)}: {prompt_problem}")
        self.leave(np.flatnonzero(np.isin(self.key, unreadable_keys)), Use.PROMPT)

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
        if isinstance(stored, Listed):
            return str(stored.path.parent / str(words.source))
        return str(words.source)

    def source_image(self, row: int, words: Words) -> Image.Image:
        """The picture that one is an edit of."""
        stored = self.stored[self.file[row]]
        if isinstance(stored, Listed):
            return stored.image(self.place(row), str(words.source))
        source_shard, place = self.sources[str(words.source)]
        return source_shard.image(place)

    def leave(self, rows: np.ndarray, why: Use) -> None:
        """Do not use ``rows``. Those that were left out before keep their reason."""
        used_rows = rows[self.use[rows] == Use.YES]
        self.use[used_rows] = why
        if len(used_rows):
            self._first_unused.setdefault(why, self.where(int(used_rows[0])))

    def open_some(self, rows: np.ndarray) -> None:
        """Open some of ``rows``, evenly spaced, and leave out those that cannot be read. Raises
        InputError where more than ``FAULTY`` of the pictures are missing or damaged."""
        num_opened = min(len(rows), NUM_OPENED)
        opened_rows = rows[:0]
        if len(rows):
            opened_rows = rows[np.linspace(0, len(rows) - 1, num_opened).astype(int)]
        damaged_rows = []
        for row in opened_rows.tolist():
            try:
                self.image(row)
            except InputError as error:
                damaged_rows.append(row)
                self._first_unused.setdefault(Use.DAMAGED, str(error))
        # Whether a file is there was asked of all pictures, whether it can be read of some.
        num_missing = int((self.use == Use.MISSING).sum())
        self._check_faulty(num_missing, len(self), "not there", Use.MISSING)
        self._check_faulty(len(damaged_rows), num_opened, "damaged", Use.DAMAGED)
        self.leave(np.array(damaged_rows, dtype=int), Use.DAMAGED)

    def _check_faulty(self, num_faulty: int, num_checked: int, fault: str, use: Use) -> None:
        if num_faulty > FAULTY * num_checked:
            raise InputError(
                f"data: {num_faulty} of {num_checked} pictures are {fault}, at most {FAULTY:.0%} "
                f"may be; the first: {self._first_unused[use]}"
            )

    @property
    def unused(self) -> str:
        """One sentence about the pictures that are not used; "" where all are."""
        counts = np.bincount(self.use, minlength=len(Use))  # (members of Use,)
        parts = []
        for use, why in WHY.items():
            if counts[use]:
                parts.append(f"{counts[use]} {why} (the first: {self._first_unused[use]})")
        if not parts:
            return ""
        num_unused = sum(counts[1:])  # all but Use.YES
        return f"{num_unused} of {len(self)} pictures are not used: {', '.join(parts)}"

    def table(self) -> Any:
        """The words of all pictures as an Arrow table, reasons as they are taught."""
        import pyarrow as pa

        schema_fields = []
        for name in WORDS:
            is_number = name in ("score", "following", "preserving")
            schema_fields.append((name, pa.float64() if is_number else pa.string()))
        schema = pa.schema(schema_fields)
        tables = []
        for stored in self.stored:
            rows = []
            for _, words in stored.scan():
                source_name = self.source_name(stored, words) if words.source else None
                taught_words = self.as_taught(words)._replace(source=source_name)
                rows.append(dict(zip(WORDS, taught_words[:-1], strict=True)))  # without the path
            tables.append(pa.Table.from_pylist(rows, schema=schema))
        return pa.concat_tables(tables)
