"""The settings of ``train sft``, by section of the TOML file."""

from __future__ import annotations

from dataclasses import field
from typing import ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from secondlook.data.image_index import BAD
from secondlook.data.sft_dataset import GOOD_EDIT, GOOD_TO_DRAW, GOOD_TO_JUDGE
from secondlook.errors import InputError
from secondlook.train.job_config import CHECKED, OptimConfig, RuntimeConfig


@dataclass(config=CHECKED)
class SFTOptimConfig(OptimConfig):
    """``[optim]``: AdamW as in the paper's table 5, or Muon for the hidden matrices."""

    muon_lr_ratio: float = Field(default=0.0, ge=0)
    """Train the hidden matrices by Muon, at so many times ``lr``; 0: AdamW for everything, as the
    paper."""


@dataclass(config=CHECKED)
class SFTRuntimeConfig(RuntimeConfig):
    """``[runtime]``: where and how the job runs."""

    dataloader_workers: int = Field(default=0, ge=0)
    """Processes of each rank that read the coming steps' pictures while one is trained on; 0: they
    are read in between."""


@dataclass(config=CHECKED)
class SFTConfig:
    """``train sft``. When a run is resumed, ``steps`` and all of ``[runtime]`` may be changed."""

    model: str
    """The checkpoint to start from."""
    data: str | list[str]
    """A folder that ``data build`` wrote, or a JSONL file in the layout of the paper's published
    data (``data.sft_dataset.Pool``); or several."""
    data_weights: list[float] = field(default_factory=list)
    """How often each of several places of ``data`` is drawn from; empty: every prompt as often as
    any other."""
    steps: int = Field(default=1500, ge=1)
    """Updates of the run."""
    seed: int = Field(default=0, ge=0)
    """Seed of everything that is drawn: examples, dropped prompts, adapters."""
    batch_size: int = Field(default=48, ge=1)
    """Examples a step, of all ranks, divided among the tasks by ``mix``."""
    mix: tuple[float, float, float] = (0.2, 0.3, 0.5)
    """How often an example is of text-to-image, self-evaluation and regeneration."""
    good_to_draw: float = Field(default=GOOD_TO_DRAW, ge=BAD, le=1)
    """Score from which on a picture is learned to be drawn."""
    good_to_judge: float = Field(default=GOOD_TO_JUDGE, ge=BAD, le=1)
    """Score from which on a picture is learned to be judged Yes."""
    good_edit: float = GOOD_EDIT
    """Following and preserving from which on an edit is learned."""
    judge_context: int = Field(default=3, ge=1)
    """Most pictures in a self-evaluation, the judged one included."""
    redraw_context: int = Field(default=2, ge=1)
    """Most wrong pictures before a regeneration."""
    redraw_sees: Literal["chain", "last", "edit"] | None = None
    """What stands before a regeneration and the verdict on it: the whole chain of wrong pictures
    and verdicts (the paper), the last ones alone, or the last picture as the source of an edit with
    the reason as its instruction. Recorded with the checkpoint; default: as the model has it."""
    judge_rereads: bool | None = None
    """Whether the prompt stands once more behind the image that is judged (``Janus.judge_rereads``;
    the paper: it does not). Recorded with the checkpoint; default: as the model has it."""
    prompt_dropout: float = Field(default=0.1, ge=0, le=1)
    """How often a drawing goes without its prompt, for classifier-free guidance."""
    verdict_weight: float = Field(default=0.8, ge=0, le=1)
    """Weight of the verdict in a self-evaluation's loss; the reason has the rest."""
    ema_decay: float = Field(default=0.99, ge=0, lt=1)
    """Decay of the running average of the weights, which is what is saved."""
    lora_rank: int = Field(default=0, ge=0)
    """Train adapters of this rank (``train.lora``) instead of the weights; 0: the weights."""
    lora_alpha: int = Field(default=0, ge=0)
    """Scale of the adapters, divided by their rank; 0: twice the rank."""
    optim: SFTOptimConfig = field(default_factory=SFTOptimConfig)
    runtime: SFTRuntimeConfig = field(default_factory=SFTRuntimeConfig)

    RENAMED: ClassVar[dict[str, str]] = {
        "shares": "data_weights",
        "batch": "batch_size",
        "drop_prompt": "prompt_dropout",
        "ema": "ema_decay",
        "lora": "lora_rank",
        "lr": "optim.lr",
        "min_lr": "optim.min_lr",
        "warmup": "optim.warmup_steps",
        "weight_decay": "optim.weight_decay",
        "clip": "optim.max_grad_norm",
        "muon": "optim.muon_lr_ratio",
        "device": "runtime.device",
        "dtype": "runtime.dtype",
        "threads": "runtime.threads",
        "workers": "runtime.dataloader_workers",
        "micro": "runtime.micro_batch_size",
        "shard": "runtime.dp_shard_degree",
        "checkpointing": "runtime.activation_checkpointing",
        "log_every": "runtime.log_every",
        "save_every": "runtime.save_every",
    }
    """Settings that had these names before there were sections; they are refused, and the message
    says where they are now."""

    def __post_init__(self) -> None:
        if self.optim.muon_lr_ratio and self.lora_rank:
            raise InputError(
                f"config: optim.muon_lr_ratio is {self.optim.muon_lr_ratio}; adapters (lora_rank) "
                "are trained by AdamW, use 0"
            )
        if min(self.mix) < 0 or not sum(self.mix):
            raise InputError(
                f"config: mix is {self.mix}; give three shares that are not negative and not all 0"
            )
