"""One token of every sequence under way through the language model.

The layers' own modules are used (so adapters and quantized weights act as in training), but what
lies between them is written out for one token a row: transformers' layers do the same with four
times as many operations. On a GPU it is fused by torch.compile, attention reads each row's used
length on the device, and the whole pass is replayed as a CUDA graph, one for every number of rows.
Prefill and training run transformers' own forward pass; tests hold the two together.

Shapes: R rows (one a sequence or unconditional branch), S slots and C columns of the cache, D the
model's width, F of its feed-forward layer, A query heads, H key-value heads, d head_dim.
"""

from __future__ import annotations

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
from secondlook.errors import tell_user
from secondlook.models import packing
from secondlook.models.janus.model import Janus


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm of (R, D) in float32."""
    exact_x = x.float()
    mean_square = exact_x.pow(2).mean(-1, keepdim=True)  # (R, 1)
    return weight * (exact_x * torch.rsqrt(mean_square + eps)).to(x.dtype)


def add_norm(residual: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The sum (R, D) and its RMSNorm."""
    residual = residual + x
    return residual, norm(residual, weight, eps)


def rotate_and_store(
    qkv: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, write_columns: Tensor
) -> Tensor:
    """Rotate queries and keys of ``qkv`` (R, (A + 2 H) d) by their positions' cosines and sines,
    each (R, d), and write keys and values to the cache's, each (S, H, C, d): row r at column
    ``write_columns[r]`` of slot r.

    Returns queries (R, A, d).
    """
    num_kv_heads, head_dim = keys.shape[1], keys.shape[3]
    num_heads = qkv.shape[1] // head_dim - 2 * num_kv_heads
    heads_of_rows = qkv.view(len(qkv), -1, head_dim)  # (R, A + 2 H, d)
    q, k, v = heads_of_rows.split([num_heads, num_kv_heads, num_kv_heads], 1)
    q, k = apply_rotary_pos_emb(q, k, cos, sin)  # (R, A, d), (R, H, d)
    rows = torch.arange(len(qkv), device=qkv.device)  # (R,)
    # keys and values are inputs of their own: compiled, writing to a part of one tensor would copy
    # the whole
    keys[rows, :, write_columns] = k
    values[rows, :, write_columns] = v
    return q


def gated(act: Callable[[Tensor], Tensor], gate_up: Tensor) -> Tensor:
    """The feed-forward layer's product: (R, 2 F), gate and up side by side, to (R, F)."""
    gate, up = gate_up.chunk(2, -1)
    return act(gate) * up


BETWEEN = norm, add_norm, rotate_and_store, gated
"""What lies between the linear layers and attention."""


@cache
def fused() -> tuple[Callable, ...]:
    """The functions of ``BETWEEN``, each compiled to one kernel."""
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
    weights: list[Tensor] = []  # (out of each, D)
    for module in modules:
        if type(module) is not nn.Linear or module.bias is not None:
            return side_by_side(*modules)
        if type(module.weight.data) is not Tensor:  # quantized
            return side_by_side(*modules)
        weights.append(module.weight)
    out_sizes = [len(weight) for weight in weights]
    if not _are_adjacent(weights):
        with torch.inference_mode(False):  # training writes to it
            joined_weight = torch.cat([weight.data for weight in weights])  # (sum of out, D)
            for weight, weight_view in zip(weights, joined_weight.split(out_sizes), strict=True):
                weight.data = weight_view
    first_weight = weights[0].data
    # a view that begins where the first weight does and ends where the last one does
    joined_shape = sum(out_sizes), first_weight.shape[1]
    joined_weight = first_weight.as_strided(
        joined_shape, first_weight.stride(), first_weight.storage_offset()
    )
    return lambda x: F.linear(x, joined_weight)


