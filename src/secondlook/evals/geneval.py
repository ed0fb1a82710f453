"""GenEval: are the objects there that were asked for, in their number, colours and places?

Source: arXiv 2310.11513 and its released evaluation. An instance segmenter finds COCO's objects, a
CLIP names their colours, and rules give the verdict. Both models are transformers' own here instead
of mmdetection's and open_clip's; thresholds, order and rules are as published.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from pydantic import Field

from secondlook.evals import fetch
from secondlook.evals.benchmark import ImageBenchmark, Row, ScoreOrReason, Scorer
from secondlook.evals.scorers import CLIP, DETECTOR
from secondlook.io import read_rows
from secondlook.registry import register_benchmark

if TYPE_CHECKING:
    from torch import Tensor

    from secondlook.evals.scorers.clip import Clip
    from secondlook.evals.scorers.detector import DetectedObject, Detector

COLORS = (
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "purple",
    "pink",
    "brown",
    "black",
    "white",
)
THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9
"""Confidence above which an object counts."""
MAX_OBJECTS = 16
"""Of one class, the most confident."""
GREY = np.array((153, 153, 153), np.uint8)  # (3,) RGB
"""#999999, the background of an object whose colour is asked for."""
COLOR_SENTENCES = (
    "a photo of a {color} {name}",
    "a photo of a {color}-colored {name}",
    "a photo of a {color} object",
)


@register_benchmark("geneval")
class GenEval(ImageBenchmark):
    """GenEval's 553 prompts of six tasks."""

    title = "GenEval"
    suite = "public"
    default_samples = 4
    files = ("geneval/evaluation_metadata.jsonl",)

    detector: str = Field(DETECTOR, description="A Mask2Former of COCO's classes.")
    clip: str = Field(CLIP, description="A CLIP; default: ViT-L/14.")

    def rows(self) -> list[Row]:
        metadata_path = fetch.file(self.files[0], self.data)
        rows: list[Row] = []
        for line_number, metadata in read_rows(metadata_path):
            row_id = f"{len(rows):05d}"  # from 0 on, as GenEval numbers its folders
            where = f"line {line_number} of {metadata_path}"
            rows.append(Row(row_id, metadata["prompt"], metadata["tag"], metadata, where=where))
        return rows

    def scorer(self, device: str) -> Scorer:
        from secondlook.evals.scorers.clip import Clip
        from secondlook.evals.scorers.detector import Detector

        return GenEvalScorer(Detector(self.detector, device), Clip(self.clip, device))

    def judge(self) -> str:
        from secondlook.evals.scorers.models import check_model

        return f"{check_model('detector', self.detector)} and {check_model('clip', self.clip)}"


@register_benchmark("geneval-long")
class GenEvalLong(GenEval):
    """GenEval's specifications with prompts that a language model rewrote at length."""

    title = "GenEval, prompts rewritten"
    files = ("geneval/evaluation_metadata_long.jsonl",)
    note = "Not comparable with GenEval's own prompts."


class GenEvalScorer:
    """1 where GenEval's rules hold, else 0, and why."""

    def __init__(self, detector: Detector, clip: Clip):
        self.detector, self.colors = detector, ObjectColors(clip)

    def __call__(self, items: Sequence[tuple[Row, Image.Image]]) -> list[ScoreOrReason]:
        from secondlook.evals.scorers.models import NotANumber

        scores: list[ScoreOrReason] = []
        for row, image in items:
            try:
                objects = self.detector(image)
                is_right, why = verdict(row.facts, objects, partial(self.colors, image))
            except NotANumber as error:
                scores.append(str(error))
                continue
            object_rows = []  # kept with the score, to look at
            for detected_object in objects:
                confidence = round(detected_object.confidence, 4)
                object_rows.append(
                    {
                        "class": detected_object.name,
                        "box": detected_object.box,
                        "confidence": confidence,
                    }
                )
            scores.append({"value": float(is_right), "why": why, "objects": object_rows})
        return scores


class ObjectColors:
    """Colours of objects by CLIP: the likeliest of ten words, each the mean of three sentences'
    embeddings."""

    def __init__(self, clip: Clip):
        self.clip = clip
        self.word_embeddings = cache(self._word_embeddings)  # few classes, thousands of pictures

    def _word_embeddings(self, name: str) -> Tensor:
        """Of each colour word beside an object's ``name`` (10, D)."""
        import torch

        sentences = []
        for color in COLORS:
            for template in COLOR_SENTENCES:
                sentences.append(template.format(color=color, name=name))
        embeddings = self.clip.texts(sentences)  # (10 * 3, D)
        color_means = embeddings.reshape(len(COLORS), len(COLOR_SENTENCES), -1).mean(1)  # (10, D)
        # a mean of unit vectors is shorter than one
        return torch.nn.functional.normalize(color_means, dim=-1)

    def __call__(self, image: Image.Image, objects: Sequence[DetectedObject]) -> list[str]:
        """The colour of each object: of its box, with #999999 outside its mask."""
        if not objects:
            return []
        pixels = np.asarray(image.convert("RGB"))  # (H, W, 3)
        crops = []
        for detected_object in objects:
            masked_image = Image.fromarray(np.where(detected_object.mask[..., None], pixels, GREY))
            x1, y1, x2, y2 = map(int, detected_object.box)
            crops.append(masked_image.crop((x1, y1, x2, y2)))
        crop_embeddings = self.clip.images(crops)  # (objects, D)
        colors = []
        for embedding, detected_object in zip(crop_embeddings, objects, strict=True):
            cosines = embedding @ self.word_embeddings(detected_object.name).T  # (10,)
            colors.append(COLORS[int(cosines.argmax())])
        return colors


