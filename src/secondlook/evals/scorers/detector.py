"""GenEval on photographs: an instance segmenter finds objects, CLIP names their colours, and
GenEval's rules give the verdict.

Source: GenEval (arXiv 2310.11513) and its released evaluation: Mask2Former (Swin-S, COCO instances)
and CLIP ViT-L/14; here both are transformers' own instead of mmdetection's and open_clip's, with
the same thresholds, order and rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from secondlook.errors import InputError
from secondlook.mini.world.scene import COLORS, relations

DETECTOR = "facebook/mask2former-swin-small-coco-instance"
CLIP = "openai/clip-vit-large-patch14"
THRESHOLD, COUNTING_THRESHOLD, MOST = 0.3, 0.9, 16
GREY = np.array((153, 153, 153), np.uint8)
CLASSES = tuple(files("secondlook.evals.scorers").joinpath("coco.txt").read_text().split("\n")[:80])
"""COCO's 80 in their order, in GenEval's words."""


class NotANumber(Exception):
    """A model's outputs for a picture are no numbers: nothing can be said of it."""


def numbers(values: Tensor, what: str) -> Tensor:
    """The values themselves. Raises NotANumber where one is none."""
    if not bool(torch.isfinite(values).all()):
        raise NotANumber(f"{what} gave values that are no numbers")
    return values


@dataclass(frozen=True)
class Found:
    """One object: box (x1, y1, x2, y2), upper bounds exclusive, confidence in [0, 1] and mask (H,
    W)."""

    name: str
    box: tuple[float, float, float, float]
    confidence: float
    mask: np.ndarray


def first_line(error: Exception) -> str:
    return str(error).split("\n")[0] or type(error).__name__


@contextmanager
def loading(option: str, path: str, kind: str) -> Iterator[None]:
    """Whatever goes wrong while a judge's model is loaded: raises InputError that names the option
    and the model."""
    try:
        yield
    except (
        Exception
    ) as error:  # transformers and its parts raise what a foreign or damaged file leads them to
        raise InputError(
            f"{option}: {path!r} is no {kind} that transformers loads ({first_line(error)})"
        ) from error


class Detector:
    """An instance segmenter of transformers. Raises InputError for a model that is none, or not of
    COCO's 80 classes."""

    def __init__(self, path: str = DETECTOR, device: str = "cpu"):
        from transformers import AutoImageProcessor, Mask2FormerForUniversalSegmentation

        with loading("detector", path, "Mask2Former"):
            self.processor: Any = AutoImageProcessor.from_pretrained(path)
            self.model: Any = (
                Mask2FormerForUniversalSegmentation.from_pretrained(path).to(device).eval()
            )
        if self.model.config.num_labels != len(CLASSES):
            raise InputError(
                f"detector: {path!r} has {self.model.config.num_labels} classes; it must have "
                "COCO's 80"
            )
        self.device = device

    @torch.inference_mode()
    def __call__(self, image: Image.Image) -> list[Found]:
        """The likeliest classes of all queries as objects, as mmdetection has them: class
        probability times mean mask probability. Raises NotANumber."""
        given = self.processor(images=[image], return_tensors="pt").to(self.device)
        out = self.model(**given)
        probabilities = numbers(out.class_queries_logits[0], "the detector").softmax(-1)[:, :-1]
        best = probabilities.flatten().topk(min(100, probabilities.numel()))
        query, label = best.indices // len(CLASSES), best.indices % len(CLASSES)
        masks = self._masks(
            numbers(out.masks_queries_logits[0], "the detector"), given, image.size
        )[query]
        inside = masks > 0
        mean = (masks.sigmoid() * inside).sum((-1, -2)) / (inside.sum((-1, -2)) + 1e-6)
        found = []
        for name, score, mask in zip(
            label.tolist(), (best.values * mean).tolist(), inside.cpu().numpy(), strict=True
        ):
            if mask.any() and score > THRESHOLD:
                found.append(Found(CLASSES[name], _bounds(mask), score, mask))
        return found

    @staticmethod
    def _masks(logits: Tensor, given: Any, size: tuple[int, int]) -> Tensor:
        """Mask logits (queries, H, W) at the image's own size, without the processor's padding."""
        padded = given["pixel_values"].shape[-2:]
        whole = torch.nn.functional.interpolate(
            logits[None], padded, mode="bilinear", align_corners=False
        )
        if "pixel_mask" in given:
            rows, columns = given["pixel_mask"][0].any(1).sum(), given["pixel_mask"][0].any(0).sum()
            whole = whole[..., :rows, :columns]
        return torch.nn.functional.interpolate(
            whole, size[::-1], mode="bilinear", align_corners=False
        )[0]


