"""The settings of ``train rl``, by section of the TOML file."""

from __future__ import annotations

from dataclasses import field
from typing import Any, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from secondlook.data.prompts import check_prompt_options
from secondlook.errors import InputError
from secondlook.rewards.config import RewardConfig
from secondlook.train.job_config import CHECKED, OptimConfig, RuntimeConfig
from secondlook.train.rl.advantages import Credit, LastImageWeight, RedrawReward, Scale
from secondlook.train.rl.trajectory import Reduction


@dataclass(config=CHECKED)
class RolloutConfig:
    """``[rollout]``: how a step's episodes are drawn."""

    prompts_per_step: int = Field(default=8, ge=1)
    """Prompts of a step, all ranks together; a multiple of the number of ranks."""
    group_size: int = Field(default=8, ge=2)
    """Episodes of each prompt, which are compared with each other."""
    rounds: int = Field(default=3, ge=1)
    """Most images of an episode (T)."""
    repair_groups: int = Field(default=0, ge=0)
    """Groups of a step beside those, each of ``group_size`` episodes that share one of the step's
    wrong first images: the first image is not learned from, what follows it is. All ranks together,
    a multiple of the number of ranks; fewer where there are fewer wrong images."""
    rollout_batch_size: int = Field(default=0, ge=0)
    """Episodes that a rank decodes together, to save memory; 0: all of its own."""
    temperature: float = Field(default=1.0, ge=0)
    """Temperature of drawings and verdicts."""
    guidance: float | None = None
    """Classifier-free guidance of drawings; default: the checkpoint's own."""
    edit_guidance: float | None = None
    """Classifier-free guidance of edits; default: the checkpoint's own."""


@dataclass(config=CHECKED)
class AdvantageConfig:
    """``[advantage]``: what a turn is credited with."""

    credit: Credit = "episode"
    """"episode": one advantage for all turns of an episode (the paper). "segment": one for each
    kind of turn in each round (the public code). "expected": as "segment", but a verdict is
    compared with what the policy expects to earn on the same image. PPO: whether a turn ends with
    the episode's reward, or (both others) with its own."""
    scale_rewards: Scale = "std"
    """GRPO: "std" divides advantages by the group's standard deviation, "none" does not (Dr.
    GRPO)."""
    last_image_weight: LastImageWeight = "T-K+1"
    """Weight of the K-th and last image's score in the reward of an episode of at most T images;
    the paper states both."""
    judging_weight: float = Field(default=1.0, ge=0)
    """Weight of what verdicts earn (the comprehension reward). 0: verdicts are sampled and teach
    nothing, the KL holds them where they are, and they are not checked for collapse."""
    balance_verdicts: bool = False
    """Verdicts on right images weigh as much in a step as those on wrong images
    (``advantages.verdict_balance``)."""
    progress_weight: float = Field(default=0.0, ge=0)
    """A redraw earns, beside its S, so many times what it is above the image before."""
    regress_weight: float = Field(default=0.0, ge=0)
    """It loses so many times what it is below."""
    premature_yes_cost: float = Field(default=0.0, ge=0)
    """What a Yes to a wrong image costs, beside what the verdict earns."""
    reason_weight: float = Field(default=0.0, ge=0)
    """Reasons of a No to a wrong image are credited by their own truth, so many times, and no
    longer by their verdict; needs a reward that checks reasons (``reason_truths``). 0: as the
    verdict."""
    drop_flat_groups: bool = False
    """Groups whose images all earn the same are left out of the update (DAPO)."""

    @property
    def shaping(self) -> RedrawReward:
        """What is added to the paper's rewards."""
        return RedrawReward(self.progress_weight, self.regress_weight, self.premature_yes_cost)


@dataclass(config=CHECKED)
class LossConfig:
    """``[loss]``: the clipped surrogate with the KL to the reference."""

    clip_range: float = Field(default=0.2, ge=0)
    """The ratio of new to old probability is clipped to 1 - clip_range … 1 + clip_range."""
    clip_range_high: float | None = Field(default=None, ge=0)
    """The upper side's own clip range (DAPO); default: clip_range."""
    beta: float = Field(default=0.05, ge=0)
    """Weight of the KL to the reference."""
    importance_cap: float = Field(default=2.0, ge=0)
    """A token counts min(exp(scored - recorded), this) times in the surrogate, because the sampler
    rounds otherwise than the policy that is trained (``losses.importance_weights``); 0: once."""
    reduction: Reduction = "token"
    """"token": every token of an update weighs the same; "turn": every turn does; "constant": as
    "token", over a denominator that does not depend on lengths (Dr. GRPO)."""


@dataclass(config=CHECKED)
class PPOConfig:
    """``[ppo]``: the critic of ``algorithm = "ppo"``; other algorithms do not read it."""

    kl_in: Literal["loss", "reward"] = "loss"
    """"loss": the k3 estimator of the KL, as in GRPO. "reward": log pi - log reference is taken off
    each token's reward."""
    gamma: float = Field(default=1.0, ge=0, le=1)
    """Discount from token to token."""
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """Lambda of generalised advantage estimation."""
    value_lr: float = Field(default=1e-3, ge=0)
    """Learning rate of the value head."""
    value_clip: float = Field(default=0.2, ge=0)
    """Clip range of the value loss."""
    value_epochs: int = Field(default=8, ge=1)
    """Passes of the value head over a step's turns."""
    value_warmup_steps: int = Field(default=5, ge=0)
    """Steps in which the value head learns and the policy does not move yet: it would follow values
    that tell nothing."""


