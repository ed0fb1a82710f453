"""A key-value cache of fixed size: rows of sequences side by side, written in place, attended over
their used length only.

Shapes: S slots, C columns, H key-value heads, d head_dim; R rows of a pass, n new tokens of each.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from transformers import Cache, LlamaConfig

COLUMNS = 64
"""Columns come in so many. Where attention needs a mask, each width that it looks at is a graph of
its own."""


def in_columns(columns: int) -> int:
    """The columns of the cache that hold so many: the next multiple of ``COLUMNS``."""
    return math.ceil(columns / COLUMNS) * COLUMNS


def rounded(rows: int) -> int:
    """Rows that a pass is made for, and slots of the cache: 1, 2, 4, 8 and multiples of 8, so that
    few graphs serve every number."""
    for size in (1, 2, 4):
        if rows <= size:
            return size
    return math.ceil(rows / 8) * 8


def head_dim_of(text_config: LlamaConfig) -> int:
    """Width of one attention head; a config may leave it to be counted."""
    stated = getattr(text_config, "head_dim", None)
    return stated or text_config.hidden_size // text_config.num_attention_heads


class KVCache(Cache):
    """Keys and values of all layers, one slot a sequence. A slot's sequence begins at column 0, so
    sequences of any length stand side by side; what lies behind a sequence's end is never attended
    to.

    transformers' own StaticCache is attended over its full length, and its rows cannot be forked,
    moved, kept or left out.
    """

    def __init__(self, layers: int, heads: int, head_dim: int, like: Tensor):
        super().__init__(layers=[])
        self.heads, self.head_dim = heads, head_dim
        self.stored = [like.new_empty(2, 0, heads, 0, head_dim) for _ in range(layers)]
        """Of every layer (2, S, H, C, d): keys, then values."""
        # the window of the next forward pass
        self._window_slots = slice(0, 0)
        self._window_end = 0
        self._window_index: tuple[Tensor, Tensor] | None = None  # rows (R, 1), columns (R, n)

    @property
    def slots(self) -> int:
        return self.stored[0].shape[1]

    @property
    def columns(self) -> int:
        return self.stored[0].shape[3]

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.stored)

    def reserve(self, slots: int, columns: int) -> bool:
        """Make room for so many slots and columns; what is there stays. Returns whether the tensors
        are new ones."""
        old_slots, old_columns = self.slots, self.columns
        if slots <= old_slots and columns <= old_columns:
            return False
        shape = 2, max(slots, old_slots), self.heads, max(columns, old_columns), self.head_dim
        # one layer at a time, so that the old cache and the new one are never both whole
        for i in range(len(self.stored)):
            larger = self.stored[i].new_zeros(shape)
            larger[:, :old_slots, :, :old_columns] = self.stored[i]
            self.stored[i] = larger
        return True

    def window(self, first_slot: int, start_columns: Tensor, num_new: int, end: int) -> Tensor:
        """What the next forward pass writes: ``new`` columns of the slots from ``first`` on, each
        row's from its start (R,) on.

        ``end`` is the last of these columns, plus one. Returns the mask (R, 1, n, end) of what may
        be attended to: each token's own column and those before it.
        """
        num_rows, device = len(start_columns), start_columns.device
        columns = start_columns[:, None] + torch.arange(num_new, device=device)  # (R, n)
        rows = torch.arange(num_rows, device=device)[:, None]  # (R, 1)
        self._window_slots, self._window_end = slice(first_slot, first_slot + num_rows), end
        self._window_index = rows, columns
        may_attend = torch.arange(end, device=device) <= columns[..., None]  # (R, n, end)
        return may_attend[:, None]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs
    ) -> tuple[Tensor, Tensor]:
        """Write the window's columns (R, H, n, d) of one layer; returns views (R, H, end, d) of the
        window's slots up to its end. Called by transformers' attention."""
        assert self._window_index is not None
        rows, columns = self._window_index
        keys, values = self.stored[layer_idx][:, self._window_slots]  # (R, H, C, d) each
        # indexed by rows and columns, the shape is (R, n, H, d)
        keys[rows, :, columns] = key_states.transpose(1, 2)
        values[rows, :, columns] = value_states.transpose(1, 2)
        return keys[:, :, : self._window_end], values[:, :, : self._window_end]

    def copy(self, source_slots: list[int], target_slots: list[int], num_columns: int) -> None:
        """Copy the first columns of some slots to others."""
        if not source_slots:
            return
        device = self.stored[0].device
        sources = torch.tensor(source_slots, device=device)
        targets = torch.tensor(target_slots, device=device)
        for layer in self.stored:
            layer[:, targets, :, :num_columns] = layer[:, sources, :, :num_columns]

    def take(self, slot: int, num_columns: int) -> Tensor:
        """A copy (2, layers, H, columns, d) of a slot's first columns, to be put back later."""
        of_layers = [layer[:, slot, :, :num_columns] for layer in self.stored]  # (2, H, columns, d)
        return torch.stack(of_layers, 1)

    def put(self, slot: int, taken: Tensor, num_columns: int) -> None:
        """Write the first columns of what was ``taken`` to the beginning of a slot."""
        for layer, keys_values in zip(self.stored, taken.unbind(1), strict=True):
            layer[:, slot, :, :num_columns] = keys_values[:, :, :num_columns]

    # what transformers asks a cache for

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._window_end

    def get_mask_sizes(self, query_length, layer_idx: int = 0) -> tuple[int, int]:
        return self._window_end, 0

    @property
    def is_compileable(self) -> bool:
        return False
