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
from transformers import (
    JanusConfig,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
    PreTrainedConfig,
)

from secondlook.errors import InputError

MODEL_TYPE = "multi_modality"
_TOWER, _VISION, _VQ = "vision_model.vision_tower.", "model.vision_model.", "gen_vision_model."
_VQ_HALVES = (("encoder", "down"), ("decoder", "up"))
"""Of the VQ tokenizer, with transformers' name of the half's levels."""
_ALIGNERS = (("aligner", "aligner"), ("gen_aligner", "generation_aligner"))
_ALIGNER_LAYERS = 4
"""Linear layers for which there are names; Janus-Pro's aligners have two."""


def _name_pairs() -> list[tuple[str, str]]:
    """Beginnings of names, original and transformers'; the first that fits counts, in both
    directions. "{n}" stands for a layer's number."""
    block, layer = _TOWER + "blocks.{n}.", _VISION + "encoder.layers.{n}."
    pairs = [
        ("language_model.model.", "model.language_model."),
        ("language_model.lm_head.", "lm_head."),
        (block + "attn.proj.", layer + "self_attn.projection_layer."),
        (block + "norm", layer + "layer_norm"),
        (block + "mlp.", layer + "mlp."),
        (_TOWER + "patch_embed.proj.", _VISION + "embeddings.patch_embedding."),
        (_TOWER + "pos_embed", _VISION + "embeddings.position_embedding.weight"),
        (_TOWER + "norm.", _VISION + "post_layernorm."),
    ]
    for half, _ in _VQ_HALVES:
        for number, name in enumerate(("block_1", "attn_1", "block_2")):
            pairs.append((f"{_VQ}{half}.mid.{number}.", f"model.vqmodel.{half}.mid.{name}."))
    for half, levels in _VQ_HALVES:
        old_level, new_level = (
            f"{_VQ}{half}.conv_blocks.{{n}}.",
            f"model.vqmodel.{half}.{levels}.{{n}}.",
        )
        pairs.append((old_level + "res.", new_level + "block."))
        pairs.append((old_level, new_level))
    pairs.append((_VQ, "model.vqmodel."))
    for old_aligner, new_aligner in _ALIGNERS:
        for number in range(_ALIGNER_LAYERS):
            # the original is a Sequential, in which every second layer is an activation
            new_layer = "fc1" if number == 0 else f"hidden_layers.{number - 1}"
            pairs.append(
                (f"{old_aligner}.layers.{2 * number}.", f"model.{new_aligner}.{new_layer}.")
            )
    return [
        *pairs,
        ("gen_head.output_mlp_projector.", "model.generation_head.proj_out."),
        ("gen_head.vision_head.", "model.generation_head.vision_head."),
        ("gen_embed.", "model.generation_embeddings."),
    ]


_TO_TRANSFORMERS = _name_pairs()
_TO_ORIGINAL = [(new, old) for old, new in _TO_TRANSFORMERS]
UNUSED = re.compile(
    f"{re.escape(_TOWER)}attn_pool\\..*|{re.escape(_VQ)}quantize\\.codebook_used|.*\\.(inv_freq|position_ids)"
)
"""What no network needs: see above, and tables that older versions of transformers stored."""
_QKV = re.compile(re.escape(_TOWER) + r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)")
_Q_OR_K_OR_V = re.compile(
    re.escape(_VISION) + r"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)"
)
_CODEBOOK = ".quantize.embedding.weight"
_POSITIONS = _VISION + "embeddings.position_embedding.weight"


def _rename(name: str, pairs: list[tuple[str, str]]) -> str | None:
    """A name whose beginning is replaced by the first pair that fits; None where none does."""
    for old_beginning, new_beginning in pairs:
        pattern = re.escape(old_beginning).replace(r"\{n\}", r"(\d+)")
        match = re.match(pattern, name)
        if match:
            block_number = match.group(1) if match.groups() else ""
            return new_beginning.replace("{n}", block_number) + name[match.end() :]
    return None


