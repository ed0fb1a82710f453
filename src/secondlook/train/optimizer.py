"""Muon for matrices, AdamW for the rest.

torch.optim.Muon orthogonalises in bfloat16, which a CPU multiplies some seventy times slower than float32, and takes no
convolutions; this one works in the parameters' own precision. Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


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


class Muon(torch.optim.Optimizer):
    """Nesterov momentum whose update is orthogonalised; parameters of more than two axes are flattened to (out, rest)."""

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
                update = orthogonalize(p.grad.lerp(buffer, group["momentum"]).flatten(1))
                scale = max(1.0, update.shape[0] / update.shape[1]) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update.view_as(p), alpha=-group["lr"] * scale)


class Optimizer:
    """Muon on the matrices (and convolutions) of ``hidden`` modules (of none: AdamW alone), AdamW on every other trainable
    parameter."""

    def __init__(
        self,
        module: nn.Module,
        hidden: list[nn.Module],
        muon_lr: float,
        adam_lr: float,
        weight_decay: float = 0.0,
        eps: float = 1e-8,
    ):
        matrices = {id(p) for m in hidden for p in m.parameters() if p.ndim >= 2 and p.requires_grad}
        trainable = [p for p in module.parameters() if p.requires_grad]
        rest = [p for p in trainable if id(p) not in matrices]
        self.parts: dict[str, torch.optim.Optimizer] = {
            "adam": torch.optim.AdamW(rest, adam_lr, betas=(0.9, 0.95), eps=eps, weight_decay=weight_decay)
        }
        if matrices:
            self.parts["muon"] = Muon([p for p in trainable if id(p) in matrices], muon_lr, weight_decay=weight_decay)
        self.lrs = {"muon": muon_lr, "adam": adam_lr}

    def step(self, factor: float) -> None:
        """One update with both learning rates times ``factor``, then gradients are cleared."""
        for name, optimizer in self.parts.items():
            for group in optimizer.param_groups:
                group["lr"] = self.lrs[name] * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict:
        return {name: optimizer.state_dict() for name, optimizer in self.parts.items()}

    def load_state_dict(self, state: dict) -> None:
        for name, optimizer in self.parts.items():
            optimizer.load_state_dict(state[name])
