"""Stage 2: GRPO or PPO on whole episodes of draw, judge, redraw.

Source: arXiv 2506.01480, the RL stage and table 5. Departures from the public code: log-probabilities are those of the
distribution that was sampled from (guidance, restriction of the verdict), recorded by the engine; the ratio is to the
policy that sampled, so that clipping acts over several minibatches; a missing reward is masked and counted; T rounds, and only
what was judged No is redrawn. Nothing is cut off by top-k while training (the paper samples with 50 and 4096): a token that
falls out of the new policy's top-k would have probability 0 and an infinite KL.
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

from secondlook.data import canaries
from secondlook.data.prompts import Prompts
from secondlook.engine.decode import Engine
from secondlook.files import fingerprint, write_text
from secondlook.introspect import Sampling
from secondlook.model import policy
from secondlook.model.checkpoint import fetch
from secondlook.model.janus import Janus
from secondlook.model.shipped import locate
from secondlook.report import filmstrip
from secondlook.rewards.base import Reward, tell_missing
from secondlook.rewards.build import make
from secondlook.train.advantage import Form, advantages, balanced, turn_rewards, varies
from secondlook.train.batch import Row, idle_row, in_step, pack, rows_of, total_weight
from secondlook.train.critic import Critic, ValueHead
from secondlook.train.guard import Guard, check_reward
from secondlook.train.loss import policy_loss
from secondlook.train.memory import checkpointed
from secondlook.train.nurse import Nurse
from secondlook.train.ranks import Ranks
from secondlook.train.reference import Reference
from secondlook.train.rl_config import RLConfig
from secondlook.train.rollout import Group, Outcome, collect, describe
from secondlook.train.run import MAY_CHANGE, Run, Stateful
from secondlook.train.shard import Shards
from secondlook.train.update import Schedule, Update, freeze, trainable
from secondlook.types import InputError, Stopped


class RLJob:
    """The loop's step: roll out, score, advantage, update. The engine draws with the very weights that are trained."""

    def __init__(self, config: RLConfig, out: Path, reward: Reward | None = None, ranks: Ranks | None = None):
        self.config, self.out = config, out
        self.ranks = ranks or Ranks(device=config.device)
        if config.prompts_per_step % self.ranks.size:
            raise InputError(
                f"config: prompts_per_step is {config.prompts_per_step}; it must be a multiple of the number of ranks, "
                f"which is {self.ranks.size}"
            )
        device = self.ranks.device
        self.prompts = Prompts(config.prompts, config.kinds)
        self.reward = reward or make(config.judges, device)
        self.janus = Janus.load(config.model, device)
        adapters = freeze(self.janus, config.lora, config.lora_alpha, config.seed)
        self.shards = Shards(self.janus, self.ranks, config.dtype, config.shard, adapters)
        self.reference = Reference(config, self.shards)
        self.update = Update(self.janus.net, config.weight_decay, config.clip)
        self.trainable = trainable(self.janus)
        c = config
        self.schedule = Schedule(c.steps, c.lr, c.min_lr, c.warmup, c.convert_lr, c.convert_step)
        self.engine = Engine(self.janus, batch=c.at_once or c.prompts_per_step * c.group // self.ranks.size)
        own = Sampling.of(self.janus.net.generation_config)
        self.sampling = Sampling(
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
        self.most_disagreement = c.most_disagreement or (1e-2 if c.dtype == "float32" else 1.0)
        self.guard = Guard(c.most_missing, c.one_verdict if c.judging_weight else math.inf, c.patience)
        self.nurse = Nurse(c.nurse)
        self.idle: dict[str, Row] = {}
        self.agreed = False
        """Sampler and scorer have been compared since the start (or resumption), before any update."""
        if c.canaries or not c.prompts:
            known = canaries.read(c.canaries) if c.canaries else canaries.of_the_world(c.seed, c.kinds)
            check_reward(self.reward, *known, c.least_separation)
        else:
            warnings.warn("config: canaries is empty: the judge is not checked before the run", stacklevel=2)

    def step(self, step: int) -> dict[str, float]:
        c, rng = self.config, np.random.default_rng([self.config.seed, step])
        began = time.perf_counter()
        asked = self.prompts.draw(rng, c.prompts_per_step)
        seed = (c.seed * 10**6 + step) * c.prompts_per_step * c.group
        mine = self.ranks.share(range(c.prompts_per_step))
        seeds = [seed + i * c.group for i in mine]
        with self.shards.whole():
            groups = collect(self.engine, [asked[i] for i in mine], c.group, c.rounds, seeds, self.sampling, self.reward)
        sampled = time.perf_counter() - began
        outcomes = self.ranks.merge([g.outcome for g in groups])
        values = [self.advantages(o) for o in outcomes]
        metrics = describe(outcomes)
        metrics |= self.guard.check(metrics, values, self.reward)
        tell_missing(self.reward)
        turns = {t.rule.head: t for g in groups for e in g.episodes for t in e.turns}
        self.idle = {head: idle_row(t) for head, t in turns.items()}
        rows, n_rows = self.rows(groups, outcomes, values)
        lr = self.schedule.at(step) * self.nurse.lr
        with checkpointed(self.janus, c.checkpointing):  # every group may have been dropped
            learnt = self.learn(rng, rows, n_rows, lr, step) if n_rows else {}
        metrics |= learnt | {"lr": lr, "rollout_seconds": sampled}
        if c.nurse:
            metrics |= {"lr_factor": self.nurse.lr, "beta_factor": self.nurse.beta}
        if metrics.get("refused_steps") == 1:
            raise Stopped(
                f"policy: not one update of step {step} had a finite gradient; start again from a checkpoint at a lower rate"
            )
        tokens = self.ranks.total({"tokens": sum(len(t.tokens) for g in groups for e in g.episodes for t in e.turns)})["tokens"]
        metrics["tokens_per_second"] = tokens / (time.perf_counter() - began)
        if step % c.picture_every == 0 and self.ranks.first:
            self.picture(groups, step)
        return metrics

    def rows(self, groups: list[Group], outcomes: list[Outcome], values: list[list[list[float]]]) -> tuple[list[Row], int]:
        """This rank's turns to learn from, numbered among all ranks', and how many all have. ``outcomes`` and ``values``
        (advantages of groups, episodes, turns) are of all groups, ``groups`` are this rank's."""
        c = self.config
        factors = [[[1.0] * len(turns) for turns in group] for group in values]
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
                    for r in turn_rewards(s, y, c.rounds, c.form, c.last_image_weight, c.judging_weight)
                ]
                turns = [t for e in group.episodes for t in e.turns]
                each = [f for turns in factors[i] for f in turns]
                if c.algorithm == "grpo":  # PPO's advantages are not known yet
                    flat = [a * f for a, f in zip(flat, each, strict=True)]
                found += rows_of(turns, flat, c.reduction, longest, rewards, each, start)
            start += sum(map(math.isfinite, flat))
        return found, start

    def learn(self, rng: np.random.Generator, rows: list[Row], n_rows: int, lr: float, step: int) -> dict[str, float]:
        """Several epochs of minibatches over one step's turns: this rank's ``rows`` of all ranks' ``n_rows``."""
        c = self.config
        rows = self.with_reference(rows)
        seen: dict[str, list[float]] = {}
        if self.critic is not None:
            self.critic.kl_weight = c.beta * self.nurse.beta if c.kl_in == "reward" else 0.0
            states = self.states(rows)
            rows, told = self.critic.judge(rows, states)
            warm = step < c.value_warmup
            for _ in range(c.value_epochs):
                parts = [p.tolist() for p in np.array_split(rng.permutation(n_rows), c.minibatches)]
                told["value_loss"] = self.critic.fit(rows, states, parts, None if warm else c.value_clip)
            if warm:
                return told
            seen |= {name: [value] for name, value in told.items()}
        mine = {row.index: row for row in rows}
        for epoch in range(c.epochs):
            for k, picks in enumerate(np.array_split(rng.permutation(n_rows), c.minibatches)):
                part = [mine[i] for i in picks.tolist() if i in mine]
                told = self.minibatch(part, lr)
                if epoch or k:
                    del told["sampler_gap"]  # what the last updates moved is in it
                for name, number in told.items():
                    seen.setdefault(name, []).append(number)
        return {name: float(np.mean(v)) for name, v in seen.items()}

    def compare(self, gap: float) -> None:
        """Refuse to start where recorded and scored log-probabilities differ by ``gap``. Raises Stopped."""
        if not self.agreed and gap > self.most_disagreement:
            raise Stopped(
                f"policy: sampled and scored log-probabilities differ by {gap:.3g} before any update; "
                f"at most {self.most_disagreement} is rounding, so the sampler and the scorer disagree"
            )

    def minibatch(self, part: list[Row], lr: float) -> dict[str, float]:
        """One update from this rank's part of a minibatch."""
        c = self.config
        denominator = self.ranks.total({"weight": total_weight(part)})["weight"]
        sums = {"kl": 0.0, "clipped": 0.0, "loss": 0.0, "entropy": 0.0, "tokens": 0.0}
        gap = 0.0
        for batch in in_step(pack(part, c.micro, self.janus.device), self.idle, self.ranks):
            logp = self.shards.run(policy.score, self.janus, self.engine.protocol, batch.turns)
            beta = c.beta * self.nurse.beta if c.kl_in == "loss" else 0.0
            out = policy_loss(
                logp,
                batch.behaviour,
                batch.reference,
                batch.advantage,
                batch.weight,
                denominator,
                c.clip_range,
                beta,
                c.clip_high,
            )
            gap = max(gap, float(out.gap))
            self.compare(gap)
            out.loss.backward()
            sums["loss"] += float(out.loss.detach())
            sums["kl"] += float(out.kl) / denominator
            sums["clipped"] += float(out.clipped)
            sums["entropy"] -= float((batch.weight * logp.detach()).sum()) / denominator
            sums["tokens"] += float((batch.weight > 0).sum())
        self.agreed = True
        sums = self.ranks.total(sums)
        sums["clipped"] /= sums.pop("tokens")
        return sums | {"sampler_gap": max(self.ranks.gather(gap))} | self.update.step(lr)

    @torch.no_grad()
    def with_reference(self, rows: list[Row]) -> list[Row]:
        """The rows with their log-probabilities under the frozen reference, which all epochs share."""
        known: list[Row] = []
        for batch in in_step(pack(rows, self.config.micro, self.janus.device), self.idle, self.ranks):
            logp = self.reference.score(self.engine.protocol, batch.turns).tolist()
            ends = np.cumsum([len(t.tokens) for t in batch.turns])
            for row, end in zip(batch.rows, ends, strict=True):
                known.append(replace(row, reference=tuple(logp[end - len(row.turn.tokens) : end])))
        return [row for row in known if row.index >= 0]

    @torch.no_grad()
    def states(self, rows: list[Row]) -> list[Tensor]:
        """The policy's final hidden states (n, D) from which each row's tokens were predicted."""
        found: dict[int, Tensor] = {}
        for batch in in_step(pack(rows, self.config.micro, self.janus.device), self.idle, self.ranks):
            logp, hidden = self.shards.run(policy.evaluate, self.janus, self.engine.protocol, batch.turns)
            self.compare(float((logp - batch.behaviour).abs().max()))  # PPO's first steps make no update
            parts = hidden.split([len(t.tokens) for t in batch.turns])
            found |= {row.index: part for row, part in zip(batch.rows, parts, strict=True)}
        return [found[row.index] for row in rows]

    def advantages(self, outcome: Outcome) -> list[list[float]]:
        """Of every turn of a group's episodes. PPO's own come from its value head; there these say which groups vary."""
        c = self.config
        form: Form = "segment" if c.algorithm == "ppo" and c.form == "expected" else c.form
        given = outcome.values(), outcome.verdicts, c.rounds, form, c.last_image_weight, outcome.p_yes, c.scale
        return advantages(*given, c.judging_weight)

    def picture(self, groups: list[Group], step: int) -> None:
        """The best and worst episode of the groups that vary most, as a page."""
        spread = [np.nanmax(v) - np.nanmin(v) for v in (self._last_scores(g) for g in groups)]
        episodes = []
        for i in np.argsort(spread)[::-1][:4]:
            scores = self._last_scores(groups[i])
            episodes += [groups[i].episodes[int(np.nanargmax(scores))], groups[i].episodes[int(np.nanargmin(scores))]]
        folder = self.out / "episodes"
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / f"step-{step}.html", filmstrip(episodes, f"step {step}: best and worst episodes of a group"))

    @staticmethod
    def _last_scores(group: Group) -> np.ndarray:
        return np.array([v[final] for v, final in zip(group.outcome.values(), group.outcome.final, strict=True)])


def train_rl(config: RLConfig, out: str | Path, reward: Reward | None = None) -> None:
    """Train, resume if ``out`` holds a state, and write the checkpoint to ``out``/final."""
    torch.set_num_threads(config.threads)
    out, ranks = Path(out), Ranks.start(config.device)
    job = RLJob(config, out, reward, ranks)
    state: dict[str, Stateful] = {"net": job.trainable, "optimizer": job.update, "guard": job.guard, "nurse": job.nurse}
    if job.critic is not None:
        state["critic"] = job.critic
    if config.nurse and config.nurse.ease == "reference":
        state["reference"] = job.reference.movable()
    run = Run(out, config, state, may_change=MAY_CHANGE, ranks=ranks, start=fingerprint(fetch(locate(config.model))))
    run.keep = lambda: (job.nurse.good,)

    watch = partial(job.nurse.watch, run, lambda: job.reference.become(job.shards))
    run.loop(config.steps, job.step, log_every=config.log_every, save_every=config.save_every, watch=watch)
    job.shards.save(out / "final")
