"""Pictures and codes that episodes ask for, all of a kind together; on a GPU pictures are decoded
beside the steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from secondlook.models.janus.model import Janus, decode, to_bytes
from secondlook.types import DecodeImage, EncodeImage

STEPS = 2
"""Steps of all rows that one picture is given on a GPU before it is waited for. A number and not a
look at the clock, so that the same sequences stand together in every run."""
PIXELS = 2**20
"""Of the pictures that are decoded or encoded together (seven of 384 x 384)."""
HELD = 512
"""Numbers that Janus-Pro's decoder holds for each pixel: four times the 128 channels of its last
layers."""

T = TypeVar("T")


def together(janus: Janus) -> int:
    """Pictures that are decoded or encoded together."""
    return max(1, PIXELS // janus.image_size**2)


def in_parts(janus: Janus, items: list[T]) -> Iterator[list[T]]:
    """Pictures, or codes of pictures, as many at a time as are decoded or encoded together."""
    size = together(janus)
    return (items[i : i + size] for i in range(0, len(items), size))


@dataclass
class _Painting:
    """Pictures under way to ``pixels`` (B, H, W, 3), in the host's memory and there once ``done``
    has passed."""

    asked: list[tuple[Any, DecodeImage]]
    pixels: Tensor
    done: torch.cuda.Event | None
    due: int


class ImageCodec:
    """Requests and who made them. Used in inference mode."""

    def __init__(self, janus: Janus):
        self.janus, self.device = janus, janus.device
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self._late = STEPS if self._stream else 0
        self._asked: list[tuple[Any, DecodeImage | EncodeImage]] = []
        self._painting: deque[_Painting] = deque()

    def ask(self, who: Any, what: DecodeImage | EncodeImage) -> None:
        self._asked.append((who, what))

    def __bool__(self) -> bool:
        return bool(self._asked or self._painting)

    def answers(self, step: int, idle: bool) -> list[tuple[Any, Any]]:
        """Who gets what by this step. ``idle``: nothing else is to be done, so the next pictures
        are waited for."""
        paint = [(who, what) for who, what in self._asked if isinstance(what, DecodeImage)]
        encode = [(who, what) for who, what in self._asked if isinstance(what, EncodeImage)]
        self._asked = []
        for part in in_parts(self.janus, paint):
            begins = max(
                [step, *(p.due for p in self._painting)]
            )  # one part is painted after another
            self._painting.append(self._start(part, begins + self._late * len(part)))
        found: list[tuple[Any, Any]] = []
        for given in in_parts(self.janus, encode):
            codes = self.janus.to_codes([what.image for _, what in given]).tolist()
            found += [(who, tuple(row)) for (who, _), row in zip(given, codes, strict=True)]
        while self._painting and (self._painting[0].due <= step or (idle and not found)):
            found += self._finish(self._painting.popleft())
        return found

    def _start(self, asked: list[tuple[Any, DecodeImage]], due: int) -> _Painting:
        codes = torch.tensor([what.codes for _, what in asked])
        if self._stream is None:
            return _Painting(asked, self._pixels(codes), None, due)
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            pixels = self._pixels(codes)
            host = torch.empty(pixels.shape, dtype=pixels.dtype, pin_memory=True).copy_(
                pixels, non_blocking=True
            )
            done = torch.cuda.Event()
            done.record(self._stream)
        return _Painting(asked, host, done, due)

    def _pixels(self, codes: Tensor) -> Tensor:
        return to_bytes(decode(self.janus.net.model.vqmodel, codes.to(self.device)))

    def _finish(self, painting: _Painting) -> list[tuple[Any, Any]]:
        if painting.done is not None:
            painting.done.synchronize()
        images = [Image.fromarray(a) for a in painting.pixels.cpu().numpy()]
        return [(who, image) for (who, _), image in zip(painting.asked, images, strict=True)]
