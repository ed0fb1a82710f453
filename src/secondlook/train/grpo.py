"""Stage 2: GRPO on whole episodes of draw, judge, redraw.

Source: arXiv 2506.01480, the RL stage and table 5. Departures from the public code: log-probabilities are those of the
distribution that was sampled from (guidance, restriction of the verdict), recorded by the engine; the ratio is to the
policy that sampled, so that clipping acts over several minibatches; a missing reward is masked and counted; T rounds, and only
what was judged No is redrawn. Nothing is cut off by top-k while training (the paper samples with 50 and 4096): a token that
falls out of the new policy's top-k would have probability 0 and an infinite KL.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from secondlook.data import canaries, miniature
from secondlook.data.prompts import Prompts
from secondlook.engine.decode import Engine
from secondlook.files import write_text
from secondlook.introspect import Sampling
from secondlook.model import policy
from secondlook.model.janus import Janus
from secondlook.report import filmstrip
from secondlook.rewards.base import Reward
from secondlook.rewards.verifier import Verifier
from secondlook.train.advantage import Form, Weight, advantages, balanced
from secondlook.train.batch import Reduction, Row, pack, rows_of, total_weight
from secondlook.train.guard import Guard, check_reward
from secondlook.train.loss import policy_loss
from secondlook.train.rollout import Group, collect, describe
from secondlook.train.run import Run
from secondlook.train.update import Schedule, Update, freeze
from secondlook.types import InputError, Stopped


@dataclass
class GRPOConfig:
    """``train grpo``; ``steps`` may be changed when a run is resumed."""

    model: str
    """The checkpoint to start from; frozen, it is the KL reference too."""
    prompts: str = ""
    """A text file with one prompt a line; empty: prompts of the miniature's world."""
    canaries: str = ""
    """A JSONL file of known-good and known-bad pictures (``data.canaries.read``) on which the judge is checked before the run;
    empty: the world's own, and for a file of prompts none."""
    kinds: dict[str, float] = field(default_factory=lambda: dict(miniature.KINDS))
    """Shares of the kinds of the world's prompts."""
    steps: int = 200
    prompts_per_step: int = 8
    group: int = 8
    """Episodes a prompt."""
    rounds: int = 3
    """Most images an episode (T)."""
    form: Form = "episode"
    """Advantages of the paper (one an episode), of the public code (one for each kind of turn), or "expected": as the public
    code's, but verdicts compared with what the policy expects to earn on the same image."""
    balanced: bool = False
    """Verdicts on right and on wrong images weigh the same in a step (``train.advantage.balanced``)."""
    last_image_weight: Weight = "T-K+1"
    reduction: Reduction = "token"
    minibatches: int = 2
    epochs: int = 2
    """Passes over a step's turns."""
    micro: int = 64
    """Turns scored together."""
    clip_range: float = 0.2
    beta: float = 0.05
    """Weight of the k3-KL to the reference."""
    guidance: float | None = None
    """Default: the checkpoint's own."""
    temperature: float = 1.0
    lr: float = 6e-6
    convert_lr: float = 2e-6
    convert_step: int = 0
    """The step at which the rate has fallen linearly to convert_lr; 0: cosine from the start."""
    min_lr: float = 2e-7
    warmup: int = 10
    weight_decay: float = 0.05
    clip: float = 1.0
    most_missing: float = 0.2
    one_verdict: float = 0.99
    patience: int = 5
    """These three: when a run that has nothing to learn from stops (``train.guard.Guard``)."""
    most_disagreement: float = 1e-2
    """Largest difference between a sampled token's recorded log-probability and its score before the first update."""
    seed: int = 0
    threads: int = 2
    device: str = "cpu"
    log_every: int = 5
    save_every: int = 25
    picture_every: int = 50
    """Steps between pages with the best and worst episodes."""

    def __post_init__(self) -> None:
        for name in ("group", "prompts_per_step", "rounds", "minibatches", "epochs", "micro"):
            least = 2 if name == "group" else 1
            if getattr(self, name) < least:
                raise InputError(f"config: {name} is {getattr(self, name)}; it must be at least {least}")
        miniature.check_shares("kinds", self.kinds, miniature.KINDS)


