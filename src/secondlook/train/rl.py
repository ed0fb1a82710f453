"""Stage 2: GRPO or PPO on whole episodes of draw, judge, redraw.

Source: arXiv 2506.01480, the RL stage and table 5. Departures from the public code: log-probabilities are those of the
distribution that was sampled from (guidance, restriction of the verdict), recorded by the engine; the ratio is to the
policy that sampled, so that clipping acts over several minibatches; a missing reward is masked and counted; T rounds, and only
what was judged No is redrawn. Nothing is cut off by top-k while training (the paper samples with 50 and 4096): a token that
falls out of the new policy's top-k would have probability 0 and an infinite KL.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from secondlook.data import canaries, miniature
from secondlook.data.prompts import Prompts
from secondlook.engine.decode import Engine
from secondlook.files import write_text
from secondlook.introspect import Sampling
from secondlook.model import policy
from secondlook.model.janus import Janus
from secondlook.report import filmstrip
from secondlook.rewards.base import Reward
from secondlook.rewards.build import JudgeConfig, make
from secondlook.train.advantage import Form, Scale, Weight, advantages, balanced, turn_rewards, varies
from secondlook.train.batch import Reduction, Row, pack, rows_of, total_weight
from secondlook.train.critic import Critic, ValueHead
from secondlook.train.guard import Guard, check_reward
from secondlook.train.loss import policy_loss
from secondlook.train.memory import Checkpointing, checkpointed
from secondlook.train.rollout import Group, collect, describe
from secondlook.train.run import Run, Stateful
from secondlook.train.update import Schedule, Update, freeze
from secondlook.types import InputError, Stopped


@dataclass
class RLConfig:
    """``train rl``; ``steps`` may be changed when a run is resumed."""

    model: str
    """The checkpoint to start from; frozen, it is the KL reference too."""
    algorithm: Literal["grpo", "ppo"] = "grpo"
    prompts: str = ""
    """A text file with one prompt a line; empty: prompts of the miniature's world."""
    canaries: str = ""
    """A JSONL file of known-good and known-bad pictures (``data.canaries.read``) on which the judge is checked before the run;
    empty: the world's own, and for a file of prompts none."""
    judges: list[JudgeConfig] = field(default_factory=list)
    """Who scores the images, a weighted mean when several; default: the verifier of the miniature's world."""
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
    code's, but verdicts compared with what the policy expects to earn on the same image. PPO: whether a turn ends with the
    episode's reward, or (both others) with its own."""
    balanced: bool = False
    """GRPO: verdicts on right and on wrong images weigh the same in a step (``train.advantage.balanced``)."""
    scale: Scale = "std"
    """GRPO: advantages are divided by the group's standard deviation, or not ("none": Dr. GRPO)."""
    drop_flat_groups: bool = False
    """Groups whose images all earn the same are left out of the update (DAPO)."""
    last_image_weight: Weight = "T-K+1"
    reduction: Reduction = "token"
    minibatches: int = 2
    epochs: int = 2
    """Passes over a step's turns."""
    micro: int = 64
    """Turns scored together."""
    clip_range: float = 0.2
    clip_high: float | None = None
    """The upper side's own clip range (DAPO); default: the same."""
    beta: float = 0.05
    """Weight of the KL to the reference."""
    kl_in: Literal["loss", "reward"] = "loss"
    """The k3-KL in the loss, or (PPO) log pi - log reference off each token's reward."""
    gamma: float = 1.0
    lam: float = 0.95
    value_lr: float = 1e-3
    value_clip: float = 0.2
    """These four: PPO's discount, GAE's lambda, and the value head's rate and clip range."""
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
    checkpointing: Checkpointing = "none"
    """Activations that are computed again for the gradient (``train.memory``)."""
    save_every: int = 25
    picture_every: int = 50
    """Steps between pages with the best and worst episodes."""

    def __post_init__(self) -> None:
        for name in ("group", "prompts_per_step", "rounds", "minibatches", "epochs", "micro"):
            least = 2 if name == "group" else 1
            if getattr(self, name) < least:
                raise InputError(f"config: {name} is {getattr(self, name)}; it must be at least {least}")
        if self.kl_in == "reward" and self.algorithm != "ppo":
            raise InputError("config: kl_in is 'reward'; only ppo has a reward for each token, use 'loss'")
        miniature.check_shares("kinds", self.kinds, miniature.KINDS)


