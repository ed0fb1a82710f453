"""Janus as transformers has it: load, save, heads, codes <-> pixels, and the two ways an image
becomes embeddings.

Shapes: B rows, T tokens, N tokens of a packed row, D width of the language model, S pixels of a
picture's side. Janus-Pro-7B: D 4096, S 384, 24 x 24 codes of 16384, as many patches.

Departures from transformers, each because the original code does otherwise (Janus,
github.com/deepseek-ai/Janus): encoding normalises latents and codebook before the nearest-neighbour
search; `lm_head` is never tied; decoded pixels are truncated to 8 bits; seeing resizes to
``int(side / longest * size)`` and pads with grey 127.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import JanusForConditionalGeneration, JanusProcessor, JanusVQVAE
from transformers.utils import logging

from secondlook.errors import InputError
from secondlook.io import as_rgb
from secondlook.models import packing
from secondlook.models.device import inference_dtype, resolve_device
from secondlook.models.janus import checkpoint
from secondlook.models.shipped import locate

GREY = 127
"""The value of all channels beside a picture that is no square."""
MIN_SIDE = 14
"""Pixels of the shorter side of a picture that is seen, at least."""
REASON_TOKENS = 48
"""Tokens of a verdict with its reason, at most, where a checkpoint does not say."""
ATTENTIONS = ("sdpa", "eager")
"""transformers' attention functions that packed rows are made for (``packing``)."""


class Janus(nn.Module):
    """One unified model: transformers' network, its tokenizer and its two image paths."""

    def __init__(self, net: JanusForConditionalGeneration, processor: JanusProcessor):
        super().__init__()
        self.net = net
        self.processor = processor
        self.tokenizer = processor.tokenizer
        packing.install(net)
        codebook = net.model.vqmodel.quantize.embedding.weight  # (codes, code width)
        # transformers encodes by distance: between unit vectors the nearest is the most similar
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
        if attention not in ATTENTIONS:
            raise InputError(
                f"attention: {attention!r} is unknown; choose one of {', '.join(ATTENTIONS)}"
            )
        model_device = resolve_device(device)
        folder = checkpoint.fetch(locate(str(path)))
        if dtype == "auto":
            stored_dtype = checkpoint.config_of(folder).dtype
            dtype = inference_dtype(model_device, stored_dtype)
        net, processor = checkpoint.load(folder, dtype, model_device, attention)
        return cls(net, processor)

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
        ``weights`` by name in place of the network's own, of which a rank may hold a part only."""
        with _without_progress_bars():
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
    def redraw_sees(self) -> str:
        """What stands before a redraw and before the verdict on it: the whole ``chain`` of images
        and verdicts (the paper), the ``last`` image and verdict alone, or the last image as the
        source of an ``edit`` with the reason as its instruction. The checkpoint's generation config
        says which it was trained with; "chain" where it is silent."""
        return getattr(self.net.generation_config, "redraw_sees", None) or "chain"

    @redraw_sees.setter
    def redraw_sees(self, value: str) -> None:
        self.net.generation_config.redraw_sees = value

    @property
    def judge_rereads(self) -> bool:
        """Whether the prompt stands once more behind each image that is judged, where its words can
        attend to the image (the paper: before it alone). The checkpoint's generation config says
        so if it was trained with it."""
        return bool(getattr(self.net.generation_config, "judge_rereads", None))

    @judge_rereads.setter
    def judge_rereads(self, value: bool) -> None:
        self.net.generation_config.judge_rereads = value

    @property
    def reason_tokens(self) -> int:
        """Tokens of a verdict with its reason, at most: as the generation config says, else 48."""
        return getattr(self.net.generation_config, "reason_tokens", None) or REASON_TOKENS

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
        squares = [letterbox(as_rgb(image), self.image_size) for image in images]
        return self._pixels(squares)

    def to_codes(self, images: list[Image.Image]) -> Tensor:
        """Drawing path, codes of given pictures: (B, n_codes); the short side becomes S, centre
        crop."""
        squares = [cover(as_rgb(image), self.image_size) for image in images]
        return encode(self.net.model.vqmodel, self._pixels(squares))

    def to_images(self, codes: Tensor) -> list[Image.Image]:
        """Codes (B, n_codes) to B pictures of S x S pixels."""
        pixels = decode(self.net.model.vqmodel, codes)  # (B, 3, S, S)
        arrays = to_bytes(pixels).cpu().numpy()  # (B, S, S, 3)
        return [Image.fromarray(array) for array in arrays]

    def _pixels(self, squares: list[Image.Image]) -> Tensor:
        """RGB pictures of S x S pixels to (B, 3, S, S) in [-1, 1]."""
        arrays = torch.from_numpy(np.stack([np.asarray(image) for image in squares]))
        # the encoders' own type, which the rest may differ from in training
        encoder_weight = next(self.net.model.vqmodel.parameters())
        return to_unit(arrays).to(encoder_weight.device, encoder_weight.dtype)

    def embed_text(self, ids: Tensor) -> Tensor:
        """(…) ids to (…, D)."""
        return self.net.get_input_embeddings()(ids)

    def embed_codes(self, codes: Tensor) -> Tensor:
        """Drawing path: (…, n_codes) to (…, n_codes, D)."""
        return self.net.prepare_embeddings_for_image_generation(codes)

    def embed_seen(self, pixels: Tensor) -> Tensor:
        """Seeing path: (B, 3, S, S) to (B, n_patches, D)."""
        patch_features = self.net.model.vision_model(pixels).last_hidden_state
        # (B, n_patches, the seeing encoder's width)
        return self.net.model.aligner(patch_features)

    def hidden(
        self,
        embeds: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache=None,
    ) -> Tensor:
        """The language model: embeddings (B, T, D) and their positions (B, T) to final hidden
        states (B, T, D).

        ``mask`` is None (causal) or a boolean (B, 1, T, columns) that says what may be attended to:
        the columns of ``cache``, or without one the tokens themselves.
        """
        output = self.net.model.language_model(
            inputs_embeds=embeds,
            attention_mask=None if mask is None else self.mask(mask),
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return output.last_hidden_state

    def packed(self, embeds: Tensor, positions: Tensor, groups: packing.SequenceGroups) -> Tensor:
        """The language model on whole sequences one behind another: (N, D), with their positions
        (N,), to final hidden states (N, D)."""
        # packed attention has no use for a mask; without one transformers would make (N, N)
        unused_mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=embeds.device)
        output = self.net.model.language_model(
            inputs_embeds=embeds[None],  # (1, N, D)
            attention_mask=unused_mask,
            position_ids=positions[None],  # (1, N)
            use_cache=False,
            groups=groups,
        )
        return output.last_hidden_state[0]

    def mask(self, allowed: Tensor) -> Tensor:
        """A boolean mask as the attention in use takes it: transformers' eager one adds it to the
        scores, so there it is 0 and -inf. Any shape."""
        if packing.attention(self.net) != "eager":
            return allowed
        no_penalty = torch.zeros(allowed.shape, dtype=self.dtype, device=allowed.device)
        return no_penalty.masked_fill(~allowed, -torch.inf)

    def head_features(self, hidden: Tensor) -> Tensor:
        """The generation head up to its last, linear layer, (…, D) to (…, F): guidance may be mixed
        here exactly."""
        head = self.net.model.generation_head
        return head.activation_fn(head.proj_out(hidden))

    def code_logits(self, hidden: Tensor) -> Tensor:
        """(…, D) to (…, codebook)."""
        return self.net.model.generation_head(hidden)

    def text_logits(self, hidden: Tensor) -> Tensor:
        """(…, D) to (…, vocabulary)."""
        return self.net.lm_head(hidden)


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """transformers shows no bars in this block, whose files are written in a moment."""
    were_shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if were_shown:
            logging.enable_progress_bar()


