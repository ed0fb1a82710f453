"""Stage 1: supervised fine-tuning on text-to-image, self-evaluation and regeneration, mixed 0.2 :
0.3 : 0.5.

Source: arXiv 2506.01480, stage 1: thresholds, context lengths, mixing, prompt dropout, what is
frozen. The verdict weighs ``verdict_weight`` and the reason with the end of sentence the rest (0.8
and 0.2 in the public code; the paper is silent). Departures: a positive and a negative of one
prompt stand side by side in a batch; the averaged weights are what is saved.
"""

from __future__ import annotations

import math
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from secondlook.data.image_index import BAD, FAULTY
from secondlook.data.sft_dataset import (
    GOOD_EDIT,
    GOOD_TO_DRAW,
    GOOD_TO_JUDGE,
    TASKS,
    Choice,
    Example,
    Pool,
    Scored,
)
from secondlook.data.stored_images import check_built
from secondlook.errors import InputError, Stopped
from secondlook.io import fingerprint
from secondlook.models.device import resolve_device
from secondlook.models.janus.checkpoint import fetch
from secondlook.models.janus.model import Janus
from secondlook.models.janus.template import MAX_REASON, ChatTemplate
from secondlook.models.sampling import cross_entropy
from secondlook.models.shipped import locate
from secondlook.train.activation_checkpointing import Checkpointing, activation_checkpointing
from secondlook.train.distributed import Ranks
from secondlook.train.optim import Average, Schedule, Update, freeze, trainable
from secondlook.train.sharding import Dtype, Shards
from secondlook.train.trainer import MAY_CHANGE, Stateful, Trainer
from secondlook.types import ImageCodes, Segment, TokenIds


@dataclass
class SFTConfig:
    """``train sft``; ``steps`` may be changed when a run is resumed."""

    model: str
    """The checkpoint to start from."""
    data: str | list[str]
    """A folder that ``data build`` wrote, or a JSONL file in the layout of the paper's published
    data (``data.pair.Pool``); or several."""
    shares: list[float] = field(default_factory=list)
    """How often each of several places is drawn from; none: every prompt as often as any other."""
    steps: int = 1500
    batch: int = 48
    """Examples a step, divided among the tasks by ``mix``."""
    mix: tuple[float, float, float] = (0.2, 0.3, 0.5)
    """Shares of text-to-image, self-evaluation and regeneration."""
    good_to_draw: float = GOOD_TO_DRAW
    good_to_judge: float = GOOD_TO_JUDGE
    good_edit: float = GOOD_EDIT
    """Following and preserving from which on an edit is learned."""
    judge_context: int = 3
    """Most pictures in a self-evaluation, the judged one included."""
    redraw_context: int = 2
    """Most wrong pictures before a regeneration."""
    drop_prompt: float = 0.1
    verdict_weight: float = 0.8
    lora: int = 0
    lora_alpha: int = 0
    """These two: as ``train rl`` has them."""
    muon: float = 0.0
    """Train the hidden matrices by Muon, at so many times lr (0: AdamW for everything, as the
    paper)."""
    lr: float = 2e-5
    min_lr: float = 2e-7
    warmup: int = 100
    weight_decay: float = 0.05
    clip: float = 1.0
    ema: float = 0.99
    seed: int = 0
    threads: int = 2
    workers: int = 0
    """Processes that read the coming steps' pictures while one is trained on; 0: they are read in
    between."""
    micro: int = 64
    """Examples scored together."""
    device: str = "auto"
    dtype: Dtype = "float32"
    shard: int = 0
    """These two: as ``train rl`` has them."""
    checkpointing: Checkpointing = "none"
    log_every: int = 50
    save_every: int = 250

    def __post_init__(self) -> None:
        positive = ("steps", "batch", "micro", "save_every", "judge_context", "redraw_context")
        for name in (*positive, "lora", "lora_alpha", "shard", "warmup", "workers"):
            if getattr(self, name) < int(name in positive):
                least = int(name in positive)
                raise InputError(
                    f"config: {name} is {getattr(self, name)}; it must be at least {least}"
                )
        if self.muon and self.lora:
            raise InputError(
                f"config: muon is {self.muon}; adapters (lora) are trained by AdamW, use 0"
            )
        if min(self.mix) < 0 or not sum(self.mix):
            raise InputError(
                f"config: mix is {self.mix}; give three shares that are not negative and not all 0"
            )
        if not BAD <= self.good_to_judge <= 1 or not BAD <= self.good_to_draw <= 1:
            raise InputError(f"config: good_to_draw and good_to_judge must lie between {BAD} and 1")


