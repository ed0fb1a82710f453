"""What is trained, the one optimizer of all jobs, and the running average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from secondlook.models.janus.model import Janus
from secondlook.train.lora import Adapters
from secondlook.train.muon import Muon


def freeze(
    janus: Janus, lora_rank: int = 0, lora_alpha: int = 0, seed: int = 0, base: str = ""
) -> Adapters | None:
    """Freeze the image tokenizer and the vision encoder; with ``lora_rank`` everything but new
    adapters of that rank, which are returned. ``base`` is the model's name."""
    for module in (janus.net.model.vqmodel, janus.net.model.vision_model):
        module.requires_grad_(False)
    return Adapters(janus, lora_rank, lora_alpha, seed, base) if lora_rank else None


def trainable(janus: Janus) -> nn.ParameterDict:
    """What is trained, as a part of a run's state."""
    return nn.ParameterDict(
        {n.replace(".", "/"): p for n, p in janus.net.named_parameters() if p.requires_grad}
    )


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


class Optimizer:
    """AdamW for every trainable parameter of ``module``; Muon instead for the matrices and
    convolutions of ``muon_modules``.

    A job whose schedule gives the rate itself leaves ``lr`` at 1 and states ``muon_lr`` as a
    multiple of it; a job whose schedule gives factors states both rates. With ``max_grad_norm``
    gradients are clipped, and a step whose gradient is not finite is not taken.
    """

    def __init__(
        self,
        module: nn.Module,
        lr: float = 1.0,
        weight_decay: float = 0.0,
        max_grad_norm: float | None = None,
        eps: float = 1e-8,
        muon_modules: Sequence[nn.Module] = (),
        muon_lr: float = 0.0,
    ):
        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        self.names = {p: name for name, p in named}
        self.parameters = [p for _, p in named]
        self.max_grad_norm = max_grad_norm
        in_muon = {id(p) for m in muon_modules for p in m.parameters() if p.ndim >= 2}
        matrices = [p for p in self.parameters if id(p) in in_muon]
        others = [p for p in self.parameters if id(p) not in in_muon]
        adamw = torch.optim.AdamW(others, lr, betas=(0.9, 0.95), eps=eps, weight_decay=weight_decay)
        self.optimizers: list[tuple[torch.optim.Optimizer, float]] = [(adamw, lr)]
        """Each with the rate that a step's factor multiplies."""
        if matrices:
            muon = Muon(matrices, muon_lr, weight_decay=weight_decay)
            self.optimizers.append((muon, muon_lr))

    def step(self, factor: float) -> dict[str, float]:
        """One update at the rates times ``factor``; then gradients are cleared. Returns, where
        gradients are clipped, their norm before that, and whether the step was refused."""
        metrics: dict[str, float] = {}
        if self.max_grad_norm is not None:
            norm = self._clip()
            is_finite = math.isfinite(norm)
            metrics["grad_norm"] = norm if is_finite else 0.0
            metrics["refused_steps"] = float(not is_finite)
        if not metrics.get("refused_steps"):
            for optimizer, lr in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = lr * factor
                optimizer.step()
        self.clear_gradients()
        return metrics

    def _clip(self) -> float:
        """Clip the gradients; returns their norm before."""
        assert self.max_grad_norm is not None
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def clear_gradients(self) -> None:
        for p in self.parameters:
            p.grad = None

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """What each parameter's updates have left behind, by the parameter's name. Of a parameter
        that had no update yet: what its first one would begin with, so that a checkpoint's tensors
        find their places."""
        state: dict[str, dict[str, Tensor]] = {}
        for optimizer, _ in self.optimizers:
            for p in _parameters(optimizer):
                state[self.names[p]] = dict(optimizer.state.get(p) or _initial(optimizer, p))
        return state

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        for optimizer, _ in self.optimizers:
            for p in _parameters(optimizer):
                optimizer.state[p] = dict(state[self.names[p]])


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _initial(optimizer: torch.optim.Optimizer, p: nn.Parameter) -> dict[str, Tensor]:
    """An optimizer's state of a parameter before its first update."""
    if isinstance(optimizer, Muon):
        return {"momentum": torch.zeros_like(p)}
    return {
        "step": torch.tensor(0.0),
        "exp_avg": torch.zeros_like(p),
        "exp_avg_sq": torch.zeros_like(p),
    }


class WeightAverage:
    """Exponential moving average of the trainable weights; these are what is evaluated and
    shipped."""

    def __init__(self, net: nn.Module, decay: float):
        self.decay = decay
        self.live = {n: p for n, p in net.named_parameters() if p.requires_grad}
        self.mean = {n: p.detach().clone() for n, p in self.live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After update ``step``, counted from 0. The first ones count more, so that the average
        leaves the weights that it began with."""
        decay = min(self.decay, (step + 1) / (step + 10))
        for name, p in self.live.items():
            self.mean[name].lerp_(p, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has its averaged weights, inside."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, p in self.live.items():
            live = p.clone()
            p.copy_(self.mean[name])
            self.mean[name].copy_(live)

    def state_dict(self) -> dict[str, Tensor]:
        return self.mean

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, value in state.items():
            self.mean[name].copy_(value)
