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
"""Of a question, as released: the rest is cut off."""
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

    def __init__(self, model_path: str = BLIP, device: str = "cpu", batch: int = 16):
        from transformers import AutoImageProcessor, AutoTokenizer, BlipForQuestionAnswering

        with loading("vqa", model_path, "BLIP"):
            self.model: Any = BlipForQuestionAnswering.from_pretrained(model_path).to(device).eval()
            self.tokenizer: Any = AutoTokenizer.from_pretrained(model_path)
            self.processor: Any = AutoImageProcessor.from_pretrained(model_path)
        self.device, self.batch = device, batch
        yes_ids = self.tokenizer("yes", add_special_tokens=False)["input_ids"]
        no_ids = self.tokenizer("no", add_special_tokens=False)["input_ids"]
        self.yes_no_ids = [yes_ids[0], no_ids[0]]
        text_config = self.model.config.text_config
        self.enc_id = text_config.bos_token_id + 1  # [ENC] follows [DEC]
        if self.enc_id >= text_config.vocab_size:
            raise InputError(
                f"vqa: {model_path!r} has {text_config.vocab_size} words and none after "
                f"{text_config.bos_token_id}; [ENC] is missing"
            )

    def __call__(self, items: Sequence[tuple[str, Image.Image]]) -> list[float | None]:
        images = [image for _, image in items]
        texts = [as_blip_reads(question) for question, _ in items]
        ids_of_questions = self.tokenizer(texts, truncation=True, max_length=MAX_TOKENS)[
            "input_ids"
        ]
        # batches of one length, so that none is padded: transformers 5.23 drops the mask between
        # the answer and the question
        indices_of_length: dict[int, list[int]] = {}
        for index, ids in enumerate(ids_of_questions):
            indices_of_length.setdefault(len(ids), []).append(index)
        states_of_image = self._image_states(images)
        p_yes: list[float | None] = [None] * len(items)
        for indices in indices_of_length.values():
            for batch_start in range(0, len(indices), self.batch):
                batch_indices = indices[batch_start : batch_start + self.batch]
                batch_ids = [ids_of_questions[index] for index in batch_indices]
                batch_states = [states_of_image[id(images[index])] for index in batch_indices]
                batch_p_yes = self._p_yes(batch_ids, torch.stack(batch_states))
                for index, yes_probability in zip(batch_indices, batch_p_yes, strict=True):
                    p_yes[index] = yes_probability if math.isfinite(yes_probability) else None
        return p_yes

    @torch.inference_mode()
    def _image_states(self, images: Sequence[Image.Image]) -> dict[int, torch.Tensor]:
        """Each picture's id -> its states (patches + 1, D); a picture of several questions is seen
        once."""
        distinct_images = list({id(image): image for image in images}.values())
        states_of_image: dict[int, torch.Tensor] = {}
        for batch_start in range(0, len(distinct_images), self.batch):
            batch_images = distinct_images[batch_start : batch_start + self.batch]
            resized_images = []
            for image in batch_images:
                rgb_image = image.convert("RGB")
                resized_images.append(rgb_image.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
            # the processor only scales the values: it would resize to the stored positions' size
            inputs = self.processor(images=resized_images, do_resize=False, return_tensors="pt")
            batch_states = self.model.vision_model(
                pixel_values=inputs["pixel_values"].to(self.device), interpolate_pos_encoding=True
            ).last_hidden_state  # (B, patches + 1, D)
            for image, image_states in zip(batch_images, batch_states, strict=True):
                states_of_image[id(image)] = image_states
        return states_of_image

    @torch.inference_mode()
    def _p_yes(self, questions: Sequence[Sequence[int]], image_states: torch.Tensor) -> list[float]:
        """Of questions of one length (B, T) about pictures' states (B, patches + 1, D)."""
        ids = torch.tensor(questions, device=self.device)
        ids[:, 0] = self.enc_id  # in place of [CLS]
        question_states = self.model.text_encoder(
            input_ids=ids, encoder_hidden_states=image_states
        ).last_hidden_state  # (B, T, D)
        # the answer's first token follows [DEC]
        dec_ids = torch.full((len(ids), 1), self.model.decoder_start_token_id, device=self.device)
        logits = self.model.text_decoder(
            input_ids=dec_ids, encoder_hidden_states=question_states
        ).logits[:, -1]  # (B, vocabulary)
        # the softmax of two words' logits is P(yes) / (P(yes) + P(no))
        return logits[:, self.yes_no_ids].float().softmax(-1)[:, 0].tolist()


class Questions:
    """A vision-language model, here or behind an endpoint, asked for yes or no."""

    def __init__(self, asker: Callable[[Sequence[Any]], list[Any]]):
        self.asker = asker

    @property
    def missing(self) -> list[Missing]:
        """Why answers are missing."""
        return missing_of(self.asker)

    def __call__(self, items: Sequence[tuple[str, Image.Image]]) -> list[float | None]:
        questions = [yes_or_no(ATOMIC.format(question), image) for question, image in items]
        return self.asker(questions)


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
