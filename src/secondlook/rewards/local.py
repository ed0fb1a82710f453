"""A vision-language model of transformers, in this process, asked and read as one behind an endpoint is.

Any checkpoint that AutoModelForImageTextToText and AutoProcessor load, with a chat template. A question that the model cannot
take (its processor refuses the picture, say) is missing, as an endpoint's would be.
"""

from __future__ import annotations

import io
import json
from base64 import b64decode
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from secondlook.rewards.ask import Answers, Question, Unanswered
from secondlook.types import InputError


@dataclass
class LocalModel:
    """Asks a model of transformers. ``counts`` says what happened: asked, from cache, missing."""

    path: str
    """A folder or a hub id."""
    device: str = "cpu"
    batch: int = 8
    """Questions of one kind answered together."""
    answers: Answers = field(default_factory=Answers)
    counts: Counter = field(default_factory=Counter)

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise InputError(f"judge: concurrency is {self.batch}; it must be at least 1")
        dtype = torch.float32 if self.device == "cpu" else torch.bfloat16
        try:
            self.processor: Any = AutoProcessor.from_pretrained(self.path)
            self.model: Any = AutoModelForImageTextToText.from_pretrained(self.path, dtype=dtype).to(self.device).eval()
        except (OSError, ValueError, ImportError) as error:
            first = str(error).splitlines()[0]
            raise InputError(
                f"judge: {self.path!r} is not a vision-language model that transformers loads ({first})"
            ) from error
        if not getattr(self.processor, "chat_template", None):
            raise InputError(f"judge: {self.path!r} has no chat template; use a model that is tuned to answer questions")

    def __call__(self, questions: Sequence[Question]) -> list[Any]:
        """One answer a question, in order; None where there is none. Equal questions are asked once."""
        keys = [sha256(json.dumps([self.path, q.body], sort_keys=True).encode()).hexdigest() for q in questions]
        found = {key: self.answers.get(key) for key in dict.fromkeys(keys)}
        self.counts["from cache"] += sum(value is not None for value in found.values())
        new = {key: q for key, q in zip(keys, questions, strict=True) if found[key] is None}
        kinds: dict[tuple, list[str]] = {}
        for key, q in new.items():
            kinds.setdefault((q.body["max_tokens"], bool(q.body.get("logprobs")), len(_pictures(q.body))), []).append(key)
        for same in kinds.values():
            for i in range(0, len(same), self.batch):
                part = same[i : i + self.batch]
                self.counts["asked"] += len(part)
                for key, choice in zip(part, self._choices([new[key].body for key in part]), strict=True):
                    try:
                        found[key] = new[key].read(choice)
                        self.answers.put(key, found[key])
                    except Unanswered:
                        self.counts["missing"] += 1
        return [found[key] for key in keys]

    def _choices(self, bodies: list[dict]) -> list[dict]:
        """What an endpoint would answer; when the batch fails, one after another."""
        try:
            return self._answered(bodies)
        except (ValueError, TypeError, RuntimeError):
            return [{}] if len(bodies) == 1 else [choice for body in bodies for choice in self._choices([body])]

    @torch.inference_mode()
    def _answered(self, bodies: list[dict]) -> list[dict]:
        inputs = self.processor.apply_chat_template(
            [_turns(body) for body in bodies],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "left"},
        ).to(self.device)
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        tokenizer, first = self.processor.tokenizer, bodies[0]
        if first.get("logprobs"):
            logp = self.model(**inputs).logits[:, -1].float().log_softmax(-1)
            return [self._likeliest(row, first["top_logprobs"]) for row in logp]
        written = self.model.generate(**inputs, max_new_tokens=first["max_tokens"], do_sample=False)
        texts = tokenizer.batch_decode(written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [{"message": {"content": text}} for text in texts]

    def _likeliest(self, logp: Tensor, n: int) -> dict:
        best = logp.topk(min(n, len(logp)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        top = [{"token": self.processor.tokenizer.decode([i]), "logprob": value} for i, value in pairs]
        return {"message": {"content": top[0]["token"]}, "logprobs": {"content": [{"top_logprobs": top}]}}


def _pictures(body: dict) -> list[str]:
    """Addresses of a body's pictures."""
    content = body["messages"][0]["content"]
    return [p["image_url"]["url"] for p in content if p["type"] == "image_url"] if isinstance(content, list) else []


def _turns(body: dict) -> list[dict]:
    """A body's messages as chat templates of transformers take them."""
    content = body["messages"][0]["content"]
    if isinstance(content, str):
        return [{"role": "user", "content": [{"type": "text", "text": content}]}]
    parts = []
    for part in content:
        if part["type"] == "image_url":
            data = b64decode(part["image_url"]["url"].partition(",")[2])
            parts.append({"type": "image", "image": Image.open(io.BytesIO(data)).convert("RGB")})
        else:
            parts.append({"type": "text", "text": part["text"]})
    return [{"role": "user", "content": parts}]
