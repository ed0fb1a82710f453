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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from secondlook.errors import InputError
from secondlook.io import fingerprint
from secondlook.llm.answer_store import Answers
from secondlook.llm.endpoint import Question, question_key
from secondlook.llm.missing import Missing
from secondlook.llm.replies import Refused, Unanswered, short

ANSWER_VERSION = 2
"""Version of how answers are made: stored ones of another version are not used. 2: it is known
which were cut off."""


@dataclass
class LocalModel:
    """Asks a model of transformers; ``missing`` says why answers are missing."""

    path: str
    """A folder or a hub id."""
    device: str = "cpu"
    batch: int = 8
    """Questions of one kind answered together."""
    answers: Answers = field(default_factory=Answers)
    counts: Counter = field(default_factory=Counter)
    """What happened: asked, from cache, missing."""
    thinking: bool = False
    """Whether a chat template that knows the switch lets the model think before it answers."""

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise InputError(f"judge: concurrency is {self.batch}; it must be at least 1")
        dtype = torch.float32 if self.device == "cpu" else torch.bfloat16
        try:
            self.processor: Any = AutoProcessor.from_pretrained(self.path)
            model: Any = AutoModelForImageTextToText.from_pretrained(self.path, dtype=dtype)
            self.model: Any = model.to(self.device).eval()
        except (OSError, ValueError, ImportError) as error:
            first_line = str(error).splitlines()[0]
            raise InputError(
                f"judge: {self.path!r} is not a vision-language model that transformers loads "
                f"({first_line})"
            ) from error
        if not getattr(self.processor, "chat_template", None):
            raise InputError(
                f"judge: {self.path!r} has no chat template; use a model that is tuned to answer "
                "questions"
            )
        weights_hash = fingerprint(Path(self.path)) if Path(self.path).is_dir() else ""
        self._identity = [
            "local",
            ANSWER_VERSION,
            self.path,
            weights_hash,
            str(dtype),
            self.thinking,
        ]
        self._special_tokens = _special_tokens(self.processor)
        forward_arguments = inspect.signature(self.model.forward).parameters
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in forward_arguments else {}
        """Logits of the last position are all that is read of (questions, positions,
        vocabulary)."""
        self.missing = Missing(f"{self.path!r} as judge")

    def __call__(self, questions: Sequence[Question]) -> list[Any]:
        """One answer a question, in order; None where there is none. Equal questions are asked
        once."""
        keys = [question_key(self._identity, question) for question in questions]
        distinct_questions = dict(zip(keys, questions, strict=True))
        answers = self.answers.known_of(distinct_questions)
        self.counts["from cache"] += len(answers)
        new_questions = {k: q for k, q in distinct_questions.items() if k not in answers}
        for batch_keys in self._batches(new_questions):
            self.counts["asked"] += len(batch_keys)
            choices = self._choices([new_questions[key].body for key in batch_keys])
            for key, choice in zip(batch_keys, choices, strict=True):
                try:
                    if isinstance(choice, Exception):
                        raise choice
                    answers[key] = new_questions[key].read(choice)
                    self.answers.put(key, answers[key])
                except (Unanswered, Refused) as reason:
                    self.counts["missing"] += 1
                    self.missing.add(str(reason))
        return [answers.get(key) for key in keys]

    def _batches(self, questions: dict[str, Question]) -> Iterator[list[str]]:
        """Keys of questions that are answered together: of one limit of tokens, all for
        log-probabilities or all for words, with the same number of pictures."""
        keys_of_kinds: dict[tuple[int, bool, int], list[str]] = {}
        for key, question in questions.items():
            body = question.body
            kind = (body["max_tokens"], bool(body.get("logprobs")), _num_images(body))
            keys_of_kinds.setdefault(kind, []).append(key)
        for keys in keys_of_kinds.values():
            for start in range(0, len(keys), self.batch):
                yield keys[start : start + self.batch]

    def _choices(self, bodies: list[dict]) -> list[dict | Exception]:
        """What an endpoint would answer, or why there is no answer; when the batch fails, one after
        another."""
        try:
            for body in bodies:
                self._refuse_special(body)
            return list(self._answered(bodies))
        except (ValueError, TypeError, RuntimeError, Refused) as error:
            if len(bodies) == 1:
                if isinstance(error, Refused):
                    return [error]
                return [Unanswered(f"{type(error).__name__}: {short(str(error))}")]
        choices: list[dict | Exception] = []
        for body in bodies:
            choices += self._choices([body])
        return choices

    def _refuse_special(self, body: dict) -> None:
        """A text that holds a special token could end its own turn. Raises Refused."""
        content = body["messages"][0]["content"]
        question_text = content if isinstance(content, str) else content[-1]["text"]
        for token in self._special_tokens:
            if token in question_text:
                raise Refused(f"the question holds {token!r}, a special token of the model")

    @torch.inference_mode()
    def _answered(self, bodies: list[dict]) -> list[dict]:
        """One choice a body, in the form of a chat completion; the bodies are of one kind."""
        # padded on the left: the last position is that of the answer's first token in every row
        inputs = self.processor.apply_chat_template(
            [_messages(body) for body in bodies],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "left"},
            **({} if self.thinking else {"enable_thinking": False}),
        ).to(self.device)
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        first_body = bodies[0]
        if first_body.get("logprobs"):
            logits = self.model(**inputs, **self._last_only).logits[
                :, -1
            ]  # (questions, vocabulary)
            logprobs = logits.float().log_softmax(-1)
            return [self._first_token_choice(row, first_body["top_logprobs"]) for row in logprobs]
        output_ids = self.model.generate(
            **inputs, max_new_tokens=first_body["max_tokens"], do_sample=False
        )
        new_ids = output_ids[:, inputs["input_ids"].shape[1] :]  # (questions, new tokens)
        texts = self.processor.tokenizer.batch_decode(new_ids, skip_special_tokens=True)
        choices = []
        for text, has_ended in zip(texts, self._has_ended(new_ids).tolist(), strict=True):
            finish_reason = "stop" if has_ended else "length"
            choices.append({"message": {"content": text}, "finish_reason": finish_reason})
        return choices

    def _has_ended(self, new_ids: Tensor) -> Tensor:
        """Which rows of (questions, new tokens) hold an end of sentence: the others were cut off by
        the limit."""
        eos_ids = self.model.generation_config.eos_token_id  # a number, a list or None
        eos_tensor = torch.tensor(
            [] if eos_ids is None else eos_ids, dtype=new_ids.dtype, device=new_ids.device
        )
        return torch.isin(new_ids, eos_tensor).any(1)  # (questions,)

    def _first_token_choice(self, logprobs: Tensor, num_tokens: int) -> dict:
        """The choice that an endpoint gives for one row of log-probabilities (vocabulary,)."""
        likeliest = logprobs.topk(min(num_tokens, len(logprobs)))
        entries = []
        for token_id, logprob in zip(
            likeliest.indices.tolist(), likeliest.values.tolist(), strict=True
        ):
            token_text = self.processor.tokenizer.decode([token_id])
            entries.append({"token": token_text, "logprob": logprob})
        return {
            "message": {"content": entries[0]["token"]},
            "logprobs": {"content": [{"top_logprobs": entries}]},
        }


