"""The original "multi_modality" layout of Janus-Pro checkpoints <-> transformers' layout: tensor
names and configurations.

Source: the published checkpoints' names (github.com/deepseek-ai/Janus) and transformers' Janus.
Left out on the way to transformers, whose network does not have them: the seeing encoder's pooling
head, which Janus does not use, and the codebook's usage counts. The way back cannot bring them
back.

The codebook is written with rows of unit length, in both directions. The original code normalises
codebook and latents when it encodes, and the codebook when it decodes, so to it that is the same
codebook. transformers decodes likewise but encodes by distance to the rows as they are stored: only
between rows of equal length is the nearest one the original's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import JanusConfig, JanusVisionConfig, JanusVQVAEConfig, LlamaConfig

from secondlook.errors import InputError

MODEL_TYPE = "multi_modality"
_TOWER, _SEEING, _VQ = "vision_model.vision_tower.", "model.vision_model.", "gen_vision_model."
_HALVES = (("encoder", "down"), ("decoder", "up"))
_NAMES = [
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
    (_TOWER + "blocks.{n}.attn.proj.", _SEEING + "encoder.layers.{n}.self_attn.projection_layer."),
    (_TOWER + "blocks.{n}.norm", _SEEING + "encoder.layers.{n}.layer_norm"),
    (_TOWER + "blocks.{n}.mlp.", _SEEING + "encoder.layers.{n}.mlp."),
    (_TOWER + "patch_embed.proj.", _SEEING + "embeddings.patch_embedding."),
    (_TOWER + "pos_embed", _SEEING + "embeddings.position_embedding.weight"),
    (_TOWER + "norm.", _SEEING + "post_layernorm."),
    *(
        (f"{_VQ}{half}.mid.{n}.", f"model.vqmodel.{half}.mid.{name}.")
        for half, _ in _HALVES
        for n, name in enumerate(("block_1", "attn_1", "block_2"))
    ),
    *(
        (f"{_VQ}{half}.conv_blocks.{{n}}.{old}", f"model.vqmodel.{half}.{way}.{{n}}.{new}")
        for half, way in _HALVES
        for old, new in (("res.", "block."), ("", ""))
    ),
    (_VQ, "model.vqmodel."),
    *(
        (f"{old}.layers.{2 * n}.", f"model.{new}.{'fc1' if n == 0 else f'hidden_layers.{n - 1}'}.")
        for old, new in (("aligner", "aligner"), ("gen_aligner", "generation_aligner"))
        for n in range(4)
    ),
    ("gen_head.output_mlp_projector.", "model.generation_head.proj_out."),
    ("gen_head.vision_head.", "model.generation_head.vision_head."),
    ("gen_embed.", "model.generation_embeddings."),
]
"""Beginnings of names, original and transformers'; the first that fits counts, in both
directions."""
UNUSED = re.compile(
    f"{re.escape(_TOWER)}attn_pool\\..*|{re.escape(_VQ)}quantize\\.codebook_used|.*\\.(inv_freq|position_ids)"
)
"""What no network needs: see above, and tables that older versions of transformers stored."""
_QKV = re.compile(re.escape(_TOWER) + r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)")
_SPLIT = re.compile(
    re.escape(_SEEING) + r"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)"
)
_CODEBOOK = ".quantize.embedding.weight"
_PLACES = _SEEING + "embeddings.position_embedding.weight"


def _renamed(name: str, pairs: Iterable[tuple[str, str]]) -> str | None:
    for old, new in pairs:
        found = re.match(re.escape(old).replace(r"\{n\}", r"(\d+)"), name)
        if found:
            return (
                new.replace("{n}", found.group(1) if found.groups() else "") + name[found.end() :]
            )
    return None


def to_transformers(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """One original tensor under transformers' names: three for a fused qkv.

    Raises KeyError for a name that no Janus checkpoint has.
    """
    if fused := _QKV.fullmatch(name):
        n, kind = fused.groups()
        parts = zip("qkv", tensor.chunk(3), strict=True)
        return {
            f"{_SEEING}encoder.layers.{n}.self_attn.{letter}_proj.{kind}": part
            for letter, part in parts
        }
    new = _renamed(name, _NAMES)
    if new is None:
        raise KeyError(name)
    return {new: tensor.squeeze(0) if new == _PLACES else tensor}


def to_original(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """transformers' tensors under the original names, q, k and v of the seeing encoder fused again.
    Raises KeyError."""
    waiting: dict[tuple[str, str], dict[str, Tensor]] = {}
    back = [(new, old) for old, new in _NAMES]
    for name, tensor in tensors:
        if split := _SPLIT.fullmatch(name):
            n, letter, kind = split.groups()
            parts = waiting.setdefault((n, kind), {})
            parts[letter] = tensor
            if len(parts) == 3:
                yield f"{_TOWER}blocks.{n}.attn.qkv.{kind}", torch.cat([parts[c] for c in "qkv"])
                del waiting[n, kind]
            continue
        old = _renamed(name, back)
        if old is None:
            raise KeyError(name)
        yield old, tensor[None] if name == _PLACES else tensor


def unit_codebook(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """The same tensors of either layout with the codebook's rows of unit length, in float32 at
    least: rounded to bfloat16 their lengths would differ by up to 0.4 %."""
    for name, tensor in tensors:
        if name.endswith(_CODEBOOK):
            tensor = F.normalize(
                tensor.to(torch.promote_types(tensor.dtype, torch.float32)), dim=-1
            )
        yield name, tensor


_SEEING_NAME = "siglip_large_patch16_384"
_SEEING_SIZE = {"hidden_size": 1024, "num_attention_heads": 16, "patch_size": 16, "mlp_ratio": 4.0}
_SEEING_BLOCKS = 24
_VQ_PATCH = 16
_VQ_SIZE = {
    "base_channels": 128,
    "channel_multiplier": [1, 1, 2, 2, 4],
    "num_res_blocks": 2,
    "latent_channels": 256,
}


def config_of(original: dict[str, Any], image_token_id: int) -> JanusConfig:
    """transformers' config of an original config.json. What it leaves unsaid of the language model
    is Llama's default, as in the original. Raises InputError for a missing part or an unknown
    seeing encoder."""
    try:
        seeing = original["vision_config"]["params"]
        aligner, gen_aligner, gen_head, gen_vision = (
            original[f"{part}_config"]["params"]
            for part in ("aligner", "gen_aligner", "gen_head", "gen_vision")
        )
        language = {k: v for k, v in original["language_config"].items() if k != "model_type"}
        if seeing["model_name"] != _SEEING_NAME:
            raise InputError(
                f"model: its seeing encoder is {seeing['model_name']!r}; known is {_SEEING_NAME!r}"
            )
        last = seeing.get(
            "select_layer", -1
        )  # counts blocks from the end (-1: all), or says how many there are
        return JanusConfig(
            text_config=LlamaConfig(**language | {"tie_word_embeddings": False}),
            vision_config=JanusVisionConfig(
                **_SEEING_SIZE,
                num_hidden_layers=_SEEING_BLOCKS + last + 1
                if last < 0
                else min(_SEEING_BLOCKS, last),
                image_size=seeing["image_size"],
                num_image_tokens=(seeing["image_size"] // _SEEING_SIZE["patch_size"]) ** 2,
                projection_dim=aligner["n_embed"],
                depth=aligner["depth"],
            ),
            vq_config=JanusVQVAEConfig(
                **_VQ_SIZE,
                num_patches=seeing["image_size"] // _VQ_PATCH,
                num_embeddings=gen_vision["image_token_size"],
                embed_dim=gen_vision["n_embed"],
                projection_dim=gen_aligner["n_embed"],
                num_hidden_layers=gen_aligner["depth"],
                image_token_embed_dim=gen_head["image_token_embed"],
            ),
            image_token_id=image_token_id,
            tie_word_embeddings=False,
        )
    except KeyError as error:
        raise InputError(
            f"model: its config.json lacks {error}; it must be that of a {MODEL_TYPE} checkpoint"
        ) from error


def original_config(janus: JanusConfig) -> dict[str, Any]:
    """The original config.json of transformers' config. Raises InputError for what the original
    layout has no words for."""
    text, seeing, vq = janus.text_config, janus.vision_config, janus.vq_config
    strange = [
        f"{part}.{name} {getattr(config, name)}"
        for part, config, sizes in (
            ("vision_config", seeing, _SEEING_SIZE),
            ("vq_config", vq, _VQ_SIZE),
        )
        for name, size in sizes.items()
        if getattr(config, name) != size
    ]
    if strange:
        raise InputError(
            f"model: {strange[0]} cannot be said in the original layout, which knows Janus-Pro's "
            "own encoders only"
        )
    blocks = seeing.num_hidden_layers
    parts = {
        "vision": (
            "CLIPVisionTower",
            {
                "image_size": seeing.image_size,
                "model_name": _SEEING_NAME,
                "select_feature": "same",
                "select_layer": -1 if blocks == _SEEING_BLOCKS else blocks,
            },
        ),
        "aligner": (
            "MlpProjector",
            {
                "depth": seeing.depth,
                "input_dim": seeing.hidden_size,
                "n_embed": seeing.projection_dim,
                "projector_type": "mlp_gelu",
            },
        ),
        "gen_vision": ("VQ-16", {"image_token_size": vq.num_embeddings, "n_embed": vq.embed_dim}),
        "gen_aligner": (
            "MlpProjector",
            {
                "depth": vq.num_hidden_layers,
                "input_dim": vq.embed_dim,
                "n_embed": vq.projection_dim,
                "projector_type": "mlp_gelu",
            },
        ),
        "gen_head": (
            "vision_head",
            {
                "image_token_embed": vq.image_token_embed_dim,
                "image_token_size": vq.num_embeddings,
                "n_embed": text.hidden_size,
            },
        ),
    }
    dtype = str(janus.dtype or torch.float32).removeprefix("torch.")
    language = {
        k: v
        for k, v in text.to_diff_dict().items()
        if k not in ("dtype", "transformers_version", "rope_parameters")
    }
    rope = dict(text.rope_parameters)
    language["rope_theta"] = rope.pop("rope_theta")
    if rope.get("rope_type", "default") != "default":
        language["rope_scaling"] = rope
    return {
        "architectures": ["MultiModalityCausalLM"],
        "model_type": MODEL_TYPE,
        "torch_dtype": dtype,
        **{
            f"{k}_config": {"cls": c, "model_type": k, "params": params}
            for k, (c, params) in parts.items()
        },
        "language_config": language | {"model_type": "llama", "torch_dtype": dtype},
    }


def original_image_processor(config: JanusConfig) -> dict[str, Any]:
    """The original preprocessor_config.json."""
    return {
        "background_color": [127, 127, 127],
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "VLMImageProcessor",
        "image_size": config.vision_config.image_size,
        "image_std": [0.5, 0.5, 0.5],
        "min_size": 14,
        "processor_class": "VLChatProcessor",
        "rescale_factor": 1 / 255,
    }


def original_processor(config: JanusConfig) -> dict[str, Any]:
    """The original processor_config.json."""
    return {
        "add_special_token": False,
        "ignore_id": -100,
        "image_tag": "<image_placeholder>",
        "mask_prompt": True,
        "num_image_tokens": config.vision_config.num_image_tokens,
        "processor_class": "VLChatProcessor",
        "sft_format": "deepseek",
    }
