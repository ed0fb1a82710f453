"""Pretrain a base model: text-to-image, questions about pictures, description, verdicts, and some
chains of redraws.

The seeing encoder and the image tokenizer are frozen (as in Janus-Pro's later stages). Departures,
all for the miniature's two cores: the generation embeddings and the last layer of the generation
head start from the codebook's own vectors (similar codes start near each other; an earlier study
learned colours only so; not run without here); Muon for matrices. Verdicts and chains are a taste
of the protocol, so that the base can be run in the loop; teaching them properly is SFT's job.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from secondlook.io import whole_folder
from secondlook.mini import datasets
from secondlook.mini.pretrain import lessons
from secondlook.mini.pretrain.config import BaseConfig
from secondlook.mini.pretrain.lessons import DrawLesson
from secondlook.mini.pretrain.new_janus import new_janus
from secondlook.models.device import resolve_device
from secondlook.models.janus.model import Janus
from secondlook.models.janus.template import ChatTemplate
from secondlook.models.sampling import cross_entropy
from secondlook.train.distributed import ProcessGroup
from secondlook.train.optim import Optimizer, WeightAverage, freeze, hidden_modules, trainable
from secondlook.train.schedule import Schedule
from secondlook.train.trainer import Stateful, Trainer, set_up_process
from secondlook.types import ImageCodes, Segment, TokenIds

TrainingRows = tuple[list[tuple[Segment, ...]], list[TokenIds | ImageCodes]]
"""Contexts, and what is learned after each."""


class BaseJob:
    """What is trained, and one step of training it."""

    def __init__(self, config: BaseConfig, out: Path, ranks: ProcessGroup | None = None):
        if ranks is None:
            ranks = ProcessGroup(device=str(resolve_device(config.runtime.device)))
        self.config, self.ranks = config, ranks
        self.janus = Janus.load(config.start).train() if config.start else self._fresh(out)
        self.janus.to(ranks.device)
        freeze(self.janus)
        if config.redraw_sees is not None:
            self.janus.redraw_sees = config.redraw_sees
        if config.judge_rereads is not None:
            self.janus.judge_rereads = config.judge_rereads
        if config.lessons:
            self.janus.net.generation_config.reason_tokens = lessons.REASON_TOKENS
        self.template = ChatTemplate.of(self.janus)
        net = self.janus.net
        optim = config.optim
        self.optimizer = Optimizer(
            net,
            optim.adamw_lr,
            optim.weight_decay,
            muon_modules=hidden_modules(net),
            muon_lr=optim.muon_lr,
        )
        self.schedule = Schedule(
            config.steps, warmup_steps=optim.warmup_steps, linear_decay=optim.cooldown
        )
        self.average = WeightAverage(net, config.ema_decay)
        self.trainable = trainable(self.janus)
        self.local_counts = self._local_counts()
        """Of what this rank trains in a step, by the setting's name."""

    def autocast(self) -> torch.autocast:
        """What losses and Muon's updates are computed in, by ``runtime.dtype``."""
        is_half = self.config.runtime.dtype == "bfloat16"
        return torch.autocast(self.janus.device.type, torch.bfloat16, enabled=is_half)

    def _fresh(self, out: Path) -> Janus:
        """A new model; a resumed run keeps its text tokenizer, whatever has become of the
        corpus."""
        tokenizer_folder = out / "words"
        with self.ranks.all_raise():  # the others wait until it is there
            if self.ranks.is_main and not tokenizer_folder.is_dir():
                words = new_janus(self.config).tokenizer  # before anything is written
                with whole_folder(tokenizer_folder) as folder:
                    words.save_pretrained(folder)
        words = PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)
        return new_janus(self.config, words)

    def _local_counts(self) -> Counter[str]:
        """This rank's part of a step's items: every ``world_size``-th of all settings' in a row."""
        config = self.config
        counts = {"draws": config.draws, "questions": config.questions, "chains": config.chains}
        counts |= {f"lessons.{kind}": count for kind, count in config.lessons.items()}
        all_sequences = [name for name, count in counts.items() for _ in range(count)]
        return Counter(self.ranks.local_part(all_sequences))

    def _drop(self, rng: np.random.Generator, segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
        """A context as it is or, with a chance of ``prompt_dropout``, without its prompt."""
        if rng.random() < self.config.prompt_dropout:
            return self.template.unconditional(segments)
        return segments

    @torch.no_grad()
    def draws(self, rng: np.random.Generator, n: int) -> TrainingRows:
        """Prompts, each with its picture's codes."""
        pictures = datasets.pictures(rng, n, kinds=self.config.kinds)
        all_codes = self.janus.to_codes([picture.image for picture in pictures]).tolist()
        contexts = []
        for picture in pictures:
            contexts.append(self._drop(rng, self.template.draw(picture.spec.prompt)))
        return contexts, [ImageCodes(tuple(codes)) for codes in all_codes]

    def questions(self, rng: np.random.Generator, n: int) -> TrainingRows:
        """Questions about pictures and verdicts on them, each with its answer."""
        config = self.config
        contexts: list[tuple[Segment, ...]] = []
        answer_tokens: list[TokenIds | ImageCodes] = []
        pictures = datasets.pictures(rng, n, config.alone, config.kinds, config.objects)
        for question in datasets.questions(
            rng,
            pictures,
            config.question_weights,
            config.aimed,
            config.judge_context,
            config.reordered,
        ):
            if question.prompt is None:
                contexts.append(self.template.ask(question.image, question.question))
            else:
                images = [image for image, _ in question.earlier] + [question.image]
                reasons = [reason for _, reason in question.earlier]
                contexts.append(self.template.judge(question.prompt, images, reasons))
            answer_tokens.append(TokenIds(self.template.answer(question.answer)))
        return contexts, answer_tokens

    @torch.no_grad()
    def chains(self, rng: np.random.Generator, n: int) -> TrainingRows:
        """Prompts with pictures that were wrong and why, each with the right picture's codes."""
        redraw_chains = datasets.chains(rng, datasets.pictures(rng, n, kinds=self.config.kinds))
        images = []  # of each chain: the wrong ones, then the right one
        for redraw_chain in redraw_chains:
            images += [*redraw_chain.wrong, redraw_chain.right]
        all_codes = iter(self.janus.to_codes(images).tolist())  # encoded together, in that order
        contexts: list[tuple[Segment, ...]] = []
        right_codes: list[TokenIds | ImageCodes] = []
        for redraw_chain in redraw_chains:
            wrong_codes = [tuple(next(all_codes)) for _ in redraw_chain.wrong]
            segments = self.template.redraw(
                redraw_chain.prompt, wrong_codes, list(redraw_chain.reasons)
            )
            contexts.append(self._drop(rng, segments))
            right_codes.append(ImageCodes(tuple(next(all_codes))))
        return contexts, right_codes

    def lessons(self, rng: np.random.Generator) -> tuple[TrainingRows, Tensor, TrainingRows]:
        """Pictures to draw after others, with a weight for each code; and verdicts."""
        draw_lessons: list[DrawLesson] = []
        verdict_rows: TrainingRows = ([], [])
        scope = lessons.Scope(self.config.kinds, self.config.bind_clauses)
        counts = {kind: self.local_counts[f"lessons.{kind}"] for kind in self.config.lessons}
        for lesson in lessons.lessons(rng, counts, scope):
            if isinstance(lesson, DrawLesson):
                draw_lessons.append(lesson)
                continue
            segments = self.template.judge(lesson.prompt, [lesson.image], [], lesson.source)
            verdict_rows[0].append(segments)
            verdict_rows[1].append(TokenIds(self.template.answer(lesson.verdict)))
        codes_of_image = self._codes_of(draw_lessons)
        drawing_rows: TrainingRows = ([], [])
        weights: list[Tensor] = []  # (codes of a picture,) each
        for lesson in draw_lessons:
            source = codes_of_image[id(lesson.source)] if lesson.source else ()
            if lesson.wrong:
                wrong = codes_of_image[id(lesson.wrong)]
                segments = self.template.redraw(lesson.prompt, [wrong], [lesson.verdict], source)
            else:
                segments = self.template.edit(source, lesson.prompt)
            target, before = codes_of_image[id(lesson.image)], codes_of_image[id(lesson.before)]
            drawing_rows[0].append(self._drop(rng, segments))
            drawing_rows[1].append(ImageCodes(target))
            is_changed = torch.tensor(target) != torch.tensor(before)
            weights.append(torch.where(is_changed, self.config.changed_weight, 1.0))
        return drawing_rows, torch.cat(weights) if weights else torch.empty(0), verdict_rows

    @torch.no_grad()
    def _codes_of(self, draw_lessons: list[DrawLesson]) -> dict[int, tuple[int, ...]]:
        """The codes of all pictures of lessons, by the picture's ``id``; encoded together."""
        images: list[Image] = []
        for lesson in draw_lessons:
            images += [im for im in (lesson.image, lesson.wrong, lesson.source) if im is not None]
        if not images:
            return {}
        all_codes = self.janus.to_codes(images).tolist()
        return {id(im): tuple(codes) for im, codes in zip(images, all_codes, strict=True)}

    def step(self, step: int) -> dict[str, float]:
        """One update; returns its metrics, the mean over ranks."""
        metrics = self.backward(step)
        self.ranks.all_sum_gradients(self.optimizer.parameters)  # each rank has the whole model
        with self.autocast():  # Muon's products
            self.optimizer.step(self.schedule.at(step))
        self.average.update(step)
        return self._mean_of_ranks(metrics)

    def backward(self, step: int) -> dict[str, float]:
        """Gradients of this rank's part of a step; returns its metrics. Which sequences a step has
        depends on the number of ranks."""
        config, counts = self.config, self.local_counts
        rng = np.random.default_rng([config.seed, step, self.ranks.rank])
        rows_of_task: dict[str, TrainingRows] = {}
        if counts["draws"]:
            rows_of_task["draw"] = self.draws(rng, counts["draws"])
        if counts["questions"]:
            rows_of_task["question"] = self.questions(rng, counts["questions"])
        if counts["chains"] and step % config.chain_every == 0:
            rows_of_task["chain"] = self.chains(rng, counts["chains"])
        lesson_weights = torch.empty(0)
        if config.lessons:
            rows_of_task["lesson"], lesson_weights, verdict_rows = self.lessons(rng)
            asked = rows_of_task.setdefault("question", ([], []))
            asked[0].extend(verdict_rows[0])
            asked[1].extend(verdict_rows[1])
        metrics: dict[str, float] = {}
        weight_of_task = self._weights({task: len(rows[0]) for task, rows in rows_of_task.items()})
        for task, (contexts, completions) in rows_of_task.items():
            if not contexts:
                continue
            # (tokens,) each: a token's loss, and whether it is its completion's first
            with self.autocast():
                losses, is_first = cross_entropy(self.janus, contexts, completions)
            if task == "question":
                # the answer itself weighs as much as all the words after it, else yes and no are
                # lost among the captions
                answer_loss, words_loss = losses[is_first].mean(), losses[~is_first].mean()
                loss = answer_loss + words_loss
                metrics |= {"answer_loss": answer_loss.item(), "words_loss": words_loss.item()}
            elif task == "lesson":
                weights = lesson_weights.to(losses.device)
                loss = (weights * losses).sum() / weights.sum()
                metrics["lesson_loss"] = loss.item()
            else:
                loss = losses.mean()
                metrics[f"{task}_loss"] = loss.item()
            # one task at a time: gradients add up, activations do not
            (weight_of_task[task] * loss).backward()
        return metrics

    def _weights(self, num_rows: dict[str, int]) -> dict[str, float]:
        """What this rank's mean loss of each task weighs in the sum over ranks: its share of all
        ranks' rows."""
        rows_of_ranks = self.ranks.all_gather(num_rows)
        weights = {}
        for task, num_own in num_rows.items():
            num_all = sum(rank_rows.get(task, 0) for rank_rows in rows_of_ranks)
            weights[task] = num_own / num_all if num_all else 0.0
        return weights

    def _mean_of_ranks(self, metrics: dict[str, float]) -> dict[str, float]:
        """Each metric's mean over the ranks that have it."""
        values_of_name: dict[str, list[float]] = {}
        for rank_metrics in self.ranks.all_gather(metrics):
            for name, value in rank_metrics.items():
                values_of_name.setdefault(name, []).append(value)
        return {name: fmean(values) for name, values in values_of_name.items()}

    def save_averaged(self, folder: Path) -> None:
        """Write a checkpoint of the averaged weights (transformers' layout)."""
        if self.ranks.is_main:
            with self.average.applied():
                self.janus.save(folder)
        self.ranks.barrier()


def train_base(config: BaseConfig, out: str | Path) -> None:
    """Train, resume if ``out`` holds a state, and write the averaged checkpoint to
    ``out``/final."""
    set_up_process(config.runtime)
    out = Path(out)
    ranks = ProcessGroup.join(config.runtime.device)
    job = BaseJob(config, out, ranks)
    state_parts: dict[str, Stateful] = {
        "net": job.trainable,
        "optimizer": job.optimizer,
        "average": job.average,
    }
    trainer = Trainer(out, config, state_parts, ranks)
    for step in trainer.steps(config.steps):
        trainer.finish_step(job.step(step))
        if trainer.due(config.snapshot_every):
            job.save_averaged(out / f"step-{trainer.step}")
    job.save_averaged(out / "final")
