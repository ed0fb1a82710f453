"""A key-value cache of fixed size: rows of sequences side by side, written in place, attended over their used length only."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import Cache


class Slots(Cache):
    """Keys and values of all layers, one slot a sequence. A slot's sequence begins at column 0, so sequences of any length
    stand side by side; what lies behind a sequence's end is never attended to.

    transformers' own StaticCache is attended over its full length, and its rows cannot be forked, moved, kept or left out.
    """

    def __init__(self, layers: int, heads: int, head_dim: int, like: Tensor):
        super().__init__(layers=[])
        self.stored = like.new_empty(2, layers, 0, heads, 0, head_dim)
        """(keys and values, layers, slots, heads, columns, head_dim)."""
        self._rows, self._end = slice(0, 0), 0
        self._index: tuple[Tensor, Tensor] | None = None

    def reserve(self, slots: int, columns: int) -> None:
        """Make room for so many slots and columns; what is there stays."""
        has = self.stored.shape[2], self.stored.shape[4]
        if slots > has[0] or columns > has[1]:
            both, layers, _, heads, _, dim = self.stored.shape
            grown = self.stored.new_zeros(both, layers, max(slots, has[0]), heads, max(columns, has[1]), dim)
            grown[:, :, : has[0], :, : has[1]] = self.stored
            self.stored = grown

    def window(self, first: int, starts: Tensor, new: int, end: int) -> Tensor:
        """What the next forward pass writes: ``new`` columns of the slots from ``first`` on, each row's from its start (R,) on.

        ``end`` is the last of these columns, plus one. Returns the mask (R, 1, new, end) of what may be attended to.
        """
        columns = starts[:, None] + torch.arange(new, device=starts.device)
        self._rows, self._end = slice(first, first + len(starts)), end
        self._index = (torch.arange(len(starts), device=starts.device)[:, None], columns)
        return (torch.arange(end, device=starts.device) <= columns[..., None])[:, None]

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Write the window's columns of one layer; returns views of the window's slots up to its end."""
        assert self._index is not None
        rows, columns = self._index
        keys, values = self.stored[0, layer_idx, self._rows], self.stored[1, layer_idx, self._rows]
        keys[rows, :, columns] = key_states.transpose(1, 2)
        values[rows, :, columns] = value_states.transpose(1, 2)
        return keys[:, :, : self._end], values[:, :, : self._end]

    def copy(self, sources: list[int], targets: list[int], columns: int) -> None:
        """Slots that begin like others."""
        if sources:
            self.stored[:, :, targets, :, :columns] = self.stored[:, :, sources, :, :columns]

    def take(self, slots: list[int], columns: int) -> list[Tensor]:
        """Copies (2, layers, heads, columns, head_dim) of slots, to be put back later."""
        return list(self.stored[:, :, slots, :, :columns].unbind(2))

    def put(self, slot: int, kept: Tensor, columns: int) -> None:
        """The first columns of what was taken."""
        self.stored[:, :, slot, :, :columns] = kept[..., :columns, :]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._end

    def get_mask_sizes(self, query_length, layer_idx: int = 0) -> tuple[int, int]:
        return self._end, 0

    @property
    def is_compileable(self) -> bool:
        return False