ColorsOf = Callable[[Sequence["DetectedObject"]], Sequence[str]]
"""The colours of given objects of one image."""


def verdict(
    metadata: dict[str, Any], objects: Sequence[DetectedObject], colors_of: ColorsOf
) -> tuple[bool, str]:
    """Whether an image is right by GenEval's rules, and what fails.

    Of each class the objects above the threshold, the 16 most confident; of each clause of
    ``include`` the ``count`` most confident. Too few fail; colours and positions must hold for all
    of them; a clause that failed is no position's target.
    """
    threshold = COUNTING_THRESHOLD if metadata["tag"] == "counting" else THRESHOLD
    objects_of_class: dict[str, list[DetectedObject]] = {}  # the surest first
    for detected in sorted(objects, key=lambda detected: -detected.confidence):
        of_class = objects_of_class.setdefault(detected.name, [])
        if detected.confidence > threshold and len(of_class) < MAX_OBJECTS:
            of_class.append(detected)

    matched_objects: list[list[DetectedObject] | None] = []  # of each clause, None where it failed
    failures = []
    for clause in metadata.get("include", []):
        of_class = objects_of_class.get(clause["class"], [])
        chosen_objects = of_class[: clause["count"]]
        failure = ""
        if len(chosen_objects) < clause["count"]:
            failure = f"expected {clause['class']}>={clause['count']}, found {len(of_class)}"
        elif "color" in clause:
            failure = _color_failure(clause, colors_of(chosen_objects))
        if not failure and "position" in clause:
            failure = _position_failure(clause, chosen_objects, matched_objects)
        if failure:
            failures.append(failure)
        matched_objects.append(None if failure else chosen_objects)

    # exact counts only: "two clocks" excludes three
    for clause in metadata.get("exclude", []):
        num_found = len(objects_of_class.get(clause["class"], []))
        if num_found >= clause["count"]:
            failures.append(f"expected {clause['class']}<{clause['count']}, found {num_found}")
    return not failures, "; ".join(failures)


def _color_failure(clause: dict[str, Any], colors: Sequence[str]) -> str:
    """Why the chosen objects are not of a clause's colour; "" where they are."""
    if all(color == clause["color"] for color in colors):
        return ""
    return f"expected {clause['color']} {clause['class']}, found {', '.join(colors)}"


def _position_failure(
    clause: dict[str, Any],
    chosen_objects: Sequence[DetectedObject],
    matched_objects: Sequence[list[DetectedObject] | None],
) -> str:
    """Why a relation does not hold between all chosen objects and all of the clause that it is
    relative to; "" where it does."""
    relation, target_index = clause["position"]  # an index of the include clauses
    target_objects = matched_objects[target_index]
    if target_objects is None:
        return f"no target for {clause['class']} to be {relation}"
    for chosen_object in chosen_objects:
        for target_object in target_objects:
            if relation not in relations(chosen_object.box, target_object.box):
                return f"expected {clause['class']} {relation} target"
    return ""


def relations(a: tuple[float, ...], b: tuple[float, ...]) -> set[str]:
    """Where box ``a`` (x1, y1, x2, y2) lies relative to box ``b``; several relations may hold, also
    none.

    The offset of the centres is reduced by a tenth of both sizes; its direction must then exceed
    half of the unreduced offset's length.
    """
    offsets, reduced_offsets = [], []  # along x, along y; plain numbers, for it is called often
    for low, high in ((0, 2), (1, 3)):
        offset = (a[low] + a[high] - b[low] - b[high]) / 2  # of the centres
        summed_size = (a[high] - a[low]) + (b[high] - b[low])
        offsets.append(offset)
        reduced_offsets.append(math.copysign(max(abs(offset) - 0.1 * summed_size, 0), offset))
    if max(map(abs, reduced_offsets)) < 1e-3:  # near or on each other: no relation
        return set()
    length = math.hypot(*offsets)
    dx, dy = (reduced_offset / length for reduced_offset in reduced_offsets)
    # y grows downwards
    holds_of_relation = {
        "left of": dx < -0.5,
        "right of": dx > 0.5,
        "above": dy < -0.5,
        "below": dy > 0.5,
    }
    return {name for name, is_held in holds_of_relation.items() if is_held}