def _are_adjacent(weights: list[Tensor]) -> bool:
    """Whether the weights lie one behind another in one storage, as an engine before has put
    them."""
    storages = {weight.untyped_storage().data_ptr() for weight in weights}
    if len(storages) > 1:
        return False
    next_address = weights[0].data_ptr()
    for weight in weights:
        if weight.data_ptr() != next_address:
            return False
        next_address += weight.nbytes
    return True


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
        self._qkv: list[Callable[[Tensor], Tensor]] = []  # of each layer (R, D) to (R, (A + 2 H) d)
        self._gate_up: list[Callable[[Tensor], Tensor]] = []  # (R, D) to (R, 2 F)
        for layer in self.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            self._qkv.append(join(attention.q_proj, attention.k_proj, attention.v_proj))
            self._gate_up.append(join(mlp.gate_proj, mlp.up_proj))
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        """By the pass's rows and columns (``_shape``)."""
        self._shapes_run: set[tuple[int, int]] = set()
        """Shapes of passes that have run without a graph."""
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        # torch's own stream for captures lies on the device that was current when the process first
        # captured anything
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def forget(self) -> None:
        """The buffers have moved: graphs that write to the old ones are of no use."""
        self._graphs.clear()
        self._shapes_run.clear()
        if self._pool is not None:
            self._pool = torch.cuda.graph_pool_handle()  # the old one is gone with its last graph

    def __call__(self, state: DecodeState, num_rows: int, end: int) -> None:
        """Feed ``state.embeds`` of the first ``rows`` slots, the longest of which then has ``end``
        columns; fills ``state.hidden``. Lengths and positions are left as they are."""
        if self._pool is None:
            self._run(state, num_rows, end)
            return
        shape = self._shape(num_rows, end)
        if shape in self._graphs:
            self._graphs[shape].replay()
        elif shape in self._shapes_run:
            graph = self._graphs[shape] = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                self._run(state, *shape)  # recorded, not computed
            graph.replay()
        else:  # compiles what is new; a graph can only be taken of what has run
            self._shapes_run.add(shape)
            try:
                self._run(state, *shape)
            except torch._dynamo.exc.BackendCompilerFailed as error:
                tell_user(
                    "drawing is slower: torch.compile does not work here "
                    f"({str(error).splitlines()[0]})"
                )
                self.between = BETWEEN
                self._run(state, *shape)

    def _shape(self, num_rows: int, end: int) -> tuple[int, int]:
        """Rows and columns that the pass is made for, rounded up so that one graph serves several.
        Flash attention is told each row's length, so to it one width is enough."""
        return rounded(num_rows), self.cache.columns if self.flash else in_columns(end)

    def _run(self, state: DecodeState, num_rows: int, end: int) -> None:
        norm, add_norm, rotate_and_store, gated = self.between
        residual = state.embeds[:num_rows]  # (R, D)
        write_columns = state.length[:num_rows]  # (R,) where keys and values are written to
        cos, sin = self.model.rotary_emb(
            residual[None], state.position[None, :num_rows]
        )  # (1, R, d)
        cos, sin = cos[0], sin[0]  # (R, d)
        attend = self._flash(write_columns, end) if self.flash else self._masked(write_columns, end)
        layers = self.model.layers
        act_fn = layers[0].mlp.act_fn
        first_norm = layers[0].input_layernorm
        x = norm(residual, first_norm.weight, first_norm.variance_epsilon)  # (R, D)
        for i, layer in enumerate(layers):
            # the sum after a layer is fused with the norm that the next one begins with
            mlp_norm = layer.post_attention_layernorm
            next_norm = layers[i + 1].input_layernorm if i + 1 < len(layers) else self.model.norm
            keys, values = self.cache.stored[i]  # (S, H, C, d) each
            qkv = self._qkv[i](x)  # (R, (A + 2 H) d)
            q = rotate_and_store(qkv, cos, sin, keys, values, write_columns)  # (R, A, d)
            attended = attend(layer.self_attn, q, keys[:num_rows], values[:num_rows])
            x = layer.self_attn.o_proj(attended.reshape(num_rows, -1))  # (R, A d) to (R, D)
            residual, x = add_norm(residual, x, mlp_norm.weight, mlp_norm.variance_epsilon)
            x = gated(act_fn, self._gate_up[i](x))  # (R, 2 F) to (R, F)
            x = layer.mlp.down_proj(x)  # (R, D)
            residual, x = add_norm(residual, x, next_norm.weight, next_norm.variance_epsilon)
        state.hidden[:num_rows] = x

    def _masked(self, write_columns: Tensor, end: int) -> Callable:
        """Attention by transformers' own function, over the first ``end`` columns under a mask."""
        column_indices = torch.arange(end, device=write_columns.device)
        is_used = column_indices <= write_columns[:, None]  # (R, end)
        mask = self.janus.mask(is_used[:, None, None])  # (R, 1, 1, end)
        name = self.janus.net.config.text_config._attn_implementation
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention_forward)

        def attend(module, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            """(R, A, d), keys and values (R, H, C, d), to (R, 1, A, d)."""
            attended, _ = attention(
                module,
                q[:, :, None],  # (R, A, 1, d)
                keys[:, :, :end],
                values[:, :, :end],
                mask,
                scaling=module.scaling,
            )
            return attended

        return attend

    def _flash(self, write_columns: Tensor, columns: int) -> Callable:
        """PyTorch's flash attention for sequences of many lengths, over all ``columns`` of the
        cache, of which it reads those in use."""
        num_rows, num_kv_heads, head_dim = len(write_columns), self.cache.heads, self.cache.head_dim
        # to the kernel all slots are one packed sequence of columns, in which a slot's first head
        # is followed by its other heads: a row begins H C columns behind the one before it
        query_starts = torch.arange(num_rows + 1, device=write_columns.device, dtype=torch.int32)
        key_starts = query_starts * (num_kv_heads * columns)  # (R + 1,)
        used_columns = (write_columns + 1).int()  # (R,)
        packed_length = ((num_rows - 1) * num_kv_heads + 1) * columns
        packed_shape = packed_length, num_kv_heads, head_dim
        packed_strides = head_dim, columns * head_dim, 1

        def attend(module, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            """(R, A, d), keys and values (R, H, C, d), to (R, A, d)."""
            packed_keys = keys.as_strided(packed_shape, packed_strides, keys.storage_offset())
            packed_values = values.as_strided(packed_shape, packed_strides, values.storage_offset())
            outputs = torch.ops.aten._flash_attention_forward(
                q,
                packed_keys,
                packed_values,
                query_starts,
                key_starts,
                1,  # queries of the longest row
                columns,  # keys of the longest row
                0.0,  # dropout
                False,  # causal: the only query sees all columns in use
                False,  # return_debug_mask
                scale=module.scaling,
                seqused_k=used_columns,
            )
            return outputs[0]

        return attend
