"""Losses as pure functions of log-probabilities, summed and divided by an explicit, global
denominator.

So accumulation over micro-batches equals one large batch: each call gets the denominator of the
whole update. All tensors of a call are (N,), one entry a token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PolicyLoss:
    """One micro-batch's part of an update."""

    loss: Tensor
    """Scalar, differentiable."""
    clipped: Tensor
    """Number of tokens on whose clipped branch the gradient is zero."""
    kl: Tensor
    """Weighted sum of k3 over tokens."""


def kl_k3(logp: Tensor, reference: Tensor) -> Tensor:
    """The k3 estimator of KL(policy || reference) per token (N,): exp(ref - new) - (ref - new) - 1,
    never negative."""
    log_ratio = reference - logp
    return log_ratio.exp() - log_ratio - 1


def importance_weights(old: Tensor, behaviour: Tensor, cap: float) -> Tensor:
    """min(exp(old - behaviour), cap) per token (N,): how much likelier a token was to the policy
    that is trained than to the sampler, which computes the same weights in another order and rounds
    otherwise. ``cap`` 0: no correction, 1 everywhere.

    Source: truncated importance sampling of Yao et al. 2025, "Your Efficient RL Framework Secretly
    Brings You Off-Policy RL Training" (verl and TRL have it with the cap 2); the truncation is
    IMPALA's (arXiv 1802.01561).
    """
    if not cap:
        return torch.ones_like(old)
    return (old - behaviour).exp().clamp(max=cap)


def policy_loss(
    logp: Tensor,
    old: Tensor,
    reference: Tensor,
    advantage: Tensor,
    weight: Tensor,
    denominator: float,
    clip_range: float = 0.2,
    beta: float = 0.05,
    clip_range_high: float | None = None,
    importance: Tensor | None = None,
) -> PolicyLoss:
    """Clipped surrogate with k3-KL (arXiv 2506.01480, equation of the RL stage), per token (N,).

    The ratio is clipped to [1 - clip_range, 1 + clip_range_high]; without the latter both sides are
    ``clip_range`` (DAPO, arXiv 2503.14476, leaves more room above, so that rare tokens can become
    likelier). ``old`` are the log-probabilities that the policy scored before its first update;
    ``importance`` (default: 1) weighs the surrogate for what the sampler had in their stead, and
    has no gradient. ``weight`` is the token's weight (0 masks it: padding, a missing reward), and
    the sum of weights over the whole update is ``denominator``.
    """
    ratio = (logp - old).exp()
    if clip_range_high is None:
        clip_range_high = clip_range
    clipped_ratio = ratio.clamp(1 - clip_range, 1 + clip_range_high)
    # the smaller of both: no gain beyond the clip range, but all of a loss
    surrogate = torch.minimum(ratio * advantage, clipped_ratio * advantage)
    if importance is not None:
        surrogate = importance.detach() * surrogate
    kl = kl_k3(logp, reference)
    loss = (weight * (beta * kl - surrogate)).sum() / denominator
    with torch.no_grad():
        # where the minimum is the clipped branch, which does not depend on logp
        is_clipped = (clipped_ratio * advantage < ratio * advantage) & (weight > 0)
    return PolicyLoss(loss, is_clipped.sum(), (weight * kl).sum().detach())


def value_loss(
    value: Tensor,
    old_value: Tensor,
    returns: Tensor,
    weight: Tensor,
    denominator: float,
    clip_range: float | None = 0.2,
) -> Tensor:
    """Clipped value loss of PPO (arXiv 1707.06347, its public code), per token (N,):

    0.5 max((v - R)^2, (v_old + clip(v - v_old, ± clip_range) - R)^2), weighted as the policy's.
    ``clip_range`` None: no clipping."""
    squared_error = (value - returns) ** 2
    if clip_range is not None:
        clipped_value = old_value + (value - old_value).clamp(-clip_range, clip_range)
        # the larger of both: no gain from moving further than the clip range
        squared_error = torch.maximum(squared_error, (clipped_value - returns) ** 2)
    return 0.5 * (weight * squared_error).sum() / denominator


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 - Var(R - v) / Var(R) of values and returns (N,): 1 is perfect, 0 as good as a constant,
    NaN without variance."""
    returns_variance = returns.var()
    if not float(returns_variance) > 0:  # NaN, of fewer than two returns, too
        return float("nan")
    return float(1 - (returns - values).var() / returns_variance)
