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
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from secondlook.data.image_index import FAULTY
from secondlook.data.sft_dataset import TASKS, Example, Pool, Scored
from secondlook.data.stored_images import check_built
from secondlook.errors import InputError, Stopped
from secondlook.io import fingerprint
from secondlook.models.device import resolve_device
from secondlook.models.janus.checkpoint import fetch
from secondlook.models.janus.model import Janus
from secondlook.models.janus.template import MAX_REASON, ChatTemplate
from secondlook.models.sampling import cross_entropy
from secondlook.models.shipped import locate
from secondlook.train.activation_checkpointing import activation_checkpointing
from secondlook.train.distributed import ProcessGroup
from secondlook.train.optim import Optimizer, WeightAverage, freeze, hidden_modules, trainable
from secondlook.train.schedule import Schedule
from secondlook.train.sft_config import SFTConfig
from secondlook.train.sft_data import CodeCache, SFTBatch, SFTBatches
from secondlook.train.sharding import ShardedModel
from secondlook.train.trainer import Stateful, Trainer, set_up_process
from secondlook.types import ImageCodes, Segment, TokenIds

MIN_READ = 1000
"""Pictures after which a share of them that cannot be read is taken for the data's."""


class SFTJob:
    """What is trained, and one step of training it."""

    def __init__(self, config: SFTConfig, ranks: ProcessGroup | None = None):
        if ranks is None:
            ranks = ProcessGroup(device=str(resolve_device(config.runtime.device)))
        self.config, self.ranks = config, ranks
        self.janus = Janus.load(config.model, ranks.device).train()
        self.janus.history = "codes"
        self.template = ChatTemplate(self.janus.tokenizer, self.janus.history)
        self.code_cache = CodeCache()
        self.batches = SFTBatches(config, self._open_data(), ranks, self.code_cache.touch)
        self.coming: Iterator[SFTBatch] | None = None
        """The batches of the coming steps, once the first one is known."""
        adapters = freeze(
            self.janus, config.lora_rank, config.lora_alpha, config.seed, config.model
        )
        runtime, optim = config.runtime, config.optim
        self.shards = ShardedModel(
            self.janus, ranks, runtime.dtype, runtime.dp_shard_degree, adapters
        )
        self.optimizer = Optimizer(
            self.janus.net,
            weight_decay=optim.weight_decay,
            max_grad_norm=optim.max_grad_norm,
            eps=1e-6,
            muon_modules=hidden_modules(self.janus.net) if optim.muon_lr_ratio else (),
            muon_lr=optim.muon_lr_ratio,
        )
        self.average = WeightAverage(self.janus.net, config.ema_decay)
        self.trainable = trainable(self.janus)
        self.schedule = Schedule(config.steps, optim.lr, optim.min_lr, optim.warmup_steps)
        self._told: set[str] = set()
        """Pictures that could not be read, told once each."""
        self._read = self._unreadable = 0
        """Pictures of all ranks since this start, and those that could not be read."""

    # --- data ---

    def _open_data(self) -> Pool:
        """The scored pictures of ``config.data``, without those that this model cannot learn."""
        config = self.config
        places = [config.data] if isinstance(config.data, str) else config.data
        for place in places:
            if Path(place).is_dir():
                check_built(Path(place))
        pool = Pool(
            config.data,
            config.good_to_draw,
            config.good_to_judge,
            config.good_edit,
            config.data_weights,
            tasks=[task for task, weight in zip(TASKS, config.mix, strict=True) if weight],
            problem=self._problem,
            reason_problem=self._reason_problem,
        )
        if pool.unused and self.ranks.is_main:
            print(f"data: {pool.unused}", file=sys.stderr)
        return pool

    def _problem(self, prompt: str, is_edit: bool) -> str:
        """What keeps the model from reading a prompt; "": nothing."""
        try:
            self.template.edit((), prompt) if is_edit else self.template.draw(prompt)
        except InputError as error:
            return str(error)
        return ""

    def _reason_problem(self, reason: str) -> str:
        # a token is at least a byte, and encoding all of a large set takes minutes
        if len(reason.encode()) <= MAX_REASON:
            return ""
        try:
            self.template.answer(reason)
        except InputError as error:
            return str(error)
        return ""

    def next_batch(self, step: int) -> tuple[SFTBatch, int]:
        """The step's batch, and how many tokens of reasons all ranks' have. Raises InputError on
        all ranks where one has none, and Stopped where too many pictures cannot be read."""
        if self.coming is None:
            self.coming = self.batches.from_step(step)
        batch = next(self.coming)
        has_own = self.ranks.rank < batch.counts[2]  # else the example is another rank's
        reason_tokens, problem = 0, batch.problem
        try:
            for example in batch.judging if has_own else []:
                reason_tokens += len(self._answer(example)) - 1
        except InputError as error:
            problem = f"data: a reason cannot be taught: {error}"
        reports = self.ranks.all_gather((reason_tokens, batch.read, len(batch.unreadable), problem))
        problems = [problem for _, _, _, problem in reports if problem]
        if problems:
            raise InputError(problems[0])
        self._count_unreadable(
            step,
            batch.unreadable,
            read=sum(read for _, read, _, _ in reports),
            unreadable=sum(unreadable for _, _, unreadable, _ in reports),
        )
        return batch, sum(tokens for tokens, _, _, _ in reports)

    def _count_unreadable(
        self, step: int, own_problems: tuple[str, ...], read: int, unreadable: int
    ) -> None:
        """Tell this rank's problems, and count all ranks' pictures. Raises Stopped."""
        for text in own_problems:
            if text not in self._told:
                self._told.add(text)
                print(
                    f"data: step {step + 1}: another example is taken, for {text}", file=sys.stderr
                )
        self._read += read
        self._unreadable += unreadable
        if self._read >= MIN_READ and self._unreadable > FAULTY * self._read:
            raise Stopped(
                f"data: {self._unreadable} of {self._read} pictures could not be read, at most "
                f"{FAULTY:.0%} may be; mend the data"
            )

    @torch.no_grad()
    def codes(self, pictures: list[Scored]) -> list[tuple[int, ...]]:
        """Each picture as the drawing path has it; encoded once, while it is among those drawn
        last."""
        new = {p.index: p.image for p in pictures if not self.code_cache.touch(p.index)}
        if new:
            encoded = self.janus.to_codes(list(new.values())).cpu().numpy()  # (pictures, codes)
            for index, codes in zip(new, encoded, strict=True):
                self.code_cache.add(index, codes)
        return [self.code_cache[p.index] for p in pictures]

    # --- losses ---

    def draw_loss(self, examples: list[Example], dropped: list[bool]) -> Tensor:
        """Tasks I and III: the sum of the cross-entropy of the targets' codes."""
        rows: list[tuple[Segment, ...]] = []
        for example, is_dropped in zip(examples, dropped, strict=True):
            segments = self._draw_segments(example)
            rows.append(self.template.unconditional(segments) if is_dropped else segments)
        targets: list[TokenIds | ImageCodes] = [
            ImageCodes(c) for c in self.codes([e.target for e in examples])
        ]
        losses, _ = cross_entropy(self.janus, rows, targets)
        return losses.sum()

    def _draw_segments(self, example: Example) -> tuple[Segment, ...]:
        source = self.codes([example.source])[0] if example.source else ()
        if example.earlier:
            earlier_codes = self.codes(list(example.earlier))
            reasons = [picture.reason for picture in example.earlier]
            return self.template.redraw(example.prompt, earlier_codes, reasons, source)
        if source:
            return self.template.edit(source, example.prompt)
        return self.template.draw(example.prompt)

    def _answer(self, example: Example) -> tuple[int, ...]:
        return self.template.answer(example.target.reason)

    def judge_losses(self, examples: list[Example]) -> tuple[Tensor, Tensor]:
        """Task II: the sums of the cross-entropy of the verdicts and of the reasons' tokens."""
        rows: list[tuple[Segment, ...]] = []
        for example in examples:
            images = [picture.image for picture in (*example.earlier, example.target)]
            reasons = [picture.reason for picture in example.earlier]
            source = example.source.image if example.source else None
            rows.append(self.template.judge(example.prompt, images, reasons, source))
        answers: list[TokenIds | ImageCodes] = []
        for example in examples:
            answers.append(TokenIds(self._answer(example)))
        losses, is_first = cross_entropy(self.janus, rows, answers)
        return losses[is_first].sum(), losses[~is_first].sum()

    # --- one step ---

    def _micro_batches(self, n: int) -> list[tuple[slice, float]]:
        """The micro-batches of this rank's part of ``n`` examples of a task, with their weight: as
        many on every rank, for they gather weights together; one that would be empty repeats an
        example with weight 0."""
        own, size = len(self.ranks.local_part(range(n))), self.config.runtime.micro_batch_size
        starts = range(0, math.ceil(n / self.ranks.world_size), size)
        return [(slice(k, k + size), 1.0) if k < own else (slice(1), 0.0) for k in starts]

    def step(self, step: int) -> dict[str, float]:
        """One update; returns its metrics."""
        batch, reason_tokens = self.next_batch(step)
        n_draw, n_redraw, n_judge = batch.counts
        sums: dict[str, float] = {}
        mode = self.config.runtime.activation_checkpointing
        with activation_checkpointing(self.janus, mode):
            self._backward_drawing("draw_loss", batch.drawing, n_draw, sums)
            self._backward_drawing("redraw_loss", batch.redrawing, n_redraw, sums)
            self._backward_judging(batch.judging, n_judge, reason_tokens, sums)
        metrics = self.ranks.all_sum(sums | {"unreadable": float(len(batch.unreadable))})
        lr = self.schedule.at(step)
        metrics |= self.optimizer.step(lr) | {"lr": lr}
        self.average.update(step)
        return metrics

    def _backward_drawing(
        self, name: str, examples: list[tuple[Example, bool]], n: int, sums: dict[str, float]
    ) -> None:
        """Add the gradients of one drawing task, of which all ranks have ``n`` examples, and its
        mean loss to ``sums``."""
        tokens = max(1, n) * self.janus.n_codes
        for part, weight in self._micro_batches(n):
            some = [example for example, _ in examples[part]]
            dropped = [is_dropped for _, is_dropped in examples[part]]
            self.codes([picture for example in some for picture in example.pictures])
            loss = self.shards.run(self.draw_loss, some, dropped) * (weight / tokens)
            (loss * n / self.config.batch_size).backward()
            sums[name] = sums.get(name, 0.0) + loss.item()

    def _backward_judging(
        self, examples: list[Example], n: int, reason_tokens: int, sums: dict[str, float]
    ) -> None:
        """The same of the judging task, whose verdicts and reasons are averaged for themselves."""
        verdict_weight = self.config.verdict_weight
        for part, weight in self._micro_batches(n):
            verdict, reason = self.shards.run(self.judge_losses, examples[part])
            verdict = verdict * (weight / n)
            reason = reason * (weight / max(1, reason_tokens))
            loss = verdict_weight * verdict + (1 - verdict_weight) * reason
            (loss * n / self.config.batch_size).backward()
            sums["verdict_loss"] = sums.get("verdict_loss", 0.0) + verdict.item()
            sums["reason_loss"] = sums.get("reason_loss", 0.0) + reason.item()


def train_sft(config: SFTConfig, out: str | Path) -> None:
    """Train, resume if ``out`` holds a state, and write the averaged checkpoint to
    ``out``/final."""
    set_up_process(config.runtime)
    ranks = ProcessGroup.join(config.runtime.device)
    job = SFTJob(config, ranks)
    parts: dict[str, Stateful] = {
        "net": job.trainable,
        "optimizer": job.optimizer,
        "average": job.average,
    }
    trainer = Trainer(out, config, parts, ranks, weights=fingerprint(fetch(locate(config.model))))
    for step in trainer.steps(config.steps):
        trainer.finish_step(job.step(step))
    with job.average.applied():
        job.shards.save(Path(out) / "final")
