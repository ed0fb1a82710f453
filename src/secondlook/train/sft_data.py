"""The batches of supervised fine-tuning: which examples a step has, and their pictures."""

from __future__ import annotations

import math
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from secondlook.data.sft_dataset import TASKS, Choice, Example, Pool
from secondlook.errors import InputError
from secondlook.train.distributed import ProcessGroup
from secondlook.train.sft_config import SFTConfig

MAX_TRIES = 20
"""Examples that are tried in place of one with a picture that cannot be read."""


@dataclass(frozen=True)
class SFTBatch:
    """A rank's part of a step's examples. A rank without an example of a task that others have gets
    their first one, to take part in gathering weights."""

    drawing: list[tuple[Example, bool]]
    """With whether it goes without its prompt."""
    redrawing: list[tuple[Example, bool]]
    judging: list[Example]
    counts: tuple[int, int, int]
    """How many examples of each of these all ranks have."""
    read: int = 0
    """Pictures of this rank's examples."""
    unreadable: tuple[str, ...] = ()
    """Of those that could not be read: where each is, and why. Other examples took their places."""
    problem: str = ""
    """Why there is no batch."""


class SFTBatches(Dataset):
    """The batch of every step, made here, or ahead by worker processes. What is chosen depends on
    (seed, step) alone and is the same on all ranks; each reads the pictures of its own part only,
    to draw without those whose codes are ``known``."""

    def __init__(
        self,
        config: SFTConfig,
        pool: Pool,
        ranks: ProcessGroup,
        known: Callable[[int | str], bool] = lambda index: False,
    ):
        self.config, self.pool, self.ranks, self.known = config, pool, ranks, known

    def choose(self, step: int) -> tuple[list[Choice], list[Choice], list[Choice], list[bool]]:
        """All ranks' examples: those that draw, redraw and judge, and which of the first two go
        without their prompt. Judged ones come in pairs, a right and a wrong picture of a prompt."""
        config, rng = self.config, np.random.default_rng([self.config.seed, step])
        probabilities = np.array(config.mix) / sum(config.mix)
        tasks = rng.choice(len(TASKS), size=config.batch_size, p=probabilities)  # (examples,)
        num_draw, num_judge, num_redraw = np.bincount(tasks, minlength=len(TASKS)).tolist()
        # the order of the random draws below is part of what a seed means: keep it
        drawing = [self.pool.drawing(rng) for _ in range(num_draw)]
        redrawing = [self.pool.redrawing(rng, config.redraw_context) for _ in range(num_redraw)]
        judging: list[Choice] = []
        for _ in range(math.ceil(num_judge / 2)):  # two at a time, so there may be one too many
            judging += self.pool.judging(rng, config.judge_context)
        is_dropped = rng.random(num_draw + num_redraw) < config.prompt_dropout
        return drawing, redrawing, judging[:num_judge], is_dropped.tolist()

    def __getitem__(self, step: int) -> SFTBatch:
        drawing, redrawing, judging, dropped = self.choose(step)
        counts = len(drawing), len(redrawing), len(judging)
        unreadable: list[str] = []
        try:
            own_drawing = self._read_own(step, "draw", drawing, unreadable)
            own_redrawing = self._read_own(step, "redraw", redrawing, unreadable)
            own_judging = self._read_own(step, "judge", judging, unreadable)
        except InputError as error:
            # as data: an exception in another process loses its one sentence
            return SFTBatch([], [], [], counts, problem=str(error))
        # [False]: of the example that is another rank's; not strict, for it may be nobody's
        draw_dropped = self.ranks.local_part(dropped[: len(drawing)]) or [False]
        redraw_dropped = self.ranks.local_part(dropped[len(drawing) :]) or [False]
        num_pictures = 0
        for example in (*own_drawing, *own_redrawing, *own_judging):
            num_pictures += len(example.pictures)
        return SFTBatch(
            drawing=list(zip(own_drawing, draw_dropped, strict=False)),
            redrawing=list(zip(own_redrawing, redraw_dropped, strict=False)),
            judging=own_judging,
            counts=counts,
            read=num_pictures,
            unreadable=tuple(unreadable),
        )

    def _read_own(
        self, step: int, task: str, choices: list[Choice], unreadable: list[str]
    ) -> list[Example]:
        """This rank's examples of a task; the first of all ranks' where it has none, and nothing
        where nobody has one."""
        places = self.ranks.local_part(range(len(choices)))
        if not places and choices:
            places = [0]
        return [self._read(step, task, place, choices[place], unreadable) for place in places]

    def _read(
        self, step: int, task: str, place: int, choice: Choice, unreadable: list[str]
    ) -> Example:
        """The example at a ``place`` of a step, or where a picture of it cannot be read another one
        of its task (and, where it is judged, of its verdict), which depends on the seed, the step
        and the place."""
        config = self.config
        for attempt in range(MAX_TRIES):
            try:
                if task == "judge":  # pictures that are seen have no codes: all are read
                    return self.pool.read(choice)
                return self.pool.read(choice, self.known)
            except InputError as error:
                unreadable.append(str(error))
            rng = np.random.default_rng([config.seed, step, TASKS.index(task), place, attempt])
            if task == "judge":  # right pictures stand at even places, wrong ones at odd places
                choice = self.pool.judging(rng, config.judge_context)[place % 2]
            elif task == "draw":
                choice = self.pool.drawing(rng)
            else:
                choice = self.pool.redrawing(rng, config.redraw_context)
        raise InputError(
            f"data: {MAX_TRIES} examples in a row cannot be read; the first: "
            f"{unreadable[-MAX_TRIES]}"
        )

    def from_step(self, step: int) -> Iterator[SFTBatch]:
        """The batches of ``step`` and those after it."""
        coming_steps = range(step, self.config.steps)
        num_workers = self.config.runtime.dataloader_workers
        if not num_workers:
            return map(self.__getitem__, coming_steps)  # each when it is asked for
        # forked workers share the pool's memory
        start_method = "fork" if sys.platform == "linux" else None
        loader = DataLoader(
            self,
            batch_size=None,  # a step's batch is one item
            sampler=coming_steps,
            num_workers=num_workers,
            collate_fn=_unchanged,
            multiprocessing_context=start_method,
        )
        return iter(loader)


def _unchanged(batch: Any) -> Any:
    return batch


class CodeCache:
    """The codes of the pictures that were asked for last, as 16-bit numbers: 1.5 kB a picture with
    what the dictionary takes, so at most .4 GB."""

    def __init__(self, max_pictures: int = 2**18):
        self.max_pictures = max_pictures
        self._codes: OrderedDict[int | str, np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return len(self._codes)

    def touch(self, index: int | str) -> bool:
        """Whether a picture's codes are here; then they stay, as those that were asked for last."""
        if index in self._codes:
            self._codes.move_to_end(index)
            return True
        return False

    def add(self, index: int | str, codes: np.ndarray) -> None:
        """Keep a picture's codes (codes,); the one that was asked for longest ago may go."""
        smallest_type = np.min_scalar_type(int(codes.max(initial=0)))
        self._codes[index] = codes.astype(smallest_type)
        if len(self._codes) > self.max_pictures:
            self._codes.popitem(last=False)

    def __getitem__(self, index: int | str) -> tuple[int, ...]:
        return tuple(self._codes[index].tolist())
