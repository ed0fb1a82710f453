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
"""S from which on a picture is drawn, judged right, and an edit is both."""
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
        """All of them: the earlier ones, the target, and the source if there is one."""
        if self.source is None:
            return (*self.earlier, self.target)
        return (*self.earlier, self.target, self.source)


@dataclass(frozen=True)
class Choice:
    """An example's pictures by their rows, not read yet."""

    earlier: tuple[int, ...]
    target: int


def quality(row: dict) -> float:
    """The number that decides what a row is used for: S, of an edit the lesser of following and
    preserving."""
    if row["source_id"]:
        return min(row["following"], row["preserving"])
    return row["score"]


@dataclass(frozen=True)
class Grouped:
    """Rows by prompt: those of prompt k are ``rows[starts[k] : starts[k + 1]]``."""

    rows: np.ndarray
    """(kept pictures,), int32."""
    starts: np.ndarray
    """(prompts + 1,), int32."""

    @staticmethod
    def of(keys: np.ndarray, order: np.ndarray, keep: np.ndarray, n_keys: int) -> Grouped:
        """The rows to ``keep`` (a mask); ``order`` sorts all rows by their ``keys``."""
        kept_rows = order[keep[order]].astype(np.int32)
        starts = np.searchsorted(keys[kept_rows], np.arange(n_keys + 1))
        return Grouped(kept_rows, starts.astype(np.int32))

    def __getitem__(self, key: int) -> np.ndarray:
        return self.rows[self.starts[key] : self.starts[key + 1]]

    @property
    def prompts(self) -> np.ndarray:
        """Those that have rows, in order."""
        return np.flatnonzero(np.diff(self.starts))


class Rows:
    """The words of all pictures, from an Arrow table: id, prompt, score, reason, source_id,
    following, preserving."""

    def __init__(self, table: Any):
        self._table = table.combine_chunks()

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {name: self._table[name][i].as_py() for name in self._table.column_names}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # in parts: as Python's objects the words take several times the table's memory
        for batch in self._table.to_batches(4096):
            yield from batch.to_pylist()


