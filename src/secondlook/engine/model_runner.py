"""One token of every sequence under way through the language model.

The layers' own modules are used (so adapters and quantized weights act as in training), but what
lies between them is written out for one token a row: transformers' layers do the same with four
times as many operations. On a GPU it is fused by torch.compile, attention reads each row's used
length on the device, and the whole pass is replayed as a CUDA graph, one for every number of rows.
Prefill and training run transformers' own forward pass; tests hold the two together.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import LlamaModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, eager_attention_forward

from secondlook.engine.decode_state import DecodeState
from secondlook.engine.kv_cache import KVCache, in_columns, rounded
from secondlook.models import packing
from secondlook.models.janus.model import Janus


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm of (R, D) in float32."""
    exact = x.float()
    return weight * (exact * torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def add_norm(residual: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The sum (R, D) and its RMSNorm."""
    residual = residual + x
    return residual, norm(residual, weight, eps)


def rotate_and_store(
    qkv: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, place: Tensor
) -> Tensor:
    """Rotate queries and keys by their positions' cosines and sines, each (R, d), and write keys
    and values to (slots, kv heads, columns, d), row r at column ``place[r]`` of slot r. ``qkv`` is
    (R, (heads + 2 kv heads) d).

    Returns queries (R, heads, d).
    """
    heads, dim = keys.shape[1], keys.shape[3]
    q, k, v = qkv.view(len(qkv), -1, dim).split([qkv.shape[1] // dim - 2 * heads, heads, heads], 1)
    q, k = apply_rotary_pos_emb(q, k, cos, sin)
    rows = torch.arange(len(qkv), device=qkv.device)
    keys[rows, :, place] = (
        k  # each is an input of its own: compiled, writing to a part of one would copy the whole
    )
    values[rows, :, place] = v
    return q


def gated(act: Callable[[Tensor], Tensor], gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return act(gate) * up


BETWEEN = norm, add_norm, rotate_and_store, gated


@cache
def fused() -> tuple[Callable, ...]:
    """These functions, each compiled to one kernel."""
    return tuple(torch.compile(function) for function in BETWEEN)


def side_by_side(*modules: nn.Module) -> Callable[[Tensor], Tensor]:
    """Several layers of one input, called one by one: (…, D) to their outputs side by side."""
    return lambda x: torch.cat([module(x) for module in modules], -1)


def fuse_linear(*modules: nn.Module) -> Callable[[Tensor], Tensor]:
    """Several linear layers of one input as one: (…, D) to their outputs side by side.

    From then on one tensor holds their weights, and each layer's own is a view of it: nothing is
    held twice, and training goes on as before. Layers that are anything else (adapters, quantized
    weights) are called one by one.
    """
    weights: list[Tensor] = []
    for m in modules:
        if type(m) is not nn.Linear or m.bias is not None or type(m.weight.data) is not Tensor:
            return side_by_side(*modules)
        weights.append(m.weight)
    ends = [w.data_ptr() + w.nbytes for w in weights]
    storages = {w.untyped_storage().data_ptr() for w in weights}
    if len(storages) > 1 or any(
        w.data_ptr() != end for w, end in zip(weights[1:], ends, strict=False)
    ):
        with torch.inference_mode(False):  # training writes to it
            whole = torch.cat([w.data for w in weights])
            for w, part in zip(weights, whole.split([len(w) for w in weights]), strict=True):
                w.data = part
    first = weights[0].data
    whole = first.as_strided(
        (sum(map(len, weights)), first.shape[1]), first.stride(), first.storage_offset()
    )
    return lambda x: F.linear(x, whole)


class ModelRunner:
    """Runs a model's step on ``cache``. Buffers have a row for each slot: embeddings to feed
    (slots, D), final hidden states (slots, D), each sequence's used columns (slots,) and next
    position (slots,)."""

    def __init__(self, janus: Janus, cache: KVCache):
        self.janus, self.cache = janus, cache
        self.model: LlamaModel = janus.net.model.language_model
        device = janus.device
        self.between = fused() if device.type == "cuda" else BETWEEN
        self.flash = packing.flash_works(
            device, janus.dtype, cache.head_dim, packing.attention(janus.net)
        )
        """Attention that takes each row's length from the device; elsewhere a mask says it."""
        # weights that FSDP gathered are its own: they lie where it put them, and only until the
        # ranks share them out again
        join = side_by_side if isinstance(self.model.layers[0], FSDPModule) else fuse_linear
        self._qkv = [
            join(a.q_proj, a.k_proj, a.v_proj)
            for a in (layer.self_attn for layer in self.model.layers)
        ]
        self._gate_up = [
            join(layer.mlp.gate_proj, layer.mlp.up_proj) for layer in self.model.layers
        ]
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        self._seen: set[tuple[int, int]] = set()
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        # torch's own stream for captures lies on the device that was current when the process first
        # captured anything
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def forget(self) -> None:
        """The buffers have moved: graphs that write to the old ones are of no use."""
        self._graphs.clear()
        self._seen.clear()
        if self._pool is not None:
            self._pool = torch.cuda.graph_pool_handle()  # the old one is gone with its last graph

    def __call__(self, state: DecodeState, rows: int, end: int) -> None:
        """Feed ``state.embeds`` of the first ``rows`` slots, the longest of which then has ``end``
        columns; fills ``state.hidden``. Lengths and positions are left as they are."""
        if self._pool is None:
            return self._run(state, rows, end)
        key = self._shape(rows, end)
        if key in self._graphs:
            self._graphs[key].replay()
        elif key in self._seen:
            graph = self._graphs[key] = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                self._run(state, *key)
            graph.replay()
        else:  # compiles what is new; a graph can only be taken of what has run
            self._seen.add(key)
            try:
                self._run(state, *key)
            except torch._dynamo.exc.BackendCompilerFailed as error:
                warnings.warn(
                    "drawing is slower: torch.compile does not work here "
                    f"({str(error).splitlines()[0]})",
                    stacklevel=2,
                )
                self.between = BETWEEN
                self._run(state, *key)
        return None

    def _shape(self, rows: int, end: int) -> tuple[int, int]:
        """Rows and columns that the pass is made for."""
        return rounded(rows), self.cache.columns if self.flash else in_columns(end)

    def _run(self, state: DecodeState, rows: int, end: int) -> None:
        norm, add_norm, rotate_and_store, gated = self.between
        residual, place = state.embeds[:rows], state.length[:rows]
        cos, sin = self.model.rotary_emb(residual[None], state.position[None, :rows])
        cos, sin = cos[0], sin[0]  # (R, head_dim)
        attend = self._flash(place, end) if self.flash else self._masked(place, end)
        layers = self.model.layers
        act = layers[0].mlp.act_fn
        before_first = layers[0].input_layernorm
        x = norm(residual, before_first.weight, before_first.variance_epsilon)
        for i, layer in enumerate(layers):
            # the sum after a layer is fused with the norm that the next one begins with
            between = layer.post_attention_layernorm
            after = layers[i + 1].input_layernorm if i + 1 < len(layers) else self.model.norm
            keys, values = self.cache.stored[i]
            q = rotate_and_store(self._qkv[i](x), cos, sin, keys, values, place)
            attended = attend(layer.self_attn, q, keys[:rows], values[:rows])
            x = layer.self_attn.o_proj(attended.reshape(rows, -1))
            residual, x = add_norm(residual, x, between.weight, between.variance_epsilon)
            x = layer.mlp.down_proj(gated(act, self._gate_up[i](x)))
            residual, x = add_norm(residual, x, after.weight, after.variance_epsilon)
        state.hidden[:rows] = x

    def _masked(self, place: Tensor, end: int) -> Callable:
        """Attention by transformers' own function."""
        mask = self.janus.mask(
            (torch.arange(end, device=place.device) <= place[:, None])[:, None, None]
        )
        name = self.janus.net.config.text_config._attn_implementation
        function = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention_forward)

        def attend(module, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            return function(
                module,
                q[:, :, None],
                keys[:, :, :end],
                values[:, :, :end],
                mask,
                scaling=module.scaling,
            )[0]

        return attend

    def _flash(self, place: Tensor, columns: int) -> Callable:
        """PyTorch's flash attention for sequences of many lengths."""
        rows = torch.arange(len(place) + 1, device=place.device, dtype=torch.int32)
        heads, dim = self.cache.heads, self.cache.head_dim
        begin, used = rows * (heads * columns), (place + 1).int()

        def attend(module, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            # to the kernel all slots are one sequence of columns; heads lie behind one another
            # within a slot
            size = ((len(place) - 1) * heads + 1) * columns, heads, dim
            keys, values = (
                s.as_strided(size, (dim, columns * dim, 1), s.storage_offset())
                for s in (keys, values)
            )
            return torch.ops.aten._flash_attention_forward(
                q,
                keys,
                values,
                rows,
                begin,
                1,
                columns,
                0.0,
                False,
                False,
                scale=module.scaling,
                seqused_k=used,
            )[0]

        return attend
