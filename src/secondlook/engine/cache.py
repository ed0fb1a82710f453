"""A key-value cache of fixed size that is written in place and attended over its used length only."""

from __future__ import annotations

from torch import Tensor
from transformers import Cache


class StaticCache(Cache):
    """Keys and values (B, heads, capacity, head_dim) of every layer; ``used`` columns are filled.

    transformers' own StaticCache is attended over its full length and cannot be forked.
    """

    def __init__(self, layers: int, capacity: int):
        super().__init__(layers=[])
        self.capacity, self.used = capacity, 0
        self._keys: list[Tensor | None] = [None] * layers
        self._values: list[Tensor | None] = [None] * layers

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Write the new columns of one layer; returns views of all used ones. The last layer's write moves ``used``."""
        new = key_states.shape[-2]
        end = self.used + new
        if end > self.capacity:
            raise ValueError(f"cache: {end} positions are needed but it was made for {self.capacity}")
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        if keys is None or values is None:
            shape = (*key_states.shape[:2], self.capacity, key_states.shape[-1])
            keys = self._keys[layer_idx] = key_states.new_empty(shape)
            values = self._values[layer_idx] = value_states.new_empty(shape)
        keys[:, :, self.used : end] = key_states
        values[:, :, self.used : end] = value_states
        if layer_idx == len(self._keys) - 1:
            self.used = end
        return keys[:, :, :end], values[:, :, :end]

    def fork(self, rows: Tensor) -> StaticCache:
        """A cache whose row i continues row ``rows[i]`` of this one (a group shares its prompt's prefill)."""
        forked = StaticCache(len(self._keys), self.capacity)
        forked.used = self.used
        for layer, (keys, values) in enumerate(zip(self._keys, self._values, strict=True)):
            assert keys is not None and values is not None
            for source, target in ((keys, forked._keys), (values, forked._values)):
                copy = source.new_empty((len(rows), *source.shape[1:]))
                copy[:, :, : self.used] = source[rows, :, : self.used]
                target[layer] = copy
        return forked

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.used

    def get_mask_sizes(self, query_length, layer_idx: int = 0) -> tuple[int, int]:
        return self.used + (query_length if isinstance(query_length, int) else len(query_length)), 0

    @property
    def is_compileable(self) -> bool:
        return False