class GRPOJob:
    """The loop's step: roll out, score, advantage, update. The engine draws with the very weights that are trained."""

    def __init__(self, config: GRPOConfig, out: Path, reward: Reward | None = None):
        self.config, self.out = config, out
        self.prompts = Prompts(config.prompts, config.kinds)
        self.reward = reward or Verifier()
        self.janus = Janus.load(config.model, config.device)
        self.reference = Janus.load(config.model, config.device).requires_grad_(False)
        parameters = freeze(self.janus)
        self.update = Update(self.janus.net, config.weight_decay, config.clip)
        self.trainable = nn.ParameterDict({n.replace(".", "/"): p for n, p in parameters.items()})
        c = config
        self.schedule = Schedule(c.steps, c.lr, c.min_lr, c.warmup, c.convert_lr, c.convert_step)
        self.engine = Engine(self.janus, batch=c.prompts_per_step * c.group)
        guidance = Sampling.of(self.janus.net.generation_config).guidance if c.guidance is None else c.guidance
        self.sampling = Sampling(guidance, c.temperature, code_top_k=0, text_top_k=0)
        self.guard = Guard(c.most_missing, c.one_verdict, c.patience)
        if c.canaries or not c.prompts:
            check_reward(self.reward, *(canaries.read(c.canaries) if c.canaries else canaries.of_the_world(c.seed)))
        else:
            warnings.warn("config: canaries is empty: the judge is not checked before the run", stacklevel=2)

    def step(self, step: int) -> dict[str, float]:
        c, rng = self.config, np.random.default_rng([self.config.seed, step])
        began = time.perf_counter()
        asked = self.prompts.draw(rng, c.prompts_per_step)
        seed = (c.seed * 10**6 + step) * c.prompts_per_step * c.group
        groups = collect(self.engine, asked, c.group, c.rounds, seed, self.sampling, self.reward)
        sampled = time.perf_counter() - began
        values = [advantages(g.values(), g.verdicts(), c.rounds, c.form, c.last_image_weight, g.p_yes()) for g in groups]
        if c.balanced:
            values = balanced(values, [g.values() for g in groups])
        metrics = describe(groups)
        metrics |= self.guard.check(metrics, values)
        pairs = [
            (turn, a)
            for g, each in zip(groups, values, strict=True)
            for episode, of_turns in zip(g.episodes, each, strict=True)
            for turn, a in zip(episode.turns, of_turns, strict=True)
        ]
        rows = rows_of([t for t, _ in pairs], [a for _, a in pairs], c.reduction)
        lr = self.schedule.at(step)
        metrics |= self.learn(rng, rows, lr, first=step == 0) | {"lr": lr, "rollout_seconds": sampled}
        if metrics["refused_steps"] == 1:
            raise Stopped(
                f"policy: not one update of step {step} had a finite gradient; start again from a checkpoint at a lower rate"
            )
        metrics["tokens_per_second"] = sum(len(t.tokens) for t, _ in pairs) / (time.perf_counter() - began)
        if step % c.picture_every == 0:
            self.picture(groups, step)
        return metrics

    def learn(self, rng: np.random.Generator, rows: list[Row], lr: float, first: bool) -> dict[str, float]:
        """Several epochs of minibatches over one step's turns."""
        c, device = self.config, self.janus.device
        rows = self.with_reference(rows)
        seen: dict[str, list[float]] = {}
        for epoch in range(c.epochs):
            order = rng.permutation(len(rows))
            for k, picks in enumerate(np.array_split(order, c.minibatches)):
                part = [rows[i] for i in picks]
                denominator = total_weight(part)
                if not denominator:
                    continue
                sums = {"kl": 0.0, "clipped": 0.0, "loss": 0.0, "entropy": 0.0}
                tokens, gap = 0, 0.0
                for batch in pack(part, c.micro, device):
                    logp = policy.score(self.janus, self.engine.protocol, batch.turns)
                    out = policy_loss(
                        logp, batch.behaviour, batch.reference, batch.advantage, batch.weight, denominator, c.clip_range, c.beta
                    )
                    gap = max(gap, float(out.gap))
                    if first and epoch == k == 0 and gap > c.most_disagreement:
                        raise Stopped(
                            f"policy: sampled and scored log-probabilities differ by {gap:.3g} before any update; "
                            f"at most {c.most_disagreement} is rounding, so the sampler and the scorer disagree"
                        )
                    out.loss.backward()
                    sums["loss"] += float(out.loss.detach())
                    sums["kl"] += float(out.kl) / denominator
                    sums["clipped"] += float(out.clipped)
                    sums["entropy"] -= float((batch.weight * logp.detach()).sum()) / denominator
                    tokens += len(logp)
                sums["clipped"] /= tokens
                if epoch == k == 0:
                    sums["sampler_gap"] = gap
                for name, value in (sums | self.update.step(lr)).items():
                    seen.setdefault(name, []).append(value)
        return {name: float(np.mean(v)) for name, v in seen.items()}

    @torch.no_grad()
    def with_reference(self, rows: list[Row]) -> list[Row]:
        """The rows with their log-probabilities under the frozen reference, which all epochs share."""
        known: list[Row] = []
        for batch in pack(rows, self.config.micro, self.janus.device):
            logp = policy.score(self.reference, self.engine.protocol, batch.turns).tolist()
            ends = np.cumsum([len(t.tokens) for t in batch.turns])
            for row, end in zip(batch.rows, ends, strict=True):
                known.append(replace(row, reference=tuple(logp[end - len(row.turn.tokens) : end])))
        return known

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
        return np.array([v[e.final] for v, e in zip(group.values(), group.episodes, strict=True)])


def train_grpo(config: GRPOConfig, out: str | Path, reward: Reward | None = None) -> None:
    """Train, resume if ``out`` holds a state, and write the checkpoint to ``out``/final."""
    torch.set_num_threads(config.threads)
    out = Path(out)
    job = GRPOJob(config, out, reward)
    run = Run(out, config, {"net": job.trainable, "optimizer": job.update, "guard": job.guard}, may_change=("steps",))
    run.loop(config.steps, job.step, log_every=config.log_every, save_every=config.save_every)
    job.janus.save(out / "final")
