"""The scorers' models, tiny and with random weights, in transformers' own layout."""

from pathlib import Path

import torch
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    BlipConfig,
    BlipForQuestionAnswering,
    CLIPConfig,
    CLIPModel,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    SwinConfig,
    ViTConfig,
    ViTModel,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.mask2former.image_processing_pil_mask2former import (
    Mask2FormerImageProcessorPil,
)

from secondlook.models.shipped import locate

LAYERS = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
"""Sizes of every encoder of text and of pictures."""
VISION = LAYERS | {"image_size": 32, "patch_size": 16}
VOCABULARY = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *("yes", "no", "a", "the", "red", "cup", "cat", "clock"),
    *("is", "there", "in", "picture", "side", "and", "?"),
]
"""Of BLIP's tokenizer; its model has [DEC] and [ENC] after these."""


def write_scorer_models(folder: Path) -> None:
    """A Mask2Former (``detector``), a CLIP, a BLIP and a DINO in the folders of ``folder``."""
    torch.manual_seed(0)
    words = AutoTokenizer.from_pretrained(locate("mini"))
    text = LAYERS | {
        "vocab_size": len(words),
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    _write_detector(folder / "detector")
    _write_clip(folder / "clip", text)
    words.save_pretrained(folder / "clip")
    _write_blip(folder / "blip", text)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder / "blip")
    ViTModel(ViTConfig(**VISION)).save_pretrained(folder / "dino")


def _write_detector(folder: Path) -> None:
    backbone = SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1] * 4,
        num_heads=[1, 1, 2, 2],
        window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone,
        num_labels=80,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        dim_feedforward=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=8,
    )
    detector = Mask2FormerForUniversalSegmentation(config)
    # sure of itself, so that there is something to judge
    torch.nn.init.normal_(detector.class_predictor.weight, std=4.0)
    detector.save_pretrained(folder)
    Mask2FormerImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)


def _write_clip(folder: Path, text: dict) -> None:
    config = CLIPConfig(
        text_config=text | {"projection_dim": 8},
        vision_config=VISION | {"projection_dim": 8},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size=size, crop_size=size).save_pretrained(folder)


def _write_blip(folder: Path, text: dict) -> None:
    text_config = text | {
        "vocab_size": len(VOCABULARY) + 2,
        "bos_token_id": len(VOCABULARY),  # [DEC]
        "sep_token_id": VOCABULARY.index("[SEP]"),
        "pad_token_id": VOCABULARY.index("[PAD]"),
        "encoder_hidden_size": 16,
        "initializer_range": 1.0,
    }
    config = BlipConfig(
        text_config=text_config,
        vision_config=VISION | {"initializer_range": 1.0},
        image_text_hidden_size=16,
    )
    BlipForQuestionAnswering(config).save_pretrained(folder)
    BlipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
