"""Scorers of the public benchmarks: a picture of a row to numbers. Models are loaded when a scorer
is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from secondlook.evals import question_metrics
from secondlook.evals.records import Scored, Scorer
from secondlook.evals.rows import Row
from secondlook.evals.scorers import detector as detect
from secondlook.evals.scorers import phrases, vqa
from secondlook.evals.scorers.background import background, to_unit
from secondlook.io import read_image
from secondlook.llm.client import Answers, Asker, Endpoint, Question, Unanswered
from secondlook.llm.local import LocalModel
from secondlook.llm.missing import Missing, missing_of, why_missing
from secondlook.llm.parsing import json_in, text_of
from secondlook.rewards.vlm import in_words

DINO = "facebook/dino-vitb8"
CLIP_SCORE = "openai/clip-vit-base-patch32"
"""The one of T2I-CompBench's released code (CLIPScore_eval); cosines of other CLIPs are not
comparable with published ones."""


@dataclass(frozen=True)
class Judges:
    """Who scores, and on what."""

    detector: str = detect.DETECTOR
    clip: str = detect.CLIP
    """Names colours for GenEval, and compares pictures with sentences for PIE-Bench."""
    clip_score: str = CLIP_SCORE
    """Of T2I-CompBench's non-spatial prompts."""
    vqa: str = vqa.BLIP
    """A BLIP, or a vision-language model: of transformers, or served under ``url``."""
    url: str = ""
    dino: str = DINO
    device: str = "cpu"
    chunks: Callable[[str], list[str]] | None = field(default=None, compare=False)
    """Noun phrases of a prompt; default: spaCy's."""


class GenEval:
    """1 where GenEval's rules hold, else 0, and why."""

    def __init__(self, judges: Judges):
        self.detector = detect.Detector(judges.detector, judges.device)
        self.colors = detect.Colors(judges.clip, judges.device)

    def __call__(self, items: Sequence[tuple[Row, Image.Image]]) -> list[Scored]:
        found: list[Scored] = []
        for row, image in items:
            try:
                objects = self.detector(image)
                right, why = detect.evaluate(row.facts, objects, partial(self.colors, image))
            except detect.NotANumber as error:
                found.append(str(error))
                continue
            listed = [
                {"class": f.name, "box": f.box, "confidence": round(f.confidence, 4)}
                for f in objects
            ]
            found.append({"value": float(right), "why": why, "objects": listed})
        return found


class CompBench:
    """Colour, shape, texture: the product over noun phrases of BLIP's P(yes), 1 where there is
    none, as released; non-spatial: CLIP's cosine."""

    def __init__(self, judges: Judges):
        self.ask = vqa.answerer(judges.vqa, judges.url, judges.device)
        self.chunks = judges.chunks or phrases.chunker()
        self.clip = detect.Colors(judges.clip_score, judges.device)

    @property
    def missing(self) -> list[Missing]:
        """Why answers are missing."""
        return missing_of(self.ask)

    def __call__(self, items: Sequence[tuple[Row, Image.Image]]) -> list[Scored]:
        asked = [
            [] if row.task == "non_spatial" else phrases.phrases(row.prompt, self.chunks)
            for row, _ in items
        ]
        questions = [
            (f"{p}?", image) for those, (_, image) in zip(asked, items, strict=True) for p in those
        ]
        told = iter(self.ask(questions) if questions else [])
        found: list[Scored] = []
        for those, (row, image) in zip(asked, items, strict=True):
            if row.task == "non_spatial":
                found.append(self._cosine(image, row.prompt))
                continue
            p = [(phrase, next(told)) for phrase in those]
            known = [v for _, v in p if v is not None]
            lacking = [phrase for phrase, v in p if v is None]
            if lacking:
                found.append(f"no answer to {lacking[0]!r}{why_missing(self.ask)}")
            else:
                found.append({"value": float(np.prod(known)), "p_yes": p})
        return found

    def _cosine(self, image: Image.Image, prompt: str) -> Scored:
        try:
            return {"value": float(self.clip.images([image])[0] @ self.clip.texts([prompt])[0])}
        except detect.NotANumber as error:
            return str(error)


