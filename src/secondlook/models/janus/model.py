"""Janus as transformers has it: load, save, heads, codes <-> pixels, and the two ways an image
becomes embeddings.

Departures from transformers, each because the original code does otherwise (Janus,
github.com/deepseek-ai/Janus): encoding normalises latents and codebook before the nearest-neighbour
search; `lm_head` is never tied; decoded pixels are truncated to 8 bits; seeing resizes to
``int(side / longest * size)`` and pads with grey 127.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import JanusForConditionalGeneration, JanusProcessor, JanusVQVAE

from secondlook.errors import InputError
from secondlook.io import as_rgb
from secondlook.models import packing
from secondlook.models.device import inference_dtype, resolve_device
from secondlook.models.janus import checkpoint
from secondlook.models.shipped import locate

GREY, SMALLEST = 127, 14
ATTENTION = ("sdpa", "eager")


class Janus(nn.Module):
    """One unified model: transformers' network, its tokenizer and its two image paths."""

    def __init__(self, net: JanusForConditionalGeneration, processor: JanusProcessor):
        super().__init__()
        self.net = net
        self.processor = processor
        self.tokenizer = processor.tokenizer
        packing.install(net)
        codebook = net.model.vqmodel.quantize.embedding.weight
        codebook.data = F.normalize(codebook.data, dim=-1)

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str = "cpu",
        dtype: torch.dtype | Literal["auto"] | None = torch.float32,
        attention: str = "sdpa",
    ) -> Janus:
        """Load a shipped model, a folder or a hub id, in transformers' layout or the original one.

        ``dtype`` None is the one that the checkpoint is stored in; "auto" the one to draw and judge
        in on this device (``inference_dtype``). Raises InputError with one sentence.
        """
        if attention not in ATTENTION:
            raise InputError(
                f"attention: {attention!r} is unknown; choose one of {', '.join(ATTENTION)}"
            )
        where, folder = resolve_device(device), checkpoint.fetch(locate(str(path)))
        if dtype == "auto":
            dtype = inference_dtype(where, checkpoint.config_of(folder).dtype)
        return cls(*checkpoint.load(folder, dtype, where, attention))

    def in_8_bits(self) -> Janus:
        """Keep the weights of the language model's linear layers in 8 bits, by torchao: for drawing
        and judging in little memory, not for training or saving. Raises InputError where torchao is
        not installed."""
        try:
            from torchao.quantization import Int8WeightOnlyConfig, quantize_
        except ImportError as error:
            raise InputError(
                "dtype: int8 needs torchao, which is not installed; run pip install "
                "'secondlook[int8]'"
            ) from error
        quantize_(self.net.model.language_model, Int8WeightOnlyConfig())
        return self

    def save(self, folder: str | Path, weights: dict[str, Tensor] | None = None) -> None:
        """Write the checkpoint in transformers' layout (config, safetensors, processor, tokenizer);
        ``weights`` in place of the network's own, which may be in parts."""
        self.net.save_pretrained(folder, state_dict=weights)
        self.processor.save_pretrained(folder)

    @property
    def device(self) -> torch.device:
        return self.net.lm_head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.net.lm_head.weight.dtype

    @property
    def history(self) -> str:
        """What a redraw has as an earlier drawn image: the sampled ``codes``, or the picture
        encoded again (``reencode``: how the published checkpoints were trained; the checkpoint's
        generation config says otherwise)."""
        return getattr(self.net.generation_config, "history", None) or "reencode"

    @history.setter
    def history(self, value: str) -> None:
        self.net.generation_config.history = value

    @property
    def image_size(self) -> int:
        return self.net.config.vision_config.image_size

    @property
    def n_codes(self) -> int:
        """Codes of one drawn image."""
        return self.net.config.vq_config.num_patches**2

    @property
    def n_patches(self) -> int:
        """Embeddings of one seen image."""
        return self.net.config.vision_config.num_image_tokens

    def seen(self, images: list[Image.Image]) -> Tensor:
        """Seeing path, pixels: (B, 3, S, S) in [-1, 1]; the long side becomes S, padded to a square
        with grey 127."""
        return self._pixels([letterbox(as_rgb(image), self.image_size) for image in images])

    def to_codes(self, images: list[Image.Image]) -> Tensor:
        """Drawing path, codes of given pictures: (B, n_codes); the short side becomes S, centre
        crop."""
        return encode(
            self.net.model.vqmodel,
            self._pixels([cover(as_rgb(i), self.image_size) for i in images]),
        )

    def to_images(self, codes: Tensor) -> list[Image.Image]:
        """Codes (B, n_codes) to pictures."""
        return [
            Image.fromarray(a)
            for a in to_bytes(decode(self.net.model.vqmodel, codes)).cpu().numpy()
        ]

    def _pixels(self, images: list[Image.Image]) -> Tensor:
        stack = torch.from_numpy(np.stack([np.asarray(i) for i in images]))
        first = next(
            self.net.model.vqmodel.parameters()
        )  # the encoders' own type, which the rest may differ from in training
        return to_unit(stack).to(first.device, first.dtype)

    def embed_text(self, ids: Tensor) -> Tensor:
        """(…) ids to (…, D)."""
        return self.net.get_input_embeddings()(ids)

    def embed_codes(self, codes: Tensor) -> Tensor:
        """Drawing path: (…, n_codes) to (…, n_codes, D)."""
        return self.net.prepare_embeddings_for_image_generation(codes)

    def embed_seen(self, pixels: Tensor) -> Tensor:
        """Seeing path: (B, 3, S, S) to (B, n_patches, D)."""
        return self.net.model.aligner(self.net.model.vision_model(pixels).last_hidden_state)

    def hidden(
        self,
        embeds: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache=None,
    ) -> Tensor:
        """The language model: embeddings (B, T, D) to final hidden states (B, T, D). ``mask`` is
        None (causal) or a boolean (B, 1, T, S) that says what may be attended to."""
        out = self.net.model.language_model(
            inputs_embeds=embeds,
            attention_mask=None if mask is None else self.mask(mask),
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return out.last_hidden_state

    def packed(self, embeds: Tensor, positions: Tensor, groups: packing.SequenceGroups) -> Tensor:
        """The language model on whole sequences one behind another: (N, D), with their positions
        (N,), to final hidden states (N, D)."""
        out = self.net.model.language_model(
            inputs_embeds=embeds[None],
            attention_mask=torch.ones(
                1, 1, 1, 1, dtype=torch.bool, device=embeds.device
            ),  # else transformers makes one
            position_ids=positions[None],
            use_cache=False,
            groups=groups,
        )
        return out.last_hidden_state[0]

    def mask(self, allowed: Tensor) -> Tensor:
        """A boolean mask as the attention in use takes it: transformers' eager one adds it."""
        if packing.attention(self.net) != "eager":
            return allowed
        return torch.zeros(allowed.shape, dtype=self.dtype, device=allowed.device).masked_fill(
            ~allowed, -torch.inf
        )

    def head_features(self, hidden: Tensor) -> Tensor:
        """The generation head up to its last, linear layer: guidance may be mixed here exactly."""
        head = self.net.model.generation_head
        return head.activation_fn(head.proj_out(hidden))

    def code_logits(self, hidden: Tensor) -> Tensor:
        """(…, D) to (…, codebook)."""
        return self.net.model.generation_head(hidden)

    def text_logits(self, hidden: Tensor) -> Tensor:
        """(…, D) to (…, vocabulary)."""
        return self.net.lm_head(hidden)


def encode(vq: JanusVQVAE, pixels: Tensor) -> Tensor:
    """Pixels (B, 3, S, S) in [-1, 1] to codes (B, n): nearest neighbours between unit vectors, as
    Janus does."""
    return code_scores(vq, pixels).argmax(-1).flatten(1)


def code_scores(vq: JanusVQVAE, pixels: Tensor) -> Tensor:
    """Cosine of every latent with every code: (B, h, w, codebook)."""
    latents = F.normalize(vq.quant_conv(vq.encoder(pixels)).permute(0, 2, 3, 1), dim=-1)
    return latents @ F.normalize(vq.quantize.embedding.weight, dim=-1).T


def decode(vq: JanusVQVAE, codes: Tensor) -> Tensor:
    """Codes (B, n) to pixels (B, 3, S, S), about [-1, 1]."""
    return vq.decode(codes)


def to_unit(images: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) to float (B, 3, H, W) in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_bytes(pixels: Tensor) -> Tensor:
    """Float (B, 3, H, W) to uint8 (B, H, W, 3), clipped and truncated."""
    scaled = ((pixels.float() + 1) / 2 * 255).clamp(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1)


def letterbox(image: Image.Image, size: int) -> Image.Image:
    """As the seeing path has it: the long side becomes ``size`` (the other truncated), padded to a
    square with grey."""
    longest = max(image.size)
    w, h = (max(int(side / longest * size), SMALLEST) for side in image.size)
    if (w, h) != image.size:
        image = image.resize((w, h), Image.Resampling.BICUBIC)
    if w == h:
        return image
    square = Image.new("RGB", (max(w, h), max(w, h)), (GREY,) * 3)
    square.paste(image, ((max(w, h) - w) // 2, (max(w, h) - h) // 2))
    return square


def cover(image: Image.Image, size: int) -> Image.Image:
    """As the drawing path has it: halved while twice too large, the short side becomes ``size``,
    centre crop."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    shortest = min(image.size)
    if shortest != size:
        image = image.resize(
            (round(image.width / shortest * size), round(image.height / shortest * size)),
            Image.Resampling.BICUBIC,
        )
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))
