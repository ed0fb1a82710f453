"""T2I-CompBench: attributes bound to objects, by a model that answers questions; non-spatial
relations, by CLIP.

Source: arXiv 2307.06350 and its released evaluation: BLIP is asked about each of spaCy's noun
chunks (en_core_web_sm) but for a few words of place, the first eight. Scores are only comparable
with published ones where spaCy is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from PIL import Image
from pydantic import Field

from secondlook.errors import InputError
from secondlook.evals import fetch
from secondlook.evals.benchmark import (
    AnsweredBenchmark,
    Metrics,
    Row,
    ScoreOrReason,
    Scorer,
    ValueRange,
)
from secondlook.evals.scorers import CLIP_SCORE
from secondlook.io import read_lines
from secondlook.llm.missing import Missing, missing_of, why_missing
from secondlook.registry import register_benchmark

if TYPE_CHECKING:
    from secondlook.evals.scorers.clip import Clip
    from secondlook.evals.scorers.vqa import Answerer

BLIP_VQA = ("color", "shape", "texture")
CATEGORIES = (*BLIP_VQA, "non_spatial")
NOT_ASKED = ("top", "the side", "the left", "the right")
MAX_PHRASES = 8
Chunker = Callable[[str], list[str]]
"""The noun phrases of a prompt."""


@register_benchmark("compbench")
class CompBench(AnsweredBenchmark):
    """T2I-CompBench's validation prompts of four categories, 300 each."""

    title = "T2I-CompBench"
    suite = "public"
    default_samples = 10
    files = tuple(f"t2i_compbench/{category}_val.txt" for category in CATEGORIES)
    metrics: ClassVar[Metrics] = {"value": ValueRange(-1)}
    counted_tasks = BLIP_VQA
    note = (
        "Color, shape and texture are BLIP-VQA (a product of P(yes)), non_spatial is the cosine of "
        "CLIP ViT-B/32, as released. No number over categories is published: overall is the mean "
        "of color, shape and texture, and the cosine is not in it. The BLIP that was converted for "
        "transformers has its positions interpolated from 480 x 480 pictures to 384 x 384; they "
        "are interpolated back, so that P(yes) is close to the released code's and not equal to "
        "it. Published numbers are BLIP's, not another model's. Spatial relations and numeracy "
        "need UniDet, which transformers lacks; they are left out."
    )

    clip_score: str = Field(
        CLIP_SCORE, description="Of non-spatial prompts: a CLIP; default: ViT-B/32, as published."
    )

    def rows(self) -> list[Row]:
        rows = []
        for category in CATEGORIES:
            prompts_path = fetch.file(f"t2i_compbench/{category}_val.txt", self.data)
            # the index is of the prompts, the number of the file's lines, some of which are empty
            for index, (line_number, prompt) in enumerate(read_lines(prompts_path)):
                where = f"line {line_number} of {prompts_path}"
                rows.append(Row(f"{category}-{index:03d}", prompt, category, where=where))
        return rows

    def scorer(self, device: str) -> Scorer:
        from secondlook.evals.scorers.clip import Clip
        from secondlook.evals.scorers.vqa import answerer

        return CompBenchScorer(
            answerer(self.vqa, self.url, device),
            spacy_chunker(),
            Clip(self.clip_score, device, "clip_score"),
        )

    def judge(self) -> str:
        from secondlook.evals.scorers.models import check_model

        answerer_name = super().judge()
        spacy_chunker()  # raises InputError where spaCy is missing
        return f"{answerer_name} and {check_model('clip_score', self.clip_score)}"


class CompBenchScorer:
    """Colour, shape, texture: the product over noun phrases of P(yes), 1 where there is no phrase,
    as released; non-spatial: CLIP's cosine of picture and prompt."""

    def __init__(self, answer: Answerer, chunker: Chunker, clip: Clip):
        self.answer, self.chunker, self.clip = answer, chunker, clip

    @property
    def missing(self) -> list[Missing]:
        """Why answers are missing."""
        return missing_of(self.answer)

    def __call__(self, items: Sequence[tuple[Row, Image.Image]]) -> list[ScoreOrReason]:
        phrases_of_item: list[list[str]] = []
        questions: list[tuple[str, Image.Image]] = []
        for row, image in items:
            phrases = []
            if row.task != "non_spatial":
                phrases = asked_phrases(row.prompt, self.chunker)
            phrases_of_item.append(phrases)
            questions += [(f"{phrase}?", image) for phrase in phrases]
        # all items' questions are asked together, then handed out in their order
        p_yes = iter(self.answer(questions) if questions else [])
        scores: list[ScoreOrReason] = []
        for (row, image), phrases in zip(items, phrases_of_item, strict=True):
            if row.task == "non_spatial":
                scores.append(self._cosine(image, row.prompt))
            else:
                scores.append(self._product([(phrase, next(p_yes)) for phrase in phrases]))
        return scores

    def _product(self, p_yes_of_phrases: Sequence[tuple[str, float | None]]) -> ScoreOrReason:
        """The product of P(yes), 1 of none; why not, where an answer is missing."""
        known_p_yes = []
        for phrase, p_yes in p_yes_of_phrases:
            if p_yes is None:
                return f"no answer to {phrase!r}{why_missing(self.answer)}"
            known_p_yes.append(p_yes)
        return {"value": float(np.prod(known_p_yes)), "p_yes": p_yes_of_phrases}

    def _cosine(self, image: Image.Image, prompt: str) -> ScoreOrReason:
        from secondlook.evals.scorers.models import NotANumber

        try:
            image_embedding, text_embedding = self.clip.images([image]), self.clip.texts([prompt])
        except NotANumber as error:
            return str(error)
        return {"value": float(image_embedding[0] @ text_embedding[0])}  # unit vectors


def asked_phrases(prompt: str, chunker: Chunker) -> list[str]:
    """What a prompt's picture is asked for; none where the prompt has no noun phrase."""
    phrases = [phrase for phrase in chunker(prompt) if phrase not in NOT_ASKED]
    return phrases[:MAX_PHRASES]


@cache
def spacy_chunker() -> Chunker:
    """spaCy's noun chunks. Raises InputError where spaCy or its model is missing."""
    try:
        import spacy

        nlp = spacy.load("en_core_web_sm")
    except (ImportError, OSError) as error:
        raise InputError(
            "spacy: T2I-CompBench's questions need spaCy's noun chunks; run pip install spacy "
            "and python -m spacy download en_core_web_sm"
        ) from error
    return lambda text: [chunk.text for chunk in nlp(text).noun_chunks]