class Dependent:
    """DSG's and DPG-Bench's: the mean over questions, of which those about something that is not
    there count as no."""

    def __init__(self, judges: Judges, rule: Callable[..., float]):
        self.ask, self.rule = vqa.answerer(judges.vqa, judges.url, judges.device), rule

    @property
    def missing(self) -> list[Missing]:
        """Why answers are missing."""
        return missing_of(self.ask)

    def __call__(self, items: Sequence[tuple[Row, Image.Image]]) -> list[Scored]:
        questions = [(q, image) for row, image in items for q in row.facts["questions"].values()]
        told = iter(self.ask(questions))
        found: list[Scored] = []
        for row, _ in items:
            p = {q: next(told) for q in row.facts["questions"]}
            lacking = [q for q, v in p.items() if v is None]
            if lacking:
                found.append(
                    f"no answer to {row.facts['questions'][lacking[0]]!r}{why_missing(self.ask)}"
                )
                continue
            said = {q: float(v > 0.5) for q, v in p.items() if v is not None}
            value = self.rule(said, row.facts["parents"])
            found.append(
                {"value": value, "answers": [[row.facts["tuples"][q], a] for q, a in said.items()]}
            )
        return found


def mask_of(runs: Sequence[int], size: int = 512) -> np.ndarray:
    """PIE-Bench's mask (size, size), true where the edit belongs: [start, length, …] over rows; its
    frame is always true."""
    flat = np.zeros(size * size, bool)
    for start, n in zip(runs[::2], runs[1::2], strict=True):
        flat[start : start + n] = True
    mask = flat.reshape(size, size)
    mask[[0, -1]] = mask[:, [0, -1]] = True
    return mask


class Structure:
    """Distance of two pictures' structures: the mean square of the difference of their
    self-similarities, cosines of the keys of a DINO's last block (Splice, arXiv 2201.00424). Values
    are 0 to 255, as PIE-Bench's released code gives them."""

    def __init__(self, path: str = DINO, device: str = "cpu"):
        from transformers import ViTModel

        with detect.loading("dino", path, "ViT"):
            self.model: Any = (
                ViTModel.from_pretrained(path, add_pooling_layer=False).to(device).eval()
            )
        self.device, self.keys = device, torch.empty(0)
        last = [
            m
            for name, m in self.model.named_modules()
            if name.endswith(("attention.key", "k_proj"))
        ][-1]
        last.register_forward_hook(self._keep)

    def _keep(self, module: Any, given: Any, keys: torch.Tensor) -> None:
        self.keys = keys[0]

    @torch.inference_mode()
    def _similarity(self, image: Image.Image) -> torch.Tensor:
        mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
        side = self.model.config.image_size
        pixels = torch.nn.functional.interpolate(
            to_unit(image) * 255, (side, side), mode="bilinear", antialias=True
        )
        self.model(pixel_values=((pixels - mean) / std).to(self.device))
        keys = torch.nn.functional.normalize(self.keys, dim=-1)
        return keys @ keys.T

    def __call__(self, source: Image.Image, edited: Image.Image) -> float:
        return float(((self._similarity(source) - self._similarity(edited)) ** 2).mean())