def _bounds(mask: np.ndarray) -> tuple[float, float, float, float]:
    ys, xs = np.nonzero(mask)
    return float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1)


class Colors:
    """Colours by CLIP: argmax over ten words, each the mean of three sentences' embeddings."""

    def __init__(self, path: str = CLIP, device: str = "cpu"):
        from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

        with loading("clip", path, "CLIP model"):
            self.model: Any = CLIPModel.from_pretrained(path).to(device).eval()
            self.tokenizer: Any = AutoTokenizer.from_pretrained(path)
            self.processor: Any = AutoImageProcessor.from_pretrained(path)
        self.device = device
        self.words = cache(self._words)

    @torch.inference_mode()
    def texts(self, sentences: Sequence[str]) -> Tensor:
        """Unit embeddings (n, D)."""
        given = self.tokenizer(
            list(sentences), padding=True, truncation=True, return_tensors="pt"
        ).to(self.device)
        return torch.nn.functional.normalize(
            numbers(tensor_of(self.model.get_text_features(**given)), "CLIP"), dim=-1
        )

    @torch.inference_mode()
    def images(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Unit embeddings (n, D)."""
        given = self.processor(images=list(pictures), return_tensors="pt").to(self.device)
        return torch.nn.functional.normalize(
            numbers(tensor_of(self.model.get_image_features(**given)), "CLIP"), dim=-1
        )

    def _words(self, name: str) -> Tensor:
        forms = (
            "a photo of a {c} {name}",
            "a photo of a {c}-colored {name}",
            "a photo of a {c} object",
        )
        sentences = [form.format(c=c, name=name) for c in COLORS for form in forms]
        means = self.texts(sentences).reshape(len(COLORS), len(forms), -1).mean(1)
        return torch.nn.functional.normalize(means, dim=-1)

    def __call__(self, image: Image.Image, found: Sequence[Found]) -> list[str]:
        """The colour of each object: of its box, with #999999 outside its mask."""
        if not found:
            return []
        pixels = np.asarray(image.convert("RGB"))
        crops = []
        for f in found:
            alone = Image.fromarray(np.where(f.mask[..., None], pixels, GREY))
            x1, y1, x2, y2 = map(int, f.box)
            crops.append(alone.crop((x1, y1, x2, y2)))
        names = list(COLORS)
        each = zip(self.images(crops), found, strict=True)
        return [names[int((embedding @ self.words(f.name).T).argmax())] for embedding, f in each]


def tensor_of(features: Any) -> Tensor:
    """transformers gives features as they are, or (later) in an output with a pooler."""
    return features if isinstance(features, Tensor) else features.pooler_output


ColorOf = Callable[[Sequence[Found]], Sequence[str]]
"""The colours of given objects of one image."""


def evaluate(row: dict, found: Sequence[Found], colors: ColorOf) -> tuple[bool, str]:
    """GenEval's verdict on an image of a metadata ``row``, and what fails.

    Of each class the boxes above the threshold, the 16 most confident; of each clause the ``count``
    most confident; too few fail, and a failed clause is no position's target; colours and relations
    must hold for all of them.
    """
    threshold = COUNTING_THRESHOLD if row["tag"] == "counting" else THRESHOLD
    kept: dict[str, list[Found]] = {}
    for f in sorted(found, key=lambda f: -f.confidence):
        if f.confidence > threshold and len(kept.setdefault(f.name, [])) < MOST:
            kept[f.name].append(f)
    matched: list[list[Found] | None] = []
    why: list[str] = []
    for clause in row.get("include", []):
        name, count = clause["class"], clause["count"]
        boxes = kept.get(name, [])[:count]
        holds = len(boxes) == count
        if not holds:
            why.append(f"expected {name}>={count}, found {len(kept.get(name, []))}")
        elif "color" in clause:
            said = colors(boxes)
            if any(c != clause["color"] for c in said):
                holds = False
                why.append(f"expected {clause['color']} {name}, found {', '.join(said)}")
        if holds and "position" in clause:
            relation, target = clause["position"]
            others = matched[target]
            if others is None:
                holds = False
                why.append(f"no target for {name} to be {relation}")
            elif not all(relation in relations(a.box, b.box) for a in boxes for b in others):
                holds = False
                why.append(f"expected {name} {relation} target")
        matched.append(boxes if holds else None)
    for clause in row.get("exclude", []):
        there = len(kept.get(clause["class"], []))
        if there >= clause["count"]:
            why.append(f"expected {clause['class']}<{clause['count']}, found {there}")
    return not why, "; ".join(why)
