"""What both stages share: what is trained, the optimizer of the paper's table 5, its schedules, the
running average."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from secondlook.errors import InputError
from secondlook.models.janus.model import Janus
from secondlook.train.lora import Adapters
from secondlook.train.muon import Optimizer


def freeze(
    janus: Janus, lora: int = 0, alpha: int = 0, seed: int = 0, base: str = ""
) -> Adapters | None:
    """Freeze the image tokenizer and the seeing encoder; with ``lora`` everything but new adapters
    of that rank, which are returned. ``base`` is the model's name."""
    for module in (janus.net.model.vqmodel, janus.net.model.vision_model):
        module.requires_grad_(False)
    return Adapters(janus, lora, alpha, seed, base) if lora else None


def trainable(janus: Janus) -> nn.ParameterDict:
    """What is trained, as a part of a run's state."""
    return nn.ParameterDict(
        {n.replace(".", "/"): p for n, p in janus.net.named_parameters() if p.requires_grad}
    )


@dataclass
class Schedule:
    """Learning rates: linear warm-up to ``peak``; then, where ``convert_step`` is set, linear down
    to ``convert`` at that step; then cosine to ``low`` at ``steps`` (arXiv 2506.01480, table 5)."""

    steps: int
    peak: float
    low: float
    warmup: int = 0
    convert: float = 0.0
    convert_step: int = 0

    def __post_init__(self) -> None:
        if self.convert_step and not self.warmup <= self.convert_step < self.steps:
            raise InputError(
                f"config: convert_step is {self.convert_step}; "
                f"it must lie between warmup ({self.warmup}) and steps ({self.steps})"
            )

    def at(self, step: int) -> float:
        """The learning rate of update ``step``, counted from 0."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        high, start = self.peak, self.warmup
        if self.convert_step:
            if step < self.convert_step:
                done = (step - self.warmup) / max(1, self.convert_step - self.warmup)
                return self.peak + (self.convert - self.peak) * done
            high, start = self.convert, self.convert_step
        done = min(1.0, (step - start) / max(1, self.steps - start))
        return self.low + (high - self.low) * 0.5 * (1 + math.cos(math.pi * done))


def hidden_modules(net: nn.Module) -> list[nn.Module]:
    """The modules whose matrices Muon may train: everything between the embeddings and the last
    layers."""
    model: Any = net.model
    return [
        model.language_model.layers,
        model.aligner,
        model.generation_aligner,
        model.generation_head.proj_out,
    ]


class Update:
    """AdamW with gradient clipping; ``muon`` above 0 trains the hidden matrices by Muon, at so many
    times AdamW's rate. A step whose gradient is not finite is not taken."""

    def __init__(
        self, net: nn.Module, weight_decay: float = 0.05, clip: float = 1.0, muon: float = 0.0
    ):
        self.parameters, self.clip = [p for p in net.parameters() if p.requires_grad], clip
        self.optimizer = Optimizer(
            net, hidden_modules(net) if muon else [], muon, 1.0, weight_decay, eps=1e-6
        )

    def step(self, lr: float) -> dict[str, float]:
        """One step at ``lr``, then gradients are cleared. Returns the gradient's norm before
        clipping and whether it was refused."""
        total = torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        norm = float(total.full_tensor() if isinstance(total, DTensor) else total)
        if math.isfinite(norm):
            self.optimizer.step(lr)
        for p in self.parameters:
            p.grad = None
        return {
            "grad_norm": norm if math.isfinite(norm) else 0.0,
            "refused_steps": float(not math.isfinite(norm)),
        }

    def state_dict(self) -> dict:
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self.optimizer.load_state_dict(state)


class Average:
    """Exponential moving average of the trainable weights; these are what is evaluated and
    shipped."""

    def __init__(self, net: nn.Module, decay: float):
        self.decay = decay
        self.live = {n: p for n, p in net.named_parameters() if p.requires_grad}
        self.mean = {n: p.detach().clone() for n, p in self.live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (step + 1) / (step + 10))
        for name, p in self.live.items():
            self.mean[name].lerp_(p, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange live and averaged weights (call again to undo)."""
        for name, p in self.live.items():
            kept = p.clone()
            p.copy_(self.mean[name])
            self.mean[name].copy_(kept)

    def state_dict(self) -> dict[str, Tensor]:
        return self.mean

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, value in state.items():
            self.mean[name].copy_(value)
