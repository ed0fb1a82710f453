"""Objects in a photograph by an instance segmenter: transformers' Mask2Former (Swin-S, COCO
instances), in place of mmdetection's in GenEval's released evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from secondlook.errors import InputError
from secondlook.evals.scorers import DETECTOR
from secondlook.evals.scorers.models import check_finite, loading

MIN_CONFIDENCE = 0.3
"""Of an object that is reported."""
MAX_QUERIES = 100
CLASSES = tuple(files("secondlook.evals.scorers").joinpath("coco.txt").read_text().split("\n")[:80])
"""COCO's 80 in their order, in GenEval's words."""


@dataclass(frozen=True)
class DetectedObject:
    """One object: box (x1, y1, x2, y2), upper bounds exclusive, confidence in [0, 1] and mask (H,
    W)."""

    name: str
    box: tuple[float, float, float, float]
    confidence: float
    mask: np.ndarray


class Detector:
    """An instance segmenter of transformers. Raises InputError for a model that is none, or not of
    COCO's 80 classes."""

    def __init__(self, model_path: str = DETECTOR, device: str = "cpu"):
        from transformers import AutoImageProcessor, Mask2FormerForUniversalSegmentation

        with loading("detector", model_path, "Mask2Former"):
            self.processor: Any = AutoImageProcessor.from_pretrained(model_path)
            self.model: Any = (
                Mask2FormerForUniversalSegmentation.from_pretrained(model_path).to(device).eval()
            )
        num_classes = self.model.config.num_labels
        if num_classes != len(CLASSES):
            raise InputError(
                f"detector: {model_path!r} has {num_classes} classes; it must have COCO's 80"
            )
        self.device = device

    @torch.inference_mode()
    def __call__(self, image: Image.Image) -> list[DetectedObject]:
        """The likeliest classes of all queries as objects, as mmdetection has them; the confidence
        is class probability times mean mask probability. Raises NotANumber."""
        inputs = self.processor(images=[image], return_tensors="pt").to(self.device)
        outputs = self.model(**inputs)
        class_logits = check_finite(outputs.class_queries_logits[0], "the detector")
        probabilities = class_logits.softmax(-1)[:, :-1]  # (queries, classes) without "no object"
        # n (query, class) pairs of all: a query may be several objects, of different classes
        best = probabilities.flatten().topk(min(MAX_QUERIES, probabilities.numel()))
        query_indices = best.indices // len(CLASSES)  # (n,)
        class_indices = (best.indices % len(CLASSES)).tolist()

        mask_logits = check_finite(outputs.masks_queries_logits[0], "the detector")
        logits = self._at_image_size(mask_logits, inputs, image.size)[query_indices]  # (n, H, W)
        inside = logits > 0
        probability_sums = (logits.sigmoid() * inside).sum((-1, -2))  # (n,)
        mean_inside = probability_sums / (inside.sum((-1, -2)) + 1e-6)  # 0 of an empty mask
        confidences = (best.values * mean_inside).tolist()

        objects = []
        for index, mask in enumerate(inside.cpu().numpy()):
            if mask.any() and confidences[index] > MIN_CONFIDENCE:
                class_name = CLASSES[class_indices[index]]
                objects.append(DetectedObject(class_name, _bounds(mask), confidences[index], mask))
        return objects

    @staticmethod
    def _at_image_size(logits: Tensor, inputs: Any, size: tuple[int, int]) -> Tensor:
        """Mask logits (queries, h, w) at the image's own size (width, height), without the
        processor's padding: (queries, H, W)."""
        padded_size = inputs["pixel_values"].shape[-2:]  # (height, width) that the model saw
        resized = torch.nn.functional.interpolate(
            logits[None], padded_size, mode="bilinear", align_corners=False
        )
        if "pixel_mask" in inputs:
            is_image = inputs["pixel_mask"][0]  # (height, width), 0 at the right and the bottom
            resized = resized[..., : is_image.any(1).sum(), : is_image.any(0).sum()]
        return torch.nn.functional.interpolate(
            resized, size[::-1], mode="bilinear", align_corners=False
        )[0]


def _bounds(mask: np.ndarray) -> tuple[float, float, float, float]:
    """The box (x1, y1, x2, y2) of a mask that is not empty, upper bounds exclusive."""
    ys, xs = np.nonzero(mask)
    return float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1)
