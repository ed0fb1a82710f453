"""What ``train rl`` may be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from secondlook.data.prompts import check_prompt_options
from secondlook.errors import InputError
from secondlook.rewards.config import RewardConfig
from secondlook.train.activation_checkpointing import Checkpointing
from secondlook.train.rl.advantages import Form, Scale, Weight
from secondlook.train.rl.minibatch import Reduction
from secondlook.train.rl.recovery import RecoveryConfig
from secondlook.train.sharding import Dtype


@dataclass
class RLConfig:
    """``train rl``; ``steps`` may be changed when a run is resumed."""

    model: str
    """The checkpoint to start from; frozen, it is the KL reference too."""
    algorithm: Literal["grpo", "ppo"] = "grpo"
    prompts: str = "mini"
    """A text file with one prompt a line, a JSONL file of prompts and of instructions with sources
    (``data.prompts``), or a registered name (``mini``)."""
    prompt_options: dict[str, Any] = field(default_factory=dict)
    """Settings of a registered prompt source; of ``mini``: ``kinds``."""
    sanity_pairs: str = ""
    """A JSONL file of known-good and known-bad pictures (``data.sanity_pairs``), or a registered
    name, on which the reward is checked before the run; empty: those registered under the name of
    ``prompts``, and for a file of prompts none."""
    least_separation: float = 1.0
    """Share of the pairs of a good picture and a bad one that the reward must tell apart; a learned
    judge is not perfect."""
    rewards: list[RewardConfig] = field(default_factory=list)
    """Who scores the images, a weighted mean when several; default: the reward registered under the
    name of ``prompts``."""
    steps: int = 200
    prompts_per_step: int = 8
    group: int = 8
    """Episodes a prompt."""
    rounds: int = 3
    """Most images an episode (T)."""
    at_once: int = 0
    """Episodes that a rank decodes together, for memory's sake; 0: all of its own."""
    form: Form = "episode"
    """Advantages of the paper (one an episode), of the public code (one for each kind of turn), or
    "expected": as the public code's, but verdicts compared with what the policy expects to earn on
    the same image. PPO: whether a turn ends with the episode's reward, or (both others) with its
    own."""
    judging_weight: float = 1.0
    """Of what verdicts earn, the comprehension reward; 0: verdicts are sampled and teach nothing
    (the KL holds them where they are), and ``guard`` does not look at them."""
    balanced: bool = False
    """Verdicts on right and on wrong images weigh the same in a step
    (``train.advantage.balanced``)."""
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
    value_epochs: int = 8
    value_warmup: int = 5
    """These six: PPO's discount, GAE's lambda, and of the value head the rate, the clip range, the
    passes over a step's turns, and the steps before the policy moves (else it follows values that
    tell nothing yet)."""
    lora: int = 0
    """Train adapters of this rank (``train.lora``) instead of the weights; 0: the weights."""
    lora_alpha: int = 0
    """0: twice the rank."""
    reference: Literal["copy", "offload"] = "copy"
    """Where the frozen reference lies: on the device, or in the CPU's memory while it is not asked.
    With adapters it is the same model without them."""
    guidance: float | None = None
    edit_guidance: float | None = None
    """These two: default: the checkpoint's own."""
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
    nurse: RecoveryConfig | None = None
    """Acts on falling rewards; default: none."""
    one_verdict: float = 0.99
    patience: int = 5
    verdict_patience: int = 50
    """These four: when a run that has nothing to learn from stops (``train.guard.Guard``)."""
    most_mean_gap: float | None = None
    most_high_gap: float | None = None
    """These two: largest mean and 99 % quantile of |scored - recorded| log-probability before the
    first update, of the tokens of each kind and over all ranks; above, the sampler is not the
    policy and the run is refused. Of tokens without guidance: with guidance 5 rounding is 6.4 times
    larger, and so is what is allowed. Default: ``train.agreement.LIMITS``, which says why."""
    importance_cap: float = 2.0
    """Tokens count min(exp(scored - recorded), this) times in the policy's loss, as the sampler
    rounds otherwise than the policy that is trained (``train.loss.importance_weights``); 0: they
    all count once."""
    seed: int = 0
    threads: int = 2
    device: str = "auto"
    dtype: Dtype = "float32"
    """What is computed in; with bfloat16, weights and optimizer stay in float32."""
    shard: int = 0
    """Ranks that share one copy of the weights; 0: all. The GPUs of a node: gathering stays inside
    nodes (HSDP)."""
    log_every: int = 5
    checkpointing: Checkpointing = "none"
    """Activations that are computed again for the gradient (``train.memory``)."""
    save_every: int = 25
    picture_every: int = 50
    """Steps between pages with the best and worst episodes."""

    def __post_init__(self) -> None:
        positive: tuple[str, ...] = (
            "steps",
            "group",
            "prompts_per_step",
            "rounds",
            "minibatches",
            "epochs",
            "micro",
        )
        positive += (
            "value_epochs",
            "save_every",
            "log_every",
            "picture_every",
            "patience",
            "verdict_patience",
        )
        for name in (*positive, "at_once", "lora", "lora_alpha", "shard", "value_warmup", "warmup"):
            least = 2 if name == "group" else int(name in positive)
            if getattr(self, name) < least:
                raise InputError(
                    f"config: {name} is {getattr(self, name)}; it must be at least {least}"
                )
        for name in ("judging_weight", "importance_cap", "most_mean_gap", "most_high_gap"):
            if (getattr(self, name) or 0) < 0:
                raise InputError(
                    f"config: {name} is {getattr(self, name)}; it must not be negative"
                )
        if self.kl_in == "reward" and self.algorithm != "ppo":
            raise InputError(
                "config: kl_in is 'reward'; only ppo has a reward for each token, use 'loss'"
            )
        check_prompt_options(self.prompts, self.prompt_options)
