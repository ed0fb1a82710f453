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
    due_step: int
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
        self._to_decode = [entry for entry in self._to_decode if entry[0] != owner]
        self._to_encode = [entry for entry in self._to_encode if entry[0] != owner]
        wanted_passes: deque[_DecodingPass[Owner]] = deque()
        for decoding in self._decoding:
            for i, pass_owner in enumerate(decoding.owners):
                if pass_owner == owner:
                    decoding.owners[i] = None  # its picture has been begun with the others
            if decoding.owners.count(None) < len(decoding.owners):
                wanted_passes.append(decoding)
        self._decoding = wanted_passes

    @property
    def pending(self) -> int:
        """Pictures and codes that were asked for and not handed out."""
        num_decoding = sum(len(decoding.owners) for decoding in self._decoding)
        return len(self._to_decode) + len(self._to_encode) + num_decoding

    def collect(self, step: int, idle: bool) -> list[tuple[Owner, Any]]:
        """Start what was asked for, and hand out the pictures and codes that are due by this step.
        ``idle``: nothing else is to be done, so the next pictures are waited for."""
        to_decode, self._to_decode = self._to_decode, []
        to_encode, self._to_encode = self._to_encode, []
        due_answers: list[tuple[Owner, Any]] = []
        for decode_entries in in_passes(self.janus, to_decode):
            # one pass is decoded after another
            begin_step = step
            for decoding in self._decoding:
                begin_step = max(begin_step, decoding.due_step)
            self._start(decode_entries, begin_step + self._steps_per_image * len(decode_entries))
        for encode_entries in in_passes(self.janus, to_encode):
            images = [request.image for _, request in encode_entries]
            codes = self.janus.to_codes(images).tolist()  # (B, n_codes)
            for i, (owner, _) in enumerate(encode_entries):
                due_answers.append((owner, tuple(codes[i])))
        while self._decoding:
            is_due = self._decoding[0].due_step <= step
            is_waited_for = idle and not due_answers
            if not (is_due or is_waited_for):
                break
            due_answers += self._finish(self._decoding.popleft())
        return due_answers

    def _start(self, decode_entries: list[tuple[Owner, DecodeImage]], due_step: int) -> None:
        """Begin to decode pictures together."""
        owners: list[Owner | None] = [owner for owner, _ in decode_entries]
        codes = torch.tensor([request.codes for _, request in decode_entries])  # (B, n_codes)
        if self._stream is None:
            self._decoding.append(_DecodingPass(owners, self._pixels(codes), None, due_step))
            return
        # not before what has been given to the device so far, such as a change of the weights
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            pixels = self._pixels(codes)  # (B, H, W, 3)
            host_pixels = torch.empty(pixels.shape, dtype=pixels.dtype, pin_memory=True)
            host_pixels.copy_(pixels, non_blocking=True)
            copy_event = torch.cuda.Event()
            copy_event.record(self._stream)
        self._decoding.append(_DecodingPass(owners, host_pixels, copy_event, due_step))

    def _pixels(self, codes: Tensor) -> Tensor:
        """(B, n_codes) to uint8 (B, H, W, 3)."""
        return to_bytes(decode(self.janus.net.model.vqmodel, codes.to(self.device)))

    def _finish(self, decoding: _DecodingPass[Owner]) -> list[tuple[Owner, Image.Image]]:
        """The pictures of a pass, waited for, of those who still want theirs."""
        if decoding.arrived is not None:
            decoding.arrived.synchronize()
        pixels = decoding.pixels.cpu().numpy()  # (B, H, W, 3)
        pictures = []
        for i, owner in enumerate(decoding.owners):
            if owner is not None:
                pictures.append((owner, Image.fromarray(pixels[i])))
        return pictures