TRIES = 20
"""Examples that are tried in place of one with a picture that cannot be read."""
COUNTED = 1000
"""Pictures after which a share of them that cannot be read is taken for the data's."""


@dataclass(frozen=True)
class Batch:
    """A rank's share of a step's examples. A rank without an example of a task that others have
    gets their first one, to take part in gathering weights."""

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


class Steps(Dataset):
    """The batch of every step, made here, or ahead by ``workers`` processes. What is chosen depends
    on (seed, step) alone and is the same on all ranks; each reads the pictures of its own share
    only, to draw without those whose codes are ``known``."""

    def __init__(
        self,
        config: SFTConfig,
        pool: Pool,
        ranks: Ranks,
        known: Callable[[int | str], bool] = lambda index: False,
    ):
        self.config, self.pool, self.ranks, self.known = config, pool, ranks, known

    def chosen(self, step: int) -> tuple[list[Choice], list[Choice], list[Choice], list[bool]]:
        """All ranks' examples: those that draw, redraw and judge, and which of the first two go
        without their prompt."""
        c, rng = self.config, np.random.default_rng([self.config.seed, step])
        tasks = rng.choice(3, size=c.batch, p=np.array(c.mix) / sum(c.mix)).tolist()
        n_draw, n_judge, n_redraw = (tasks.count(i) for i in range(3))
        drawing = [self.pool.drawing(rng) for _ in range(n_draw)]
        redrawing = [self.pool.redrawing(rng, c.redraw_context) for _ in range(n_redraw)]
        pairs = [self.pool.judging(rng, c.judge_context) for _ in range(-(-n_judge // 2))]
        judging = [e for pair in pairs for e in pair][:n_judge]
        return drawing, redrawing, judging, (rng.random(n_draw + n_redraw) < c.drop_prompt).tolist()

    def __getitem__(self, step: int) -> Batch:
        drawing, redrawing, judging, dropped = self.chosen(step)
        counts = len(drawing), len(redrawing), len(judging)
        unreadable: list[str] = []

        def own(task: str, choices: list[Choice]) -> list[Example]:
            mine = self.ranks.share(range(len(choices))) or list(range(min(1, len(choices))))
            return [self._read(step, task, place, choices[place], unreadable) for place in mine]

        try:
            draw, redraw, judge = (
                own("draw", drawing),
                own("redraw", redrawing),
                own("judge", judging),
            )
        except (
            InputError
        ) as error:  # said as data: an exception in another process loses its one sentence
            return Batch([], [], [], counts, problem=str(error))
        of_draw, of_redraw = dropped[: len(drawing)], dropped[len(drawing) :]
        return Batch(
            list(zip(draw, self.ranks.share(of_draw) or [False], strict=False)),
            list(zip(redraw, self.ranks.share(of_redraw) or [False], strict=False)),
            judge,
            counts,
            sum(len(e.pictures) for e in (*draw, *redraw, *judge)),
            tuple(unreadable),
        )

    def _read(
        self, step: int, task: str, place: int, choice: Choice, unreadable: list[str]
    ) -> Example:
        """The example at a ``place`` of a step, or where a picture of it cannot be read another one
        of its task (and, where it is judged, of its verdict), which depends on the seed, the step
        and the place."""
        c = self.config
        for attempt in range(TRIES):
            try:
                return (
                    self.pool.read(choice)
                    if task == "judge"
                    else self.pool.read(choice, self.known)
                )
            except InputError as error:
                unreadable.append(str(error))
            rng = np.random.default_rng([c.seed, step, TASKS.index(task), place, attempt])
            if task == "judge":
                choice = self.pool.judging(rng, c.judge_context)[place % 2]
            else:
                choice = (
                    self.pool.drawing(rng)
                    if task == "draw"
                    else self.pool.redrawing(rng, c.redraw_context)
                )
        raise InputError(
            f"data: {TRIES} examples in a row cannot be read; the first: {unreadable[-TRIES]}"
        )

    def start(self, step: int) -> Iterator[Batch]:
        """The batches of ``step`` and those after it."""
        steps = range(step, self.config.steps)
        if not self.config.workers:
            return (self[s] for s in steps)
        how = "fork" if sys.platform == "linux" else None  # forked workers share the pool's memory
        loader = DataLoader(
            self,
            None,
            sampler=steps,
            num_workers=self.config.workers,
            collate_fn=_as_it_is,
            multiprocessing_context=how,
        )
        return iter(loader)


def _as_it_is(batch: Any) -> Any:
    return batch


class Codes:
    """The codes of the pictures that were encoded last, as 16-bit numbers: 1.5 kB each, so at most
    .4 GB."""

    def __init__(self, most: int = 2**18):
        self.most = most
        self._kept: OrderedDict[int | str, np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, index: int | str) -> bool:
        """Whether a picture's codes are here; then they stay, as those that were asked for last."""
        if index in self._kept:
            self._kept.move_to_end(index)
            return True
        return False

    def add(self, index: int | str, codes: np.ndarray) -> None:
        self._kept[index] = codes.astype(np.min_scalar_type(int(codes.max(initial=0))))
        if len(self._kept) > self.most:
            self._kept.popitem(last=False)

    def __getitem__(self, index: int | str) -> tuple[int, ...]:
        return tuple(self._kept[index].tolist())


class SFTJob:
    """The loop's step, and the model it trains."""

    def __init__(self, config: SFTConfig, ranks: Ranks | None = None):
        self.config, self.ranks = config, ranks or Ranks(device=str(resolve_device(config.device)))
        self.janus = Janus.load(config.model, self.ranks.device).train()
        self.janus.history = "codes"
        self.template = ChatTemplate(self.janus.tokenizer, self.janus.history)
        for place in [config.data] if isinstance(config.data, str) else config.data:
            if Path(place).is_dir():
                check_built(Path(place))
        pool = Pool(
            config.data,
            config.good_to_draw,
            config.good_to_judge,
            config.good_edit,
            config.shares,
            tasks=[task for task, share in zip(TASKS, config.mix, strict=True) if share],
            problem=self._problem,
            reason_problem=self._reason_problem,
        )
        if pool.unused and self.ranks.first:
            print(f"data: {pool.unused}", file=sys.stderr)
        self.known = Codes()
        self.steps = Steps(config, pool, self.ranks, self.known.keep)
        self.coming: Iterator[Batch] | None = None
        adapters = freeze(self.janus, config.lora, config.lora_alpha, config.seed, config.model)
        self.shards = Shards(self.janus, self.ranks, config.dtype, config.shard, adapters)
        self.update = Update(self.janus.net, config.weight_decay, config.clip, config.muon)
        self.average = Average(self.janus.net, config.ema)
        self.trainable = trainable(self.janus)
        self.schedule = Schedule(config.steps, config.lr, config.min_lr, config.warmup)
        self._seen: set[str] = set()
        """Pictures that could not be read, said once each."""
        self._read = self._unreadable = 0
        """Pictures of all ranks since this start, and those that could not be read."""

    def _problem(self, prompt: str, edit: bool) -> str:
        try:
            self.template.edit((), prompt) if edit else self.template.draw(prompt)
        except InputError as error:
            return str(error)
        return ""

    def _reason_problem(self, reason: str) -> str:
        if (
            len(reason.encode()) <= MAX_REASON
        ):  # a token is at least a byte, and encoding all of a large set takes minutes
            return ""
        try:
            self.template.answer(reason)
        except InputError as error:
            return str(error)
        return ""

    @torch.no_grad()
    def codes(self, pictures: list[Scored]) -> list[tuple[int, ...]]:
        """Each picture as the drawing path has it; encoded once, while it is among those drawn
        last."""
        new = {p.index: p.image for p in pictures if not self.known.keep(p.index)}
        if new:
            for index, codes in zip(
                new, self.janus.to_codes(list(new.values())).cpu().numpy(), strict=True
            ):
                self.known.add(index, codes)
        return [self.known[p.index] for p in pictures]

    def drawn(self, examples: list[Example], dropped: list[bool]) -> Tensor:
        """Tasks I and III: the sum of the cross-entropy of the targets' codes."""
        rows: list[tuple[Segment, ...]] = []
        for e, drop in zip(examples, dropped, strict=True):
            source = self.codes([e.source])[0] if e.source else ()
            if e.earlier:
                segments = self.template.redraw(
                    e.prompt, self.codes(list(e.earlier)), [s.reason for s in e.earlier], source
                )
            else:
                segments = (
                    self.template.edit(source, e.prompt) if source else self.template.draw(e.prompt)
                )
            rows.append(self.template.unconditional(segments) if drop else segments)
        return cross_entropy(
            self.janus, rows, [ImageCodes(c) for c in self.codes([e.target for e in examples])]
        )[0].sum()

    def answer(self, example: Example) -> tuple[int, ...]:
        return self.template.answer(example.target.reason)

    def judged(self, examples: list[Example]) -> tuple[Tensor, Tensor]:
        """Task II: the sums of the cross-entropy of the verdicts and of the reasons' tokens."""
        rows: list[tuple[Segment, ...]] = []
        for e in examples:
            pictures = (*e.earlier, e.target)
            source = e.source.image if e.source else None
            rows.append(
                self.template.judge(
                    e.prompt, [s.image for s in pictures], [s.reason for s in e.earlier], source
                )
            )
        losses, first = cross_entropy(
            self.janus, rows, [TokenIds(self.answer(e)) for e in examples]
        )
        return losses[first].sum(), losses[~first].sum()

    def parts(self, n: int) -> list[tuple[slice, float]]:
        """The micro-batches of this rank's share of ``n`` examples of a task, with their weight: as
        many on every rank, for they gather weights together; one that would be empty repeats an
        example with weight 0."""
        mine, size = len(self.ranks.share(range(n))), self.config.micro
        starts = range(0, math.ceil(n / self.ranks.size), size)
        return [(slice(k, k + size), 1.0) if k < mine else (slice(1), 0.0) for k in starts]

    def batch(self, step: int) -> tuple[Batch, int]:
        """The step's batch, and how many tokens of reasons all ranks' have. Raises InputError on
        all ranks where one has none, and Stopped where too many pictures cannot be read."""
        if self.coming is None:
            self.coming = self.steps.start(step)
        batch = next(self.coming)
        own = [] if self.ranks.rank >= batch.counts[2] else batch.judging
        tokens, problem = 0, batch.problem
        try:
            tokens = sum(len(self.answer(e)) - 1 for e in own)
        except InputError as error:
            problem = f"data: a reason cannot be taught: {error}"
        said = self.ranks.gather((tokens, batch.read, len(batch.unreadable), problem))
        if problems := [problem for _, _, _, problem in said if problem]:
            raise InputError(problems[0])
        for text in batch.unreadable:
            if text not in self._seen:
                self._seen.add(text)
                print(
                    f"data: step {step + 1}: another example is taken, for {text}", file=sys.stderr
                )
        self._read += sum(read for _, read, _, _ in said)
        self._unreadable += sum(unreadable for _, _, unreadable, _ in said)
        if self._read >= COUNTED and self._unreadable > FAULTY * self._read:
            counts = f"{self._unreadable} of {self._read}"
            raise Stopped(
                f"data: {counts} pictures could not be read, at most {FAULTY:.0%} may be; mend "
                "the data"
            )
        return batch, sum(tokens for tokens, _, _, _ in said)

    def step(self, step: int) -> dict[str, float]:
        c, (batch, reason_tokens) = self.config, self.batch(step)
        n_draw, n_redraw, n_judge = batch.counts
        sums: dict[str, float] = {}
        with activation_checkpointing(self.janus, c.checkpointing):
            for name, examples, n in (
                ("draw", batch.drawing, n_draw),
                ("redraw", batch.redrawing, n_redraw),
            ):
                tokens = max(1, n) * self.janus.n_codes
                for part, weight in self.parts(n):
                    some, drop = map(list, zip(*examples[part], strict=True))
                    self.codes([s for e in some for s in e.pictures])
                    loss = self.shards.run(self.drawn, some, drop) * (weight / tokens)
                    (loss * n / c.batch).backward()
                    sums[f"{name}_loss"] = sums.get(f"{name}_loss", 0.0) + loss.item()
            for part, weight in self.parts(n_judge):
                verdict, reason = self.shards.run(self.judged, batch.judging[part])
                verdict, reason = (
                    verdict * (weight / n_judge),
                    reason * (weight / max(1, reason_tokens)),
                )
                (
                    (c.verdict_weight * verdict + (1 - c.verdict_weight) * reason)
                    * n_judge
                    / c.batch
                ).backward()
                for name, loss in (("verdict_loss", verdict), ("reason_loss", reason)):
                    sums[name] = sums.get(name, 0.0) + loss.item()
        metrics = self.ranks.total(sums | {"unreadable": float(len(batch.unreadable))})
        lr = self.schedule.at(step)
        metrics |= self.update.step(lr) | {"lr": lr}
        self.average.update(step)
        return metrics


def train_sft(config: SFTConfig, out: str | Path) -> None:
    """Train, resume if ``out`` holds a state, and write the averaged checkpoint to
    ``out``/final."""
    torch.set_num_threads(config.threads)
    ranks = Ranks.start(config.device)
    job = SFTJob(config, ranks)
    state: dict[str, Stateful] = {
        "net": job.trainable,
        "optimizer": job.update,
        "average": job.average,
    }
    run = Trainer(
        out,
        config,
        state,
        may_change=(*MAY_CHANGE, "workers"),
        ranks=ranks,
        start=fingerprint(fetch(locate(config.model))),
    )
    run.loop(config.steps, job.step, log_every=config.log_every, save_every=config.save_every)
    job.average.swap()
    job.shards.save(Path(out) / "final")
    job.average.swap()
