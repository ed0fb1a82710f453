"""Scored pictures to the examples of the three tasks of supervised fine-tuning. A prompt with a
source is an edit of it: then the tasks are to edit, to judge an edit and to edit again.

Source: arXiv 2506.01480, stage 1 (thresholds and context lengths as there; an edit is kept when
following and preserving are at least 0.7). Judging edits and editing again are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from secondlook.data.image_index import BAD, Index, Use
from secondlook.data.stored_images import Words
from secondlook.errors import InputError

GOOD_TO_DRAW, GOOD_TO_JUDGE, GOOD_EDIT = 0.8, 0.7, 0.7
TASKS = ("draw", "judge", "redraw")


def short(rng: np.random.Generator, longest: int) -> int:
    """0 to ``longest`` - 1 earlier pictures, few more often than many: the smaller of two uniform
    draws, as in episodes that end with a Yes."""
    return int(rng.integers(longest, size=2).min())


@dataclass(frozen=True)
class Scored:
    """One scored picture; ``index`` is its row or, of a source, its name, by which its codes are
    cached."""

    index: int | str
    score: float
    reason: str
    picture: Image.Image | None = field(default=None, repr=False)
    """None: it was not read, for its codes are known."""

    @property
    def image(self) -> Image.Image:
        if self.picture is None:
            raise ValueError(f"picture {self.index} was not read")
        return self.picture


@dataclass(frozen=True)
class Example:
    """A prompt, earlier pictures that were wrong, the picture that is drawn or judged now, and what
    is edited, if anything."""

    prompt: str
    earlier: tuple[Scored, ...]
    target: Scored
    source: Scored | None = None

    @property
    def pictures(self) -> tuple[Scored, ...]:
        """All of them."""
        return (*self.earlier, self.target, *([self.source] if self.source else []))


@dataclass(frozen=True)
class Choice:
    """An example's pictures by their rows, not read yet."""

    earlier: tuple[int, ...]
    target: int


def quality(row: dict) -> float:
    """What a row is kept or left for: S, of an edit the lesser of following and preserving."""
    return min(row["following"], row["preserving"]) if row["source_id"] else row["score"]


@dataclass(frozen=True)
class Grouped:
    """Rows by prompt: those of prompt k are ``rows[starts[k] : starts[k + 1]]``."""

    rows: np.ndarray
    starts: np.ndarray

    @staticmethod
    def of(keys: np.ndarray, order: np.ndarray, keep: np.ndarray, n_keys: int) -> Grouped:
        """The rows to ``keep``; ``order`` sorts all rows by their ``keys``."""
        rows = order[keep[order]].astype(np.int32)
        return Grouped(rows, np.searchsorted(keys[rows], np.arange(n_keys + 1)).astype(np.int32))

    def __getitem__(self, key: int) -> np.ndarray:
        return self.rows[self.starts[key] : self.starts[key + 1]]

    @property
    def prompts(self) -> np.ndarray:
        """Those that have rows, in order."""
        return np.flatnonzero(np.diff(self.starts))


class Rows:
    """The words of all pictures: id, prompt, score, reason, source_id, following, preserving."""

    def __init__(self, table: Any):
        self._table = table.combine_chunks()

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {name: self._table[name][i].as_py() for name in self._table.column_names}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self._table.to_batches(4096):
            yield from batch.to_pylist()