def encode(vq: JanusVQVAE, pixels: Tensor) -> Tensor:
    """Pixels (B, 3, S, S) in [-1, 1] to codes (B, n): nearest neighbours between unit vectors, as
    Janus does."""
    return code_scores(vq, pixels).argmax(-1).flatten(1)


def code_scores(vq: JanusVQVAE, pixels: Tensor) -> Tensor:
    """Cosine of every latent with every code: (B, h, w, codebook)."""
    latents = vq.quant_conv(vq.encoder(pixels))  # (B, code width, h, w)
    latents = F.normalize(latents.permute(0, 2, 3, 1), dim=-1)  # (B, h, w, code width)
    codebook = F.normalize(vq.quantize.embedding.weight, dim=-1)  # (codebook, code width)
    return latents @ codebook.T


def decode(vq: JanusVQVAE, codes: Tensor) -> Tensor:
    """Codes (B, n) to pixels (B, 3, S, S), about [-1, 1]."""
    return vq.decode(codes)


def to_unit(images: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) to float32 (B, 3, H, W) in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_bytes(pixels: Tensor) -> Tensor:
    """Float (B, 3, H, W) to uint8 (B, H, W, 3), clipped and truncated."""
    scaled = ((pixels.float() + 1) / 2 * 255).clamp(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1)


def letterbox(image: Image.Image, size: int) -> Image.Image:
    """As the seeing path has it: the long side becomes ``size`` (the other truncated), padded to a
    square with grey."""
    longest_side = max(image.size)
    width = max(int(image.width / longest_side * size), MIN_SIDE)
    height = max(int(image.height / longest_side * size), MIN_SIDE)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    if width == height:
        return image
    side = max(width, height)
    square = Image.new("RGB", (side, side), (GREY,) * 3)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def cover(image: Image.Image, size: int) -> Image.Image:
    """As the drawing path has it: halved while twice too large, the short side becomes ``size``,
    centre crop."""
    # BOX at half the size takes averages of 2 x 2 pixels
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    shortest_side = min(image.size)
    if shortest_side != size:
        width = round(image.width / shortest_side * size)
        height = round(image.height / shortest_side * size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))