@dataclass(config=CHECKED)
class RLOptimConfig(OptimConfig):
    """``[optim]``: how a step's turns become updates."""

    lr: float = Field(default=6e-6, ge=0)
    """Learning rate after the warm-up."""
    warmup_steps: int = Field(default=10, ge=0)
    """Steps over which the rate rises linearly from 0."""
    convert_lr: float = Field(default=2e-6, ge=0)
    """Rate at ``convert_step``, to which it falls linearly (table 5 of the paper)."""
    convert_step: int = Field(default=0, ge=0)
    """Step from which the rate falls by a cosine, from convert_lr; 0: from the warm-up's end, from
    lr."""
    minibatches: int = Field(default=2, ge=1)
    """Updates of each pass over a step's turns."""
    epochs: int = Field(default=2, ge=1)
    """Passes over a step's turns."""


@dataclass(config=CHECKED)
class RLRuntimeConfig(RuntimeConfig):
    """``[runtime]``: where and how the job runs."""

    reference: Literal["copy", "offload"] = "copy"
    """Where the frozen reference lies: on the device, or in the CPU's memory while it is not asked.
    With adapters it is the same model without them, and lies nowhere."""
    log_every: int = Field(default=5, ge=1)
    """Steps whose metrics are averaged into one row."""
    save_every: int = Field(default=25, ge=1)
    """Steps between two states from which the run can be resumed."""
    picture_every: int = Field(default=50, ge=1)
    """Steps between two pages with the best and worst episodes."""


@dataclass(config=CHECKED)
class RewardChecksConfig:
    """``[reward_checks]``: what stops a run that has nothing to learn from."""

    min_separation: float = Field(default=1.0, ge=0, le=1)
    """Share of the pairs of a known-good and a known-bad picture that the reward must tell apart
    before the run; a learned judge is not perfect."""
    max_missing: float = Field(default=0.2, ge=0, le=1)
    """Largest share of a step's scores that may be missing."""
    max_flat_steps: int = Field(default=5, ge=1)
    """So many steps in a row without variance in any group stop the run."""
    single_verdict_share: float = Field(default=0.99, ge=0)
    """A step has a single verdict where so large a share of its verdicts are the same, and 5 % or
    more of them are wrong."""
    max_single_verdict_steps: int = Field(default=50, ge=1)
    """So many steps in a row with a single verdict stop the run: a judge that has drifted may come
    back while drawings are still taught."""
    max_logprob_diff_mean: float | None = Field(default=None, ge=0)
    """Largest mean of |scored - recorded| log-probability before the first update, of tokens of any
    kind; above, the sampler is not the policy and the run stops. Of tokens without guidance: with
    guidance 5 rounding is 6.4 times larger, and so is what is allowed. Default:
    ``logprob_agreement.LIMITS``, which says why."""
    max_logprob_diff_p99: float | None = Field(default=None, ge=0)
    """Largest 99 % quantile of the same differences; default as there."""


@dataclass(config=CHECKED)
class RecoveryConfig:
    """``[auto_recovery]``: what is done when the reward falls (``recovery``). The reward is the
    mean score of a step's final images, averaged over ``window`` steps."""

    window: int = Field(default=10, ge=1)
    """Steps of the moving average."""
    drop: float = Field(default=0.1, gt=0, lt=1)
    """So far below the best average is a sharp drop: the rate is cut, and the run goes back."""
    lr_cut: float = Field(default=0.6, gt=0, lt=1)
    """Factor of the rate at each sharp drop."""
    decline: float = Field(default=0.03, gt=0, lt=1)
    """So far below the best average is a decline."""
    patience: int = Field(default=50, ge=1)
    """Steps in a row in a decline after which ``on_decline`` is done."""
    on_decline: Literal["lower_beta", "move_reference"] = "lower_beta"
    """Lower the KL's weight, or let the reference become the current policy."""
    beta_cut: float = Field(default=0.5, gt=0, lt=1)
    """Factor of the KL's weight at each decline."""
    max_actions: int = Field(default=5, ge=1)
    """More actions than these stop the run."""