class Pool:
    """Scored pictures by prompt (for edits: by instruction and source), of one place or several:
    the Parquet shards of `data build`, or a JSONL file in the layout of the paper's published data
    (``data.stored.Listed``). Pictures and words are read when they are needed.

    ``tasks`` are those that the pictures are for: each must have prompts. ``problem`` says what
    keeps the model from reading a prompt (of an edit: True), "" if nothing does; ``reason_problem``
    says so of a reason as it is taught. ``shares`` says how often each place is drawn from;
    without, every prompt is drawn as often as any other. What is not used is counted and named in
    ``unused``. Raises InputError where a row is wrong, more than a hundredth of the pictures cannot
    be read, a task has no prompt, or ``shares`` do not fit the places."""

    def __init__(
        self,
        places: str | Path | Sequence[str | Path],
        good_to_draw: float = GOOD_TO_DRAW,
        good_to_judge: float = GOOD_TO_JUDGE,
        good_edit: float = GOOD_EDIT,
        shares: Sequence[float] = (),
        tasks: Sequence[str] = TASKS,
        problem: Callable[[str, bool], str] = lambda prompt, edit: "",
        reason_problem: Callable[[str], str] = lambda reason: "",
    ):
        places = [places] if isinstance(places, str | Path) else places
        if shares and (len(shares) != len(places) or min(shares) < 0 or not sum(shares)):
            raise InputError(
                f"config: data_weights is {list(shares)}; give one for each of the {len(places)} "
                "places of data, not all 0"
            )
        self.index = index = Index([Path(p) for p in places], problem, reason_problem)
        self._tasks, self._least = tasks, (good_to_draw, good_to_judge, good_edit)
        self._group()
        index.open_some(np.flatnonzero(index.use == Use.YES))
        self._group()
        self.unused = index.unused
        """One sentence about the pictures that are not used, "" where all are."""
        for name in tasks:
            if not len(self.prompts[name]):
                raise InputError(
                    (
                        f"config: data = {str(places[0])!r} has no prompt with pictures for "
                        f"{name!r}; build more"
                    )
                    + (f" ({self.unused})" if self.unused else "")
                )
        self._places: dict[str, list[np.ndarray]] = {}
        self._shares = np.array(shares, dtype=float) / (sum(shares) or 1)
        if shares:
            of_place = np.split(index.key, index.ends[:-1])  # a prompt may be in several
            for name in tasks:
                self._places[name] = [np.intersect1d(self.prompts[name], keys) for keys in of_place]
                for where, share, own in zip(places, shares, self._places[name], strict=True):
                    if share and not len(own):
                        raise InputError(
                            f"config: data = {str(where)!r} has no prompt with pictures for "
                            f"{name!r}; build more"
                        )

    def _group(self) -> None:
        """Rows and prompts by what they are used for; rows that are used for nothing are marked."""
        index, (*least, good_edit) = self.index, self._least
        usable = np.isin(index.use, (Use.YES, Use.BETWEEN, Use.ALONE))
        bad = usable & (index.quality < BAD)
        draw, judge = (
            usable & (index.quality >= np.where(index.edit, good_edit, good)) for good in least
        )
        order = np.argsort(index.key, kind="stable")
        self.bad, self.draw, self.judge = (
            Grouped.of(index.key, order, keep, index.n_keys) for keep in (bad, draw, judge)
        )
        self.prompts = {
            "draw": self.draw.prompts,
            "judge": np.intersect1d(self.judge.prompts, self.bad.prompts),
            "redraw": np.intersect1d(self.draw.prompts, self.bad.prompts),
        }
        rows_of = {"draw": draw, "judge": judge | bad, "redraw": draw | bad}
        used = np.zeros(len(index), dtype=bool)
        for task in self._tasks:
            used |= rows_of[task] & np.isin(index.key, self.prompts[task])
        index.leave(np.flatnonzero(usable & ~used & ~(bad | draw | judge)), Use.BETWEEN)
        index.leave(np.flatnonzero(usable & ~used), Use.ALONE)

    @cached_property
    def rows(self) -> Rows:
        """The words of all pictures, in memory; training does not ask for them."""
        return Rows(self.index.table())

    @staticmethod
    def key(row: dict) -> str:
        """What a row is a picture of, as ``Prompt.key`` has it."""
        return f"{row['prompt']}\n{row['source_id']}" if row["source_id"] else row["prompt"]

    def read(
        self, choice: Choice, known: Callable[[int | str], bool] = lambda index: False
    ) -> Example:
        """The example; pictures that are ``known`` are not read. Raises InputError that names the
        file and the row or line."""

        def scored(row: int, words: Words) -> Scored:
            picture = None if known(row) else self.index.image(row)
            return Scored(row, words.score or 0.0, words.reason or "", picture)

        words = self.index.words(choice.target)
        source = None
        if words.source is not None:
            name = self.index.source_name(self.index.stored[self.index.file[choice.target]], words)
            picture = None if known(name) else self.index.source_image(choice.target, words)
            source = Scored(name, 1.0, "", picture)
        earlier = tuple(scored(row, self.index.words(row)) for row in choice.earlier)
        return Example(words.prompt, earlier, scored(choice.target, words), source)

    def _prompt(self, rng: np.random.Generator, task: str) -> int:
        prompts = self.prompts[task]
        if len(self._shares):
            prompts = self._places[task][rng.choice(len(self._shares), p=self._shares)]
        return int(prompts[rng.integers(len(prompts))])

    @staticmethod
    def _pick(rng: np.random.Generator, rows: np.ndarray, n: int) -> tuple[int, ...]:
        return tuple(rows[rng.choice(len(rows), size=min(n, len(rows)), replace=False)].tolist())

    def drawing(self, rng: np.random.Generator) -> Choice:
        """Task I: a picture with S >= 0.8."""
        prompt = self._prompt(rng, "draw")
        return Choice((), *self._pick(rng, self.draw[prompt], 1))

    def judging(self, rng: np.random.Generator, longest: int = 3) -> tuple[Choice, Choice]:
        """Task II: up to ``longest`` - 1 wrong pictures (``short``), then one to judge: S >= 0.7,
        and for the same prompt S < 0.5. Side by side in a batch the two teach what tells them
        apart."""
        prompt = self._prompt(rng, "judge")
        earlier = self._pick(rng, self.bad[prompt], short(rng, longest))
        right = Choice(earlier, *self._pick(rng, self.judge[prompt], 1))
        *earlier_wrong, target = self._pick(rng, self.bad[prompt], short(rng, longest) + 1)
        return right, Choice(tuple(earlier_wrong), target)

    def redrawing(self, rng: np.random.Generator, longest: int = 2) -> Choice:
        """Task III: one to ``longest`` wrong pictures (S < 0.5; ``short``), then one with S >=
        0.8."""
        prompt = self._prompt(rng, "redraw")
        earlier = self._pick(rng, self.bad[prompt], 1 + short(rng, longest))
        return Choice(earlier, *self._pick(rng, self.draw[prompt], 1))
