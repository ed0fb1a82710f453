"""ONE rule from hidden states to token log-probabilities, used to sample and to score.

Order (classifier-free guidance as in the paper): guidance mixes cond and uncond logits as u + s (c
- u); temperature; top-k; restriction of the first token; log-softmax. Sampling is by inverse CDF of
one uniform number per token, so a row's tokens depend on its own seed and not on its neighbours.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secondlook.models.janus.model import Janus
from secondlook.models.janus.template import ChatTemplate, flat, length
from secondlook.models.packing import sequence_groups
from secondlook.types import ImageCodes, SamplingParams, Segment, TokenIds, Turn


def upcast(logits_V: Tensor) -> Tensor:
    """In float32 at least: probabilities of half-precision logits are not computed in half
    precision."""
    return logits_V.to(torch.promote_types(logits_V.dtype, torch.float32))


def exact(x: Tensor) -> Tensor:
    """In float64; on the CPU where the device has none. A sum over a vocabulary in float32 may fall
    from one entry to the next, and then a token of probability 0 is found."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def hidden_before_head(
    janus: Janus, sampling_params: SamplingParams, cond: Tensor, uncond: Tensor | None
) -> tuple[Tensor, nn.Linear]:
    """Guided features (…, F) of final hidden states (…, D), and the layer that makes logits of
    them. The generation head's last layer is linear, so mixing before it is exact and pays for it
    once; lm_head is linear altogether."""
    features = janus.head_features if sampling_params.head == "code" else (lambda hidden: hidden)
    mixed = features(cond)
    if sampling_params.guidance != 1:
        if uncond is None:
            raise ValueError(
                f"guidance: {sampling_params.guidance} needs the hidden states without the prompt"
            )
        mixed = torch.lerp(features(uncond), mixed, sampling_params.guidance)
    return (
        mixed,
        janus.net.model.generation_head.vision_head
        if sampling_params.head == "code"
        else janus.net.lm_head,
    )


def logits(
    janus: Janus, sampling_params: SamplingParams, cond: Tensor, uncond: Tensor | None
) -> Tensor:
    """Guided logits (…, V) of final hidden states (…, D), in float32 at least."""
    mixed, last = hidden_before_head(janus, sampling_params, cond, uncond)
    return upcast(last(mixed))


def log_probs(
    sampling_params: SamplingParams, logits_V: Tensor, first: bool | Tensor = False
) -> Tensor:
    """Behaviour log-probabilities (…, V) of logits (…, V); ``first`` says (per row) whether the
    restriction applies."""
    if sampling_params.temperature not in (0, 1):
        logits_V = logits_V / sampling_params.temperature
    if sampling_params.first and not (isinstance(first, bool) and not first):
        allowed = torch.zeros(logits_V.shape[-1], dtype=torch.bool, device=logits_V.device)
        allowed[list(sampling_params.first)] = True
        restricted = logits_V.masked_fill(~allowed, -torch.inf)
        kept = _top_k(sampling_params, logits_V)
        if isinstance(first, bool):
            return restricted.log_softmax(-1)
        return torch.where(first[..., None], restricted, kept).log_softmax(-1)
    return _top_k(sampling_params, logits_V).log_softmax(-1)


def _top_k(sampling_params: SamplingParams, logits_V: Tensor) -> Tensor:
    if not 0 < sampling_params.top_k < logits_V.shape[-1]:
        return logits_V
    lowest = logits_V.topk(sampling_params.top_k, dim=-1).values[..., -1:]
    return logits_V.masked_fill(logits_V < lowest, -torch.inf)


def choose(
    sampling_params: SamplingParams, log_probs_V: Tensor, uniform: Tensor
) -> tuple[Tensor, Tensor]:
    """One token per row and its log-probability: log-probabilities (B, V), uniform numbers (B,) in
    [0, 1)."""
    if sampling_params.temperature == 0:
        tokens = log_probs_V.argmax(-1)
    else:
        cdf = exact(log_probs_V).exp().cumsum(-1)
        tokens = torch.searchsorted(cdf, exact(uniform)[:, None] * cdf[:, -1:], right=True).squeeze(
            -1
        )
        tokens = tokens.clamp(max=log_probs_V.shape[-1] - 1).to(log_probs_V.device)
    return tokens, log_probs_V.gather(-1, tokens[:, None]).squeeze(-1)


SHORTEST = 0.8
"""Rows run together when the shorter is at least so long, as a share of the longest: padding is
computed like tokens."""


def bucket_by_length(lengths: list[int]) -> list[list[int]]:
    """Indices of rows in groups of nearly equal length, longest first."""
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if groups and lengths[i] >= SHORTEST * lengths[groups[-1][0]]:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def completion_hidden(
    janus: Janus, prompts: list[tuple[Segment, ...]], completions: list[TokenIds | ImageCodes]
) -> tuple[Tensor, Tensor, Tensor]:
    """Final hidden states from which each completion token is predicted; nothing is padded.

    Returns hidden (N, D), tokens (N,) and whether each is its completion's first (N,), over all
    rows in order.
    """
    values = [c.ids if isinstance(c, TokenIds) else c.codes for c in completions]
    rows = [(*p, c) for p, c in zip(prompts, completions, strict=True)]
    lengths = [length(row, janus.n_patches) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: lengths[i])
    embeds, positions = flat(janus, [rows[i] for i in order])
    hidden = janus.packed(embeds, positions, sequence_groups([lengths[i] for i in order]))
    ends = dict(
        zip(order, torch.tensor([lengths[i] for i in order]).cumsum(0).tolist(), strict=True)
    )
    places = torch.cat([torch.arange(ends[i] - len(v), ends[i]) - 1 for i, v in enumerate(values)])
    tokens = torch.tensor([t for v in values for t in v], device=hidden.device)
    first = torch.tensor([k == 0 for v in values for k in range(len(v))], device=hidden.device)
    return hidden[places.to(hidden.device)], tokens, first


