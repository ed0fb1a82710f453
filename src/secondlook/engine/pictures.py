"""Pictures and codes that episodes ask for, all of a kind together; on a GPU pictures are decoded beside the steps."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from secondlook.model.janus import Janus, decode, to_bytes
from secondlook.types import Encode, Paint

STEPS = 2
"""Steps of all rows that one picture is given on a GPU before it is waited for. A number and not a look at the clock, so that
the same sequences stand together in every run."""


@dataclass
class _Painting:
    """Pictures under way to ``pixels`` (B, H, W, 3), in the host's memory and there once ``done`` has passed."""

    asked: list[tuple[Any, Paint]]
    pixels: Tensor
    done: torch.cuda.Event | None
    due: int


class Pictures:
    """Requests and who made them, at most ``batch`` pictures at a time. Used in inference mode."""

    def __init__(self, janus: Janus, batch: int):
        self.janus, self.batch = janus, batch
        self._stream = torch.cuda.Stream(janus.device) if janus.device.type == "cuda" else None
        self._asked: list[tuple[Any, Paint | Encode]] = []
        self._painting: deque[_Painting] = deque()

    def ask(self, who: Any, what: Paint | Encode) -> None:
        self._asked.append((who, what))

    def __bool__(self) -> bool:
        return bool(self._asked or self._painting)

    def answers(self, step: int, idle: bool) -> list[tuple[Any, Any]]:
        """Who gets what by this step. ``idle``: nothing else is to be done, so the next pictures are waited for."""
        paint = [(who, what) for who, what in self._asked if isinstance(what, Paint)]
        encode = [(who, what) for who, what in self._asked if isinstance(what, Encode)]
        self._asked = []
        for i in range(0, len(paint), self.batch):
            self._painting.append(self._start(paint[i : i + self.batch], step))
        found: list[tuple[Any, Any]] = []
        for i in range(0, len(encode), self.batch):
            part = encode[i : i + self.batch]
            codes = self.janus.to_codes([what.image for _, what in part]).tolist()
            found += [(who, tuple(row)) for (who, _), row in zip(part, codes, strict=True)]
        while self._painting and (self._painting[0].due <= step or (idle and not found)):
            found += self._finish(self._painting.popleft())
        return found

    def _start(self, asked: list[tuple[Any, Paint]], step: int) -> _Painting:
        codes = torch.tensor([what.codes for _, what in asked])
        if self._stream is None:
            return _Painting(asked, self._pixels(codes), None, step)
        self._stream.wait_stream(torch.cuda.current_stream(self.janus.device))
        with torch.cuda.stream(self._stream):
            pixels = self._pixels(codes.to(self.janus.device))
            host = torch.empty(pixels.shape, dtype=pixels.dtype, pin_memory=True).copy_(pixels, non_blocking=True)
            done = torch.cuda.Event()
            done.record()
        return _Painting(asked, host, done, step + STEPS * len(asked))

    def _pixels(self, codes: Tensor) -> Tensor:
        return to_bytes(decode(self.janus.net.model.vqmodel, codes))

    def _finish(self, painting: _Painting) -> list[tuple[Any, Any]]:
        if painting.done is not None:
            painting.done.synchronize()
        images = [Image.fromarray(a) for a in painting.pixels.numpy()]
        return [(who, image) for (who, _), image in zip(painting.asked, images, strict=True)]
