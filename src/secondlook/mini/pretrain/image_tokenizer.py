"""Train the image tokenizer (JanusVQVAE): a k-means start on patches, then encoder and decoder.

Departure from VQGAN training (Esser et al. 2021): the codebook is fixed after its start. Patches of
the world are clustered (one patch is one code), each code's vector is a soft description of its
patch (colour, mask, background; see `describe`), the encoder is trained by cross-entropy of its
cosine scores against the patch's code, the decoder by squared error and a little L1 from the codes.
No adversarial or perceptual loss: the world is flat. The description comes close to giving colour
and shape as factors by hand; the base model's code tables start from it (base_model.py). An earlier
study learned colours only with that start; it was not run without here.
"""

from __future__ import annotations

from dataclasses import field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from transformers import JanusVQVAE, JanusVQVAEConfig

from secondlook.mini import datasets
from secondlook.mini.pretrain.config import MuonConfig
from secondlook.models.device import resolve_device
from secondlook.models.janus.model import code_scores, decode, encode, to_bytes
from secondlook.train.job_config import CHECKED, BasicRuntimeConfig
from secondlook.train.optim import Optimizer
from secondlook.train.schedule import Schedule
from secondlook.train.trainer import Trainer, set_up_process

WARMUP_STEPS = 20


@dataclass(config=CHECKED)
class TokenizerConfig:
    """``train tokenizer``; sizes are the network's, the rest the loop's."""

    image_size: int = Field(default=48, ge=1)
    """Pixels of a picture's side."""
    codes: int = Field(default=768, ge=1)
    """Entries of the codebook."""
    color_features: int = Field(default=15, ge=1)
    mask_features: int = Field(default=64, ge=1)
    """Numbers of a code's vector that tell its shape (``color_features``: its colour)."""
    base_channels: int = Field(default=32, ge=1)
    channel_multiplier: tuple[int, ...] = (1, 1, 2, 2)
    """Channels of each resolution, in ``base_channels``; each but the last halves the side."""
    latent_channels: int = Field(default=64, ge=1)
    start_images: int = Field(default=6000, ge=1)
    """Pictures whose patches are clustered into the codebook."""
    encoder_steps: int = Field(default=500, ge=0)
    decoder_steps: int = Field(default=2500, ge=0)
    batch_size: int = Field(default=16, ge=1)
    """Pictures a step."""
    probe_images: int = Field(default=300, ge=1)
    """Pictures on which what was learned is measured."""
    kinds: dict[str, float] = field(default_factory=lambda: dict(datasets.KINDS))
    """Shares of the kinds of prompts whose pictures are learned. Without crowded ones a decoder
    spoils those: its normalisation is over the whole picture."""
    seed: int = Field(default=0, ge=0)
    optim: MuonConfig = field(default_factory=MuonConfig)
    runtime: BasicRuntimeConfig = field(default_factory=BasicRuntimeConfig)

    def __post_init__(self) -> None:
        datasets.check_shares("kinds", self.kinds, datasets.KINDS)

    @property
    def patch(self) -> int:
        return 2 ** (len(self.channel_multiplier) - 1)

    @property
    def steps(self) -> int:
        return self.encoder_steps + self.decoder_steps

    @property
    def grid(self) -> int:
        return self.image_size // self.patch


def to_patches(pixels: Tensor, patch: int) -> Tensor:
    """(B, 3, S, S) to (B, grid², 3 * patch²)."""
    return F.unfold(pixels, patch, stride=patch).transpose(1, 2)


