"""How much memory episodes take while they are drawn, and how many a GPU holds.

The unit is a column of the key-value cache: keys and values of one token in all layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from secondlook.engine.image_codec import HELD, PIXELS, images_per_pass
from secondlook.engine.kv_cache import head_dim_of, in_columns, rounded
from secondlook.models.janus.model import Janus

MATCH_TOKENS, AGAIN_TOKENS = 14, 12
"""Tokens of the template's MATCH, which follows an image that is judged, and of AGAIN, which
precedes one that is drawn again."""
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
    def of(
        prompt: int,
        image: int,
        rounds: int,
        reason: int,
        reencoded: bool = False,
        reread: int = 0,
    ) -> Need:
        """Of an episode with a prompt (and source) of so many tokens, images of so many codes or
        patches, and verdicts of so many tokens with their reasons. ``reencoded``: earlier drawings
        are encoded again, so that none is kept. ``reread``: tokens of the prompt that a judge reads
        once more behind each image."""

        def drawing(num_images: int) -> int:
            """Columns of the sequence that ends with the last of so many images."""
            between_images = MATCH_TOKENS + reason + AGAIN_TOKENS
            return prompt + num_images * image + (num_images - 1) * between_images

        def verdict(num_images: int) -> int:
            """Columns of the sequence that ends with the verdict on it."""
            if num_images < 1:
                return 0
            return drawing(num_images) + num_images * reread + MATCH_TOKENS + reason

        drawings = 0
        if rounds > 1 and not reencoded:
            drawings = 2 * drawing(rounds - 1)  # with its unconditional branch
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
        larger = {}
        for name, own_value in vars(self).items():
            larger[name] = max(own_value, getattr(other, name))
        return Need(**larger)

    def cache(self, episodes: int) -> int:
        """Columns of the cache for so many episodes under way together, each with its
        unconditional branch."""
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
    free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    # what torch keeps for itself is free too
    free_bytes += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    text, itemsize = janus.net.config.text_config, janus.dtype.itemsize
    column_width = text.num_key_value_heads * head_dim_of(text)
    column_bytes = 2 * text.num_hidden_layers * column_width * itemsize  # keys and values
    decoder_bytes = PIXELS * HELD * itemsize  # while as many pictures as fit in a pass are decoded
    available_bytes = free_bytes + held - SPARE * total_bytes - decoder_bytes
    num_images = images_per_pass(janus)
    episodes = at_most
    while episodes > 1:
        num_columns = need.cache(episodes) + need.kept(episodes, num_images)
        if num_columns * column_bytes <= available_bytes:
            break
        episodes -= 1
    return episodes
