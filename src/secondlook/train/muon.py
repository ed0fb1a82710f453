"""Muon: momentum whose update is orthogonalised, for matrices.

torch.optim.Muon orthogonalises in bfloat16, which many a CPU multiplies some seventy times slower
than float32, and takes no convolutions; this one works in the parameters' own precision, unless
its caller's autocast says otherwise. Source: Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon/.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def orthogonalize(matrix: Tensor, rounds: int = 5) -> Tensor:
    """Newton-Schulz iteration of ``matrix`` (m, n) towards the nearest semi-orthogonal matrix: each
    round maps every singular value s to a s + b s^3 + c s^5, which tends to about 1."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix / (matrix.norm() + 1e-7)  # singular values in [0, 1], as the iteration wants them
    is_tall = x.shape[0] > x.shape[1]
    x = x.T if is_tall else x  # the Gram matrix of the shorter side is the smaller one
    for _ in range(rounds):
        gram = x @ x.T  # (m, m), m <= n
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if is_tall else x


def on_full_matrix(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``function`` of x (out, …) as a matrix (out, rest), in x's shape. A sharded tensor is
    gathered for it, and the result is sharded again."""
    if not isinstance(x, DTensor):
        return function(x.flatten(1)).view_as(x)
    full_x = x.full_tensor()
    result = function(full_x.flatten(1)).view_as(full_x)
    # every rank has computed all of it, so none needs to send its result (src_data_rank)
    return distribute_tensor(result, x.device_mesh, x.placements, src_data_rank=None)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum whose update is orthogonalised; parameters of more than two axes are
    flattened to (out, rest)."""

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(p)
                mean_gradient = state["momentum"].lerp_(p.grad, 1 - momentum)
                # Nesterov: a step further in the direction of the present gradient
                update = on_full_matrix(orthogonalize, p.grad.lerp(mean_gradient, momentum))
                # a tall matrix's update is larger, so that its output moves as much
                scale = max(1.0, p.shape[0] / p.shape[1:].numel()) ** 0.5
                p.mul_(1 - lr * group["weight_decay"])
                p.add_(update, alpha=-lr * scale)
