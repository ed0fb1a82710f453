"""Settings that training jobs share, as sections of a job's TOML file.

A job's own dataclass has ``steps`` and ``seed``, a section ``[optim]`` (what is learned at which
rate) and a section ``[runtime]`` (where and how it runs). When a run is resumed, ``steps`` and
everything in ``[runtime]`` may have other values; all else must be what the run was begun with.
"""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

CHECKED = ConfigDict(extra="forbid", allow_inf_nan=False)
"""How pydantic checks a job's settings: no unknown names, no infinity, no NaN."""

MAY_CHANGE = ("steps", "runtime")
"""Settings that may have other values when a run is resumed."""

Dtype = Literal["float32", "bfloat16"]
Checkpointing = Literal["none", "selective", "full"]
TrackerName = Literal["tensorboard", "wandb", "trackio"]


@dataclass(config=CHECKED)
class OptimConfig:
    """``[optim]``: AdamW (beta 0.9 and 0.95) with gradient clipping, and its schedule. A job with
    other defaults or more settings derives its own."""

    lr: float = Field(default=2e-5, ge=0)
    """Learning rate after the warm-up."""
    min_lr: float = Field(default=2e-7, ge=0)
    """Learning rate at the last step, reached by a cosine."""
    warmup_steps: int = Field(default=100, ge=0)
    """Steps over which the rate rises linearly from 0."""
    weight_decay: float = Field(default=0.05, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients of a larger norm are scaled down to this one."""


@dataclass(config=CHECKED)
class BasicRuntimeConfig:
    """``[runtime]`` of a job whose model fits everywhere (the miniature's parts)."""

    device: str = "auto"
    """auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:1, mps."""
    threads: int = Field(default=2, ge=1)
    """Threads of each process on the CPU."""
    log_every: int = Field(default=50, ge=1)
    """Steps whose metrics are averaged into one row."""
    save_every: int = Field(default=250, ge=1)
    """Steps between two states from which the run can be resumed."""
    report_to: tuple[TrackerName, ...] = ("tensorboard",)
    """Where metrics go beside ``metrics.jsonl`` (``train.trackers``)."""


@dataclass(config=CHECKED)
class RuntimeConfig(BasicRuntimeConfig):
    """``[runtime]``: where and how a job runs. What is learned does not depend on it, but for
    rounding."""

    dtype: Dtype = "float32"
    """What is computed in; with bfloat16, trained weights and optimizer stay in float32."""
    micro_batch_size: int = Field(default=64, ge=1)
    """Sequences that go through the model together; gradients are summed over micro-batches."""
    dp_shard_degree: int = Field(default=0, ge=0)
    """Ranks that share one copy of the weights (FSDP2); 0: all of them. With the GPUs of a node,
    gathering stays inside nodes (HSDP)."""
    activation_checkpointing: Checkpointing = "none"
    """Which activations are computed again for the gradient, to save memory."""