AT_ONCE = 2**24
"""Logits computed together: 64 MB of them in float32."""


class _TokenLogProbs(torch.autograd.Function):
    """A last layer and the log-softmax after it, a part of the tokens at a time, and again for the
    gradient: logits of all tokens are never held, and the weight's gradient is summed in place."""

    @staticmethod
    def forward(
        ctx,
        sampling_params: SamplingParams,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        first: Tensor,
    ) -> Tensor:
        ctx.sampling_params = sampling_params
        ctx.save_for_backward(features, weight, bias, tokens, first)
        size = max(1, AT_ONCE // len(weight))
        parts = zip(features.split(size), tokens.split(size), first.split(size), strict=True)
        return torch.cat(
            [
                log_probs(sampling_params, upcast(F.linear(f, weight, bias)), new)
                .gather(-1, t[:, None])
                .squeeze(-1)
                for f, t, new in parts
            ]
        )

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        [of_logp] = gradients
        features, weight, bias, tokens, first = ctx.saved_tensors
        of_features = torch.empty_like(features)
        # summed over parts in float32, also where the products are in half precision
        sums = torch.promote_types(weight.dtype, torch.float32)
        of_weight = torch.zeros_like(weight, dtype=sums) if weight.requires_grad else None
        of_bias = (
            torch.zeros_like(bias, dtype=sums) if bias is not None and bias.requires_grad else None
        )
        temperature, size = ctx.sampling_params.temperature or 1.0, max(1, AT_ONCE // len(weight))
        for start in range(0, len(tokens), size):
            here = slice(start, start + size)
            given = of_logp[here, None] / temperature
            # d log p(token) / d logits = (one at the token - p) / temperature
            p = log_probs(
                ctx.sampling_params, upcast(F.linear(features[here], weight, bias)), first[here]
            ).exp_()
            of_logits = p.mul_(-given)
            of_logits.scatter_add_(1, tokens[here, None], given.to(of_logits.dtype))
            of_logits = of_logits.to(weight.dtype)
            torch.mm(of_logits, weight, out=of_features[here])
            if of_weight is not None:
                if sums == weight.dtype:
                    of_weight.addmm_(of_logits.T, features[here])
                else:
                    of_weight += of_logits.T @ features[here]
            if of_bias is not None:
                of_bias += of_logits.sum(0, dtype=sums)
        of_weight, of_bias = (x if x is None else x.to(weight.dtype) for x in (of_weight, of_bias))
        return None, of_features, of_weight, of_bias, None, None


def token_log_probs(
    janus: Janus,
    sampling_params: SamplingParams,
    cond: Tensor,
    uncond: Tensor | None,
    tokens: Tensor,
    first: Tensor,
) -> Tensor:
    """Log-probabilities (N,) of tokens (N,) given final hidden states (N, D) of the sequences and
    their unconditional branches."""
    mixed, last = hidden_before_head(janus, sampling_params, cond, uncond)
    return _TokenLogProbs.apply(sampling_params, mixed, last.weight, last.bias, tokens, first)


def evaluate(janus: Janus, template: ChatTemplate, turns: list[Turn]) -> tuple[Tensor, Tensor]:
    """Teacher-forced log-probabilities (N,) of all tokens of ``turns`` (one rule for all) under the
    rule that sampled them, and the final hidden states (N, D) that each token was predicted from
    (the conditional branch's).

    Differentiable. Equal to the engine's recorded ones up to rounding (a test).
    """
    sampling_params = turns[0].sampling_params
    if any(t.sampling_params != sampling_params for t in turns):
        raise ValueError(
            "turns: they were sampled under different rules; score each rule's turns in a call "
            "of its own"
        )
    completions: list[TokenIds | ImageCodes] = [
        ImageCodes(t.tokens) if sampling_params.head == "code" else TokenIds(t.tokens)
        for t in turns
    ]
    prompts = [t.segments for t in turns]
    if sampling_params.guidance == 1:
        cond, tokens, first = completion_hidden(janus, prompts, completions)
        return token_log_probs(janus, sampling_params, cond, None, tokens, first), cond
    uncond_prompts = [template.unconditional(p) for p in prompts]
    hidden, tokens, first = completion_hidden(
        janus, [*prompts, *uncond_prompts], [*completions, *completions]
    )
    (cond, uncond), (tokens, _), (first, _) = hidden.chunk(2), tokens.chunk(2), first.chunk(2)
    return token_log_probs(janus, sampling_params, cond, uncond, tokens, first), cond


def score(janus: Janus, template: ChatTemplate, turns: list[Turn]) -> Tensor:
    """``evaluate``'s log-probabilities (N,) alone."""
    return evaluate(janus, template, turns)[0]


def cross_entropy(
    janus: Janus, prompts: list[tuple[Segment, ...]], completions: list[TokenIds | ImageCodes]
) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood (N,) of every completion token without guidance (all completions of
    one head), and whether each token is its completion's first (N,)."""
    hidden, tokens, first = completion_hidden(janus, prompts, completions)
    sampling_params = SamplingParams("text" if isinstance(completions[0], TokenIds) else "code")
    return -token_log_probs(janus, sampling_params, hidden, None, tokens, first), first