def _special_tokens(processor: Any) -> list[str]:
    """What a text must not hold: the tokenizer's special tokens, other added ones that look like
    marks, the places of pictures. Longest first."""
    tokenizer = processor.tokenizer
    special_tokens = set(tokenizer.all_special_tokens)
    for added_token in tokenizer.added_tokens_decoder.values():
        # an added word of letters is no mark: it may well stand in a question
        if added_token.special or re.search(r"[<>\[\]|]", str(added_token)):
            special_tokens.add(str(added_token))
    for name in ("image_token", "video_token"):
        special_tokens.add(str(getattr(processor, name, "") or ""))
    visible_tokens = [token for token in special_tokens if token.strip()]
    return sorted(visible_tokens, key=len, reverse=True)


def _num_images(body: dict) -> int:
    content = body["messages"][0]["content"]
    if isinstance(content, str):
        return 0
    return sum(part["type"] == "image_url" for part in content)


def _messages(body: dict) -> list[dict]:
    """A body's messages as chat templates of transformers take them."""
    content = body["messages"][0]["content"]
    if isinstance(content, str):
        return [{"role": "user", "content": [{"type": "text", "text": content}]}]
    parts = []
    for part in content:
        if part["type"] == "image_url":
            # "data:image/png;base64,…"
            image_bytes = b64decode(part["image_url"]["url"].partition(",")[2])
            image = Image.open(io.BytesIO(image_bytes)).convert("RGB")
            parts.append({"type": "image", "image": image})
        else:
            parts.append({"type": "text", "text": part["text"]})
    return [{"role": "user", "content": parts}]
