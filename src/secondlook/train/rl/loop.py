"""Stage 2: GRPO or PPO on whole episodes of draw, judge, redraw.

Source: arXiv 2506.01480, the RL stage and table 5. Departures from the public code:
log-probabilities are those of the distribution that was sampled from (guidance, restriction of the
verdict); the ratio is to the policy before the step's first update, so that clipping acts over
several minibatches, and as both are scored by the same code in the same micro-batches it acts on
what updates changed and not on rounding; what the engine recorded while sampling weighs the tokens
(truncated importance sampling); a missing reward is masked and counted; T rounds, and only what was
judged No is redrawn. Nothing is cut off by top-k while training (the paper samples with 50 and
4096): a token that falls out of the new policy's top-k would have probability 0 and an infinite KL.
"""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from secondlook.data.prompts import open_prompts
from secondlook.data.sanity_pairs import open_sanity_pairs
from secondlook.engine.engine import Engine
from secondlook.episode import SamplingConfig
from secondlook.errors import InputError, Stopped
from secondlook.io import fingerprint, write_text
from secondlook.llm.missing import tell_missing, why_missing
from secondlook.models import sampling as policy
from secondlook.models.device import resolve_device
from secondlook.models.janus.checkpoint import fetch, load_tokenizer
from secondlook.models.janus.model import Janus
from secondlook.models.janus.template import ChatTemplate
from secondlook.models.shipped import locate
from secondlook.report import filmstrip
from secondlook.rewards.config import make_reward
from secondlook.rewards.reward import Reward
from secondlook.train.activation_checkpointing import activation_checkpointing
from secondlook.train.distributed import Ranks
from secondlook.train.optim import Schedule, Update, freeze, trainable
from secondlook.train.reference import Reference
from secondlook.train.rl.advantages import Form, advantages, balanced, turn_rewards, varies
from secondlook.train.rl.config import RLConfig
from secondlook.train.rl.critic import Critic, ValueHead
from secondlook.train.rl.logprob_agreement import LIMITS, Agreement
from secondlook.train.rl.losses import importance_weights, policy_loss
from secondlook.train.rl.minibatch import (
    Packed,
    Row,
    idle_row,
    in_step,
    pack,
    rows_of,
    total_weight,
)
from secondlook.train.rl.prompt_checks import check_lines
from secondlook.train.rl.recovery import AutoRecovery
from secondlook.train.rl.reward_checks import RewardChecks, check_reward
from secondlook.train.rl.rollout import Group, Outcome, collect, describe
from secondlook.train.sharding import Shards
from secondlook.train.trainer import MAY_CHANGE, Stateful, Trainer


def minibatches(rng: np.random.Generator, n_rows: int, n: int) -> list[list[int]]:
    """Rows' numbers in random order in ``n`` parts of nearly equal size; fewer where there are not
    as many rows."""
    return [part.tolist() for part in np.array_split(rng.permutation(n_rows), n) if len(part)]


