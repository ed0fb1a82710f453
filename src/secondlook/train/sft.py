"""Stage 1: supervised fine-tuning on text-to-image, self-evaluation and regeneration, mixed 0.2 : 0.3 : 0.5.

Source: arXiv 2506.01480, stage 1: thresholds, context lengths, mixing, prompt dropout, what is frozen. The verdict weighs
``verdict_weight`` and the reason with the end of sentence the rest (0.8 and 0.2 in the public code; the paper is silent).
Departures: a positive and a negative of one prompt stand side by side in a batch; the averaged weights are what is saved.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from secondlook.data.pair import BAD, GOOD_EDIT, GOOD_TO_DRAW, GOOD_TO_JUDGE, Example, Pool, Scored
from secondlook.files import fingerprint
from secondlook.model.checkpoint import fetch
from secondlook.model.janus import Janus
from secondlook.model.policy import cross_entropy
from secondlook.model.sequence import Protocol
from secondlook.model.shipped import locate
from secondlook.train.memory import Checkpointing, checkpointed
from secondlook.train.ranks import Ranks
from secondlook.train.run import MAY_CHANGE, Run, Stateful
from secondlook.train.shard import Dtype, Shards
from secondlook.train.update import Average, Schedule, Update, freeze, trainable
from secondlook.types import Draw, InputError, Segment, Text


@dataclass
class SFTConfig:
    """``train sft``; ``steps`` may be changed when a run is resumed."""

    model: str
    """The checkpoint to start from."""
    data: str | list[str]
    """A folder that ``data build`` wrote, or a JSONL file in the layout of the paper's published data (``data.pair.Pool``); or
    several."""
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
    """Train the hidden matrices by Muon, at so many times lr (0: AdamW for everything, as the paper)."""
    lr: float = 2e-5
    min_lr: float = 2e-7
    warmup: int = 100
    weight_decay: float = 0.05
    clip: float = 1.0
    ema: float = 0.99
    seed: int = 0
    threads: int = 2
    workers: int = 0
    """Processes that read the coming steps' pictures while one is trained on; 0: they are read in between."""
    micro: int = 64
    """Examples scored together."""
    device: str = "cpu"
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
                raise InputError(f"config: {name} is {getattr(self, name)}; it must be at least {least}")
        if self.muon and self.lora:
            raise InputError(f"config: muon is {self.muon}; adapters (lora) are trained by AdamW, use 0")
        if min(self.mix) < 0 or not sum(self.mix):
            raise InputError(f"config: mix is {self.mix}; give three shares that are not negative and not all 0")
        if not BAD <= self.good_to_judge <= 1 or not BAD <= self.good_to_draw <= 1:
            raise InputError(f"config: good_to_draw and good_to_judge must lie between {BAD} and 1")


@dataclass(frozen=True)
class Batch:
    """A step's examples, and which of those that draw (first tasks, then redraws) go without their prompt."""

    drawing: list[Example]
    redrawing: list[Example]
    judging: list[Example]
    dropped: list[bool]


