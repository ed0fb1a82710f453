"""Pretrain the seeing encoder on the world: each patch's features must tell what it shows (part,
colour) and where.

Trained jointly from scratch through the language model's loss the encoder learned nothing
(docs/LOG.md); with dense labels it sees every object within a minute. Without the place as a label
the features keep nothing of it, and relations between objects are not learned (docs/LOG.md). Half
of the pictures carry noise, so that features stay useful on what the model draws.
"""

from __future__ import annotations

from dataclasses import field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn
from transformers import JanusVisionConfig, JanusVisionModel

from secondlook.mini.datasets import (
    KINDS,
    N_COLORS,
    N_PARTS,
    SIDE,
    cells,
    check_shares,
    pictures,
    pixels,
)
from secondlook.mini.pretrain.config import MuonConfig
from secondlook.models.device import resolve_device
from secondlook.train.job_config import CHECKED, BasicRuntimeConfig
from secondlook.train.optim import Optimizer
from secondlook.train.schedule import Schedule
from secondlook.train.trainer import Trainer, set_up_process

WARMUP_STEPS = 20


@dataclass(config=CHECKED)
class VisionConfig:
    """``train vision``: sizes are the network's, the rest the loop's."""

    image_size: int = Field(default=48, ge=1)
    """Pixels of a picture's side."""
    patch: int = Field(default=8, ge=1)
    """Pixels of a patch's side."""
    width: int = Field(default=128, ge=1)
    layers: int = Field(default=3, ge=1)
    heads: int = Field(default=4, ge=1)
    steps: int = Field(default=600, ge=1)
    batch_size: int = Field(default=48, ge=1)
    """Pictures a step."""
    kinds: dict[str, float] = field(default_factory=lambda: dict(KINDS))
    """Shares of the kinds of prompts whose pictures are learned."""
    seed: int = Field(default=0, ge=0)
    optim: MuonConfig = field(default_factory=MuonConfig)
    runtime: BasicRuntimeConfig = field(default_factory=lambda: BasicRuntimeConfig(save_every=200))

    def __post_init__(self) -> None:
        check_shares("kinds", self.kinds, KINDS)


class VisionJob:
    """What is trained, one step of training it, and the probe of what it has learned."""

    def __init__(self, config: VisionConfig):
        self.config = config
        torch.manual_seed(config.seed)
        self.encoder = JanusVisionModel(
            JanusVisionConfig(
                hidden_size=config.width,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                image_size=config.image_size,
                patch_size=config.patch,
                num_image_tokens=(config.image_size // config.patch) ** 2,
            )
        )
        # a linear probe of each patch's features: part, colour, row and column
        self.probe_head = nn.Linear(config.width, N_PARTS + N_COLORS + 2 * SIDE)
        self.device = resolve_device(config.runtime.device)
        self.all = nn.ModuleList([self.encoder, self.probe_head]).to(self.device)
        self.optimizer = Optimizer(
            self.all,
            config.optim.adamw_lr,
            muon_modules=[self.encoder.encoder],
            muon_lr=config.optim.muon_lr,
        )
        self.schedule = Schedule(config.steps, warmup_steps=WARMUP_STEPS)

    def batch(self, key: int, n: int, disturb: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels (n, 3, S, S) of ``n`` pictures and their patches' labels (n, 4, patches): part,
        colour, row and column. With ``disturb`` half of the pictures carry noise."""
        rng = np.random.default_rng([self.config.seed, key])
        sampled_pictures = pictures(rng, n, kinds=self.config.kinds)
        patch_rows, patch_columns = np.divmod(np.arange(SIDE**2), SIDE)
        picture_labels = []
        for sampled_picture in sampled_pictures:
            part_labels, color_labels = cells(sampled_picture.scene)
            picture_labels.append(np.stack([part_labels, color_labels, patch_rows, patch_columns]))
        labels = torch.from_numpy(np.stack(picture_labels))
        x = pixels(sampled_pictures)
        if disturb:
            noise = rng.normal(0, 0.1, (n // 2, *x.shape[1:])).astype(np.float32)
            x[: n // 2] += torch.from_numpy(noise)
            x = x.clamp(-1, 1)
        return x.to(self.device), labels.to(self.device)

    def predict(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logits (n, patches, …) of part, colour, row and column."""
        features = self.encoder(x).last_hidden_state  # (n, patches, width)
        return self.probe_head(features).split([N_PARTS, N_COLORS, SIDE, SIDE], -1)

    def step(self, step: int) -> dict[str, float]:
        """One update; returns its metrics."""
        x, labels = self.batch(step, self.config.batch_size, disturb=True)
        label_losses = []
        for i, logits in enumerate(self.predict(x)):
            label_losses.append(F.cross_entropy(logits.flatten(0, 1), labels[:, i].flatten()))
        loss = torch.stack(label_losses).sum()
        loss.backward()
        self.optimizer.step(self.schedule.at(step))
        return {"loss": loss.item()}

    @torch.no_grad()
    def probe(self) -> dict[str, float]:
        """Share of objects (all four cells, part and colour) that the encoder tells on unseen
        scenes."""
        x, labels = self.batch(10**6, 400, disturb=False)
        predicted_labels = torch.stack([logits.argmax(-1) for logits in self.predict(x)], 1)
        label_right = predicted_labels == labels  # (n, 4, patches)
        content_right = label_right[:, :2].all(1)  # (n, patches): part and colour
        place_right = label_right[:, 2:].all(1)  # row and column
        shows_object = labels[:, 0] > 0
        num_right = (content_right & shows_object).sum().item()
        return {
            "objects_right": num_right / shows_object.sum().item(),
            "scenes_right": content_right.all(1).float().mean().item(),
            "places_right": place_right.float().mean().item(),
        }


def train_vision(config: VisionConfig, out: str | Path) -> None:
    """Train, resume if ``out`` holds a state, and write the encoder there (transformers'
    layout)."""
    set_up_process(config.runtime)
    job = VisionJob(config)
    trainer = Trainer(out, config, {"all": job.all, "optimizer": job.optimizer})
    for step in trainer.steps(config.steps):
        step_metrics = job.step(step)
        probe_metrics = job.probe() if trainer.due(config.runtime.save_every) else {}
        trainer.finish_step(step_metrics, probe_metrics)
    job.encoder.save_pretrained(Path(out) / "final")
