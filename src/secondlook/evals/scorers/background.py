"""What an edit left alone: PIE-Bench's background metrics.

Source: PnP Inversion (arXiv 2310.01506), its released evaluation: pictures in [0, 1] are multiplied
by (1 - mask) and compared over the whole frame, the masked part included as zeros on both sides.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image
from torchmetrics.functional.image import structural_similarity_index_measure as ssim

LEAST_MSE = 1 / 255**2 / 12
"""The error of rounding to 8 bits: equal pictures count as this close (58.9 dB), not as infinitely
so."""


def to_unit(image: Image.Image, size: tuple[int, int] | None = None) -> torch.Tensor:
    """(1, 3, H, W) in [0, 1], resized to (width, height)."""
    image = image.convert("RGB")
    if size and image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.asarray(image, np.float32) / 255)  # (H, W, 3)
    return pixels.permute(2, 0, 1)[None]


def background(source: Image.Image, edited: Image.Image, mask: np.ndarray) -> dict[str, float]:
    """mse, psnr (dB, at most 58.9) and ssim (11x11 Gaussian, sigma 1.5) outside ``mask`` (H, W),
    true where the edit belongs; NaN where nothing lies outside. The edited picture is brought to
    the source's size."""
    if mask.all():
        return dict.fromkeys(("mse", "psnr", "ssim"), math.nan)
    outside = torch.from_numpy(~mask).float()  # (H, W)
    # (1, 3, H, W) each, 0 inside the mask
    source_outside = to_unit(source) * outside
    edited_outside = to_unit(edited, source.size) * outside
    # the mean is over the whole frame: the larger the mask, the smaller the error, as released
    mse = float(((source_outside.double() - edited_outside.double()) ** 2).mean())
    psnr = 10 * math.log10(1 / max(mse, LEAST_MSE))
    similarity = ssim(edited_outside, source_outside, data_range=1.0, sigma=1.5, kernel_size=11)
    assert isinstance(similarity, torch.Tensor)  # a tuple where more is asked for
    return {"mse": mse, "psnr": psnr, "ssim": float(similarity)}
