"""A model in numbers, counted without its weights, and which model a recipe is for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    JanusConfig,
    JanusForConditionalGeneration,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
)
from transformers.initialization import no_init_weights

from secondlook.errors import InputError
from secondlook.models.janus import checkpoint
from secondlook.models.shipped import SHIPPED, locate
from secondlook.train.rl.config import RLConfig
from secondlook.train.sft_config import SFTConfig

PROMPT = 64
"""Tokens of the longest prompt with its template, unless one says otherwise."""
SIZES = {"1b": (24, 2048, 5632, 16), "7b": (30, 4096, 11008, 32)}
"""Layers, hidden size, intermediate size and attention heads of Janus-Pro's language models."""


@dataclass(frozen=True)
class ModelSizes:
    """Parameters of a model, and what its language model is made of."""

    trained_params: int
    """All but the frozen encoders'."""
    root_params: int
    """Of the trained ones, those outside the language model's layers."""
    frozen_params: int
    """Of the image tokenizer and the vision encoder."""
    num_layers: int
    hidden_size: int
    intermediate_size: int
    kv_size: int
    """Numbers in the keys (or values) of one token in one layer."""
    num_codes: int
    """Of an image that is drawn."""
    num_patches: int
    """Of an image that is seen."""
    vocab_size: int
    image_side: int
    """Pixels of a drawn image's side."""
    decoder_channels: int
    """Of the image tokenizer's decoder at full size."""
    rank_1_params: int = 0
    """Parameters of adapters of rank 1."""
    prompt_tokens: int = PROMPT
    """Of the longest prompt with its template."""
    judge_rereads: bool = False
    """Whether the prompt stands once more behind each image that is judged."""

    def column_bytes(self, itemsize: int) -> int:
        """Bytes of the keys and values of one token in all layers, ``itemsize`` a number."""
        return 2 * self.num_layers * self.kv_size * itemsize


def config_of(model: str) -> JanusConfig:
    """The architecture of "1b", "7b", a shipped model's name, a folder or a hub id (which is
    fetched). Raises InputError for anything else."""
    if model not in SIZES:
        return checkpoint.config_of(checkpoint.fetch(locate(model)))
    num_layers, hidden_size, intermediate_size, num_heads = SIZES[model]
    return JanusConfig(
        text_config=LlamaConfig(
            vocab_size=102400,
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
            num_key_value_heads=num_heads,
        ),
        vision_config=JanusVisionConfig(projection_dim=hidden_size),
        vq_config=JanusVQVAEConfig(projection_dim=hidden_size, image_token_embed_dim=hidden_size),
    )


@cache
def sizes_of(model: str) -> ModelSizes:
    """The sizes of a model by any of ``config_of``'s names."""
    config = config_of(model)
    has_folder = model not in SIZES
    # on "meta" a network has shapes and no weights: counting 7B takes no memory
    with torch.device("meta"), no_init_weights():
        net: Any = JanusForConditionalGeneration._from_config(config)
    text_config, vq_config = config.text_config, config.vq_config
    frozen_params = _count(net.model.vqmodel) + _count(net.model.vision_model)
    trained_params = _count(net) - frozen_params
    head_size = text_config.hidden_size // text_config.num_attention_heads
    return ModelSizes(
        trained_params=trained_params,
        root_params=trained_params - _count(net.model.language_model.layers),
        frozen_params=frozen_params,
        num_layers=text_config.num_hidden_layers,
        hidden_size=text_config.hidden_size,
        intermediate_size=text_config.intermediate_size,
        kv_size=text_config.num_key_value_heads * head_size,
        num_codes=vq_config.num_patches**2,
        num_patches=config.vision_config.num_image_tokens,
        vocab_size=text_config.vocab_size,
        image_side=config.vision_config.image_size,
        decoder_channels=vq_config.base_channels,
        rank_1_params=_rank_1_params(net.model),
        judge_rereads=has_folder and checkpoint.judge_rereads(checkpoint.fetch(locate(model))),
    )


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _rank_1_params(model: Any) -> int:
    """Parameters of adapters of rank 1 on the layers that ``train.lora`` adapts."""
    adapted_parts = (
        model.language_model.layers,
        model.generation_aligner,
        model.generation_head.proj_out,
    )
    num_params = 0
    for part in adapted_parts:
        for module in part.modules():
            if isinstance(module, nn.Linear):
                # A is (1, in), B is (out, 1)
                num_params += module.in_features + module.out_features
    return num_params


def model_of(recipe: Path, config: RLConfig | SFTConfig) -> str:
    """The model that a recipe is for, by a name that ``sizes_of`` knows: its own where it is at
    hand, else the size that the model, the recipe's folder or its file is named for
    ("7b/grpo.toml", "my_grpo_7b.toml"). Raises InputError where none says it."""
    model_path = Path(config.model)
    if config.model in SHIPPED or (model_path / "config.json").is_file():
        return config.model
    # "Janus-Pro-7B" is known without being fetched
    for name in (model_path.name, recipe.parent.name, recipe.stem):
        name_parts = name.lower().replace("-", "_").split("_")
        for size in SIZES:
            if size in name_parts:
                return size
    raise InputError(
        f"model: {config.model!r} of {str(recipe)!r} is not here; say with --model how large it "
        "is (1b, 7b, …)"
    )


def edits(recipe: Path) -> bool:
    """Whether a recipe is for edits, by its name ("7b/edit_grpo.toml")."""
    return "edit" in recipe.stem.split("_")