def to_transformers(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """One original tensor under transformers' names: three for a fused qkv.

    Raises KeyError for a name that no Janus checkpoint has.
    """
    fused = _QKV.fullmatch(name)
    if fused:
        layer, parameter = fused.groups()
        q, k, v = tensor.chunk(3)  # (3 D, D) to three (D, D); of the bias (3 D,) to (D,)
        attention = f"{_VISION}encoder.layers.{layer}.self_attn"
        return {
            f"{attention}.q_proj.{parameter}": q,
            f"{attention}.k_proj.{parameter}": k,
            f"{attention}.v_proj.{parameter}": v,
        }
    new_name = _rename(name, _TO_TRANSFORMERS)
    if new_name is None:
        raise KeyError(name)
    if new_name == _POSITIONS:
        tensor = tensor.squeeze(0)  # (1, patches, D) to (patches, D)
    return {new_name: tensor}


def to_original(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """transformers' tensors under the original names, q, k and v of the seeing encoder fused again.
    Raises KeyError."""
    unfused: dict[tuple[str, str], dict[str, Tensor]] = {}  # by layer and "weight" or "bias"
    for name, tensor in tensors:
        split = _Q_OR_K_OR_V.fullmatch(name)
        if split:
            layer, letter, parameter = split.groups()
            qkv = unfused.setdefault((layer, parameter), {})
            qkv[letter] = tensor
            if len(qkv) == 3:
                fused = torch.cat([qkv["q"], qkv["k"], qkv["v"]])  # (3 D, D) or (3 D,)
                yield f"{_TOWER}blocks.{layer}.attn.qkv.{parameter}", fused
                del unfused[layer, parameter]
            continue
        old_name = _rename(name, _TO_ORIGINAL)
        if old_name is None:
            raise KeyError(name)
        if name == _POSITIONS:
            tensor = tensor[None]  # (patches, D) to (1, patches, D)
        yield old_name, tensor


def unit_codebook(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """The same tensors of either layout with the codebook's rows of unit length, in float32 at
    least: rounded to bfloat16 their lengths would differ by up to 0.4 %."""
    for name, tensor in tensors:
        if name.endswith(_CODEBOOK):  # (codes, code width)
            float_dtype = torch.promote_types(tensor.dtype, torch.float32)
            tensor = F.normalize(tensor.to(float_dtype), dim=-1)
        yield name, tensor


_VISION_NAME = "siglip_large_patch16_384"
_VISION_SIZES = {
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "patch_size": 16,
    "mlp_ratio": 4.0,
}
_VISION_BLOCKS = 24
_VQ_PATCH = 16
"""Pixels of a picture's side to each code."""
_VQ_SIZES = {
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
        vision = original["vision_config"]["params"]
        aligner = original["aligner_config"]["params"]
        gen_aligner = original["gen_aligner_config"]["params"]
        gen_head = original["gen_head_config"]["params"]
        gen_vision = original["gen_vision_config"]["params"]
        language = {k: v for k, v in original["language_config"].items() if k != "model_type"}
        language["tie_word_embeddings"] = False
        if vision["model_name"] != _VISION_NAME:
            raise InputError(
                f"model: its seeing encoder is {vision['model_name']!r}; known is {_VISION_NAME!r}"
            )
        # counts blocks from the end (-1: all), or says how many there are
        select_layer = vision.get("select_layer", -1)
        if select_layer < 0:
            num_blocks = _VISION_BLOCKS + select_layer + 1
        else:
            num_blocks = min(_VISION_BLOCKS, select_layer)
        image_size = vision["image_size"]
        return JanusConfig(
            text_config=LlamaConfig(**language),
            vision_config=JanusVisionConfig(
                **_VISION_SIZES,
                num_hidden_layers=num_blocks,
                image_size=image_size,
                num_image_tokens=(image_size // _VISION_SIZES["patch_size"]) ** 2,
                projection_dim=aligner["n_embed"],
                depth=aligner["depth"],
            ),
            vq_config=JanusVQVAEConfig(
                **_VQ_SIZES,
                num_patches=image_size // _VQ_PATCH,
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
    text, vision, vq = janus.text_config, janus.vision_config, janus.vq_config
    _check_encoder("vision_config", vision, _VISION_SIZES)
    _check_encoder("vq_config", vq, _VQ_SIZES)
    num_blocks = vision.num_hidden_layers
    vision_params = {
        "image_size": vision.image_size,
        "model_name": _VISION_NAME,
        "select_feature": "same",
        "select_layer": -1 if num_blocks == _VISION_BLOCKS else num_blocks,
    }
    aligner_params = {
        "depth": vision.depth,
        "input_dim": vision.hidden_size,
        "n_embed": vision.projection_dim,
        "projector_type": "mlp_gelu",
    }
    gen_aligner_params = {
        "depth": vq.num_hidden_layers,
        "input_dim": vq.embed_dim,
        "n_embed": vq.projection_dim,
        "projector_type": "mlp_gelu",
    }
    gen_head_params = {
        "image_token_embed": vq.image_token_embed_dim,
        "image_token_size": vq.num_embeddings,
        "n_embed": text.hidden_size,
    }
    gen_vision_params = {"image_token_size": vq.num_embeddings, "n_embed": vq.embed_dim}
    dtype_name = str(janus.dtype or torch.float32).removeprefix("torch.")
    return {
        "architectures": ["MultiModalityCausalLM"],
        "model_type": MODEL_TYPE,
        "torch_dtype": dtype_name,
        "vision_config": _part("vision", "CLIPVisionTower", vision_params),
        "aligner_config": _part("aligner", "MlpProjector", aligner_params),
        "gen_vision_config": _part("gen_vision", "VQ-16", gen_vision_params),
        "gen_aligner_config": _part("gen_aligner", "MlpProjector", gen_aligner_params),
        "gen_head_config": _part("gen_head", "vision_head", gen_head_params),
        "language_config": _original_language(text, dtype_name),
    }


def _check_encoder(section: str, config: PreTrainedConfig, sizes: dict[str, Any]) -> None:
    """Raises InputError where an encoder has other sizes than the original layout implies."""
    for name, size in sizes.items():
        if getattr(config, name) != size:
            raise InputError(
                f"model: {section}.{name} {getattr(config, name)} cannot be said in the original "
                "layout, which knows Janus-Pro's own encoders only"
            )


def _part(model_type: str, class_name: str, params: dict[str, Any]) -> dict[str, Any]:
    return {"cls": class_name, "model_type": model_type, "params": params}


def _original_language(text: LlamaConfig, dtype_name: str) -> dict[str, Any]:
    """The original language_config: what differs from Llama's defaults, the rotary embedding in the
    older keys."""
    language = text.to_diff_dict()
    for key in ("dtype", "transformers_version", "rope_parameters"):
        language.pop(key, None)
    rope_params = dict(text.rope_parameters)
    language["rope_theta"] = rope_params.pop("rope_theta")
    if rope_params.get("rope_type", "default") != "default":
        language["rope_scaling"] = rope_params
    return language | {"model_type": "llama", "torch_dtype": dtype_name}


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
