"""Pretrain the seeing encoder on the world: each patch's features must tell what it shows (part,
colour) and where.

Trained jointly from scratch through the language model's loss the encoder learned nothing
(docs/LOG.md); with dense labels it sees every object within a minute. Without the place as a label
the features keep nothing of it, and relations between objects are not learned (docs/LOG.md). Half
of the pictures carry noise, so that features stay useful on what the model draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import JanusVisionConfig, JanusVisionModel

from secondlook.mini.datasets import N_COLORS, N_PARTS, SIDE, cells, pictures, pixels
from secondlook.models.device import resolve_device
from secondlook.train.muon import Optimizer
from secondlook.train.trainer import Trainer, schedule


@dataclass
class VisionConfig:
    """``train vision``."""

    image_size: int = 48
    patch: int = 8
    width: int = 128
    layers: int = 3
    heads: int = 4
    steps: int = 600
    batch: int = 48
    muon_lr: float = 0.02
    adam_lr: float = 2e-3
    seed: int = 0
    threads: int = 2
    device: str = "auto"
    log_every: int = 50
    save_every: int = 200


class VisionJob:
    """The loop's step and probe, and the network they train."""

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
        self.probe_head = nn.Linear(config.width, N_PARTS + N_COLORS + 2 * SIDE)
        self.device = resolve_device(config.device)
        self.all = nn.ModuleList([self.encoder, self.probe_head]).to(self.device)
        self.optimizer = Optimizer(self.all, [self.encoder.encoder], config.muon_lr, config.adam_lr)

    def batch(self, key: int, n: int, disturb: bool):
        rng = np.random.default_rng([self.config.seed, key])
        items = pictures(rng, n)
        place = np.stack(np.divmod(np.arange(SIDE**2), SIDE))
        labels = torch.from_numpy(
            np.stack([np.concatenate([np.stack(cells(p.scene)), place]) for p in items])
        )
        x = pixels(items)
        if disturb:
            x[: n // 2] += torch.from_numpy(
                rng.normal(0, 0.1, (n // 2, *x.shape[1:])).astype(np.float32)
            )
            x = x.clamp(-1, 1)
        return x.to(self.device), labels.to(self.device)

    def predict(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logits (n, patches, …) of part, colour, row and column."""
        return self.probe_head(self.encoder(x).last_hidden_state).split(
            [N_PARTS, N_COLORS, SIDE, SIDE], -1
        )

    def step(self, step: int) -> dict[str, float]:
        x, labels = self.batch(step, self.config.batch, disturb=True)
        each = [
            F.cross_entropy(p.flatten(0, 1), labels[:, i].flatten())
            for i, p in enumerate(self.predict(x))
        ]
        loss = torch.stack(each).sum()
        loss.backward()
        self.optimizer.step(schedule(step, self.config.steps, 20))
        return {"loss": loss.item()}

    @torch.no_grad()
    def probe(self, _: int) -> dict[str, float]:
        """Share of objects (all four cells, part and colour) that the encoder tells on unseen
        scenes."""
        x, labels = self.batch(10**6, 400, disturb=False)
        right = torch.stack([p.argmax(-1) for p in self.predict(x)], 1) == labels
        right, placed = right[:, :2].all(1), right[:, 2:].all(1)
        shown = labels[:, 0] > 0
        return {
            "objects_right": (right & shown).sum().item() / shown.sum().item(),
            "scenes_right": right.all(1).float().mean().item(),
            "places_right": placed.float().mean().item(),
        }


def train_vision(config: VisionConfig, out: str | Path) -> None:
    """Train, resume if ``out`` holds a state, and write the encoder there (transformers'
    layout)."""
    torch.set_num_threads(config.threads)
    job = VisionJob(config)
    run = Trainer(out, config, {"all": job.all, "optimizer": job.optimizer})
    run.loop(
        config.steps,
        job.step,
        log_every=config.log_every,
        save_every=config.save_every,
        every={config.save_every: job.probe},
    )
    job.encoder.save_pretrained(Path(out) / "final")