class RLJob:
    """The loop's step: roll out, score, advantage, update. The engine draws with the very weights that are trained."""

    def __init__(self, config: RLConfig, out: Path, reward: Reward | None = None):
        self.config, self.out = config, out
        self.prompts = Prompts(config.prompts, config.kinds)
        self.reward = reward or make(config.judges, config.device)
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
        self.critic: Critic | None = None
        if c.algorithm == "ppo":
            torch.manual_seed(c.seed)
            head = ValueHead(self.janus.net.config.text_config.hidden_size).to(self.janus.device)
            kl_weight = c.beta if c.kl_in == "reward" else 0.0
            self.critic = Critic(head, c.value_lr, c.gamma, c.lam, c.value_clip, kl_weight)
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
        values = [self.advantages(g) for g in groups]
        if c.balanced and c.algorithm == "grpo":
            values = balanced(values, [g.values() for g in groups])
        metrics = describe(groups)
        metrics |= self.guard.check(metrics, values)
        used = [(g, v) for g, v in zip(groups, values, strict=True) if not c.drop_flat_groups or varies(v)]
        turns = [t for g, _ in used for e in g.episodes for t in e.turns]
        rewards = [
            r
            for g, _ in used
            for s, y in zip(g.values(), g.verdicts(), strict=True)
            for r in turn_rewards(s, y, c.rounds, c.form, c.last_image_weight)
        ]
        flat = [a for _, v in used for of_turns in v for a in of_turns]
        longest = max(self.janus.n_codes, self.sampling.reason_tokens)
        rows = rows_of(turns, flat, c.reduction, longest, rewards)
        lr = self.schedule.at(step)
        with checkpointed(self.janus, c.checkpointing):
            learnt = self.learn(rng, rows, lr, first=step == 0) if rows else {}  # every group may have been dropped
        metrics |= learnt | {"lr": lr, "rollout_seconds": sampled}
        if metrics.get("refused_steps") == 1:
            raise Stopped(
                f"policy: not one update of step {step} had a finite gradient; start again from a checkpoint at a lower rate"
            )
        metrics["tokens_per_second"] = sum(len(t.tokens) for t in turns) / (time.perf_counter() - began)
        if step % c.picture_every == 0:
            self.picture(groups, step)
        return metrics

    def learn(self, rng: np.random.Generator, rows: list[Row], lr: float, first: bool) -> dict[str, float]:
        """Several epochs of minibatches over one step's turns."""
        c, device = self.config, self.janus.device
        rows = self.with_reference(rows)
        seen: dict[str, list[float]] = {}
        if self.critic is not None:
            rows, told = self.critic.judge(rows, self.states(rows))
            seen |= {name: [value] for name, value in told.items()}
        for epoch in range(c.epochs):
            order = rng.permutation(len(rows))
            for k, picks in enumerate(np.array_split(order, c.minibatches)):
                part = [rows[i] for i in picks]
                denominator = total_weight(part)
                if not denominator:
                    continue
                sums = {"kl": 0.0, "clipped": 0.0, "loss": 0.0, "entropy": 0.0} | ({"value_loss": 0.0} if self.critic else {})
                tokens, gap = 0, 0.0
                for batch in pack(part, c.micro, device):
                    logp, hidden = policy.evaluate(self.janus, self.engine.protocol, batch.turns)
                    beta = c.beta if c.kl_in == "loss" else 0.0
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
                    if first and epoch == k == 0 and gap > c.most_disagreement:
                        raise Stopped(
                            f"policy: sampled and scored log-probabilities differ by {gap:.3g} before any update; "
                            f"at most {c.most_disagreement} is rounding, so the sampler and the scorer disagree"
                        )
                    out.loss.backward()
                    if self.critic is not None:
                        value = self.critic.loss(hidden, batch, denominator)
                        value.backward()
                        sums["value_loss"] += float(value.detach())
                    sums["loss"] += float(out.loss.detach())
                    sums["kl"] += float(out.kl) / denominator
                    sums["clipped"] += float(out.clipped)
                    sums["entropy"] -= float((batch.weight * logp.detach()).sum()) / denominator
                    tokens += len(logp)
                sums["clipped"] /= tokens
                if epoch == k == 0:
                    sums["sampler_gap"] = gap
                if self.critic is not None:
                    self.critic.step()
                for name, number in (sums | self.update.step(lr)).items():
                    seen.setdefault(name, []).append(number)
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

    @torch.no_grad()
    def states(self, rows: list[Row]) -> Iterator[tuple[list[Row], Tensor]]:
        """The rows in parts, with the policy's final hidden states (N, D) from which their tokens were predicted."""
        for batch in pack(rows, self.config.micro, self.janus.device):
            yield batch.rows, policy.evaluate(self.janus, self.engine.protocol, batch.turns)[1]

    def advantages(self, group: Group) -> list[list[float]]:
        """Of every turn of a group's episodes. PPO's own come from its value head; there these say which groups vary."""
        c = self.config
        form: Form = "segment" if c.algorithm == "ppo" and c.form == "expected" else c.form
        return advantages(group.values(), group.verdicts(), c.rounds, form, c.last_image_weight, group.p_yes(), c.scale)

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


def train_rl(config: RLConfig, out: str | Path, reward: Reward | None = None) -> None:
    """Train, resume if ``out`` holds a state, and write the checkpoint to ``out``/final."""
    torch.set_num_threads(config.threads)
    out = Path(out)
    job = RLJob(config, out, reward)
    state: dict[str, Stateful] = {"net": job.trainable, "optimizer": job.update, "guard": job.guard}
    if job.critic is not None:
        state["critic"] = job.critic
    run = Run(out, config, state, may_change=("steps",))
    run.loop(config.steps, job.step, log_every=config.log_every, save_every=config.save_every)
    job.janus.save(out / "final")
