"""A vision-language model of transformers, in this process, asked and read as one behind an
endpoint is.

Any checkpoint that AutoModelForImageTextToText and AutoProcessor load, with a chat template. A
question that the model cannot take (its processor refuses the picture, or the text holds one of the
model's special tokens) is missing, as an endpoint's would be.
"""

from __future__ import annotations

import inspect
import io
import re
from base64 import b64decode
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from secondlook.errors import InputError
from secondlook.io import fingerprint
from secondlook.llm.client import Answers, Question, Refused, Unanswered, question_key
from secondlook.llm.missing import Missing
from secondlook.llm.replies import short

ANSWERING = 2
"""Version of how answers are made: stored ones of another version are not used. 2: it is known
which were cut off."""


@dataclass
class LocalModel:
    """Asks a model of transformers. ``counts`` says what happened: asked, from cache, missing;
    ``missing``: why."""

    path: str
    """A folder or a hub id."""
    device: str = "cpu"
    batch: int = 8
    """Questions of one kind answered together."""
    answers: Answers = field(default_factory=Answers)
    counts: Counter = field(default_factory=Counter)
    thinking: bool = False
    """Whether a chat template that knows the switch lets the model think before it answers."""

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise InputError(f"judge: concurrency is {self.batch}; it must be at least 1")
        dtype = torch.float32 if self.device == "cpu" else torch.bfloat16
        try:
            self.processor: Any = AutoProcessor.from_pretrained(self.path)
            self.model: Any = (
                AutoModelForImageTextToText.from_pretrained(self.path, dtype=dtype)
                .to(self.device)
                .eval()
            )
        except (OSError, ValueError, ImportError) as error:
            first = str(error).splitlines()[0]
            raise InputError(
                f"judge: {self.path!r} is not a vision-language model that transformers loads "
                f"({first})"
            ) from error
        if not getattr(self.processor, "chat_template", None):
            raise InputError(
                f"judge: {self.path!r} has no chat template; use a model that is tuned to answer "
                "questions"
            )
        weights = fingerprint(Path(self.path)) if Path(self.path).is_dir() else ""
        self._asked_of = ["local", ANSWERING, self.path, weights, str(dtype), self.thinking]
        self._special = _special_tokens(self.processor)
        takes = inspect.signature(self.model.forward).parameters
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
        """Logits of the last position are all that is read of (questions, positions,
        vocabulary)."""
        self.missing = Missing(f"{self.path!r} as judge")

    def __call__(self, questions: Sequence[Question]) -> list[Any]:
        """One answer a question, in order; None where there is none. Equal questions are asked
        once."""
        keys = [question_key(self._asked_of, q) for q in questions]
        found = {key: self.answers.get(key) for key in dict.fromkeys(keys)}
        self.counts["from cache"] += sum(value is not None for value in found.values())
        new = {key: q for key, q in zip(keys, questions, strict=True) if found[key] is None}
        kinds: dict[tuple, list[str]] = {}
        for key, q in new.items():
            kinds.setdefault(
                (q.body["max_tokens"], bool(q.body.get("logprobs")), len(_pictures(q.body))), []
            ).append(key)
        for same in kinds.values():
            for i in range(0, len(same), self.batch):
                part = same[i : i + self.batch]
                self.counts["asked"] += len(part)
                for key, choice in zip(
                    part, self._choices([new[key].body for key in part]), strict=True
                ):
                    try:
                        if isinstance(choice, Exception):
                            raise choice
                        found[key] = new[key].read(choice)
                        self.answers.put(key, found[key])
                    except (Unanswered, Refused) as reason:
                        self.counts["missing"] += 1
                        self.missing.add(str(reason))
        return [found[key] for key in keys]

    def _choices(self, bodies: list[dict]) -> list[dict | Exception]:
        """What an endpoint would answer, or why there is no answer; when the batch fails, one after
        another."""
        try:
            for body in bodies:
                self._refuse_special(body)
            return list(self._answered(bodies))
        except (ValueError, TypeError, RuntimeError, Refused) as error:
            if len(bodies) > 1:
                return [choice for body in bodies for choice in self._choices([body])]
            return [
                error
                if isinstance(error, Refused)
                else Unanswered(f"{type(error).__name__}: {short(str(error))}")
            ]

    def _refuse_special(self, body: dict) -> None:
        """A text that holds a special token could end its own turn. Raises Refused."""
        content = body["messages"][0]["content"]
        text = content if isinstance(content, str) else content[-1]["text"]
        held = next((token for token in self._special if token in text), None)
        if held:
            raise Refused(f"the question holds {held!r}, a special token of the model")

    @torch.inference_mode()
    def _answered(self, bodies: list[dict]) -> list[dict]:
        inputs = self.processor.apply_chat_template(
            [_turns(body) for body in bodies],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "left"},
            **({} if self.thinking else {"enable_thinking": False}),
        ).to(self.device)
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        tokenizer, first = self.processor.tokenizer, bodies[0]
        if first.get("logprobs"):
            logp = self.model(**inputs, **self._last_only).logits[:, -1].float().log_softmax(-1)
            return [self._likeliest(row, first["top_logprobs"]) for row in logp]
        written = self.model.generate(**inputs, max_new_tokens=first["max_tokens"], do_sample=False)
        new = written[:, inputs["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(new, skip_special_tokens=True)
        finish = ["stop" if ended else "length" for ended in self._ended(new).tolist()]
        return [
            {"message": {"content": t}, "finish_reason": why}
            for t, why in zip(texts, finish, strict=True)
        ]

    def _ended(self, written: Tensor) -> Tensor:
        """Which rows of (questions, new tokens) hold an end of sentence: the others were cut off by
        the limit."""
        ends = self.model.generation_config.eos_token_id
        known = torch.tensor(
            [] if ends is None else ends, dtype=written.dtype, device=written.device
        )
        return torch.isin(written, known).any(1)

    def _likeliest(self, logp: Tensor, n: int) -> dict:
        best = logp.topk(min(n, len(logp)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        top = [
            {"token": self.processor.tokenizer.decode([i]), "logprob": value} for i, value in pairs
        ]
        return {
            "message": {"content": top[0]["token"]},
            "logprobs": {"content": [{"top_logprobs": top}]},
        }


def _special_tokens(processor: Any) -> list[str]:
    """What a text must not hold: the tokenizer's special tokens, other added ones that look like
    marks, the places of pictures. Longest first."""
    tokenizer = processor.tokenizer
    added = {str(t): t.special for t in tokenizer.added_tokens_decoder.values()}
    found = {
        token for token, special in added.items() if special or re.search(r"[<>\[\]|]", token)
    } | set(tokenizer.all_special_tokens)
    found |= {str(getattr(processor, name, "") or "") for name in ("image_token", "video_token")}
    return sorted((token for token in found if token.strip()), key=len, reverse=True)


def _pictures(body: dict) -> list[str]:
    """Addresses of a body's pictures."""
    content = body["messages"][0]["content"]
    return (
        [p["image_url"]["url"] for p in content if p["type"] == "image_url"]
        if isinstance(content, list)
        else []
    )


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