class RLLoop:
    """The loop's step: roll out, score, advantage, update. The engine draws with the very weights
    that are trained."""

    def __init__(
        self, config: RLConfig, out: Path, reward: Reward | None = None, ranks: Ranks | None = None
    ):
        self.config, self.out = config, out
        self.ranks = ranks or Ranks(device=str(resolve_device(config.device)))
        if config.prompts_per_step % self.ranks.size:
            raise InputError(
                f"config: prompts_per_step is {config.prompts_per_step}; it must be a multiple "
                "of the number of ranks, "
                f"which is {self.ranks.size}"
            )
        device = self.ranks.device
        self.prompts = open_prompts(config.prompts, config.prompt_options)
        self.reward = reward or make_reward(config.rewards, device, prompts=config.prompts)
        check_lines(
            ChatTemplate(load_tokenizer(config.model)), self.reward, self.prompts.lines, self.ranks
        )
        self.janus = Janus.load(config.model, device)
        adapters = freeze(self.janus, config.lora, config.lora_alpha, config.seed, config.model)
        self.shards = Shards(self.janus, self.ranks, config.dtype, config.shard, adapters)
        self.reference = Reference(config, self.shards)
        self.update = Update(self.janus.net, config.weight_decay, config.clip)
        self.trainable = trainable(self.janus)
        c = config
        self.schedule = Schedule(c.steps, c.lr, c.min_lr, c.warmup, c.convert_lr, c.convert_step)
        self.engine = Engine(
            self.janus, c.at_once or c.prompts_per_step * c.group // self.ranks.size, bounded=False
        )
        own = SamplingConfig.of(self.janus.net.generation_config)
        self.sampling = SamplingConfig(
            own.guidance if c.guidance is None else c.guidance,
            c.temperature,
            code_top_k=0,
            text_top_k=0,
            edit_guidance=own.edit_guidance if c.edit_guidance is None else c.edit_guidance,
        )
        self.critic: Critic | None = None
        if c.algorithm == "ppo":
            torch.manual_seed(c.seed)
            head = ValueHead(self.janus.net.config.text_config.hidden_size).to(device)
            self.critic = Critic(head, c.value_lr, c.gamma, c.lam, ranks=self.ranks)
        mean, high = LIMITS[c.dtype]
        self.agreement = Agreement(
            mean if c.most_mean_gap is None else c.most_mean_gap,
            high if c.most_high_gap is None else c.most_high_gap,
            c.clip_range,
            c.clip_range if c.clip_high is None else c.clip_high,
            c.importance_cap or math.inf,
            self.ranks,
        )
        one_verdict = c.one_verdict if c.judging_weight else math.inf
        self.guard = RewardChecks(c.most_missing, one_verdict, c.patience, c.verdict_patience)
        self.nurse = AutoRecovery(c.nurse)
        self.idle: dict[str, Row] = {}
        known = open_sanity_pairs(c.sanity_pairs, c.prompts, c.seed, c.prompt_options)
        if known is not None:
            with (
                self.ranks.together()
            ):  # each rank asks for itself, and may be the only one whose judge is dead
                check_reward(self.reward, *known, c.least_separation)
        else:
            warnings.warn(
                "config: sanity_pairs is empty: the reward is not checked before the run",
                stacklevel=2,
            )

    def step(self, step: int) -> dict[str, float]:
        c, rng = self.config, np.random.default_rng([self.config.seed, step])
        began = time.perf_counter()
        seed = (c.seed * 10**6 + step) * c.prompts_per_step * c.group
        mine = self.ranks.share(range(c.prompts_per_step))
        seeds = [seed + i * c.group for i in mine]
        with self.ranks.together(), self.shards.whole():
            asked = self.prompts.draw(rng, c.prompts_per_step, mine)
            groups = collect(
                self.engine, asked, c.group, c.rounds, seeds, self.sampling, self.reward
            )
        sampled = time.perf_counter() - began
        outcomes = self.ranks.merge([g.outcome for g in groups])
        values = [self.advantages(o) for o in outcomes]
        metrics = describe(outcomes)
        why = next(
            filter(None, self.ranks.gather(why_missing(self.reward))), ""
        )  # of whichever rank knows
        metrics |= self.guard.check(metrics, values, why)
        tell_missing(self.reward)
        turns = {t.sampling_params.head: t for g in groups for e in g.episodes for t in e.turns}
        self.idle = {head: idle_row(t) for head, t in turns.items()}
        rows, n_rows = self.rows(groups, outcomes, values)
        lr = self.schedule.at(step) * self.nurse.lr
        with activation_checkpointing(
            self.janus, c.checkpointing
        ):  # every group may have been dropped
            learnt = self.learn(rng, rows, n_rows, lr, step) if n_rows else {}
        metrics |= learnt | {"lr": lr, "rollout_seconds": sampled}
        if c.nurse:
            metrics |= {"lr_factor": self.nurse.lr, "beta_factor": self.nurse.beta}
        if metrics.get("refused_steps") == 1:
            raise Stopped(
                f"policy: not one update of step {step} had a finite gradient; start again from "
                "a checkpoint at a lower rate"
            )
        tokens = self.ranks.total(
            {"tokens": sum(len(t.tokens) for g in groups for e in g.episodes for t in e.turns)}
        )["tokens"]
        metrics["tokens_per_second"] = tokens / (time.perf_counter() - began)
        if step % c.picture_every == 0 and self.ranks.first:
            self.picture(groups, step)
        return metrics

    def rows(
        self, groups: list[Group], outcomes: list[Outcome], values: list[list[list[float]]]
    ) -> tuple[list[Row], int]:
        """This rank's turns to learn from, numbered among all ranks', and how many all have.
        ``outcomes`` and ``values`` (advantages of groups, episodes, turns) are of all groups,
        ``groups`` are this rank's."""
        c = self.config
        of_verdicts = float(
            c.judging_weight > 0
        )  # in any form, also of whitened advantages and of a whole episode's
        factors = [[[1.0, of_verdicts] * (len(turns) // 2) for turns in group] for group in values]
        if c.balanced:
            factors = balanced(factors, [o.values() for o in outcomes])
        longest = max(self.janus.n_codes, self.sampling.reason_tokens)
        found, start, own = [], 0, iter(groups)
        for i, (outcome, of_group) in enumerate(zip(outcomes, values, strict=True)):
            group = next(own) if i % self.ranks.size == self.ranks.rank else None
            if c.drop_flat_groups and not varies(of_group):
                continue
            flat = [a for turns in of_group for a in turns]
            if group is not None:
                rewards = [
                    r
                    for s, y in zip(outcome.values(), outcome.verdicts, strict=True)
                    for r in turn_rewards(
                        s, y, c.rounds, c.form, c.last_image_weight, c.judging_weight
                    )
                ]
                turns = [t for e in group.episodes for t in e.turns]
                each = [f for turns in factors[i] for f in turns]
                if c.algorithm == "grpo":  # PPO's advantages are not known yet
                    flat = [a * f for a, f in zip(flat, each, strict=True)]
                found += rows_of(turns, flat, c.reduction, longest, rewards, each, start)
            start += sum(map(math.isfinite, flat))
        return found, start

    def learn(
        self, rng: np.random.Generator, rows: list[Row], n_rows: int, lr: float, step: int
    ) -> dict[str, float]:
        """Several epochs of minibatches over one step's turns: this rank's ``rows`` of all ranks'
        ``n_rows``."""
        c = self.config
        known = {row.index: row for row in self.with_reference(rows)}
        fits = [
            minibatches(rng, n_rows, c.minibatches)
            for _ in range(c.value_epochs if self.critic else 0)
        ]
        epochs = [minibatches(rng, n_rows, c.minibatches) for _ in range(c.epochs)]
        seen: dict[str, list[float]] = {}
        if self.critic is not None:
            states = self.score_before(known, epochs[0])
            warm = step < c.value_warmup
            if warm:
                seen |= {name: [value] for name, value in self.agreement.check().items()}
            judged, told = self.teach_values(known, states, fits, None if warm else c.value_clip)
            known = {row.index: row for row in judged}
            seen |= {name: [value] for name, value in told.items()}
            if warm:
                epochs = []
        else:  # the first update scores what it is made of itself
            self.score_before(known, epochs[0][1:])
        for epoch, parts in enumerate(epochs):
            for k, numbers in enumerate(parts):
                told, part = self.minibatch(
                    [known[i] for i in numbers if i in known], lr, first=not epoch and not k
                )
                known |= {row.index: row for row in part}
                for name, number in told.items():
                    seen.setdefault(name, []).append(number)
        return {name: float(np.mean(v)) for name, v in seen.items()}

    def batches(self, rows: list[Row]) -> list[Packed]:
        """Micro-batches of this rank's rows, as many of each head as every other rank has."""
        return in_step(pack(rows, self.config.micro, self.janus.device), self.idle, self.ranks)

    @torch.no_grad()
    def with_reference(self, rows: list[Row]) -> list[Row]:
        """The rows with their log-probabilities under the frozen reference, which all epochs
        share."""
        found: list[Row] = []
        for batch in self.batches(rows):
            logp = self.reference.score(self.engine.template, batch.turns)
            found += [
                replace(row, reference=tuple(part.tolist())) for row, part in batch.split(logp)
            ]
        return found

    @torch.no_grad()
    def score_before(self, known: dict[int, Row], parts: list[list[int]]) -> dict[int, Tensor]:
        """The policy's log-probabilities of the minibatches ``parts``, as it is before the step's
        first update, are put into the rows in ``known``. They are computed in the micro-batches of
        the update, so that they are rounded in the same way. Returns, for PPO, the final hidden
        states (n, D) from which each row's tokens were predicted."""
        states: dict[int, Tensor] = {}
        for numbers in parts:
            for batch in self.batches([known[i] for i in numbers if i in known]):
                logp, hidden = self.shards.run(
                    policy.evaluate, self.janus, self.engine.template, batch.turns
                )
                self.agreement.add(batch, logp)
                known |= {
                    row.index: replace(row, old=tuple(part.tolist()))
                    for row, part in batch.split(logp)
                }
                if self.critic is not None:
                    states |= {row.index: part for row, part in batch.split(hidden)}
        return states

    def teach_values(
        self,
        known: dict[int, Row],
        states: dict[int, Tensor],
        fits: list[list[list[int]]],
        clip: float | None,
    ) -> tuple[list[Row], dict[str, float]]:
        """The rows with what the value head says of them, and metrics; then it is taught in passes
        of the minibatches ``fits``."""
        assert self.critic is not None
        self.critic.kl_weight = (
            self.config.beta * self.nurse.beta if self.config.kl_in == "reward" else 0.0
        )
        rows, of_rows = list(known.values()), [states[i] for i in known]
        judged, told = self.critic.judge(rows, of_rows)
        for parts in fits:
            told["value_loss"] = self.critic.fit(judged, of_rows, parts, clip)
        return judged, told

    def minibatch(
        self, part: list[Row], lr: float, first: bool
    ) -> tuple[dict[str, float], list[Row]]:
        """One update from this rank's part of a minibatch. Returns metrics, and the rows with their
        log-probabilities before the step's ``first`` update, which are that update's own."""
        c = self.config
        denominator = self.ranks.total({"weight": total_weight(part)})["weight"]
        beta = c.beta * self.nurse.beta if c.kl_in == "loss" else 0.0
        sums = {"kl": 0.0, "clipped": 0.0, "loss": 0.0, "entropy": 0.0, "tokens": 0.0}
        found: list[Row] = []
        for batch in self.batches(part):
            logp = self.shards.run(policy.score, self.janus, self.engine.template, batch.turns)
            old = batch.old
            if not len(old):
                old = logp.detach()
                self.agreement.add(batch, old)
            out = policy_loss(
                logp,
                old,
                batch.reference,
                batch.advantage,
                batch.weight,
                denominator,
                c.clip_range,
                beta,
                c.clip_high,
                importance_weights(old, batch.behaviour, c.importance_cap),
            )
            out.loss.backward()
            found += [replace(row, old=tuple(values.tolist())) for row, values in batch.split(old)]
            sums["loss"] += float(out.loss.detach())
            sums["kl"] += float(out.kl) / denominator
            sums["clipped"] += float(out.clipped)
            sums["entropy"] -= float((batch.weight * logp.detach()).sum()) / denominator
            sums["tokens"] += float((batch.weight > 0).sum())
        sums = self.ranks.total(sums)
        sums["clipped"] /= sums.pop("tokens")
        if first:
            sums |= self.agreement.check() | {"clipped_first": sums["clipped"]}
        return sums | self.update.step(lr), found

    def advantages(self, outcome: Outcome) -> list[list[float]]:
        """Of every turn of a group's episodes. PPO's own come from its value head; there these say
        which groups vary."""
        c = self.config
        form: Form = "segment" if c.algorithm == "ppo" and c.form == "expected" else c.form
        given = (
            outcome.values(),
            outcome.verdicts,
            c.rounds,
            form,
            c.last_image_weight,
            outcome.p_yes,
            c.scale,
        )
        return advantages(*given, c.judging_weight)

    def picture(self, groups: list[Group], step: int) -> None:
        """The best and worst episode of the groups that vary most, as a page; groups without any
        score are passed over."""
        scored = [
            (group, scores)
            for group in groups
            if np.isfinite(scores := self._last_scores(group)).any()
        ]
        scored.sort(key=lambda each: np.nanmin(each[1]) - np.nanmax(each[1]))
        episodes = [
            group.episodes[int(of(scores))]
            for group, scores in scored[:4]
            for of in (np.nanargmax, np.nanargmin)
        ]
        if not episodes:
            return
        folder = self.out / "episodes"
        folder.mkdir(parents=True, exist_ok=True)
        write_text(
            folder / f"step-{step}.html",
            filmstrip(episodes, f"step {step}: best and worst episodes of a group"),
        )

    @staticmethod
    def _last_scores(group: Group) -> np.ndarray:
        return np.array(
            [v[final] for v, final in zip(group.outcome.values(), group.outcome.final, strict=True)]
        )


def train_rl(config: RLConfig, out: str | Path, reward: Reward | None = None) -> None:
    """Train, resume if ``out`` holds a state, and write the checkpoint to ``out``/final."""
    torch.set_num_threads(config.threads)
    out, ranks = Path(out), Ranks.start(config.device)
    job = RLLoop(config, out, reward, ranks)
    state: dict[str, Stateful] = {
        "net": job.trainable,
        "optimizer": job.update,
        "guard": job.guard,
        "nurse": job.nurse,
    }
    if job.critic is not None:
        state["critic"] = job.critic
    if config.nurse and config.nurse.ease == "reference":
        state["reference"] = job.reference.movable()
    run = Trainer(
        out,
        config,
        state,
        may_change=MAY_CHANGE,
        ranks=ranks,
        start=fingerprint(fetch(locate(config.model))),
    )
    run.keep = lambda: (job.nurse.good,)

    watch = partial(job.nurse.watch, run, lambda: job.reference.become(job.shards))
    run.loop(
        config.steps,
        job.step,
        log_every=config.log_every,
        save_every=config.save_every,
        watch=watch,
    )
    job.shards.save(out / "final")
