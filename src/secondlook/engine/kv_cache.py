"""A key-value cache of fixed size: rows of sequences side by side, written in place, attended over
their used length only."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import Cache

COLUMNS = 64
"""Columns come in so many. Where attention needs a mask, each width that it looks at is a graph of
its own."""


def in_columns(columns: int) -> int:
    """The columns of the cache that hold so many."""
    return -(-columns // COLUMNS) * COLUMNS


def rounded(rows: int) -> int:
    """Rows that a pass is made for, and slots of the cache: 1, 2, 4, 8 and multiples of 8, so that
    few graphs serve every number."""
    return next((n for n in (1, 2, 4, 8) if n >= rows), -(-rows // 8) * 8)


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
        """Of every layer (keys and values, slots, heads, columns, head_dim)."""
        self._rows, self._end = slice(0, 0), 0
        self._index: tuple[Tensor, Tensor] | None = None

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
        had = self.slots, self.columns
        if slots <= had[0] and columns <= had[1]:
            return False
        shape = 2, max(slots, had[0]), self.heads, max(columns, had[1]), self.head_dim
        # one layer at a time, so that the old cache and the new one are never both whole
        for i in range(len(self.stored)):
            grown = self.stored[i].new_zeros(shape)
            grown[:, : had[0], :, : had[1]] = self.stored[i]
            self.stored[i] = grown
        return True

    def window(self, first: int, starts: Tensor, new: int, end: int) -> Tensor:
        """What the next forward pass writes: ``new`` columns of the slots from ``first`` on, each
        row's from its start (R,) on.

        ``end`` is the last of these columns, plus one. Returns the mask (R, 1, new, end) of what
        may be attended to.
        """
        columns = starts[:, None] + torch.arange(new, device=starts.device)
        self._rows, self._end = slice(first, first + len(starts)), end
        self._index = (torch.arange(len(starts), device=starts.device)[:, None], columns)
        return (torch.arange(end, device=starts.device) <= columns[..., None])[:, None]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs
    ) -> tuple[Tensor, Tensor]:
        """Write the window's columns of one layer; returns views of the window's slots up to its
        end."""
        assert self._index is not None
        rows, columns = self._index
        keys, values = self.stored[layer_idx][:, self._rows]
        keys[rows, :, columns] = key_states.transpose(1, 2)
        values[rows, :, columns] = value_states.transpose(1, 2)
        return keys[:, :, : self._end], values[:, :, : self._end]

    def copy(self, sources: list[int], targets: list[int], columns: int) -> None:
        """Slots that begin like others."""
        if not sources:
            return
        read, written = (
            torch.tensor(slots, device=self.stored[0].device) for slots in (sources, targets)
        )
        for layer in self.stored:
            layer[:, written, :, :columns] = layer[:, read, :, :columns]

    def take(self, slot: int, columns: int) -> Tensor:
        """A copy (2, layers, heads, columns, head_dim) of a slot's first columns, to be put back
        later."""
        return torch.stack([layer[:, slot, :, :columns] for layer in self.stored], 1)

    def put(self, slot: int, kept: Tensor, columns: int) -> None:
        """The first columns of what was taken."""
        for layer, its in zip(self.stored, kept.unbind(1), strict=True):
            layer[:, slot, :, :columns] = its[:, :, :columns]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._end

    def get_mask_sizes(self, query_length, layer_idx: int = 0) -> tuple[int, int]:
        return self._end, 0

    @property
    def is_compileable(self) -> bool:
        return False
