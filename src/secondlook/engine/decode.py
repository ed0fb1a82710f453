"""The engine: many requests in, the turns that the model sampled for them out.

``Engine.draw`` samples images, ``Engine.write`` text. Requests are padded on the left into one batch and masked, positions
count each row's own tokens, and every row draws its random numbers from its own seed: a request's result does not depend on
its neighbours. Requests with equal prompts share one prefill, which is forked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from PIL.Image import Image
from torch import Tensor

from secondlook.engine.cache import StaticCache
from secondlook.model import policy
from secondlook.model.janus import Janus
from secondlook.model.sequence import Protocol, assemble
from secondlook.types import Request, Rule, Turn


@dataclass
class _State:
    """A batch under way: rows are the requests, followed by their unconditional twins when guided."""

    cache: StaticCache
    attend: Tensor
    """(rows, 1, 1, capacity) which columns may be attended to."""
    positions: Tensor
    """(rows, 1) position of the next token."""
    hidden: Tensor
    """(rows, D) from which the next token is predicted."""


class Engine:
    """Runs one model. ``batch`` bounds the sequences (twins not counted) that are decoded together."""

    def __init__(self, janus: Janus, batch: int = 64):
        self.janus, self.batch = janus, batch
        self.protocol = Protocol(janus.tokenizer, janus.history)

    def draw(self, requests: list[Request], rule: Rule) -> list[Turn]:
        """Sample one image (n_codes codes) per request. ``rule.head`` must be "code"."""
        return self._run(requests, rule, "code", self.janus.n_codes)

    def write(self, requests: list[Request], rule: Rule, max_tokens: int = 64) -> list[Turn]:
        """Sample text up to and with the end of sentence, at most ``max_tokens`` tokens. ``rule.head`` must be "text".

        When the rule restricts the first token to (Yes, No), the turns carry p_yes.
        """
        return self._run(requests, rule, "text", max_tokens)

    @torch.inference_mode()
    def pictures(self, codes: list[tuple[int, ...]]) -> list[Image]:
        """Decode drawn codes, at most ``batch`` at a time."""
        parts = [torch.tensor(codes[i : i + self.batch]) for i in range(0, len(codes), self.batch)]
        return [image for part in parts for image in self.janus.to_images(part.to(self.janus.device))]

    @torch.inference_mode()
    def codes(self, images: list[Image]) -> list[tuple[int, ...]]:
        """Encode pictures as the drawing path has them, at most ``batch`` at a time."""
        parts = [images[i : i + self.batch] for i in range(0, len(images), self.batch)]
        return [tuple(row) for part in parts for row in self.janus.to_codes(part).tolist()]

    @torch.inference_mode()
    def _run(self, requests: list[Request], rule: Rule, head: Literal["code", "text"], steps: int) -> list[Turn]:
        if rule.head != head:
            raise ValueError(f"rule: head is {rule.head!r}; it must be {head!r} here")
        turns: list[Turn] = []
        for start in range(0, len(requests), self.batch):
            part = requests[start : start + self.batch]
            tokens, logprobs, p_yes = self._sample(part, rule, steps)
            for request, t, lp, p in zip(part, tokens, logprobs, p_yes, strict=True):
                n = len(t)
                if head == "text" and self.protocol.eos in t:
                    n = t.index(self.protocol.eos) + 1
                turns.append(Turn(request.kind, request.segments, tuple(t[:n]), tuple(lp[:n]), rule, request.seed, p))
        return turns

    def _sample(self, requests: list[Request], rule: Rule, steps: int):
        n, device = len(requests), self.janus.device
        guided = rule.guidance != 1
        uniform = torch.stack([torch.rand(steps, generator=torch.Generator().manual_seed(r.seed)) for r in requests]).to(device)
        state = self._prefill(requests, guided, steps)
        tokens = torch.empty(n, steps, dtype=torch.long, device=device)
        logprobs = torch.empty(n, steps, dtype=torch.promote_types(self.janus.dtype, torch.float32), device=device)
        ended = torch.zeros(n, dtype=torch.bool, device=device)
        p_yes: list[float | None] = [None] * n
        for step in range(steps):
            logits_V = policy.logits(self.janus, rule, state.hidden[:n], state.hidden[n:] if guided else None)
            log_probs_V = policy.log_probs(rule, logits_V, first=step == 0)
            if step == 0 and rule.first == (self.protocol.yes, self.protocol.no):
                p_yes = list(log_probs_V[:, self.protocol.yes].exp().tolist())
            tokens[:, step], logprobs[:, step] = policy.choose(rule, log_probs_V, uniform[:, step])
            if rule.head == "text":
                ended |= tokens[:, step] == self.protocol.eos
                if bool(ended.all()):
                    tokens, logprobs = tokens[:, : step + 1], logprobs[:, : step + 1]
                    break
            if step + 1 < steps:
                self._advance(state, rule, tokens[:, step], guided)
        return tokens.tolist(), logprobs.tolist(), p_yes

    def _prefill(self, requests: list[Request], guided: bool, steps: int) -> _State:
        """One pass over the distinct prompts (and twins), then a fork to the requests' rows."""
        wanted = [r.segments for r in requests]
        if guided:
            wanted += [self.protocol.unconditional(s) for s in wanted]
        distinct = list(dict.fromkeys(wanted))
        index = {s: i for i, s in enumerate(distinct)}
        rows = torch.tensor([index[s] for s in wanted], device=self.janus.device)
        batch = assemble(self.janus, distinct, pad_left=True)
        longest = batch.embeds.shape[1]
        columns = torch.arange(longest, device=self.janus.device)
        pads = (longest - batch.lengths)[:, None]
        real = columns >= pads
        causal = columns[:, None] >= columns
        # a padding query attends to itself, else its softmax over nothing would be NaN
        mask = (causal & real[:, None]) | torch.eye(longest, dtype=torch.bool, device=self.janus.device)
        cache = StaticCache(self.janus.net.config.text_config.num_hidden_layers, longest + steps)
        hidden = self.janus.hidden(batch.embeds, batch.positions, mask[:, None], cache)[:, -1]
        attend = torch.ones(len(wanted), 1, 1, cache.capacity, dtype=torch.bool, device=self.janus.device)
        attend[..., :longest] = real[rows][:, None, None]
        return _State(cache.fork(rows), attend, batch.positions[rows, -1:] + 1, hidden[rows])

    def _advance(self, state: _State, rule: Rule, tokens_B: Tensor, guided: bool) -> None:
        """Feed the sampled tokens, the same to both twins."""
        fed = torch.cat([tokens_B, tokens_B]) if guided else tokens_B
        embed = self.janus.embed_codes if rule.head == "code" else self.janus.embed_text
        mask = state.attend[..., : state.cache.used + 1]
        state.hidden = self.janus.hidden(embed(fed)[:, None], state.positions, mask, state.cache)[:, -1]
        state.positions = state.positions + 1
