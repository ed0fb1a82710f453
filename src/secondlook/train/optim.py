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
    if not lora_rank:
        return None
    return Adapters(janus, lora_rank, lora_alpha, seed, base)


def trainable(janus: Janus) -> nn.ParameterDict:
    """What is trained, as a part of a run's state."""
    parameters = {}
    for name, parameter in janus.net.named_parameters():
        if parameter.requires_grad:
            parameters[name.replace(".", "/")] = parameter  # torch allows no dots in its keys
    return nn.ParameterDict(parameters)


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
        self.max_grad_norm = max_grad_norm
        self.names: dict[nn.Parameter, str] = {}
        """Of each trained parameter, in the module's order."""
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                self.names[parameter] = name
        self.parameters = list(self.names)
        muon_ids = _ids_of_matrices(muon_modules)
        matrices = [p for p in self.parameters if id(p) in muon_ids]
        others = [p for p in self.parameters if id(p) not in muon_ids]
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
            grad_norm = self._clip()
            is_finite = math.isfinite(grad_norm)
            metrics["grad_norm"] = grad_norm if is_finite else 0.0  # NaN would spoil the average
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
        grad_norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        if isinstance(grad_norm, DTensor):  # of sharded gradients: summed over ranks only here
            grad_norm = grad_norm.full_tensor()
        return float(grad_norm)

    def clear_gradients(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """What each parameter's updates have left behind, by the parameter's name. Of a parameter
        that had no update yet: what its first one would begin with, so that a checkpoint's tensors
        find their places."""
        state: dict[str, dict[str, Tensor]] = {}
        for optimizer, _ in self.optimizers:
            for parameter in _parameters(optimizer):
                parameter_state = optimizer.state.get(parameter)
                if not parameter_state:
                    parameter_state = _initial_state(optimizer, parameter)
                state[self.names[parameter]] = dict(parameter_state)
        return state

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        for optimizer, _ in self.optimizers:
            for parameter in _parameters(optimizer):
                optimizer.state[parameter] = dict(state[self.names[parameter]])


def _ids_of_matrices(modules: Sequence[nn.Module]) -> set[int]:
    """Which parameters (by ``id``) of some modules are matrices or convolutions."""
    matrix_ids = set()
    for module in modules:
        for parameter in module.parameters():
            if parameter.ndim >= 2:
                matrix_ids.add(id(parameter))
    return matrix_ids


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    parameters: list[nn.Parameter] = []
    for group in optimizer.param_groups:
        parameters += group["params"]
    return parameters


def _initial_state(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """An optimizer's state of a parameter before its first update."""
    if isinstance(optimizer, Muon):
        return {"momentum": torch.zeros_like(parameter)}
    # AdamW's, by the names that torch gives them
    return {
        "step": torch.tensor(0.0),
        "exp_avg": torch.zeros_like(parameter),
        "exp_avg_sq": torch.zeros_like(parameter),
    }


class WeightAverage:
    """Exponential moving average of the trainable weights; these are what is evaluated and
    shipped."""

    def __init__(self, net: nn.Module, decay: float):
        self.decay = decay
        self.live: dict[str, nn.Parameter] = {}
        """The weights that are trained, by name."""
        self.mean: dict[str, Tensor] = {}
        """Their averages; while ``applied``, the trained weights."""
        for name, parameter in net.named_parameters():
            if parameter.requires_grad:
                self.live[name] = parameter
                self.mean[name] = parameter.detach().clone()

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After update ``step``, counted from 0. The first ones count more, so that the average
        leaves the weights that it began with."""
        decay = min(self.decay, (step + 1) / (step + 10))
        for name, parameter in self.live.items():
            self.mean[name].lerp_(parameter, 1 - decay)

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
        for name, parameter in self.live.items():
            live_weight = parameter.clone()
            parameter.copy_(self.mean[name])
            self.mean[name].copy_(live_weight)

    def state_dict(self) -> dict[str, Tensor]:
        return self.mean

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, average in state.items():
            self.mean[name].copy_(average)
