"""Attention for sequences of many lengths in one row: nothing is padded, and no mask is made.

Registered with transformers beside its own functions, which it calls for everything else. Whether a
pass is packed is said by the pass's own arguments and not by a setting, so that activation
checkpointing repeats it as it was.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward

PREFIX = "secondlook_"
KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Not cuDNN's, which plans for tens of milliseconds whenever a shape is new."""
SequenceGroups = tuple[tuple[int, int], ...]
"""(count, length) of neighbouring sequences of one length, in the order of a packed row."""


def sequence_groups(lengths: list[int]) -> SequenceGroups:
    """Neighbours of one length share a pass, so sort before."""
    return tuple((len(list(same)), length) for length, same in groupby(lengths))


def attention(net: PreTrainedModel) -> str:
    """transformers' name of the attention that a network's language model uses."""
    return net.config.text_config._attn_implementation.removeprefix(PREFIX)


@lru_cache(maxsize=8)
def _ends(groups: SequenceGroups, device: torch.device) -> tuple[Tensor, int]:
    """Where sequences end in a row, from 0, and the longest one's length."""
    sequence_lengths = [0]
    for count, length in groups:
        sequence_lengths += [length] * count
    with torch.inference_mode(False):  # training may use it too
        return torch.tensor(sequence_lengths).cumsum(0).int().to(device), max(sequence_lengths)


def install(net: PreTrainedModel) -> None:
    """Let the language model take packed rows."""
    net.config.text_config._attn_implementation = PREFIX + attention(net)


def flash_works(device: torch.device, dtype: torch.dtype, head_dim: int, attention: str) -> bool:
    """Whether PyTorch's flash attention for sequences of many lengths runs there."""
    return (
        device.type == "cuda"
        and torch.version.hip is None
        and dtype in (torch.float16, torch.bfloat16)
        and torch.cuda.get_device_capability(device) >= (8, 0)
        and head_dim % 8 == 0
        and head_dim <= 256
        and attention == "sdpa"
    )


def _causal(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, groups: SequenceGroups, name: str
) -> Tensor:
    """(1, heads, N, d) to (1, N, heads, d)."""
    # autocast leaves the rotated ones in float32
    query, key = query.to(value.dtype), key.to(value.dtype)
    if flash_works(query.device, query.dtype, query.shape[-1], name):
        ends, max_length = _ends(groups, query.device)
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        return torch.ops.aten._flash_attention_forward(
            q, k, v, ends, ends, max_length, max_length, 0.0, True, False, scale=scaling
        )[0][None]
    is_autocast_on_cpu = query.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    # split, not sliced: a slice's gradient is as large as the whole row
    group_sizes = [count * length for count, length in groups]
    parts = zip(*(x[0].split(group_sizes, dim=1) for x in (query, key, value)), strict=True)
    outputs = []
    for (count, length), part in zip(groups, parts, strict=True):
        # (heads, count * length, d) to (count, heads, length, d)
        q, k, v = (x.unflatten(1, (count, length)).transpose(0, 1) for x in part)
        if is_autocast_on_cpu and q.shape[1] == k.shape[1]:
            attended = _in_products(q, k, v, scaling)
        else:
            with sdpa_kernel(KERNELS):
                attended = F.scaled_dot_product_attention(
                    q, k, v, is_causal=True, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
                )
        outputs.append(attended.transpose(1, 2).flatten(0, 1))  # (count * length, heads, d)
    return torch.cat(outputs)[None]


def _in_products(q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
    """Causal attention of (B, heads, L, d) in matrix products, for training under autocast on a
    CPU: the fused function's gradient takes five times as long there in bfloat16."""
    length = q.shape[-2]
    is_later = torch.ones(length, length, dtype=torch.bool).triu(1)
    mask = torch.zeros(length, length, dtype=q.dtype).masked_fill(is_later, -torch.inf)
    q_rows, k_rows, v_rows = (x.flatten(0, 1) for x in (q, k, v))  # (B * heads, L, d)
    scores = torch.baddbmm(mask, q_rows, k_rows.mT, alpha=scaling)
    return (scores.softmax(-1, dtype=q.dtype) @ v_rows).view_as(q)


def _register(name: str, otherwise) -> None:
    def attend(
        module,
        query,
        key,
        value,
        attention_mask,
        scaling=None,
        groups: SequenceGroups | None = None,
        **kwargs,
    ):
        if groups is None:
            return otherwise(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
        return _causal(query, key, value, scaling, groups, name), None

    AttentionInterface.register(PREFIX + name, attend)


_register("sdpa", ALL_ATTENTION_FUNCTIONS["sdpa"])
_register("eager", eager_attention_forward)
AttentionMaskInterface.register(PREFIX + "sdpa", sdpa_mask)
AttentionMaskInterface.register(PREFIX + "eager", eager_mask)