@dataclass(config=CHECKED)
class RLConfig:
    """``train rl``. When a run is resumed, ``steps`` and all of ``[runtime]`` may be changed."""

    model: str
    """The checkpoint to start from; frozen, it is the KL reference too."""
    algorithm: str = "grpo"
    """"grpo", "ppo", or a name registered by ``@register_algorithm`` (``train.rl.algorithms``)."""
    algorithm_options: dict[str, Any] = field(default_factory=dict)
    """Settings of a registered algorithm of one's own, checked by its ``config_class``."""
    prompts: str = "mini"
    """A text file with one prompt a line, a JSONL file of prompts and of instructions with sources
    (``data.prompts``), or a registered name (``mini``)."""
    prompt_options: dict[str, Any] = field(default_factory=dict)
    """Settings of a registered prompt source; of ``mini``: ``kinds`` and ``reordered``."""
    sanity_pairs: str | None = None
    """A JSONL file of known-good and known-bad pictures (``data.sanity_pairs``), or a registered
    name (``mini``), on which the reward is checked before the run; "": none. Default: those
    registered under the name of ``prompts``, and for a file of prompts none."""
    rewards: list[RewardConfig] = field(default_factory=list)
    """Who scores the images, a weighted mean when several; default: the reward registered under the
    name of ``prompts``."""
    steps: int = Field(default=200, ge=1)
    """Steps of the run; each draws episodes and learns from them."""
    seed: int = Field(default=0, ge=0)
    """Seed of prompts, episodes and minibatches."""
    lora_rank: int = Field(default=0, ge=0)
    """Train adapters of this rank (``train.lora``) instead of the weights; 0: the weights."""
    lora_alpha: int = Field(default=0, ge=0)
    """Scale of the adapters, divided by their rank; 0: twice the rank."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    optim: RLOptimConfig = field(default_factory=RLOptimConfig)
    runtime: RLRuntimeConfig = field(default_factory=RLRuntimeConfig)
    reward_checks: RewardChecksConfig = field(default_factory=RewardChecksConfig)
    auto_recovery: RecoveryConfig | None = None
    """Acts on falling rewards; default: nothing does."""

    RENAMED: ClassVar[dict[str, str]] = {
        "canaries": "sanity_pairs",
        "judges": "rewards",
        "kinds": "prompt_options.kinds",
        "lora": "lora_rank",
        "prompts_per_step": "rollout.prompts_per_step",
        "group": "rollout.group_size",
        "rounds": "rollout.rounds",
        "at_once": "rollout.rollout_batch_size",
        "temperature": "rollout.temperature",
        "guidance": "rollout.guidance",
        "edit_guidance": "rollout.edit_guidance",
        "form": "advantage.credit",
        "scale": "advantage.scale_rewards",
        "last_image_weight": "advantage.last_image_weight",
        "judging_weight": "advantage.judging_weight",
        "balanced": "advantage.balance_verdicts",
        "drop_flat_groups": "advantage.drop_flat_groups",
        "clip_range": "loss.clip_range",
        "clip_high": "loss.clip_range_high",
        "beta": "loss.beta",
        "importance_cap": "loss.importance_cap",
        "reduction": "loss.reduction",
        "kl_in": "ppo.kl_in",
        "gamma": "ppo.gamma",
        "lam": "ppo.gae_lambda",
        "value_lr": "ppo.value_lr",
        "value_clip": "ppo.value_clip",
        "value_epochs": "ppo.value_epochs",
        "value_warmup": "ppo.value_warmup_steps",
        "lr": "optim.lr",
        "convert_lr": "optim.convert_lr",
        "convert_step": "optim.convert_step",
        "min_lr": "optim.min_lr",
        "warmup": "optim.warmup_steps",
        "weight_decay": "optim.weight_decay",
        "clip": "optim.max_grad_norm",
        "minibatches": "optim.minibatches",
        "epochs": "optim.epochs",
        "micro": "runtime.micro_batch_size",
        "reference": "runtime.reference",
        "threads": "runtime.threads",
        "device": "runtime.device",
        "dtype": "runtime.dtype",
        "shard": "runtime.dp_shard_degree",
        "checkpointing": "runtime.activation_checkpointing",
        "log_every": "runtime.log_every",
        "save_every": "runtime.save_every",
        "picture_every": "runtime.picture_every",
        "least_separation": "reward_checks.min_separation",
        "most_missing": "reward_checks.max_missing",
        "one_verdict": "reward_checks.single_verdict_share",
        "patience": "reward_checks.max_flat_steps",
        "verdict_patience": "reward_checks.max_single_verdict_steps",
        "most_mean_gap": "reward_checks.max_logprob_diff_mean",
        "most_high_gap": "reward_checks.max_logprob_diff_p99",
        "nurse": "auto_recovery",
    }
    """Settings that had these names before there were sections; they are refused, and the message
    says where they are now."""

    def __post_init__(self) -> None:
        if self.ppo.kl_in == "reward" and self.algorithm != "ppo":
            raise InputError(
                "config: ppo.kl_in is 'reward', but only algorithm = \"ppo\" has a reward for each "
                "token; use 'loss'"
            )
        if self.rollout.repair_groups and self.rollout.rounds < 2:
            raise InputError(
                f"config: rollout.repair_groups is {self.rollout.repair_groups}, but no image is "
                "drawn again with rollout.rounds = 1; give at least 2 rounds"
            )
        if self.advantage.reason_weight and not self.advantage.judging_weight:
            raise InputError(
                f"config: advantage.reason_weight is {self.advantage.reason_weight}, but verdicts "
                "teach nothing with advantage.judging_weight = 0; use 0 for both"
            )
        check_prompt_options(self.prompts, self.prompt_options)
