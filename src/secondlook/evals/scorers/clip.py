"""CLIP: pictures and sentences as unit vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from secondlook.evals.scorers import CLIP
from secondlook.evals.scorers.models import check_finite, loading, pooled


class Clip:
    """A CLIP of transformers. ``option`` is the one that names it. Raises InputError for a model
    that is none."""

    def __init__(self, model_path: str = CLIP, device: str = "cpu", option: str = "clip"):
        from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

        with loading(option, model_path, "CLIP model"):
            self.model: Any = CLIPModel.from_pretrained(model_path).to(device).eval()
            self.tokenizer: Any = AutoTokenizer.from_pretrained(model_path)
            self.processor: Any = AutoImageProcessor.from_pretrained(model_path)
        self.device = device

    @torch.inference_mode()
    def texts(self, sentences: Sequence[str]) -> Tensor:
        """Unit embeddings (n, D). Raises NotANumber."""
        # cut off at CLIP's 77 tokens
        inputs = self.tokenizer(
            list(sentences), padding=True, truncation=True, return_tensors="pt"
        ).to(self.device)
        features = check_finite(pooled(self.model.get_text_features(**inputs)), "CLIP")
        return torch.nn.functional.normalize(features, dim=-1)

    @torch.inference_mode()
    def images(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Unit embeddings (n, D). Raises NotANumber."""
        inputs = self.processor(images=list(pictures), return_tensors="pt").to(self.device)
        features = check_finite(pooled(self.model.get_image_features(**inputs)), "CLIP")
        return torch.nn.functional.normalize(features, dim=-1)
