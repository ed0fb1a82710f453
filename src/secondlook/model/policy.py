"""ONE rule from hidden states to token log-probabilities, used to sample and to score.

Order (classifier-free guidance as in the paper): guidance mixes cond and uncond logits as u + s (c - u); temperature; top-k;
restriction of the first token; log-softmax. Sampling is by inverse CDF of one uniform number per token, so a row's tokens
depend on its own seed and not on its neighbours.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from secondlook.model.janus import Janus
from secondlook.model.sequence import Protocol, assemble, length
from secondlook.types import Draw, Gap, Rule, Segment, Text, Turn


def precise(logits_V: Tensor) -> Tensor:
    """In float32 at least: probabilities of half-precision logits are not computed in half precision."""
    return logits_V.to(torch.promote_types(logits_V.dtype, torch.float32))


def logits(janus: Janus, rule: Rule, cond: Tensor, uncond: Tensor | None) -> Tensor:
    """Guided logits (…, V) of final hidden states (…, D). The generation head's last layer is linear, so mixing before it is
    exact and pays for it once; lm_head is linear altogether."""
    features = janus.head_features if rule.head == "code" else (lambda hidden: hidden)
    mixed = features(cond)
    if rule.guidance != 1:
        if uncond is None:
            raise ValueError(f"guidance: {rule.guidance} needs the unconditional twin's hidden states")
        mixed = torch.lerp(features(uncond), mixed, rule.guidance)
    last = janus.net.model.generation_head.vision_head if rule.head == "code" else janus.net.lm_head
    return precise(last(mixed))


def log_probs(rule: Rule, logits_V: Tensor, first: bool | Tensor = False) -> Tensor:
    """Behaviour log-probabilities (…, V) of logits (…, V); ``first`` says (per row) whether the restriction applies."""
    if rule.temperature > 0:
        logits_V = logits_V / rule.temperature
    if rule.first and not (isinstance(first, bool) and not first):
        allowed = torch.zeros(logits_V.shape[-1], dtype=torch.bool, device=logits_V.device)
        allowed[list(rule.first)] = True
        restricted = logits_V.masked_fill(~allowed, -torch.inf)
        kept = _top_k(rule, logits_V)
        if isinstance(first, bool):
            return restricted.log_softmax(-1)
        return torch.where(first[..., None], restricted, kept).log_softmax(-1)
    return _top_k(rule, logits_V).log_softmax(-1)


def _top_k(rule: Rule, logits_V: Tensor) -> Tensor:
    if not 0 < rule.top_k < logits_V.shape[-1]:
        return logits_V
    lowest = logits_V.topk(rule.top_k, dim=-1).values[..., -1:]
    return logits_V.masked_fill(logits_V < lowest, -torch.inf)


def choose(rule: Rule, log_probs_V: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """One token per row and its log-probability: log-probabilities (B, V), uniform numbers (B,) in [0, 1)."""
    if rule.temperature == 0:
        tokens = log_probs_V.argmax(-1)
    else:
        cdf = log_probs_V.double().exp().cumsum(-1)
        tokens = torch.searchsorted(cdf, uniform.double()[:, None] * cdf[:, -1:], right=True).squeeze(-1)
        tokens = tokens.clamp(max=log_probs_V.shape[-1] - 1)
    return tokens, log_probs_V.gather(-1, tokens[:, None]).squeeze(-1)


SHORTEST = 0.8
"""Rows run together when the shorter is at least so long, as a share of the longest: padding is computed like tokens."""


def alike(lengths: list[int]) -> list[list[int]]:
    """Indices of rows in groups of nearly equal length, longest first."""
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if groups and lengths[i] >= SHORTEST * lengths[groups[-1][0]]:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def completion_hidden(
    janus: Janus, prompts: list[tuple[Segment, ...]], completions: list[Text | Draw]
) -> tuple[Tensor, Tensor, Tensor]:
    """Final hidden states from which each completion token is predicted.

    Returns hidden (N, D), tokens (N,) and whether each is its completion's first (N,), over all rows in order.
    """
    values = [c.ids if isinstance(c, Text) else c.codes for c in completions]
    starts = [length(p, janus.n_patches) - 1 for p in prompts]
    ends = torch.tensor([len(v) for v in values]).cumsum(0).tolist()
    parts: list[Tensor] = []
    places: list[int] = []
    for group in alike([start + len(v) for start, v in zip(starts, values, strict=True)]):
        batch = assemble(janus, [(*prompts[i], completions[i]) for i in group])
        if any(isinstance(s, Gap) for i in group for s in prompts[i]):
            # without a mask transformers takes a leap in the positions for the beginning of another sequence
            causal = torch.ones(batch.embeds.shape[1], batch.embeds.shape[1], dtype=torch.bool, device=janus.device).tril()
            hidden = janus.hidden(batch.embeds, batch.positions, causal[None, None])
        else:
            hidden = janus.hidden(batch.embeds)
        rows = [b for b, i in enumerate(group) for _ in values[i]]
        columns = [starts[i] + k for i in group for k in range(len(values[i]))]
        parts.append(hidden[torch.tensor(rows, device=hidden.device), torch.tensor(columns, device=hidden.device)])
        places += [ends[i] - len(values[i]) + k for i in group for k in range(len(values[i]))]
    picked = torch.cat(parts)
    tokens = torch.tensor([t for v in values for t in v], device=picked.device)
    first = torch.tensor([k == 0 for v in values for k in range(len(v))], device=picked.device)
    return picked[torch.tensor(places, device=picked.device).argsort()], tokens, first


def score(janus: Janus, protocol: Protocol, turns: list[Turn]) -> Tensor:
    """Teacher-forced log-probabilities (N,) of all tokens of ``turns`` (one rule for all) under the rule that sampled them.

    Differentiable. Equal to the engine's recorded ones up to rounding (a test).
    """
    rule = turns[0].rule
    if any(t.rule != rule for t in turns):
        raise ValueError("turns: they were sampled under different rules; score each rule's turns in a call of its own")
    completions: list[Text | Draw] = [Draw(t.tokens) if rule.head == "code" else Text(t.tokens) for t in turns]
    cond, tokens, first = completion_hidden(janus, [t.segments for t in turns], completions)
    uncond = None
    if rule.guidance != 1:
        uncond, _, _ = completion_hidden(janus, [protocol.unconditional(t.segments) for t in turns], completions)
    return log_probs(rule, logits(janus, rule, cond, uncond), first).gather(-1, tokens[:, None]).squeeze(-1)


def cross_entropy(janus: Janus, prompts: list[tuple[Segment, ...]], completions: list[Text | Draw]) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood (N,) of every completion token without guidance (all completions of one head), and whether
    each token is its completion's first (N,)."""
    hidden, tokens, first = completion_hidden(janus, prompts, completions)
    head = janus.text_logits if isinstance(completions[0], Text) else janus.code_logits
    return F.cross_entropy(precise(head(hidden)), tokens, reduction="none"), first
