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
from dataclasses import dataclass
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
"""Pictures that must have been read before the job is stopped for those that cannot be."""


@dataclass(frozen=True)
class BatchReport:
    """What a rank tells the others of its part of a batch."""

    reason_tokens: int
    read: int
    """Pictures of its examples."""
    unreadable: int
    """Pictures that could not be read, and in whose places others were taken."""
    problem: str
    """Why it cannot be learned; "": it can."""


@dataclass(frozen=True)
class _MicroBatch:
    """Which of a rank's examples of a task go through the model together."""

    part: slice
    weight: float
    """0: an example that is only repeated, because another rank has one more micro-batch."""


class SFTJob:
    """What is trained, and one step of training it."""

    def __init__(self, config: SFTConfig, ranks: ProcessGroup | None = None):
        if ranks is None:
            ranks = ProcessGroup(device=str(resolve_device(config.runtime.device)))
        self.config, self.ranks = config, ranks
        self.janus = Janus.load(config.model, ranks.device).train()
        self.janus.history = "codes"
        if config.redraw_sees is not None:
            self.janus.redraw_sees = config.redraw_sees
        if config.judge_rereads is not None:
            self.janus.judge_rereads = config.judge_rereads
        self.template = ChatTemplate.of(self.janus)
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
        tasks = []
        for task, weight in zip(TASKS, config.mix, strict=True):
            if weight:  # a task that is never drawn needs no pictures
                tasks.append(task)
        pool = Pool(
            config.data,
            config.good_to_draw,
            config.good_to_judge,
            config.good_edit,
            config.data_weights,
            tasks=tasks,
            problem=self._problem,
            reason_problem=self._reason_problem,
        )
        if pool.unused and self.ranks.is_main:
            print(f"data: {pool.unused}", file=sys.stderr)
        return pool

    def _problem(self, prompt: str, is_edit: bool) -> str:
        """What keeps the model from reading a prompt; "": nothing."""
        try:
            if is_edit:
                self.template.edit((), prompt)  # the source's codes do not matter here
            else:
                self.template.draw(prompt)
        except InputError as error:
            return str(error)
        return ""

    def _reason_problem(self, reason: str) -> str:
        """What keeps a reason from being taught; "": nothing."""
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
        reports = self.ranks.all_gather(self._report(batch))
        for report in reports:
            if report.problem:
                raise InputError(report.problem)
        read = sum(report.read for report in reports)
        unreadable = sum(report.unreadable for report in reports)
        self._count_unreadable(step, batch.unreadable, read, unreadable)
        return batch, sum(report.reason_tokens for report in reports)

    def _report(self, batch: SFTBatch) -> BatchReport:
        """Of this rank's part of a batch."""
        reason_tokens, problem = 0, batch.problem
        has_own = self.ranks.rank < batch.counts[2]  # else the example is another rank's
        try:
            for example in batch.judging if has_own else []:
                reason_tokens += len(self._answer(example)) - 1  # without the verdict
        except InputError as error:
            problem = f"data: a reason cannot be taught: {error}"
        return BatchReport(reason_tokens, batch.read, len(batch.unreadable), problem)

    def _count_unreadable(
        self, step: int, own_problems: tuple[str, ...], read: int, unreadable: int
    ) -> None:
        """Tell this rank's problems, and count all ranks' pictures of a step. Raises Stopped, on
        all ranks alike, where too many cannot be read."""
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
        """Each picture's codes, as the drawing path has it. A picture is encoded once, as long as
        it is among those that the cache keeps."""
        new_images = {}
        for picture in pictures:
            if not self.code_cache.touch(picture.index):
                new_images[picture.index] = picture.image
        if new_images:
            images = list(new_images.values())
            new_codes = self.janus.to_codes(images).cpu().numpy()  # (images, codes)
            for index, codes in zip(new_images, new_codes, strict=True):
                self.code_cache.add(index, codes)
        return [self.code_cache[picture.index] for picture in pictures]

    # --- losses ---

    def draw_loss(self, examples: list[Example], dropped: list[bool]) -> Tensor:
        """Tasks I and III: the sum of the cross-entropy of the targets' codes. ``dropped`` says
        which examples go without their prompt."""
        contexts: list[tuple[Segment, ...]] = []
        for example, is_dropped in zip(examples, dropped, strict=True):
            context = self._draw_context(example)
            contexts.append(self.template.unconditional(context) if is_dropped else context)
        targets: list[TokenIds | ImageCodes] = []
        for codes in self.codes([example.target for example in examples]):
            targets.append(ImageCodes(codes))
        losses, _ = cross_entropy(self.janus, contexts, targets)  # (tokens of all targets,)
        return losses.sum()

    def _draw_context(self, example: Example) -> tuple[Segment, ...]:
        """What stands before the picture that is drawn."""
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
        contexts: list[tuple[Segment, ...]] = []
        answers: list[TokenIds | ImageCodes] = []
        for example in examples:
            images = [picture.image for picture in (*example.earlier, example.target)]
            # the reason of the target is what is learned
            reasons = [picture.reason for picture in example.earlier]
            source = example.source.image if example.source else None
            contexts.append(self.template.judge(example.prompt, images, reasons, source))
            answers.append(TokenIds(self._answer(example)))
        # (tokens of all answers,) both; an answer's first token is its verdict
        losses, is_first = cross_entropy(self.janus, contexts, answers)
        return losses[is_first].sum(), losses[~is_first].sum()

    # --- one step ---

    def _micro_batches(self, num_examples: int) -> list[_MicroBatch]:
        """The micro-batches of this rank's part of all ranks' examples of a task: as many on every
        rank, for they gather weights together; one that would be empty repeats an example with
        weight 0."""
        num_own = len(self.ranks.local_part(range(num_examples)))
        num_largest = math.ceil(num_examples / self.ranks.world_size)  # the first rank's
        batch_size = self.config.runtime.micro_batch_size
        micro_batches = []
        for start in range(0, num_largest, batch_size):
            if start < num_own:
                micro_batches.append(_MicroBatch(slice(start, start + batch_size), weight=1.0))
            else:
                micro_batches.append(_MicroBatch(slice(1), weight=0.0))
        return micro_batches

    def step(self, step: int) -> dict[str, float]:
        """One update; returns its metrics."""
        batch, reason_tokens = self.next_batch(step)
        num_draw, num_redraw, num_judge = batch.counts
        sums: dict[str, float] = {}
        mode = self.config.runtime.activation_checkpointing
        with activation_checkpointing(self.janus, mode):
            self._backward_drawing("draw_loss", batch.drawing, num_draw, sums)
            self._backward_drawing("redraw_loss", batch.redrawing, num_redraw, sums)
            self._backward_judging(batch.judging, num_judge, reason_tokens, sums)
        metrics = self.ranks.all_sum(sums | {"unreadable": float(len(batch.unreadable))})
        lr = self.schedule.at(step)
        metrics |= self.optimizer.step(lr) | {"lr": lr}
        self.average.update(step)
        return metrics

    def _backward_drawing(
        self,
        loss_name: str,
        examples: list[tuple[Example, bool]],
        num_examples: int,
        sums: dict[str, float],
    ) -> None:
        """Add the gradients of one drawing task, of which all ranks have ``num_examples``, and its
        mean loss to ``sums``."""
        num_tokens = max(1, num_examples) * self.janus.n_codes
        for micro_batch in self._micro_batches(num_examples):
            batch_examples, dropped = [], []
            pictures: list[Scored] = []
            for example, is_dropped in examples[micro_batch.part]:
                batch_examples.append(example)
                dropped.append(is_dropped)
                pictures += example.pictures
            self.codes(pictures)  # all encoded together, before the pass asks for them one by one
            loss_sum = self.shards.run(self.draw_loss, batch_examples, dropped)
            loss = loss_sum * (micro_batch.weight / num_tokens)  # parts add up to a token's mean
            # a task counts by its part of the step's examples
            (loss * num_examples / self.config.batch_size).backward()
            sums[loss_name] = sums.get(loss_name, 0.0) + loss.item()

    def _backward_judging(
        self,
        examples: list[Example],
        num_examples: int,
        reason_tokens: int,
        sums: dict[str, float],
    ) -> None:
        """The same of the judging task: verdicts are averaged over all ranks' examples, reasons
        over all of their ``reason_tokens``."""
        verdict_weight = self.config.verdict_weight
        for micro_batch in self._micro_batches(num_examples):
            batch_examples = examples[micro_batch.part]
            verdict_sum, reason_sum = self.shards.run(self.judge_losses, batch_examples)
            verdict_loss = verdict_sum * (micro_batch.weight / num_examples)
            reason_loss = reason_sum * (micro_batch.weight / max(1, reason_tokens))
            loss = verdict_weight * verdict_loss + (1 - verdict_weight) * reason_loss
            (loss * num_examples / self.config.batch_size).backward()
            sums["verdict_loss"] = sums.get("verdict_loss", 0.0) + verdict_loss.item()
            sums["reason_loss"] = sums.get("reason_loss", 0.0) + reason_loss.item()


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
