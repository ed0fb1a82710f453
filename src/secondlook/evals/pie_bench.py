"""PIE-Bench: what an edit changed, and what it left alone.

Source: arXiv 2310.01506 and its released evaluation. Outside the mask of what may change: MSE,
PSNR, SSIM; the distance of the pictures' structures; CLIP's similarity to the target prompt, of the
whole and of the edited part. LPIPS is left out: its network comes with torchvision only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image
from pydantic import Field

from secondlook.errors import InputError
from secondlook.evals.benchmark import (
    ImageBenchmark,
    Metrics,
    Row,
    ScoreOrReason,
    Scorer,
    ValueRange,
)
from secondlook.evals.scorers import CLIP, DINO
from secondlook.io import finite, read_image, read_json, text_field
from secondlook.registry import register_benchmark

if TYPE_CHECKING:
    import torch

    from secondlook.evals.scorers.clip import Clip

SIDE = 512
"""Of the masks, in pixels."""
EDIT_TYPES = (
    "random",
    "change object",
    "add object",
    "delete object",
    "content",
    "pose",
    "color",
    "material",
    "background",
    "style",
)


@register_benchmark("pie")
class PIEBench(ImageBenchmark):
    """PIE-Bench's 700 edits of ten types, from --data."""

    title = "PIE-Bench"
    suite = "public"
    mean_over = "images"
    edits = True
    metrics: ClassVar[Metrics] = {
        "psnr": ValueRange(0, 60, True),
        "mse": ValueRange(0, 1, True),
        "ssim": ValueRange(-1, 1, True),
        "structure": ValueRange(0, 4),
        "clip_whole": ValueRange(0, 100),
        "clip_edited": ValueRange(0, 100),
    }
    number = "PSNR in dB of what the mask says must stay as it was; higher is better"
    note = (
        "Tables print structure x 1000, MSE x 10000, SSIM x 100. LPIPS is left out: its network "
        "comes with torchvision."
    )

    clip: str = Field(CLIP, description="A CLIP; default: ViT-L/14.")
    dino: str = Field(DINO, description="Of the structure distance: a DINO.")

    def rows(self) -> list[Row]:
        """From ``data``/pie_bench with mapping_file.json and annotation_images (handed out by its
        authors through a form, so never fetched)."""
        if self.data is None:
            raise InputError(
                "data: PIE-Bench is handed out through a form; give a folder that has "
                "pie_bench/mapping_file.json"
            )
        folder = self.data / "pie_bench"
        mapping_path = folder / "mapping_file.json"
        rows = []
        for key, edit in read_json(mapping_path, dict).items():
            rows.append(edit_row(key, edit, folder, f"{key!r} of {mapping_path}"))
        return rows

    def scorer(self, device: str) -> Scorer:
        from secondlook.evals.scorers.clip import Clip

        return PIEScorer(Clip(self.clip, device), Structure(self.dino, device))

    def judge(self) -> str:
        from secondlook.evals.scorers.models import check_model

        return f"{check_model('clip', self.clip)} and {check_model('dino', self.dino)}"


def edit_row(key: str, edit: Any, folder: Path, where: str) -> Row:
    """One edit of mapping_file.json. Raises InputError that says ``where`` it stands."""
    if not isinstance(edit, dict):
        raise InputError(f"data: {where} is not an object")
    picture_path = folder / "annotation_images" / text_field(edit, "image_path", where)
    marked_prompt = text_field(edit, "editing_prompt", where)  # "a [red] cup": what is new in []
    target_prompt = marked_prompt.replace("[", "").replace("]", "")
    instruction = text_field(edit, "editing_instruction", where)
    edit_type = str(edit.get("editing_type_id"))
    if edit_type not in map(str, range(len(EDIT_TYPES))):
        raise InputError(
            f"editing_type_id: it is {edit_type!r} in {where}; it must be from 0 to "
            f"{len(EDIT_TYPES) - 1}"
        )
    facts = {"mask": mask_runs(edit.get("mask"), where), "target": target_prompt}
    if not picture_path.is_file():
        raise InputError(
            f"images: {str(picture_path)!r} is missing; PIE-Bench's pictures must lie there"
        )
    return Row(key, instruction, EDIT_TYPES[int(edit_type)], facts, picture_path, where)


def mask_runs(mask: Any, where: str) -> list[int]:
    """A mask as PIE-Bench stores it: [start, length, …] over the pixels of a square picture, row by
    row; what goes beyond its end is cut off, as released. Raises InputError."""
    well_formed = (
        isinstance(mask, list)
        and len(mask) % 2 == 0
        and all(finite(number, 0, SIDE**2) and number == int(number) for number in mask)
    )
    if not well_formed:
        raise InputError(
            f"mask: it is not [start, length, …] within {SIDE} x {SIDE} pixels in {where}"
        )
    return [int(number) for number in mask]


