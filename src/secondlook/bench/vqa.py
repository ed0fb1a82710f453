"""Questions about pictures, answered with a probability of yes: by BLIP, by a vision-language model here, or by one behind an
endpoint. T2I-CompBench, DSG and DPG-Bench are made of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image

from secondlook.bench.detect import first_line
from secondlook.rewards.ask import Answers, Asker, Endpoint
from secondlook.rewards.base import Missing, missing_of
from secondlook.rewards.endpoint import ATOMIC, yes_or_no
from secondlook.rewards.local import LocalModel
from secondlook.types import InputError

BLIP = "Salesforce/blip-vqa-capfilt-large"
Answerer = Callable[[Sequence[tuple[str, Image.Image]]], list[float | None]]
"""P(yes) of each (question, picture); None where it is missing."""


class Blip:
    """BLIP for visual question answering: P(yes) / (P(yes) + P(no)) at the first token, as T2I-CompBench has it."""

    def __init__(self, path: str = BLIP, device: str = "cpu", batch: int = 16):
        from transformers import AutoImageProcessor, AutoTokenizer, BlipForQuestionAnswering

        try:
            self.model: Any = BlipForQuestionAnswering.from_pretrained(path).to(device).eval()
            self.tokenizer: Any = AutoTokenizer.from_pretrained(path)
            self.processor: Any = AutoImageProcessor.from_pretrained(path)
        except (OSError, ValueError) as error:
            raise InputError(f"vqa: {path!r} is no BLIP that transformers loads ({first_line(error)})") from error
        self.device, self.batch = device, batch
        self.words = [self.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ("yes", "no")]

    def __call__(self, items: Sequence[tuple[str, Image.Image]]) -> list[float | None]:
        found: list[float | None] = []
        for i in range(0, len(items), self.batch):
            found += self._asked(items[i : i + self.batch])
        return found

    @torch.inference_mode()
    def _asked(self, items: Sequence[tuple[str, Image.Image]]) -> list[float]:
        pixels = self.processor(images=[image for _, image in items], return_tensors="pt")["pixel_values"].to(self.device)
        asked = self.tokenizer([q for q, _ in items], padding=True, return_tensors="pt").to(self.device)
        seen = self.model.vision_model(pixel_values=pixels).last_hidden_state
        read = self.model.text_encoder(
            input_ids=asked["input_ids"], attention_mask=asked["attention_mask"], encoder_hidden_states=seen
        ).last_hidden_state
        start = torch.full((len(items), 1), self.model.decoder_start_token_id, device=self.device)
        logits = self.model.text_decoder(
            input_ids=start, encoder_hidden_states=read, encoder_attention_mask=asked["attention_mask"]
        ).logits[:, -1]
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
    """Of a served model where there is a ``url``, else of one that transformers loads: BLIP, or any that answers questions."""
    if url:
        return Questions(Asker(Endpoint(url, model), Answers()))
    from transformers import AutoConfig

    try:
        kind = AutoConfig.from_pretrained(model).model_type
    except (OSError, ValueError) as error:
        raise InputError(f"vqa: {model!r} is no model that transformers knows ({first_line(error)})") from error
    return Blip(model, device) if kind == "blip" else Questions(LocalModel(model, device))