def cluster(patches: Tensor, k: int, seed: int, rounds: int = 10) -> Tensor:
    """k-means centres (at most k) of patches (N, D); when no more than k patches are distinct,
    these themselves."""
    # patches repeat often: (M, D) distinct ones and how often each occurs (M,)
    distinct, counts = torch.unique(patches, dim=0, return_counts=True)
    if len(distinct) <= k:
        return distinct
    generator = torch.Generator().manual_seed(seed)
    centres = distinct[torch.multinomial(counts.float(), k, generator=generator)]  # (k, D)
    for _ in range(rounds):
        nearest = torch.cdist(distinct, centres).argmin(1)  # (M,)
        patch_sums = torch.zeros_like(centres).index_add_(0, nearest, distinct * counts[:, None])
        num_patches = torch.zeros(k).index_add_(0, nearest, counts.float())[:, None]  # (k, 1)
        # a centre without patches stays where it is
        centres = torch.where(num_patches > 0, patch_sums / num_patches.clamp(min=1), centres)
    return centres


def describe(centres: Tensor, colors: int, masks: int, seed: int) -> Tensor:
    """Unit code vectors (K, colors + masks + 1) of patch centres (K, 3 * p²): soft assignment of
    each patch's colour and of its mask to landmarks drawn by k-means++, and whether it is
    background. Uses the patches only, no labels."""
    pixels = centres.view(len(centres), 3, -1).transpose(1, 2)  # (K, p², 3)
    background = pixels.reshape(-1, 3).median(0).values
    pixel_offsets = pixels - background
    pixel_distances = pixel_offsets.norm(dim=-1)  # (K, p²)
    is_background = (pixel_distances.amax(1) < 0.1)[:, None]  # (K, 1)
    # the patch's colour: the mean of the pixels farthest from the background
    is_far = pixel_distances >= 0.8 * pixel_distances.amax(1, keepdim=True)
    patch_colors = (pixels * is_far[..., None]).sum(1) / is_far.sum(1, keepdim=True)  # (K, 3)
    # its mask: how far each pixel is on the way from the background (0) to the colour (1)
    direction = patch_colors - background
    squared_length = direction.square().sum(-1, keepdim=True).clamp(min=1e-3)
    mask = (pixel_offsets @ direction[..., None]).squeeze(-1) / squared_length  # (K, p²)
    color_features = _soft(patch_colors, colors, seed) * ~is_background
    mask_features = _soft(mask, masks, seed) * ~is_background
    features = torch.cat([color_features, mask_features, is_background.float()], 1)
    return F.normalize(features, dim=1)


def _soft(points: Tensor, k: int, seed: int) -> Tensor:
    """Soft assignment of points (N, D) to k landmarks (k-means++ seeding), each row of unit
    length."""
    generator = torch.Generator().manual_seed(seed)
    landmarks = [int(torch.randint(len(points), (1,), generator=generator))]  # indices of points
    nearest = _squared_distances(points, landmarks[0])  # (N,) to the nearest landmark
    while len(landmarks) < k:
        if nearest.max() < 1e-6:  # every point is a landmark: there are fewer than k
            break
        landmarks.append(int(torch.multinomial(nearest, 1, generator=generator)))
        nearest = torch.minimum(nearest, _squared_distances(points, landmarks[-1]))
    distances = torch.cdist(points, points[landmarks]).square()
    temperature = distances.median() / 4 + 1e-6
    soft_assignment = F.normalize((-distances / temperature).softmax(1), dim=1)
    return F.pad(soft_assignment, (0, k - soft_assignment.shape[1]))


def _squared_distances(points: Tensor, index: int) -> Tensor:
    """(N,) from every point to the one at ``index``."""
    return torch.cdist(points, points[index][None]).squeeze(1).square()


