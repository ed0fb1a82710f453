"""How much memory episodes take while they are drawn, and how many a GPU holds."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch

from secondlook.engine.image_codec import HELD, PIXELS, images_per_pass
from secondlook.engine.kv_cache import in_columns, rounded
from secondlook.models.janus.model import Janus

ASKED, AGAIN = 14, 12
"""Tokens of the strings after an image that is judged, and before one that is drawn again."""
SPARE = 0.05
"""Share of a GPU's memory that is left free: for passes, and for gaps between what is held."""
REFILL = 0.125
"""New sequences enter when so large a share of the places is free: a prefill for each would cost
more than the waiting."""


@dataclass(frozen=True)
class Need:
    """What one episode holds at the most, in columns of the key-value cache (one token of all
    layers)."""

    drawn: int
    """Of its longest drawing."""
    longest: int
    """Of its longest sequence."""
    drawings: int = 0
    """Kept of the drawing before its last redraw, both branches, from its end until the redraw
    enters."""
    verdict: int = 0
    """Kept of the verdict on it, from its end on."""
    earlier: int = 0
    """Kept of the verdict before, until that one enters."""

    @staticmethod
    def of(prompt: int, image: int, rounds: int, reason: int, reencoded: bool = False) -> Need:
        """Of an episode with a prompt (and source) of so many tokens, images of so many codes or
        patches, and verdicts of so many tokens with their reasons. ``reencoded``: earlier drawings
        are encoded again, so that none is kept."""

        def drawing(t: int) -> int:
            return prompt + t * image + (t - 1) * (ASKED + reason + AGAIN)

        def verdict(t: int) -> int:
            return drawing(t) + ASKED + reason if t > 0 else 0

        drawings = 2 * drawing(rounds - 1) if rounds > 1 and not reencoded else 0
        return Need(
            drawn=drawing(rounds),
            longest=verdict(rounds),
            drawings=drawings,
            verdict=verdict(rounds - 1),
            earlier=verdict(rounds - 2),
        )

    def or_larger(self, other: Need | None) -> Need:
        """What an episode holds that may be of the one or of the other sort."""
        if other is None:
            return self
        return Need(*(max(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)))

    def cache(self, episodes: int) -> int:
        """Columns of the cache for so many under way together, each with its unconditional
        branch."""
        return rounded(2 * episodes) * in_columns(self.longest)

    def kept(self, episodes: int, together: int) -> int:
        """Columns kept beside the cache for so many under way, of which ``together`` get their
        pictures at one time: the drawings of all, and beside them what verdicts they have (those
        that come together, and wait until a share of the places is free, have the last one)."""
        judged = min(episodes, together + math.ceil(REFILL * episodes))
        return episodes * self.drawings + max(judged * self.verdict, episodes * self.earlier)


def episodes_that_fit(janus: Janus, need: Need, at_most: int, held: int = 0) -> int:
    """How many episodes, at least one and at most ``at_most``, are drawn together: as many as the
    free memory of the model's GPU holds. ``held`` bytes are the engine's already. Elsewhere than on
    CUDA ``at_most``."""
    device = janus.device
    if device.type != "cuda":
        return at_most
    free, total = torch.cuda.mem_get_info(device)
    # what torch keeps for itself is free too
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    text, size = janus.net.config.text_config, janus.dtype.itemsize
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    column = 2 * text.num_hidden_layers * text.num_key_value_heads * head_dim * size  # bytes
    left = free + held - SPARE * total - PIXELS * HELD * size
    images = images_per_pass(janus)
    episodes = at_most
    while episodes > 1 and (need.cache(episodes) + need.kept(episodes, images)) * column > left:
        episodes -= 1
    return episodes
