"""A new Janus of the miniature's size: trained image tokenizer and vision encoder, fresh language
model and heads, and a text tokenizer of the world's sentences."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import (
    JanusConfig,
    JanusForConditionalGeneration,
    JanusProcessor,
    JanusVisionModel,
    JanusVQVAE,
    LlamaConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

from secondlook.errors import InputError
from secondlook.mini import datasets
from secondlook.mini.pretrain.config import BaseConfig
from secondlook.models.janus.model import Janus
from secondlook.models.janus.template import AGAIN, ASSISTANT, MATCH, SPECIALS, SYSTEM, USER


def text_tokenizer(sentences: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE with Janus's special tokens, trained on ``sentences`` and the protocol's own
    strings."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # often enough that the protocol's own words become tokens
    protocol_strings = [MATCH, AGAIN, SYSTEM, USER + "a" + ASSISTANT, "Yes", "No"] * 50
    tokenizer.train_from_iterator(sentences + protocol_strings, trainer)
    tokenizer.add_special_tokens(list(SPECIALS))
    bos = SPECIALS[0]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=SPECIALS[1],
        pad_token=SPECIALS[2],
        extra_special_tokens={
            "image_token": SPECIALS[3],
            "boi_token": SPECIALS[4],
            "eoi_token": SPECIALS[5],
        },
        additional_special_tokens=list(SPECIALS[6:]),
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def _part(part_class, name: str, path: str):
    """A trained part. transformers fills a foreign folder's missing tensors with random ones; here
    that is an error."""
    if not Path(path).is_dir():
        raise InputError(f"config: {name} = {path!r} is not a folder; run train {name} first")
    try:
        trained_part, loading_info = part_class.from_pretrained(path, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"config: {name} = {path!r} could not be loaded ({str(error).splitlines()[0]})"
        ) from error
    if loading_info["missing_keys"] or loading_info["mismatched_keys"]:
        raise InputError(
            f"config: {name} = {path!r} is not what train {name} writes: it lacks "
            f"{sorted(loading_info['missing_keys'])[0]}"
        )
    return trained_part


def new_janus(config: BaseConfig, words: PreTrainedTokenizerFast | None = None) -> Janus:
    """A Janus around a trained tokenizer and seeing encoder, its language model and heads fresh;
    ``words`` is its text tokenizer, else one is trained on the world's sentences."""
    vq = _part(JanusVQVAE, "tokenizer", config.tokenizer)
    vision = _part(JanusVisionModel, "vision", config.vision)
    torch.manual_seed(config.seed)
    words = words or text_tokenizer(datasets.corpus(config.seed, 4000), config.vocabulary)
    # both are projected to the language model's width
    vq_config = vq.config.to_dict() | {
        "projection_dim": config.width,
        "image_token_embed_dim": config.width,
    }
    vision_config = vision.config.to_dict() | {"projection_dim": config.width}
    text_config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=config.width,
        intermediate_size=config.inner,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        max_position_embeddings=2048,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        tie_word_embeddings=False,
    )
    net = JanusForConditionalGeneration(
        JanusConfig(
            text_config=text_config,
            vision_config=vision_config,
            vq_config=vq_config,
            image_token_id=words.convert_tokens_to_ids(SPECIALS[3]),
            tie_word_embeddings=False,
        )
    )
    net.model.vqmodel.load_state_dict(vq.state_dict())
    net.model.vision_model.load_state_dict(vision.state_dict())
    _start(net)
    net.generation_config.guidance_scale = net.generation_config.edit_guidance_scale = (
        config.guidance
    )
    net.generation_config.history = "codes"
    # transformers' own image generation looks for the image's opening there, unless it may derive
    # the config anew
    net.generation_config._from_model_config = False
    net.generation_config.generation_kwargs = {
        "boi_token_id": words.convert_tokens_to_ids(SPECIALS[4])
    }
    size = net.config.vision_config.image_size
    image_processor = JanusImageProcessorPil(
        size={"height": size, "width": size}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    processor = JanusProcessor(
        image_processor, words, num_image_tokens=net.config.vision_config.num_image_tokens
    )
    return Janus(net, processor)


@torch.no_grad()
def _start(net: JanusForConditionalGeneration) -> None:
    """Fan-in initialisation, and code tables that start from the codebook's vectors."""
    model = net.model
    for module in (
        model.language_model,
        model.aligner,
        model.generation_aligner,
        model.generation_head,
    ):
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
    # GPT-2's: layers that write to the residual stream are scaled by their number (two a block)
    residual_scale = (2 * len(model.language_model.layers)) ** -0.5
    for layer in model.language_model.layers:
        layer.self_attn.o_proj.weight.mul_(residual_scale)
        layer.mlp.down_proj.weight.mul_(residual_scale)
    model.language_model.embed_tokens.weight.normal_(std=0.5)
    net.lm_head.weight.normal_(std=0.01)
    codebook = model.vqmodel.quantize.embedding.weight  # (codes, code features)
    model.generation_embeddings.weight.copy_(3 * codebook)
    head = model.generation_head.vision_head
    # similar codes get similar logits through a random projection, plus a little of their own
    projection = torch.randn(codebook.shape[1], head.in_features)
    head.weight.copy_(0.02 * codebook @ projection + 0.002 * torch.randn_like(head.weight))
    head.bias.zero_()