def mask_of(runs: Sequence[int]) -> np.ndarray:
    """A mask (SIDE, SIDE) from its runs, true where the edit belongs; its frame is always true."""
    flat_mask = np.zeros(SIDE * SIDE, bool)
    for start, length in zip(runs[::2], runs[1::2], strict=True):
        flat_mask[start : start + length] = True
    mask = flat_mask.reshape(SIDE, SIDE)
    mask[[0, -1]] = True  # the frame, as released
    mask[:, [0, -1]] = True
    return mask


class PIEScorer:
    """All of PIE-Bench's metrics but LPIPS."""

    def __init__(self, clip: Clip, structure: Structure):
        self.clip, self.structure = clip, structure

    def __call__(self, items: Sequence[tuple[Row, Image.Image]]) -> list[ScoreOrReason]:
        from secondlook.evals.scorers.models import NotANumber

        scores: list[ScoreOrReason] = []
        for row, image in items:
            try:
                scores.append(self._score(row, image))
            except NotANumber as error:
                scores.append(str(error))
        return scores

    def _score(self, row: Row, image: Image.Image) -> dict[str, Any]:
        """All metrics of one picture. Raises NotANumber."""
        from secondlook.evals.scorers.background import background

        assert row.source is not None
        source, mask = read_image(row.source), mask_of(row.facts["mask"])
        if source.size != mask.shape:  # a square, so that width and height are no matter
            source = source.resize(mask.shape, Image.Resampling.BICUBIC)
        edited = image.resize(source.size, Image.Resampling.BICUBIC)
        score: dict[str, Any] = {}
        for metric, value in background(source, edited, mask).items():
            score[metric] = None if np.isnan(value) else value  # JSON has no NaN
        score["structure"] = self.structure(source, edited)

        # all but the mask is black, as released
        edited_pixels = np.where(mask[..., None], np.asarray(edited), np.uint8(0))  # (H, W, 3)
        edited_part = Image.fromarray(edited_pixels)
        target_embedding = self.clip.texts([row.facts["target"]])[0]  # (D,)
        whole_cosine, part_cosine = self.clip.images([edited, edited_part]) @ target_embedding
        # CLIPScore: 100 times the cosine, not below 0
        score["clip_whole"] = max(100 * float(whole_cosine), 0.0)
        score["clip_edited"] = max(100 * float(part_cosine), 0.0)
        return score


class Structure:
    """Distance of two pictures' structures: the mean square of the difference of their
    self-similarities, cosines of the keys of a DINO's last block (Splice, arXiv 2201.00424). Values
    are 0 to 255, as PIE-Bench's released code gives them."""

    def __init__(self, model_path: str = DINO, device: str = "cpu"):
        from transformers import ViTModel

        from secondlook.evals.scorers.models import loading

        with loading("dino", model_path, "ViT"):
            self.model: Any = (
                ViTModel.from_pretrained(model_path, add_pooling_layer=False).to(device).eval()
            )
        self.device = device
        self.keys: torch.Tensor | None = None  # of the last picture that was seen, (tokens, D)
        key_layers = []
        for layer_name, layer in self.model.named_modules():
            if layer_name.endswith(("attention.key", "k_proj")):  # by version
                key_layers.append(layer)
        key_layers[-1].register_forward_hook(self._keep)

    def _keep(self, layer: Any, inputs: Any, keys: torch.Tensor) -> None:
        self.keys = keys[0]

    def _self_similarity(self, image: Image.Image) -> torch.Tensor:
        """Cosines of the keys of all pairs of tokens (tokens, tokens)."""
        import torch

        from secondlook.evals.scorers.background import to_unit

        # ImageNet's, (3, 1, 1) each
        mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
        side = self.model.config.image_size
        with torch.inference_mode():
            # 0 to 255 though mean and std are of 0 to 1, as released: published values are so
            pixels = torch.nn.functional.interpolate(
                to_unit(image) * 255, (side, side), mode="bilinear", antialias=True
            )  # (1, 3, side, side)
            self.model(pixel_values=((pixels - mean) / std).to(self.device))
            assert self.keys is not None  # the hook has set them
            unit_keys = torch.nn.functional.normalize(self.keys, dim=-1)  # (tokens, D)
            return unit_keys @ unit_keys.T

    def __call__(self, source: Image.Image, edited: Image.Image) -> float:
        difference = self._self_similarity(source) - self._self_similarity(edited)
        return float((difference**2).mean())
