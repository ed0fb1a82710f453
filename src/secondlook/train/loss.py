"""Losses as pure functions of log-probabilities, summed and divided by an explicit, global denominator.

So accumulation over micro-batches equals one large batch: each call gets the denominator of the whole update.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PolicyLoss:
    """One micro-batch's share of an update."""

    loss: Tensor
    """Scalar, differentiable."""
    clipped: Tensor
    """Tokens on whose clipped branch the gradient is zero."""
    kl: Tensor
    """Sum of k3 over tokens."""
    gap: Tensor
    """Largest |log-probability - behaviour log-probability|."""


def kl_k3(logp: Tensor, reference: Tensor) -> Tensor:
    """The k3 estimator of KL(policy || reference) per token: exp(ref - new) - (ref - new) - 1, never negative."""
    difference = reference - logp
    return difference.exp() - difference - 1


def policy_loss(
    logp: Tensor,
    behaviour: Tensor,
    reference: Tensor,
    advantage: Tensor,
    weight: Tensor,
    denominator: float,
    clip: float = 0.2,
    beta: float = 0.05,
) -> PolicyLoss:
    """Clipped surrogate with k3-KL (arXiv 2506.01480, equation of the RL stage), per token, all arguments (N,).

    ``behaviour`` are the log-probabilities that the engine recorded when it sampled; ``weight`` is the token's weight
    (0 masks it: padding, a missing reward), and the sum of weights over the whole update is ``denominator``.
    """
    ratio = (logp - behaviour).exp()
    limited = ratio.clamp(1 - clip, 1 + clip)
    surrogate = torch.minimum(ratio * advantage, limited * advantage)
    kl = kl_k3(logp, reference)
    loss = (weight * (beta * kl - surrogate)).sum() / denominator
    with torch.no_grad():
        clipped = ((limited * advantage < ratio * advantage) & (weight > 0)).sum()
        gap = (logp - behaviour).abs()[weight > 0].max() if bool((weight > 0).any()) else logp.new_zeros(())
    return PolicyLoss(loss, clipped, (weight * kl).sum().detach(), gap)