class Pie:
    """PIE-Bench: background mse, psnr and ssim, structure distance, CLIP similarity of the whole
    and of the edited part. LPIPS is left out: its network comes with torchvision only."""

    def __init__(self, judges: Judges):
        self.clip = detect.Colors(judges.clip, judges.device)
        self.structure = Structure(judges.dino, judges.device)

    def __call__(self, items: Sequence[tuple[Row, Image.Image]]) -> list[Scored]:
        found: list[Scored] = []
        for row, image in items:
            try:
                found.append(self._one(row, image))
            except detect.NotANumber as error:
                found.append(str(error))
        return found

    def _one(self, row: Row, image: Image.Image) -> dict[str, Any]:
        assert row.source is not None
        source, mask = read_image(row.source), mask_of(row.facts["mask"])
        if source.size != mask.shape:
            source = source.resize(mask.shape, Image.Resampling.BICUBIC)
        edited = image.resize(source.size, Image.Resampling.BICUBIC)
        alone = Image.fromarray(np.where(mask[..., None], np.asarray(edited), np.uint8(0)))
        whole, part = self.clip.images([edited, alone]) @ self.clip.texts([row.facts["target"]])[0]
        found = {n: None if np.isnan(v) else v for n, v in background(source, edited, mask).items()}
        found |= {"structure": self.structure(source, edited)}
        return found | {
            "clip_whole": max(100 * float(whole), 0.0),
            "clip_edited": max(100 * float(part), 0.0),
        }


SCORED = (
    'Two pictures: the first is the source, the second an edit of it by the instruction "{}". '
    "Give two scores from 0 to 10: "
    "how far the edit succeeds (10: completely as instructed), and how little it changes beyond "
    "that (10: nothing that it "
    'should not). Answer with JSON and nothing else: {{"scores": [success, restraint]}}'
)
QUALITY = (
    "Give two scores from 0 to 10 for this picture: how natural it is (10: lighting, "
    "perspective and proportions are right), "
    'and how free of artefacts (10: none). Answer with JSON and nothing else: {{"scores": '
    "[naturalness, cleanness]}}"
)


def two_scores(choice: dict) -> tuple[float, float]:
    """Two numbers from 0 to 10 of an answer: those of its last JSON object with scores. Raises
    Unanswered."""
    listed = [
        found["scores"]
        for found in json_in(text_of(choice), dict)
        if isinstance(found.get("scores"), list)
    ]
    if not listed or len(listed[-1]) != 2:
        raise Unanswered("its answer has no two scores")
    one, other = map(_number, listed[-1])
    if not (0 <= one <= 10 and 0 <= other <= 10):
        raise Unanswered("its answer has scores beyond 0 to 10")
    return one, other


def _number(value: Any) -> float:
    """A number, or a text that is one. Raises Unanswered for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise Unanswered("its answer has a score that is no number")
    try:
        return float(value)
    except (ValueError, OverflowError) as error:
        raise Unanswered("its answer has a score that is no number") from error


class GEdit:
    """GEdit-style scores by a vision-language model, in VIEScore's form: semantic consistency SC
    and quality PQ are the lesser of two scores each, and the whole is sqrt(SC PQ). The questions'
    words are ours: scores compare among themselves only."""

    def __init__(self, judges: Judges):
        if judges.url:
            self.ask: Callable[[Sequence[Question]], list[Any]] = Asker(
                Endpoint(judges.url, judges.vqa), Answers()
            )
        else:
            self.ask = LocalModel(judges.vqa, judges.device)

    @property
    def missing(self) -> list[Missing]:
        """Why answers are missing."""
        return missing_of(self.ask)

    def __call__(self, items: Sequence[tuple[Row, Image.Image]]) -> list[Scored]:
        asked = []
        for row, image in items:
            assert row.source is not None
            asked.append(
                Question(
                    in_words(SCORED.format(row.prompt), read_image(row.source), image).body,
                    two_scores,
                )
            )
            asked.append(Question(in_words(QUALITY.format(), image).body, two_scores))
        told = self.ask(asked)
        found: list[Scored] = []
        for semantic, quality in zip(told[::2], told[1::2], strict=True):
            if semantic is None or quality is None:
                of = "what was edited" if semantic is None else "quality"
                found.append(f"no two scores of {of}{why_missing(self.ask)}")
                continue
            sc, pq = min(semantic), min(quality)
            found.append(
                {"overall": float(np.sqrt(sc * pq)), "semantic_consistency": sc, "quality": pq}
            )
        return found


def dsg(judges: Judges) -> Scorer:
    return Dependent(judges, question_metrics.dsg)


def dpg(judges: Judges) -> Scorer:
    return Dependent(judges, question_metrics.dpg)
