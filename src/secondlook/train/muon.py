"""Muon for matrices, AdamW for the rest.

torch.optim.Muon orthogonalises in bfloat16, which a CPU multiplies some seventy times slower than
float32, and takes no convolutions; this one works in the parameters' own precision. Source: Jordan
et al. 2024, https://kellerjordan.github.io/posts/muon/.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def orthogonalize(matrix: Tensor, rounds: int = 5) -> Tensor:
    """Newton-Schulz iteration towards the nearest semi-orthogonal matrix of (m, n)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix / (matrix.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(rounds):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


def whole_matrix(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``function`` of x as a matrix (out, rest), in x's shape; a tensor of which every rank holds a
    part is put together for it."""
    if not isinstance(x, DTensor):
        return function(x.flatten(1)).view_as(x)
    whole = x.full_tensor()
    found = function(whole.flatten(1)).view_as(whole)
    return distribute_tensor(found, x.device_mesh, x.placements, src_data_rank=None)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum whose update is orthogonalised; parameters of more than two axes are
    flattened to (out, rest)."""

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(p)
                buffer = state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                update = whole_matrix(orthogonalize, p.grad.lerp(buffer, group["momentum"]))
                scale = max(1.0, p.shape[0] / p.shape[1:].numel()) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * scale)


class Optimizer:
    """Muon on the matrices (and convolutions) of ``hidden`` modules (of none: AdamW alone), AdamW
    on every other trainable parameter."""

    def __init__(
        self,
        module: nn.Module,
        hidden: list[nn.Module],
        muon_lr: float,
        adam_lr: float,
        weight_decay: float = 0.0,
        eps: float = 1e-8,
    ):
        matrices = {
            id(p) for m in hidden for p in m.parameters() if p.ndim >= 2 and p.requires_grad
        }
        trainable = [p for p in module.parameters() if p.requires_grad]
        rest = [p for p in trainable if id(p) not in matrices]
        self.parts: dict[str, torch.optim.Optimizer] = {
            "adam": torch.optim.AdamW(
                rest, adam_lr, betas=(0.9, 0.95), eps=eps, weight_decay=weight_decay
            )
        }
        if matrices:
            self.parts["muon"] = Muon(
                [p for p in trainable if id(p) in matrices], muon_lr, weight_decay=weight_decay
            )
        self.lrs = {"muon": muon_lr, "adam": adam_lr}
        self.names = {p: name for name, p in module.named_parameters() if p.requires_grad}

    def step(self, factor: float) -> None:
        """One update with both learning rates times ``factor``, then gradients are cleared."""
        for name, optimizer in self.parts.items():
            for group in optimizer.param_groups:
                group["lr"] = self.lrs[name] * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """What each parameter's updates have left behind, by the parameter's name."""
        found: dict[str, dict[str, Tensor]] = {}
        for optimizer in self.parts.values():
            found |= named_state(optimizer, self.names)
        return found

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        for optimizer in self.parts.values():
            load_named_state(optimizer, self.names, state)


def named_state(
    optimizer: torch.optim.Optimizer, names: dict[nn.Parameter, str]
) -> dict[str, dict[str, Tensor]]:
    """An optimizer's state by its parameters' names; of a parameter that had no update yet, what
    its first one would begin with, so that a checkpoint's tensors find their places."""
    found = {}
    for p in (p for group in optimizer.param_groups for p in group["params"]):
        if isinstance(optimizer, Muon):
            start: dict[str, Tensor] = {"momentum": torch.zeros_like(p)}
        else:
            start = {
                "step": torch.tensor(0.0),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.zeros_like(p),
            }
        found[names[p]] = dict(optimizer.state.get(p) or start)
    return found


def load_named_state(
    optimizer: torch.optim.Optimizer,
    names: dict[nn.Parameter, str],
    state: dict[str, dict[str, Tensor]],
) -> None:
    """Take over ``named_state``."""
    for p in (p for group in optimizer.param_groups for p in group["params"]):
        optimizer.state[p] = dict(state[names[p]])
