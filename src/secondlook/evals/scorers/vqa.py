"""Questions about pictures, answered with a probability of yes: by BLIP, by a vision-language model
here, or by one behind an endpoint. T2I-CompBench, DSG and DPG-Bench are made of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image

from secondlook.errors import InputError
from secondlook.evals.scorers import BLIP
from secondlook.evals.scorers.models import check_model, loading
from secondlook.llm.answer_store import Answers
from secondlook.llm.client import Asker
from secondlook.llm.endpoint import Endpoint
from secondlook.llm.local import LocalModel
from secondlook.llm.missing import Missing, missing_of
from secondlook.rewards.vlm import ATOMIC, trial_question, yes_or_no

SIDE = 480
"""Side of the pictures that T2I-CompBench's BLIP sees, whatever size its positions were stored
for."""
MAX_WORDS, MAX_TOKENS = 50, 35
"""Of a question: the rest is cut off."""
Answerer = Callable[[Sequence[tuple[str, Image.Image]]], list[float | None]]
"""P(yes) of each (question, picture); None where it is missing."""


def as_blip_reads(question: str) -> str:
    """A question in BLIP's own words: lower case, without most signs, at most 50 words."""
    plain = re.sub(r"[.!\"()*#:;~]", "", question.lower()).rstrip(" ")
    return " ".join(plain.split(" ")[:MAX_WORDS])


class Blip:
    """BLIP for visual question answering: P(yes) / (P(yes) + P(no)) at the first token, as
    T2I-CompBench's released code asks it (BLIPvqa_eval: data/utils.py, data/__init__.py,
    models/blip_vqa.py).

    Three things there are not in transformers' own processor or ``generate``: pictures are 480 x
    480; the question's first token, [CLS], is replaced by [ENC]; the question is stripped of signs.
    BERT's vocabulary (30,522) has two additions there, [DEC] (30522, the answer's first token) and
    [ENC] (30523). The models converted for transformers keep both rows of the embedding
    (``vocab_size`` is 30524), but their tokenizers know neither token and their positions are those
    of 384 x 384 pictures, interpolated when they were converted from 480: here they are
    interpolated back, so that P(yes) is close to the released code's and not equal to it. A
    checkpoint with ``image_size`` 480 is taken as it is.

    Raises InputError for a model that is no BLIP of this kind.
    """

    def __init__(self, path: str = BLIP, device: str = "cpu", batch: int = 16):
        from transformers import AutoImageProcessor, AutoTokenizer, BlipForQuestionAnswering

        with loading("vqa", path, "BLIP"):
            self.model: Any = BlipForQuestionAnswering.from_pretrained(path).to(device).eval()
            self.tokenizer: Any = AutoTokenizer.from_pretrained(path)
            self.processor: Any = AutoImageProcessor.from_pretrained(path)
        self.device, self.batch = device, batch
        self.words = [
            self.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ("yes", "no")
        ]
        text = self.model.config.text_config
        self.enc = text.bos_token_id + 1  # [ENC] follows [DEC]
        if self.enc >= text.vocab_size:
            raise InputError(
                f"vqa: {path!r} has {text.vocab_size} words and none after {text.bos_token_id}; "
                "[ENC] is missing"
            )

    def __call__(self, items: Sequence[tuple[str, Image.Image]]) -> list[float | None]:
        questions = self.tokenizer(
            [as_blip_reads(question) for question, _ in items],
            truncation=True,
            max_length=MAX_TOKENS,
        )["input_ids"]
        # batches of one length, so that none is padded: transformers 5.23 drops the mask between
        # the answer and the question
        by_length: dict[int, list[int]] = {}
        for i, ids in enumerate(questions):
            by_length.setdefault(len(ids), []).append(i)
        states_of = self._image_states([image for _, image in items])
        p_yes: list[float | None] = [None] * len(items)
        for places in by_length.values():
            for start in range(0, len(places), self.batch):
                part = places[start : start + self.batch]
                states = torch.stack([states_of[id(items[i][1])] for i in part])
                values = self._p_yes([questions[i] for i in part], states)
                for i, p in zip(part, values, strict=True):
                    p_yes[i] = p if math.isfinite(p) else None
        return p_yes

    @torch.inference_mode()
    def _image_states(self, images: Sequence[Image.Image]) -> dict[int, torch.Tensor]:
        """Each picture's id -> its states (patches + 1, D); a picture of several questions is seen
        once."""
        distinct = list({id(image): image for image in images}.values())
        states_of: dict[int, torch.Tensor] = {}
        for start in range(0, len(distinct), self.batch):
            part = distinct[start : start + self.batch]
            resized = [
                image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
                for image in part
            ]
            inputs = self.processor(images=resized, do_resize=False, return_tensors="pt")
            states = self.model.vision_model(
                pixel_values=inputs["pixel_values"].to(self.device), interpolate_pos_encoding=True
            ).last_hidden_state  # (B, patches + 1, D)
            for image, state in zip(part, states, strict=True):
                states_of[id(image)] = state
        return states_of

    @torch.inference_mode()
    def _p_yes(self, questions: Sequence[Sequence[int]], image_states: torch.Tensor) -> list[float]:
        """Of questions of one length (B, T) about pictures' states (B, patches + 1, D)."""
        ids = torch.tensor(questions, device=self.device)
        ids[:, 0] = self.enc
        read = self.model.text_encoder(input_ids=ids, encoder_hidden_states=image_states)
        start = torch.full((len(ids), 1), self.model.decoder_start_token_id, device=self.device)
        logits = self.model.text_decoder(
            input_ids=start, encoder_hidden_states=read.last_hidden_state
        ).logits[:, -1]  # (B, vocabulary)
        return logits[:, self.words].float().softmax(-1)[:, 0].tolist()


class Questions:
    """A vision-language model, here or behind an endpoint, asked for yes or no."""

    def __init__(self, asker: Callable[[Sequence[Any]], list[Any]]):
        self.asker = asker

    @property
    def missing(self) -> list[Missing]:
        """Why answers are missing."""
        return missing_of(self.asker)

    def __call__(self, items: Sequence[tuple[str, Image.Image]]) -> list[float | None]:
        return self.asker([yes_or_no(ATOMIC.format(q), image) for q, image in items])


def answerer(model: str, url: str = "", device: str = "cpu") -> Answerer:
    """Of a served model where there is a ``url``, else of one that transformers loads: BLIP, or any
    that answers questions."""
    if url:
        return Questions(Asker(Endpoint(url, model), Answers()))
    from transformers import AutoConfig

    with loading("vqa", model, "model"):
        model_type = AutoConfig.from_pretrained(model).model_type
    return Blip(model, device) if model_type == "blip" else Questions(LocalModel(model, device))


def check_answerer(model: str, url: str = "") -> str:
    """Who answers, in words. Raises InputError for a model that is not there, or an address, key or
    proxy that cannot be used."""
    if not url:
        return check_model("vqa", model)
    Asker(Endpoint(url, model))
    return f"{model} at {url}"


def try_answerer(model: str, url: str = "", in_words: bool = False) -> None:
    """Ask a served model a trial question, to be answered by log-probabilities or ``in_words``.
    Raises InputError where it can answer none."""
    if url:
        Asker(Endpoint(url, model)).try_out(trial_question(in_words))
