"""Stage 2: GRPO, PPO or an algorithm of one's own on whole episodes of draw, judge, redraw.

A step, read from ``RLLoop.step``: roll out, score, tell all ranks, advantages, checks, update.

Source: arXiv 2506.01480, the RL stage and table 5. Departures from the public code:

- Log-probabilities are those of the distribution that was sampled from (guidance, restriction of
  the verdict).
- The ratio is to the policy before the step's first update, so that clipping acts over several
  minibatches; both are scored by the same code in the same micro-batches, so that it acts on what
  updates changed and not on rounding.
- What the engine recorded while sampling weighs the tokens (truncated importance sampling).
- A missing reward is masked and counted.
- T rounds, and only what was judged No is redrawn.
- Nothing is cut off by top-k while training (the paper samples with 50 and 4096): a token that
  falls out of the new policy's top-k would have probability 0 and an infinite KL.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np

from secondlook.data.prompts import open_prompts
from secondlook.data.sanity_pairs import open_sanity_pairs
from secondlook.end_request import EndRequested
from secondlook.engine.engine import Engine
from secondlook.episode import SamplingConfig
from secondlook.errors import InputError, Stopped, tell_user
from secondlook.io import fingerprint
from secondlook.llm.missing import tell_missing, why_missing
from secondlook.models.device import resolve_device
from secondlook.models.janus.checkpoint import fetch, load_tokenizer
from secondlook.models.janus.model import Janus
from secondlook.models.janus.template import ChatTemplate
from secondlook.models.shipped import locate
from secondlook.rewards.config import make_reward
from secondlook.rewards.reward import Reward, try_out
from secondlook.train.activation_checkpointing import activation_checkpointing
from secondlook.train.distributed import ProcessGroup
from secondlook.train.optim import freeze, trainable
from secondlook.train.reference import Reference
from secondlook.train.rl.algorithms.checks import check_advantages, get_algorithm, naming
from secondlook.train.rl.config import RLConfig
from secondlook.train.rl.episode_pages import write_page
from secondlook.train.rl.logprob_agreement import LIMITS, Agreement
from secondlook.train.rl.policy_update import PolicyUpdate
from secondlook.train.rl.prompt_checks import check_lines
from secondlook.train.rl.recovery import AutoRecovery
from secondlook.train.rl.reward_checks import RewardChecks, check_reward
from secondlook.train.rl.rollout import (
    check_checks_reasons,
    describe,
    gather_trajectories,
    redraw_first_images,
    rollout,
    score_episodes,
    wrong_first_images,
)
from secondlook.train.rl.trajectory import Trajectory
from secondlook.train.rl.turn_weights import select_turns
from secondlook.train.schedule import Schedule
from secondlook.train.sharding import ShardedModel
from secondlook.train.trackers import episode_strip
from secondlook.train.trainer import Stateful, Trainer, set_up_process
from secondlook.types import Episode, Turn

REPAIR_SEEDS = 10**15
"""From here on seeds are those of episodes that begin with a shared image."""


class RLLoop:
    """What a run consists of, and its step. The engine draws with the very weights that are
    trained."""

    def __init__(
        self,
        config: RLConfig,
        out: Path,
        reward: Reward | None = None,
        ranks: ProcessGroup | None = None,
    ):
        """Raises InputError or Stopped, on all ranks, for what would end the run later: settings,
        prompts that nobody can read or score, a reward that is dead."""
        self.config, self.out = config, out
        self.ranks = ranks or ProcessGroup(device=str(resolve_device(config.runtime.device)))
        self._check_groups_per_step()
        algorithm_class = get_algorithm(config.algorithm)
        self.prompts = open_prompts(config.prompts, config.prompt_options)
        self.reward = reward or make_reward(
            config.rewards, self.ranks.device, prompts=config.prompts
        )
        if config.advantage.reason_weight:
            check_checks_reasons(self.reward)
        template = ChatTemplate(load_tokenizer(config.model))
        check_lines(template, self.reward, self.prompts.lines, self.ranks)

        runtime = config.runtime
        self.janus = Janus.load(config.model, self.ranks.device)
        adapters = freeze(
            self.janus, config.lora_rank, config.lora_alpha, config.seed, config.model
        )
        self.shards = ShardedModel(
            self.janus, self.ranks, runtime.dtype, runtime.dp_shard_degree, adapters
        )
        self.reference = Reference(config, self.shards)
        self.schedule = schedule_of(config)
        n_episodes = config.rollout.prompts_per_step * config.rollout.group_size
        episodes_of_rank = n_episodes // self.ranks.world_size
        # 0: all of this rank's episodes are decoded together
        batch_size = config.rollout.rollout_batch_size or episodes_of_rank
        # not bounded: as many together as the config says, whatever memory is free
        self.engine = Engine(self.janus, batch_size, bounded=False)
        self.sampling = sampling_of(config, self.janus)
        with naming(algorithm_class, config.algorithm):
            self.algorithm = algorithm_class(config, self.janus, self.ranks)
        self.policy_update = PolicyUpdate(
            config,
            self.algorithm,
            self.shards,
            self.reference,
            self.engine.template,
            agreement_of(config, self.ranks),
        )
        self.reward_checks = RewardChecks(
            config.reward_checks, verdicts_learn=bool(config.advantage.judging_weight)
        )
        self.recovery = AutoRecovery(config.auto_recovery)
        self.shown_episodes: list[Episode] = []
        """Of the last step, where it has a page."""
        self._check_reward()

    def _check_groups_per_step(self) -> None:
        settings = self.config.rollout
        for name, number in (
            ("prompts_per_step", settings.prompts_per_step),
            ("repair_groups", settings.repair_groups),
        ):
            if number % self.ranks.world_size:
                raise InputError(
                    f"config: rollout.{name} is {number}; it must be a multiple of the number of "
                    f"ranks, which is {self.ranks.world_size}"
                )

    def _check_reward(self) -> None:
        """Try the reward on sanity pairs before anything is learned from it."""
        config = self.config
        sanity_pairs = open_sanity_pairs(
            config.sanity_pairs, config.prompts, config.seed, config.prompt_options
        )
        if sanity_pairs is None:
            with self.ranks.all_raise():
                try_out(self.reward)
            if self.ranks.is_main:
                tell_user(
                    "config: there are no sanity_pairs: the reward is not checked before the run"
                )
            return
        good_pairs, bad_pairs = sanity_pairs
        # each rank asks for itself, and may be the only one whose reward is dead
        with self.ranks.all_raise():
            check_reward(self.reward, good_pairs, bad_pairs, config.reward_checks.min_separation)

    def step(self, step: int) -> dict[str, float]:
        """One step: its metrics. Raises Stopped where going on would do harm."""
        config = self.config
        start_seconds = time.perf_counter()
        # from the step's number, so that a resumed run draws what an unbroken one would
        rng = np.random.default_rng([config.seed, step])

        own_trajectories = self.roll_out_and_score(rng, step)
        rollout_seconds = time.perf_counter() - start_seconds
        trajectories = gather_trajectories(own_trajectories, self.ranks)
        metrics = describe(trajectories)

        self.set_advantages(trajectories)
        metrics |= self.reward_checks.check(metrics, trajectories, self._why_missing())
        tell_missing(self.reward)

        lr = self.schedule.at(step) * self.recovery.lr_factor
        beta = config.loss.beta * self.recovery.beta_factor
        metrics |= self.update(rng, own_trajectories, trajectories, lr, beta, step)

        metrics |= {"lr": lr, "rollout_seconds": rollout_seconds}
        if config.auto_recovery:
            metrics |= {
                "lr_factor": self.recovery.lr_factor,
                "beta_factor": self.recovery.beta_factor,
            }
        own_tokens = sum(trajectory.num_tokens for trajectory in own_trajectories)
        n_tokens = self.ranks.all_sum({"tokens": own_tokens})["tokens"]
        # of all ranks, over the whole step
        metrics["tokens_per_second"] = n_tokens / (time.perf_counter() - start_seconds)
        self.shown_episodes = []
        if step % config.runtime.picture_every == 0 and self.ranks.is_main:
            self.shown_episodes = write_page(self.out, own_trajectories, step)
        return metrics

    def roll_out_and_score(self, rng: np.random.Generator, step: int) -> list[Trajectory]:
        """This rank's trajectories of a step: its part of the prompts' episodes, with the
        scores of their images."""
        config, settings = self.config, self.config.rollout
        n_prompts, group_size = settings.prompts_per_step, settings.group_size
        own_groups = self.ranks.local_part(range(n_prompts))
        # every episode of a run has a seed of its own (up to 10**6 steps), whichever rank draws it
        first_seed = (config.seed * 10**6 + step) * n_prompts * group_size
        seeds = [first_seed + group_number * group_size for group_number in own_groups]
        with self.ranks.all_raise(), self.shards.gathered():
            prompts = self.prompts.draw(rng, n_prompts, own_groups)
            episodes = rollout(
                self.engine, prompts, group_size, settings.rounds, seeds, self.sampling
            )
            checks_reasons = config.advantage.reason_weight > 0
            trajectories = score_episodes(
                self.reward, episodes, own_groups, checks_reasons=checks_reasons
            )
            return trajectories + self._roll_out_repairs(step, trajectories)

    def _roll_out_repairs(self, step: int, trajectories: list[Trajectory]) -> list[Trajectory]:
        """This rank's trajectories that begin with wrong first images of this step. Each rank
        chooses among its own, so which are chosen depends on the number of ranks."""
        settings = self.config.rollout
        own_places = self.ranks.local_part(range(settings.repair_groups))
        # numbers of its own: ranks have other wrong images, and draw equal minibatches all the same
        rng = np.random.default_rng([self.config.seed, step, self.ranks.rank, REPAIR_SEEDS])
        starts = wrong_first_images(rng, trajectories, len(own_places))
        if not starts:
            return []
        # numbers of groups and seeds behind those of whole episodes, which are the same without
        own_places = own_places[: len(starts)]
        group_numbers = [settings.prompts_per_step + place for place in own_places]
        first_number = (self.config.seed * 10**6 + step) * settings.repair_groups
        seeds = [REPAIR_SEEDS + (first_number + p) * settings.group_size for p in own_places]
        checks_reasons = self.config.advantage.reason_weight > 0
        episodes = redraw_first_images(
            self.engine, starts, settings.group_size, settings.rounds, seeds, self.sampling
        )
        first_scores = [start.first_score for start in starts]
        return score_episodes(self.reward, episodes, group_numbers, first_scores, checks_reasons)

    def set_advantages(self, trajectories: list[Trajectory]) -> None:
        """Have the algorithm credit all ranks' turns. Raises InputError, on all ranks, where it
        fails or nothing can be learned from what it credits."""
        name = self.config.algorithm
        with self.ranks.all_raise(), naming(type(self.algorithm), name):
            self.algorithm.advantages(trajectories)
            check_advantages(name, trajectories)

    def update(
        self,
        rng: np.random.Generator,
        own_trajectories: list[Trajectory],
        trajectories: list[Trajectory],
        lr: float,
        beta: float,
        step: int,
    ) -> dict[str, float]:
        """Learn from this rank's part of all ranks' ``trajectories``, which have their advantages.

        Returns the metrics of the updates; none where no turn of any rank is learned from. Raises
        Stopped where no update had a finite gradient.
        """
        config = self.config
        max_tokens = max(self.janus.n_codes, self.sampling.reason_tokens)
        selected_turns = select_turns(
            trajectories, config.advantage, config.loss.reduction, max_tokens
        )
        if not selected_turns:  # every group may have been dropped
            return {}
        own_turns = [turn for turn in selected_turns if turn.sampled is not None]
        # idle turns come from all that was sampled: none of this rank's may have been selected
        sampled_turns: list[Turn] = []
        for trajectory in own_trajectories:
            sampled_turns += [turn.turn for turn in trajectory.turns]
        self.policy_update.set_idle(sampled_turns)
        with activation_checkpointing(self.janus, config.runtime.activation_checkpointing):
            metrics = self.policy_update.learn(rng, own_turns, len(selected_turns), lr, step, beta)
        if metrics.get("refused_steps") == 1:
            raise Stopped(
                f"policy: not one update of step {step} had a finite gradient; start again from a "
                "checkpoint at a lower rate"
            )
        return metrics

    def recover(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """After a step: act where its reward has fallen, which saves the run's state."""
        finding = self.recovery.observe(metrics.get("score"))
        if finding:
            self.recovery.act(finding, trainer, self.reference, self.shards)
        elif trainer.due(self.config.runtime.save_every):
            self.recovery.note_saving(trainer.step)

    def steps_to_keep(self) -> tuple[int, ...]:
        """Steps whose states the run may go back to."""
        return (self.recovery.good_step,)

    def state(self) -> dict[str, Stateful]:
        """What a resumed run needs."""
        run_state: dict[str, Stateful] = {
            "net": trainable(self.janus),
            "optimizer": self.policy_update.optimizer,
            "algorithm": self.algorithm,
            "reward_checks": self.reward_checks,
            "auto_recovery": self.recovery,
        }
        recovery_config = self.config.auto_recovery
        if recovery_config and recovery_config.on_decline == "move_reference":
            run_state["reference"] = self.reference.movable()  # else it is the model as loaded
        return run_state

    def _why_missing(self) -> str:
        """Why scores are missing, from the first rank that knows; all ranks must call it."""
        for reason in self.ranks.all_gather(why_missing(self.reward)):
            if reason:
                return reason
        return ""


