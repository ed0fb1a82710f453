"""Codes to pictures and pictures to codes, as tasks ask for them, all of a kind together. On a GPU
pictures are decoded on a stream of their own, beside the steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from PIL import Image
from torch import Tensor

from secondlook.engine.requests import DecodeImage, EncodeImage
from secondlook.models.janus.model import Janus, decode, to_bytes

STEPS = 2
"""Steps of the batch that one picture is given on a GPU before it is waited for. A number and not a
look at the clock, so that the same sequences stand together in every run."""
PIXELS = 2**20
"""Of the pictures that are decoded or encoded together (seven of 384 x 384)."""
HELD = 512
"""Numbers that Janus-Pro's decoder holds for each pixel: four times the 128 channels of its last
layers."""

Item = TypeVar("Item")
Owner = TypeVar("Owner", bound=Hashable)


def images_per_pass(janus: Janus) -> int:
    """Pictures that are decoded or encoded together."""
    return max(1, PIXELS // janus.image_size**2)


def in_passes(janus: Janus, items: list[Item]) -> Iterator[list[Item]]:
    """Pictures, or codes of pictures, as many at a time as are decoded or encoded together."""
    size = images_per_pass(janus)
    for start in range(0, len(items), size):
        yield items[start : start + size]


@dataclass
class _DecodingPass(Generic[Owner]):
    """Pictures that are being decoded together."""

    owners: list[Owner | None]
    """Who asked for each; None: nobody wants it any more."""
    pixels: Tensor  # (B, H, W, 3) uint8 in the host's memory, there once ``arrived`` has passed
    arrived: torch.cuda.Event | None
    due: int
    """The step in which they are handed out."""


class ImageCodec(Generic[Owner]):
    """Requests for pictures and codes, and who made them. Used in inference mode."""

    def __init__(self, janus: Janus):
        self.janus, self.device = janus, janus.device
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self._steps_per_image = STEPS if self._stream else 0
        self._to_decode: list[tuple[Owner, DecodeImage]] = []
        self._to_encode: list[tuple[Owner, EncodeImage]] = []
        self._decoding: deque[_DecodingPass[Owner]] = deque()

    def submit(self, owner: Owner, request: DecodeImage | EncodeImage) -> None:
        """Raises ValueError for codes that are no picture's, and what Pillow raises for a picture
        that cannot be read, so that no other owner's pass fails by it."""
        if isinstance(request, EncodeImage):
            request.image.load()
            self._to_encode.append((owner, request))
            return
        codes, vq = request.codes, self.janus.net.config.vq_config
        if len(codes) != self.janus.n_codes:
            raise ValueError(f"codes: there are {len(codes)}; a picture has {self.janus.n_codes}")
        if min(codes) < 0 or max(codes) >= vq.num_embeddings:
            raise ValueError(f"codes: they must be from 0 to {vq.num_embeddings - 1}")
        self._to_decode.append((owner, request))

    def cancel(self, owner: Owner) -> None:
        """Forget what an owner asked for."""
        self._to_decode = [asked for asked in self._to_decode if asked[0] != owner]
        self._to_encode = [asked for asked in self._to_encode if asked[0] != owner]
        for decoding in self._decoding:
            decoding.owners = [None if o == owner else o for o in decoding.owners]
        self._decoding = deque(d for d in self._decoding if any(o is not None for o in d.owners))

    @property
    def pending(self) -> int:
        """Pictures and codes that were asked for and not handed out."""
        decoding = sum(len(d.owners) for d in self._decoding)
        return len(self._to_decode) + len(self._to_encode) + decoding

    def collect(self, step: int, idle: bool) -> list[tuple[Owner, Any]]:
        """Start what was asked for, and hand out the pictures and codes that are due by this step.
        ``idle``: nothing else is to be done, so the next pictures are waited for."""
        to_decode, self._to_decode = self._to_decode, []
        to_encode, self._to_encode = self._to_encode, []
        answers: list[tuple[Owner, Any]] = []
        for asked in in_passes(self.janus, to_decode):
            # one pass is decoded after another
            begins = max([step, *(d.due for d in self._decoding)])
            self._start(asked, begins + self._steps_per_image * len(asked))
        for given in in_passes(self.janus, to_encode):
            codes = self.janus.to_codes([request.image for _, request in given]).tolist()
            for (owner, _), row in zip(given, codes, strict=True):
                answers.append((owner, tuple(row)))
        while self._decoding and (self._decoding[0].due <= step or (idle and not answers)):
            answers += self._finish(self._decoding.popleft())
        return answers

    def _start(self, asked: list[tuple[Owner, DecodeImage]], due: int) -> None:
        owners: list[Owner | None] = [owner for owner, _ in asked]
        codes = torch.tensor([request.codes for _, request in asked])  # (B, n_codes)
        if self._stream is None:
            self._decoding.append(_DecodingPass(owners, self._pixels(codes), None, due))
            return
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            pixels = self._pixels(codes)
            host = torch.empty(pixels.shape, dtype=pixels.dtype, pin_memory=True)
            host.copy_(pixels, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record(self._stream)
        self._decoding.append(_DecodingPass(owners, host, arrived, due))

    def _pixels(self, codes: Tensor) -> Tensor:
        """(B, n_codes) to uint8 (B, H, W, 3)."""
        return to_bytes(decode(self.janus.net.model.vqmodel, codes.to(self.device)))

    def _finish(self, decoding: _DecodingPass[Owner]) -> list[tuple[Owner, Image.Image]]:
        if decoding.arrived is not None:
            decoding.arrived.synchronize()
        pictures = []
        for owner, pixels in zip(decoding.owners, decoding.pixels.cpu().numpy(), strict=True):
            if owner is not None:
                pictures.append((owner, Image.fromarray(pixels)))
        return pictures