class Pool:
    """Scored pictures by prompt (for edits: by instruction and source), of one place or several:
    the Parquet shards of `data build`, or a JSONL file in the layout of the paper's published data
    (``data.listed_images.Listed``). Pictures and words are read when they are needed.

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
        if isinstance(places, str | Path):
            places = [places]
        if shares and (len(shares) != len(places) or min(shares) < 0 or not sum(shares)):
            raise InputError(
                f"config: data_weights is {list(shares)}; give one for each of the {len(places)} "
                "places of data, not all 0"
            )
        self.index = index = Index([Path(place) for place in places], problem, reason_problem)
        self._tasks = tasks
        self._good_to_draw, self._good_to_judge = good_to_draw, good_to_judge
        self._good_edit = good_edit
        # Grouped twice: only pictures with a use are opened, and without the damaged ones among
        # them some prompts may have none left.
        self._group()
        index.open_some(np.flatnonzero(index.use == Use.YES))
        self._group()
        self.unused = index.unused
        """One sentence about the pictures that are not used, "" where all are."""
        for task in tasks:
            if not len(self.prompts[task]):
                reasons = f" ({self.unused})" if self.unused else ""
                raise InputError(
                    f"config: data = {str(places[0])!r} has no prompt with pictures for "
                    f"{task!r}; build more{reasons}"
                )
        self._probabilities = np.array(shares, dtype=float) / (sum(shares) or 1)
        """(places,): how often each is drawn from; empty where all prompts are drawn alike."""
        self._prompts_of_places: dict[str, list[np.ndarray]] = {}
        """Of every task each place's prompts."""
        if shares:
            self._split_by_place(places, shares)

    def _split_by_place(self, places: Sequence[str | Path], shares: Sequence[float]) -> None:
        """Raises InputError where a place with a share has no prompt for a task."""
        keys_of_places = np.split(self.index.key, self.index.ends[:-1])
        for task in self._tasks:
            prompts_of_places = []
            for i, place in enumerate(places):
                # a prompt may be in several places
                place_prompts = np.intersect1d(self.prompts[task], keys_of_places[i])
                if shares[i] and not len(place_prompts):
                    raise InputError(
                        f"config: data = {str(place)!r} has no prompt with pictures for "
                        f"{task!r}; build more"
                    )
                prompts_of_places.append(place_prompts)
            self._prompts_of_places[task] = prompts_of_places

    def _group(self) -> None:
        """Rows and prompts by what they are used for; rows that are used for nothing are marked."""
        index = self.index
        # What an earlier call marked is grouped again. All masks below are (pictures,).
        usable = np.isin(index.use, (Use.YES, Use.BETWEEN, Use.ALONE))
        # comparisons with NaN, the quality of a picture without a score, are False
        is_bad = usable & (index.quality < BAD)
        draw_threshold = np.where(index.edit, self._good_edit, self._good_to_draw)
        judge_threshold = np.where(index.edit, self._good_edit, self._good_to_judge)
        can_draw = usable & (index.quality >= draw_threshold)
        can_judge = usable & (index.quality >= judge_threshold)
        order = np.argsort(index.key, kind="stable")  # stable: a prompt's rows keep their order
        self.bad = Grouped.of(index.key, order, is_bad, index.n_keys)
        may_be_redrawn = is_bad & self._has_what_it_becomes(can_draw)
        self.redrawn = Grouped.of(index.key, order, may_be_redrawn, index.n_keys)
        self.draw = Grouped.of(index.key, order, can_draw, index.n_keys)
        self.judge = Grouped.of(index.key, order, can_judge, index.n_keys)
        self.prompts = {
            "draw": self.draw.prompts,
            "judge": np.intersect1d(self.judge.prompts, self.bad.prompts),
            "redraw": np.intersect1d(self.draw.prompts, self.redrawn.prompts),
        }
        fits_task = {
            "draw": can_draw,
            "judge": can_judge | is_bad,
            "redraw": can_draw | is_bad,
        }
        is_used = np.zeros(len(index), dtype=bool)
        for task in self._tasks:
            is_used |= fits_task[task] & np.isin(index.key, self.prompts[task])
        fits_none = ~(is_bad | can_draw | can_judge)
        index.leave(np.flatnonzero(usable & ~is_used & fits_none), Use.BETWEEN)
        index.leave(np.flatnonzero(usable & ~is_used), Use.ALONE)

    def _has_what_it_becomes(self, can_draw: np.ndarray) -> np.ndarray:
        """(pictures,) bool: a redraw of it has a target. Where the wrong images of a place have
        targets of their own (a repair, an edit, the nearest), one without is not redrawn: any other
        right image would teach to draw afresh. Edits, whose right one is nearly settled by their
        source, and places without targets take any."""
        index = self.index
        has_own = index.target >= 0
        has_own[has_own] = can_draw[index.target[has_own]]
        takes_any = np.ones(len(index), dtype=bool)
        start = 0
        for end in index.ends:
            of_place = slice(start, end)
            if (index.target[of_place] >= 0).any():
                takes_any[of_place] = index.edit[of_place]
            start = end
        return has_own | takes_any

    @cached_property
    def rows(self) -> Rows:
        """The words of all pictures, in memory; training does not ask for them."""
        return Rows(self.index.table())

    @staticmethod
    def key(row: dict) -> str:
        """What a row is a picture of, as ``Prompt.key`` has it."""
        if row["source_id"]:
            return f"{row['prompt']}\n{row['source_id']}"
        return row["prompt"]

    def read(
        self, choice: Choice, known: Callable[[int | str], bool] = lambda index: False
    ) -> Example:
        """The example; pictures that are ``known`` are not read. Raises InputError that names the
        file and the row or line."""

        def scored(row: int, words: Words) -> Scored:
            picture = None if known(row) else self.index.image(row)
            return Scored(row, words.score or 0.0, words.reason or "", picture)

        index = self.index
        target_words = index.words(choice.target)
        source = None
        if target_words.source is not None:
            stored = index.stored[index.file[choice.target]]
            source_name = index.source_name(stored, target_words)
            source_picture = None
            if not known(source_name):
                source_picture = index.source_image(choice.target, target_words)
            source = Scored(source_name, 1.0, "", source_picture)  # it has no score of its own
        earlier = tuple(scored(row, index.words(row)) for row in choice.earlier)
        target = scored(choice.target, target_words)
        return Example(target_words.prompt, earlier, target, source)

    def _prompt(self, rng: np.random.Generator, task: str) -> int:
        """A prompt of a task: of all of them, or of a place that is drawn first."""
        prompts = self.prompts[task]
        if len(self._probabilities):
            place = rng.choice(len(self._probabilities), p=self._probabilities)
            prompts = self._prompts_of_places[task][place]
        return int(prompts[rng.integers(len(prompts))])

    @staticmethod
    def _pick(rng: np.random.Generator, rows: np.ndarray, n: int) -> tuple[int, ...]:
        """``n`` of the rows, or all where they are fewer, in a random order."""
        places = rng.choice(len(rows), size=min(n, len(rows)), replace=False)
        return tuple(rows[places].tolist())

    # The order of the random draws below is part of what a seed means: keep it.

    def drawing(self, rng: np.random.Generator) -> Choice:
        """Task I: a picture with S >= 0.8."""
        prompt = self._prompt(rng, "draw")
        (target,) = self._pick(rng, self.draw[prompt], 1)
        return Choice((), target)

    def judging(self, rng: np.random.Generator, longest: int = 3) -> tuple[Choice, Choice]:
        """Task II: two examples of one prompt, each with up to ``longest`` - 1 wrong pictures
        (``short``) before the one to judge: in the first it has S >= 0.7, in the second S < 0.5.
        Side by side in a batch the two teach what tells them apart."""
        prompt = self._prompt(rng, "judge")
        earlier_of_right = self._pick(rng, self.bad[prompt], short(rng, longest))
        (right_target,) = self._pick(rng, self.judge[prompt], 1)
        # together, so that the target is not among those before it
        *earlier_of_wrong, wrong_target = self._pick(rng, self.bad[prompt], short(rng, longest) + 1)
        right_choice = Choice(earlier_of_right, right_target)
        return right_choice, Choice(tuple(earlier_of_wrong), wrong_target)

    def redrawing(self, rng: np.random.Generator, longest: int = 2) -> Choice:
        """Task III: one to ``longest`` wrong pictures (S < 0.5; ``short``), then one with S >= 0.8:
        the last wrong one's own target; where the data have none, any."""
        prompt = self._prompt(rng, "redraw")
        earlier = self._pick(rng, self.bad[prompt], 1 + short(rng, longest))
        (target,) = self._pick(rng, self.draw[prompt], 1)
        if earlier[-1] not in self.redrawn[prompt]:
            (last,) = self._pick(rng, self.redrawn[prompt], 1)
            earlier = (*(row for row in earlier[:-1] if row != last), last)
        return Choice(earlier, self.target_of(earlier[-1], self.draw[prompt], target))

    def target_of(self, wrong: int, drawable: Sequence[int] | np.ndarray, otherwise: int) -> int:
        """What a redraw of a wrong picture is taught to become: its own target, where it has one
        among those that may be drawn."""
        own_target = int(self.index.target[wrong])
        return own_target if own_target >= 0 and own_target in drawable else otherwise
