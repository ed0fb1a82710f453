"""How much memory episodes take while they are drawn, and how many a GPU holds."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from secondlook.engine.cache import in_columns, rounded
from secondlook.engine.pictures import HELD, PIXELS
from secondlook.model.janus import Janus

ASKED, AGAIN = 14, 12
"""Tokens of the strings after an image that is judged, and before one that is drawn again."""
SPARE = 0.05
"""Share of a GPU's memory that is left free: for passes, and for gaps between what is held."""


@dataclass(frozen=True)
class Need:
    """What one episode holds at the most, in columns of the key-value cache (one token of all layers)."""

    drawn: int
    """Of its longest drawing."""
    longest: int
    """Of its longest sequence."""
    kept: int = 0
    """Of all sequences together that are kept because later ones begin like them."""

    @staticmethod
    def of(prompt: int, image: int, rounds: int, reason: int, reencoded: bool = False) -> Need:
        """Of an episode with a prompt (and source) of so many tokens, images of so many codes or patches, and verdicts of so
        many tokens with their reasons. ``reencoded``: earlier drawings are encoded again, so that none is kept."""

        def drawing(t: int) -> int:
            return prompt + t * image + (t - 1) * (ASKED + reason + AGAIN)

        longest = drawing(rounds) + ASKED + reason
        if rounds == 1:
            return Need(drawing(1), longest)
        # one that waits for its last redraw holds most: the drawing before it, that one's twin, and the verdict on it
        return Need(drawing(rounds), longest, drawing(rounds - 1) * (1 if reencoded else 3) + ASKED + reason)

    def cache(self, episodes: int) -> int:
        """Columns of the cache for so many under way together, each with its twin."""
        return rounded(2 * episodes) * in_columns(self.longest)


def fitting(janus: Janus, need: Need, most: int) -> int:
    """How many episodes, at least one and at most ``most``, are drawn together: as many as the free memory of the model's GPU
    holds. Elsewhere ``most``."""
    device = janus.device
    if device.type != "cuda":
        return most
    free, total = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # what torch keeps for itself is free too
    text, size = janus.net.config.text_config, janus.dtype.itemsize
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    column = 2 * text.num_hidden_layers * text.num_key_value_heads * head_dim * size
    left = free - SPARE * total - PIXELS * HELD * size
    fits = most
    while fits > 1 and (need.cache(fits) + fits * need.kept) * column > left:
        fits -= 1
    return fits
