"""ONE rule from hidden states to token log-probabilities, used to sample and to score.

Order of application:

1. classifier-free guidance mixes conditional and unconditional logits as u + s (c - u);
2. division by the temperature;
3. top-k, or for the first token the restriction to the allowed ids;
4. log-softmax.

Sampling inverts the CDF at one uniform number per token, so a row's tokens depend on its own seed
and not on its neighbours.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secondlook.models.janus.model import Janus
from secondlook.models.janus.segments import flat, length
from secondlook.models.janus.template import ChatTemplate
from secondlook.models.packing import sequence_groups
from secondlook.types import ImageCodes, SamplingParams, Segment, TokenIds, Turn


def upcast(logits_V: Tensor) -> Tensor:
    """In float32 at least: probabilities of half-precision logits are not computed in half
    precision."""
    return logits_V.to(torch.promote_types(logits_V.dtype, torch.float32))


def exact(x: Tensor) -> Tensor:
    """In float64; on the CPU where the device has none (MPS). A cumulative sum over a vocabulary in
    float32 may fall from one entry to the next, and then a token of probability 0 is found."""
    if x.device.type == "mps":
        x = x.cpu()
    return x.double()


def hidden_before_head(
    janus: Janus, sampling_params: SamplingParams, cond: Tensor, uncond: Tensor | None
) -> tuple[Tensor, nn.Linear]:
    """Guided features (…, F) of final hidden states (…, D), and the linear layer that turns them
    into logits.

    The generation head is a nonlinear part followed by a linear layer, lm_head is one linear layer:
    mixing before the linear layer equals mixing logits and computes that layer once.
    """
    is_drawing = sampling_params.head == "code"
    guided_features = janus.head_features(cond) if is_drawing else cond  # (…, F)
    if sampling_params.guidance != 1:
        if uncond is None:
            raise ValueError(
                f"guidance: {sampling_params.guidance} needs the hidden states without the prompt"
            )
        uncond_features = janus.head_features(uncond) if is_drawing else uncond
        guided_features = torch.lerp(uncond_features, guided_features, sampling_params.guidance)
    if is_drawing:
        return guided_features, janus.net.model.generation_head.vision_head
    return guided_features, janus.net.lm_head


def logits(
    janus: Janus, sampling_params: SamplingParams, cond: Tensor, uncond: Tensor | None
) -> Tensor:
    """Guided logits (…, V) of final hidden states (…, D), in float32 at least."""
    guided_features, linear_head = hidden_before_head(janus, sampling_params, cond, uncond)
    return upcast(linear_head(guided_features))


def log_probs(
    sampling_params: SamplingParams, logits_V: Tensor, first: bool | Tensor = False
) -> Tensor:
    """Behaviour log-probabilities (…, V) of logits (…, V); ``first`` says (per row) whether the
    restriction applies."""
    # a greedy policy (temperature 0) reports the log-probabilities of temperature 1
    if sampling_params.temperature not in (0, 1):
        logits_V = logits_V / sampling_params.temperature
    if not sampling_params.first or first is False:
        return _top_k(sampling_params, logits_V).log_softmax(-1)
    is_allowed = torch.zeros(logits_V.shape[-1], dtype=torch.bool, device=logits_V.device)  # (V,)
    is_allowed[list(sampling_params.first)] = True
    restricted_V = logits_V.masked_fill(~is_allowed, -torch.inf)
    if first is True:
        return restricted_V.log_softmax(-1)
    top_k_V = _top_k(sampling_params, logits_V)
    return torch.where(first[..., None], restricted_V, top_k_V).log_softmax(-1)


def _top_k(sampling_params: SamplingParams, logits_V: Tensor) -> Tensor:
    if not 0 < sampling_params.top_k < logits_V.shape[-1]:
        return logits_V
    kth_largest = logits_V.topk(sampling_params.top_k, dim=-1).values[..., -1:]  # (…, 1)
    return logits_V.masked_fill(logits_V < kth_largest, -torch.inf)


def choose(
    sampling_params: SamplingParams, log_probs_V: Tensor, uniform: Tensor
) -> tuple[Tensor, Tensor]:
    """One token per row and its log-probability: log-probabilities (B, V), uniform numbers (B,) in
    [0, 1)."""
    if sampling_params.temperature == 0:
        tokens = log_probs_V.argmax(-1)
    else:
        cdf = exact(log_probs_V).exp().cumsum(-1)  # (B, V); its last column is 1 up to rounding
        thresholds = exact(uniform)[:, None] * cdf[:, -1:]  # (B, 1)
        tokens = torch.searchsorted(cdf, thresholds, right=True).squeeze(-1)
        tokens = tokens.clamp(max=log_probs_V.shape[-1] - 1).to(log_probs_V.device)
    return tokens, log_probs_V.gather(-1, tokens[:, None]).squeeze(-1)


SHORTEST = 0.8
"""Rows run together when the shorter is at least so long, as a share of the longest: padding is
computed like tokens."""


def bucket_by_length(lengths: list[int]) -> list[list[int]]:
    """Indices of rows in groups of nearly equal length, longest first."""
    buckets: list[list[int]] = []
    longest_first = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    for row in longest_first:
        if buckets and lengths[row] >= SHORTEST * lengths[buckets[-1][0]]:
            buckets[-1].append(row)
        else:
            buckets.append([row])
    return buckets


def completion_hidden(
    janus: Janus, prompts: list[tuple[Segment, ...]], completions: list[TokenIds | ImageCodes]
) -> tuple[Tensor, Tensor, Tensor]:
    """Final hidden states from which each completion token is predicted; nothing is padded.

    Returns hidden (N, D), tokens (N,) and whether each is its completion's first (N,), over all
    rows in order.
    """
    sequences = []
    completion_tokens: list[tuple[int, ...]] = []
    for prompt, completion in zip(prompts, completions, strict=True):
        sequences.append((*prompt, completion))
        if isinstance(completion, TokenIds):
            completion_tokens.append(completion.ids)
        else:
            completion_tokens.append(completion.codes)
    lengths = [length(sequence, janus.n_patches) for sequence in sequences]

    # one row of all sequences, those of equal length adjacent: they share an attention call
    packed_order = sorted(range(len(sequences)), key=lambda row: lengths[row])
    packed_lengths = [lengths[row] for row in packed_order]
    embeds, positions = flat(janus, [sequences[row] for row in packed_order])
    hidden = janus.packed(embeds, positions, sequence_groups(packed_lengths))  # (sum of lengths, D)

    end_of_row: dict[int, int] = {}
    row_end = 0
    for row in packed_order:
        row_end += lengths[row]
        end_of_row[row] = row_end

    # the token at place p is predicted from the hidden state at p - 1
    hidden_indices = []
    is_first: list[bool] = []
    for row, tokens in enumerate(completion_tokens):
        row_end = end_of_row[row]
        hidden_indices.append(torch.arange(row_end - len(tokens), row_end) - 1)
        is_first += [True] + [False] * (len(tokens) - 1) if tokens else []
    all_tokens = [token for tokens in completion_tokens for token in tokens]
    return (
        hidden[torch.cat(hidden_indices).to(hidden.device)],
        torch.tensor(all_tokens, device=hidden.device),
        torch.tensor(is_first, device=hidden.device),
    )


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
        part_size = max(
            1, AT_ONCE // len(weight)
        )  # tokens whose logits (part, V) are held together
        token_log_probs = []
        for part_start in range(0, max(1, len(tokens)), part_size):
            token_slice = slice(part_start, part_start + part_size)
            logits_V = upcast(F.linear(features[token_slice], weight, bias))
            log_probs_V = log_probs(sampling_params, logits_V, first[token_slice])
            token_log_probs.append(log_probs_V.gather(-1, tokens[token_slice, None]).squeeze(-1))
        return torch.cat(token_log_probs)

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        [grad_logp] = gradients  # (N,)
        features, weight, bias, tokens, first = ctx.saved_tensors
        sampling_params = ctx.sampling_params
        grad_features = torch.empty_like(features)
        # summed over parts in float32, also where the products are in half precision
        sum_dtype = torch.promote_types(weight.dtype, torch.float32)
        grad_weight = grad_bias = None
        if weight.requires_grad:
            grad_weight = torch.zeros_like(weight, dtype=sum_dtype)
        if bias is not None and bias.requires_grad:
            grad_bias = torch.zeros_like(bias, dtype=sum_dtype)
        temperature = sampling_params.temperature or 1.0
        part_size = max(1, AT_ONCE // len(weight))
        for part_start in range(0, len(tokens), part_size):
            token_slice = slice(part_start, part_start + part_size)
            logits_V = upcast(F.linear(features[token_slice], weight, bias))
            probs_V = log_probs(sampling_params, logits_V, first[token_slice]).exp_()
            # d log p(token) / d logits = (one at the token - p) / temperature
            scaled_grad = grad_logp[token_slice, None] / temperature
            grad_logits = probs_V.mul_(-scaled_grad)
            grad_logits.scatter_add_(
                1, tokens[token_slice, None], scaled_grad.to(grad_logits.dtype)
            )
            grad_logits = grad_logits.to(weight.dtype)
            torch.mm(grad_logits, weight, out=grad_features[token_slice])
            if grad_weight is not None:
                if sum_dtype == weight.dtype:
                    grad_weight.addmm_(grad_logits.T, features[token_slice])
                else:
                    grad_weight += grad_logits.T @ features[token_slice]
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0, dtype=sum_dtype)
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype)
        if grad_bias is not None:
            grad_bias = grad_bias.to(weight.dtype)
        return None, grad_features, grad_weight, grad_bias, None, None


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
    guided_features, linear_head = hidden_before_head(janus, sampling_params, cond, uncond)
    weight, bias = linear_head.weight, linear_head.bias
    # the last layer is computed in its own type: its gradient is, outside of a job's autocast
    with torch.autocast(guided_features.device.type, enabled=False):
        features = guided_features.to(weight.dtype)
        return _TokenLogProbs.apply(sampling_params, features, weight, bias, tokens, first)


def evaluate(janus: Janus, template: ChatTemplate, turns: list[Turn]) -> tuple[Tensor, Tensor]:
    """Teacher-forced log-probabilities (N,) of all tokens of ``turns`` under the
    SamplingParams that all of them were sampled with, and the final hidden states (N, D) that each
    token was predicted from (the conditional sequence's).

    Differentiable. Equal to the engine's recorded ones up to rounding (a test).
    """
    sampling_params = turns[0].sampling_params
    if any(turn.sampling_params != sampling_params for turn in turns):
        raise ValueError(
            "turns: they have different sampling parameters; score those of each in a call of "
            "its own"
        )
    completions: list[TokenIds | ImageCodes] = []
    for turn in turns:
        is_drawing = sampling_params.head == "code"
        completions.append(ImageCodes(turn.tokens) if is_drawing else TokenIds(turn.tokens))
    prompts = [turn.segments for turn in turns]
    if sampling_params.guidance == 1:
        cond, tokens, is_first = completion_hidden(janus, prompts, completions)
        return token_log_probs(janus, sampling_params, cond, None, tokens, is_first), cond
    # the conditional sequences, then their unconditional branches, which have the same tokens
    uncond_prompts = [template.unconditional(prompt) for prompt in prompts]
    hidden, tokens, is_first = completion_hidden(
        janus, [*prompts, *uncond_prompts], [*completions, *completions]
    )
    cond, uncond = hidden.chunk(2)
    tokens, is_first = tokens.chunk(2)[0], is_first.chunk(2)[0]
    return token_log_probs(janus, sampling_params, cond, uncond, tokens, is_first), cond


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