class Steps(Dataset):
    """The batch of every step, which depends on (seed, step) alone: made here, or ahead by ``workers`` processes."""

    def __init__(self, config: SFTConfig, pool: Pool, ranks: Ranks):
        self.config, self.pool, self.ranks = config, pool, ranks

    def __getitem__(self, step: int) -> Batch:
        c, rng = self.config, np.random.default_rng([self.config.seed, step])
        tasks = rng.choice(3, size=c.batch, p=np.array(c.mix) / sum(c.mix)).tolist()
        n_draw, n_judge, n_redraw = (tasks.count(i) for i in range(3))
        drawing = [self.pool.drawing(rng) for _ in range(n_draw)]
        redrawing = [self.pool.redrawing(rng, c.redraw_context) for _ in range(n_redraw)]
        pairs = [self.pool.judging(rng, c.judge_context) for _ in range(-(-n_judge // 2))]
        judging = [e for pair in pairs for e in pair][:n_judge]
        for e in self.ranks.share(judging):  # these are seen each time, drawn ones are encoded once
            _ = [s.image for s in e.pictures]
        return Batch(drawing, redrawing, judging, (rng.random(n_draw + n_redraw) < c.drop_prompt).tolist())

    def start(self, step: int) -> Iterator[Batch]:
        """The batches of ``step`` and those after it."""
        steps = range(step, self.config.steps)
        if not self.config.workers:
            return (self[s] for s in steps)
        return iter(DataLoader(self, None, sampler=steps, num_workers=self.config.workers, collate_fn=_as_it_is))


def _as_it_is(batch: Any) -> Any:
    return batch


class SFTJob:
    """The loop's step, and the model it trains."""

    def __init__(self, config: SFTConfig, ranks: Ranks | None = None):
        self.config, self.ranks = config, ranks or Ranks(device=config.device)
        self.janus = Janus.load(config.model, self.ranks.device).train()
        self.janus.history = "codes"
        self.protocol = Protocol(self.janus.tokenizer, self.janus.history)
        pool = Pool(config.data, config.good_to_draw, config.good_to_judge, config.good_edit, config.shares)
        self.steps = Steps(config, pool, self.ranks)
        self.coming: Iterator[Batch] | None = None
        adapters = freeze(self.janus, config.lora, config.lora_alpha, config.seed)
        self.shards = Shards(self.janus, self.ranks, config.dtype, config.shard, adapters)
        self.update = Update(self.janus.net, config.weight_decay, config.clip, config.muon)
        self.average = Average(self.janus.net, config.ema)
        self.trainable = trainable(self.janus)
        self.schedule = Schedule(config.steps, config.lr, config.min_lr, config.warmup)
        self._codes: dict[int | str, tuple[int, ...]] = {}

    @torch.no_grad()
    def codes(self, pictures: list[Scored]) -> list[tuple[int, ...]]:
        """Each picture as the drawing path has it; encoded once."""
        new = {p.index: p.image for p in pictures if p.index not in self._codes}
        if new:
            encoded = self.janus.to_codes(list(new.values())).tolist()
            self._codes |= {i: tuple(c) for i, c in zip(new, encoded, strict=True)}
        return [self._codes[p.index] for p in pictures]

    def drawn(self, examples: list[Example], dropped: list[bool]) -> Tensor:
        """Tasks I and III: the sum of the cross-entropy of the targets' codes."""
        rows: list[tuple[Segment, ...]] = []
        for e, drop in zip(examples, dropped, strict=True):
            source = self.codes([e.source])[0] if e.source else ()
            if e.earlier:
                segments = self.protocol.redraw(e.prompt, self.codes(list(e.earlier)), [s.reason for s in e.earlier], source)
            else:
                segments = self.protocol.edit(source, e.prompt) if source else self.protocol.draw(e.prompt)
            rows.append(self.protocol.unconditional(segments) if drop else segments)
        return cross_entropy(self.janus, rows, [Draw(c) for c in self.codes([e.target for e in examples])])[0].sum()

    def answer(self, example: Example) -> tuple[int, ...]:
        return self.protocol.answer(example.target.reason)

    def judged(self, examples: list[Example]) -> tuple[Tensor, Tensor]:
        """Task II: the sums of the cross-entropy of the verdicts and of the reasons' tokens."""
        rows: list[tuple[Segment, ...]] = []
        for e in examples:
            pictures = (*e.earlier, e.target)
            source = e.source.image if e.source else None
            rows.append(self.protocol.judge(e.prompt, [s.image for s in pictures], [s.reason for s in e.earlier], source))
        losses, first = cross_entropy(self.janus, rows, [Text(self.answer(e)) for e in examples])
        return losses[first].sum(), losses[~first].sum()

    def parts(self, n: int) -> list[tuple[list[int], float]]:
        """The micro-batches of this rank's share of ``n`` examples of a task, with their weight: as many on every rank, for
        they gather weights together; one that would be empty repeats an example with weight 0."""
        mine = self.ranks.share(range(n))
        size = self.config.micro
        count = math.ceil(math.ceil(n / self.ranks.size) / size)
        parts = [mine[k * size : (k + 1) * size] for k in range(count)]
        return [(part, 1.0) if part else ([0], 0.0) for part in parts]

    def step(self, step: int) -> dict[str, float]:
        if self.coming is None:
            self.coming = self.steps.start(step)
        c, batch = self.config, next(self.coming)
        drawing, judging, dropped = batch.drawing, batch.judging, batch.dropped
        n_draw, n_judge = len(drawing), len(judging)
        sums: dict[str, float] = {}
        with checkpointed(self.janus, c.checkpointing):
            for name, examples, drop in (("draw", drawing, dropped[:n_draw]), ("redraw", batch.redrawing, dropped[n_draw:])):
                tokens = max(1, len(examples)) * self.janus.n_codes
                for part, weight in self.parts(len(examples)):
                    some = [examples[i] for i in part]
                    self.codes([s for e in some for s in e.pictures])
                    loss = self.shards.run(self.drawn, some, [drop[i] for i in part]) * (weight / tokens)
                    (loss * len(examples) / c.batch).backward()
                    sums[f"{name}_loss"] = sums.get(f"{name}_loss", 0.0) + loss.item()
            tokens = max(1, sum(len(self.answer(e)) - 1 for e in judging))
            for part, weight in self.parts(n_judge):
                verdict, reason = self.shards.run(self.judged, [judging[i] for i in part])
                verdict, reason = verdict * (weight / n_judge), reason * (weight / tokens)
                ((c.verdict_weight * verdict + (1 - c.verdict_weight) * reason) * n_judge / c.batch).backward()
                for name, loss in (("verdict_loss", verdict), ("reason_loss", reason)):
                    sums[name] = sums.get(name, 0.0) + loss.item()
        metrics = self.ranks.total(sums)
        lr = self.schedule.at(step)
        metrics |= self.update.step(lr) | {"lr": lr}
        self.average.update(step)
        return metrics


def train_sft(config: SFTConfig, out: str | Path) -> None:
    """Train, resume if ``out`` holds a state, and write the averaged checkpoint to ``out``/final."""
    torch.set_num_threads(config.threads)
    ranks = Ranks.start(config.device)
    job = SFTJob(config, ranks)
    state: dict[str, Stateful] = {"net": job.trainable, "optimizer": job.update, "average": job.average}
    run = Run(
        out, config, state, may_change=(*MAY_CHANGE, "workers"), ranks=ranks, start=fingerprint(fetch(locate(config.model)))
    )
    run.loop(config.steps, job.step, log_every=config.log_every, save_every=config.save_every)
    job.average.swap()
    job.shards.save(Path(out) / "final")
    job.average.swap()
