"""What decoding keeps of each sequence on the device, one row a slot of the key-value cache."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

PER_TOKEN = ("uniform", "tokens", "logprobs")
"""Tensors with a column for each token that is sampled."""


@dataclass
class DecodeState:
    """S slots, room for T sampled tokens, D the model's width. What is sampled stands in the row of
    the conditional branch."""

    length: Tensor  # (S,) columns of the cache in use
    position: Tensor  # (S,) the next token's position
    step: Tensor  # (S,) tokens sampled so far
    embeds: Tensor  # (S, D) of the token to feed next
    hidden: Tensor  # (S, D) final hidden state of the last token fed
    uniform: Tensor  # (S, T) each token's uniform random number in [0, 1)
    tokens: Tensor  # (S, T) sampled ids or codes
    logprobs: Tensor  # (S, T) their behaviour log-probabilities
    p_yes: Tensor  # (S,) P(Yes) of the first token, where it was restricted to (Yes, No)

    @staticmethod
    def empty(like: Tensor, width: int) -> DecodeState:
        """No slots yet; on the device and of the type of ``like``, log-probabilities in float32 at
        least."""
        logprob_dtype = torch.promote_types(like.dtype, torch.float32)
        return DecodeState(
            length=like.new_empty(0, dtype=torch.long),
            position=like.new_empty(0, dtype=torch.long),
            step=like.new_empty(0, dtype=torch.long),
            embeds=like.new_empty(0, width),
            hidden=like.new_empty(0, width),
            uniform=like.new_empty(0, 0, dtype=torch.float32),
            tokens=like.new_empty(0, 0, dtype=torch.long),
            logprobs=like.new_empty(0, 0, dtype=logprob_dtype),
            p_yes=like.new_empty(0, dtype=logprob_dtype),
        )

    def reserve(self, slots: int, max_tokens: int) -> bool:
        """Make room for so many slots and sampled tokens; what is there stays. Returns whether any
        tensor is a new one."""
        has_grown = False
        for name in self._names():
            old_tensor = getattr(self, name)
            shape = [max(slots, old_tensor.shape[0]), *old_tensor.shape[1:]]
            if name in PER_TOKEN:
                shape[1] = max(max_tokens, shape[1])
            if shape == list(old_tensor.shape):
                continue
            new_tensor = old_tensor.new_zeros(shape)
            # what is there is its first rows, and of two axes the first columns
            old_part = tuple(slice(size) for size in old_tensor.shape)
            new_tensor[old_part] = old_tensor
            setattr(self, name, new_tensor)
            has_grown = True
        return has_grown

    def fork(self, sources: list[int], targets: list[int]) -> None:
        """Let the rows ``targets`` go on from the same prefill as the rows ``sources``."""
        for values in (self.length, self.position, self.hidden):
            values[targets] = values[sources]

    def move(self, sources: list[int], targets: list[int]) -> None:
        """Copy the whole rows ``sources`` to the rows ``targets``."""
        for name in self._names():
            values = getattr(self, name)
            values[targets] = values[sources]

    @classmethod
    def _names(cls) -> list[str]:
        return [field.name for field in fields(cls)]