class TokenizerJob:
    """What is trained, one step of training it, and the probe of what it has learned."""

    def __init__(self, config: TokenizerConfig):
        self.config, self.device = config, resolve_device(config.runtime.device)
        torch.manual_seed(config.seed)
        self.vq = JanusVQVAE(
            JanusVQVAEConfig(
                embed_dim=config.color_features + config.mask_features + 1,
                num_embeddings=config.codes,
                base_channels=config.base_channels,
                channel_multiplier=list(config.channel_multiplier),
                num_res_blocks=1,
                latent_channels=config.latent_channels,
                num_patches=config.grid,
            )
        )
        _, pixels = self.pictures(10**6, config.start_images)
        # clustered on the CPU, where a seed always means the same
        patches = to_patches(pixels, config.patch).flatten(0, 1).cpu()
        self.centres = cluster(patches, config.codes, config.seed)
        vectors = describe(self.centres, config.color_features, config.mask_features, config.seed)
        codebook = self.vq.quantize.embedding.weight  # entries that no patch needs stay random
        codebook.requires_grad_(False)
        codebook.copy_(F.normalize(torch.randn_like(codebook), dim=1))
        codebook[: len(vectors)] = vectors
        self.vq.to(self.device)
        self.centres = self.centres.to(self.device)
        self.optimizer = Optimizer(
            self.vq,
            config.optim.adamw_lr,
            muon_modules=[self.vq.encoder, self.vq.decoder],
            muon_lr=config.optim.muon_lr,
        )
        self.encoder_schedule = Schedule(config.encoder_steps, warmup_steps=WARMUP_STEPS)
        self.decoder_schedule = Schedule(config.decoder_steps, warmup_steps=WARMUP_STEPS)

    def pictures(self, key: int, n: int) -> tuple[list[datasets.Picture], Tensor]:
        """``n`` pictures of a step and their pixels (n, 3, S, S)."""
        rng = np.random.default_rng([self.config.seed, key])
        items = datasets.pictures(rng, n, kinds=self.config.kinds)
        return items, datasets.pixels(items).to(self.device)

    def step(self, step: int) -> dict[str, float]:
        """One update, of the encoder or, after ``encoder_steps``, of the decoder; returns its
        metrics."""
        config = self.config
        _, pixels = self.pictures(step, config.batch_size)
        codes = torch.cdist(to_patches(pixels, config.patch), self.centres).argmin(-1)  # (B, grid²)
        if step < config.encoder_steps:
            lr_factor = self.encoder_schedule.at(step)
            code_cosines = code_scores(self.vq, pixels).flatten(1, 2)  # (B, grid², codes), cosines
            loss = F.cross_entropy(20 * code_cosines.flatten(0, 1), codes.flatten())
            metrics = {
                "encoder_loss": loss.item(),
                "codes_right": (code_cosines.argmax(-1) == codes).float().mean().item(),
            }
        else:
            lr_factor = self.decoder_schedule.at(step - config.encoder_steps)
            pixel_errors = decode(self.vq, codes) - pixels
            loss = pixel_errors.square().mean() + 0.1 * pixel_errors.abs().mean()
            metrics = {"decoder_loss": loss.item(), "l1": pixel_errors.abs().mean().item()}
        loss.backward()
        self.optimizer.step(lr_factor)
        return metrics

    @torch.no_grad()
    def probe(self) -> dict[str, float]:
        """Share of pictures that the reader still reads after encode and decode."""
        readable_shares = []
        for i in range(0, self.config.probe_images, 100):
            probe_pictures, pixels = self.pictures(2 * 10**6 + i, 100)  # a key that no step has
            decoded_images = to_bytes(decode(self.vq, encode(self.vq, pixels)))  # (100, S, S, 3)
            readable_shares.append(datasets.readable(probe_pictures, decoded_images.cpu().numpy()))
        return {"readable": float(np.mean(readable_shares))}


def train_tokenizer(config: TokenizerConfig, out: str | Path) -> None:
    """Train, resume if ``out`` holds a state, and write the tokenizer there (transformers'
    layout)."""
    set_up_process(config.runtime)
    job = TokenizerJob(config)
    trainer = Trainer(out, config, {"vq": job.vq, "optimizer": job.optimizer})
    for step in trainer.steps(config.steps):
        step_metrics = job.step(step)
        probe_metrics = job.probe() if trainer.due(config.runtime.save_every) else {}
        trainer.finish_step(step_metrics, probe_metrics)
    job.vq.save_pretrained(Path(out) / "final")