def schedule_of(config: RLConfig) -> Schedule:
    """The learning rate over the run's steps."""
    optim_config = config.optim
    return Schedule(
        config.steps,
        optim_config.lr,
        optim_config.min_lr,
        optim_config.warmup_steps,
        optim_config.convert_lr,
        optim_config.convert_step,
    )


def sampling_of(config: RLConfig, janus: Janus) -> SamplingConfig:
    """How episodes are sampled: guidance as the checkpoint says where the config is silent, and no
    top-k."""
    rollout_config = config.rollout
    of_checkpoint = SamplingConfig.of(janus.net.generation_config)
    guidance, edit_guidance = rollout_config.guidance, rollout_config.edit_guidance
    if guidance is None:
        guidance = of_checkpoint.guidance
    if edit_guidance is None:
        edit_guidance = of_checkpoint.edit_guidance
    return SamplingConfig(
        guidance=guidance,
        temperature=rollout_config.temperature,
        code_top_k=0,
        text_top_k=0,
        reason_tokens=of_checkpoint.reason_tokens,
        edit_guidance=edit_guidance,
    )


def agreement_of(config: RLConfig, ranks: ProcessGroup) -> Agreement:
    """How far sampler and scorer may be from each other."""
    loss_config, checks = config.loss, config.reward_checks
    max_mean, max_p99 = LIMITS[config.runtime.dtype]
    if checks.max_logprob_diff_mean is not None:
        max_mean = checks.max_logprob_diff_mean
    if checks.max_logprob_diff_p99 is not None:
        max_p99 = checks.max_logprob_diff_p99
    clip_high = loss_config.clip_range_high
    if clip_high is None:  # as wide as below
        clip_high = loss_config.clip_range
    return Agreement(
        max_mean=max_mean,
        max_p99=max_p99,
        clip_low=loss_config.clip_range,
        clip_high=clip_high,
        importance_cap=loss_config.importance_cap or math.inf,  # 0: no correction
        ranks=ranks,
    )


def train_rl(config: RLConfig, out: str | Path, reward: Reward | None = None) -> None:
    """Train, resume if ``out`` holds a state, and write the checkpoint to ``out``/final."""
    set_up_process(config.runtime)
    out, ranks = Path(out), ProcessGroup.join(config.runtime.device)
    loop = RLLoop(config, out, reward, ranks)
    trainer = Trainer(
        out,
        config,
        loop.state(),
        ranks,
        weights=fingerprint(fetch(locate(config.model))),
        keep_steps=loop.steps_to_keep,
    )
    for step in trainer.steps(config.steps):
        try:
            metrics = loop.step(step)
        except EndRequested:  # while its judge was waited for: nothing of the step is learnt yet
            trainer.leave_step()
        trainer.finish_step(metrics)
        trainer.log_images("episodes", [episode_strip(episode) for episode in loop.shown_episodes])
        loop.recover(trainer, metrics)  # may take the run back to an earlier step
    loop.shards.save(out / "final")
