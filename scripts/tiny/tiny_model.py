"""A tiny untrained Janus of transformers' own classes, 48 pixels wide: what tests and trials of
scripts run on."""

from __future__ import annotations

from pathlib import Path

import torch

from secondlook.mini.pretrain.base_model import BaseConfig, new_janus
from secondlook.mini.pretrain.image_tokenizer import TokenizerConfig, TokenizerJob
from secondlook.mini.pretrain.vision_encoder import VisionConfig, VisionJob
from secondlook.models.janus.model import Janus


def write_parts(folder: Path) -> None:
    """An untrained image tokenizer and seeing encoder in ``folder`` (vq, vision), made by their own
    jobs."""
    tokenizer = TokenizerConfig(codes=96, start_images=30, mask_features=16, latent_channels=32)
    TokenizerJob(tokenizer).vq.save_pretrained(folder / "vq")
    VisionJob(VisionConfig(width=32, layers=1)).encoder.save_pretrained(folder / "vision")


def tiny_janus(parts: Path) -> Janus:
    """A model of the ``parts``, with random weights whose codes, verdicts and reasons are
    varied."""
    config = BaseConfig(
        tokenizer=str(parts / "vq"),
        vision=str(parts / "vision"),
        vocabulary=600,
        width=48,
        layers=2,
        heads=2,
        inner=96,
    )
    model = new_janus(config).eval()
    torch.manual_seed(1)
    torch.nn.init.normal_(model.net.model.generation_head.vision_head.weight, std=0.5)
    torch.nn.init.normal_(model.net.lm_head.weight, std=0.02)
    return model
