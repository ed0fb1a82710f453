"""The engine: what episodes ask for in, turns and pictures out.

An episode is a generator that yields what it needs (a ``Job``, ``Paint`` or ``Encode``) and is sent
the result (a Turn, a picture, codes). Many are served at once: those under way go first, new ones
begin as places fall free, so judging and redrawing run beside drawing in one batch. ``Engine.draw``
and ``Engine.write`` do the same for single requests.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from PIL.Image import Image
from torch.nn.attention import sdpa_kernel

from secondlook.engine.capacity import REFILL, Need, fitting
from secondlook.engine.cpu_linear import fast_linear
from secondlook.engine.image_codec import ImageCodec, in_parts
from secondlook.engine.running_batch import CachedPrefix, RunningBatch, Sequence
from secondlook.models.janus.model import Janus
from secondlook.models.janus.template import ChatTemplate, length
from secondlook.models.packing import KERNELS
from secondlook.types import (
    DecodeImage,
    EncodeImage,
    GenerateRequest,
    Request,
    SamplingParams,
    Turn,
)

Task = Generator[GenerateRequest | DecodeImage | EncodeImage, Any, Any]


@dataclass(eq=False)
class _Served:
    """A task under way, and what was kept of its latest sequence of each kind."""

    index: int
    task: Task
    kept: dict[str, list[CachedPrefix]] = field(default_factory=dict)


class Engine:
    """Runs one model. ``batch`` is the most episodes that are under way together (twins not
    counted). Where it is ``bounded`` they are fewer on a GPU whose free memory does not hold so
    many (``engine.memory``); a training does not leave that to the moment, for in half precision
    other batches round otherwise, and it must resume exactly."""

    def __init__(self, janus: Janus, batch: int = 64, bounded: bool = True):
        self.janus, self.batch, self.bounded = janus, batch, bounded
        self.template = ChatTemplate(janus.tokenizer, janus.history)

    def draw(self, requests: list[Request], sampling_params: SamplingParams) -> list[Turn]:
        """Sample one image (n_codes codes) per request. ``sampling_params.head`` must be "code"."""
        return self._single(requests, sampling_params, "code", self.janus.n_codes)

    def write(
        self, requests: list[Request], sampling_params: SamplingParams, max_tokens: int = 64
    ) -> list[Turn]:
        """Sample text up to and with the end of sentence, at most ``max_tokens`` tokens.
        ``sampling_params.head`` must be "text".

        When the rule restricts the first token to (Yes, No), the turns carry p_yes.
        """
        return self._single(requests, sampling_params, "text", max_tokens)

    def _single(
        self,
        requests: list[Request],
        sampling_params: SamplingParams,
        head: Literal["code", "text"],
        steps: int,
    ) -> list[Turn]:
        if sampling_params.head != head:
            raise ValueError(f"rule: head is {sampling_params.head!r}; it must be {head!r} here")

        def one(request: Request) -> Task:
            return (yield GenerateRequest(request, sampling_params, steps))

        longest = max(
            (length(r.segments, self.janus.n_patches) + steps for r in requests), default=0
        )
        return self.serve((one(r) for r in requests), Need(longest, longest))

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Around everything that the model runs: on a GPU streams, events and graphs are made on
        the current device, which need not be the model's."""
        device = self.janus.device
        with (
            torch.inference_mode(),
            torch.cuda.device(device) if device.type == "cuda" else nullcontext(),
        ):
            yield

    def pictures(self, codes: list[tuple[int, ...]]) -> list[Image]:
        """Decode drawn codes, a part at a time."""
        with self._running():
            parts = (
                torch.tensor(part, device=self.janus.device) for part in in_parts(self.janus, codes)
            )
            return [image for part in parts for image in self.janus.to_images(part)]

    def codes(self, images: list[Image]) -> list[tuple[int, ...]]:
        """Encode pictures as the drawing path has them, a part at a time."""
        with self._running():
            return [
                tuple(row)
                for part in in_parts(self.janus, images)
                for row in self.janus.to_codes(part).tolist()
            ]

    def serve(self, tasks: Iterable[Task], need: Need | None = None) -> list[Any]:
        """Run tasks to their ends; returns what they return, in order. ``need`` is what each holds
        at the most; None: not known, and as many are under way as the engine's ``batch`` allows."""
        with self._running(), fast_linear(self.janus.device), sdpa_kernel(KERNELS):
            return self._serve(
                tasks,
                fitting(self.janus, need, self.batch) if need and self.bounded else self.batch,
            )

    def _serve(self, tasks: Iterable[Task], batch: int) -> list[Any]:
        new = deque(_Served(i, task) for i, task in enumerate(tasks))
        results: list[Any] = [None] * len(new)
        rows, places = RunningBatch(self.janus, self.template), dict[Sequence, _Served]()
        ready: deque[tuple[_Served, GenerateRequest]] = deque()
        pictures, step, under_way = ImageCodec(self.janus), 0, 0

        def send(served: _Served, value: Any) -> None:
            nonlocal under_way
            try:
                asked = served.task.send(value)
            except StopIteration as stop:
                results[served.index] = stop.value
                served.kept.clear()
                under_way -= 1
                return
            if isinstance(asked, GenerateRequest):
                ready.append((served, asked))
            else:
                pictures.ask(served, asked)

        def answer() -> None:
            while found := pictures.answers(
                step, idle=not (rows.runs or ready or (new and under_way < batch))
            ):
                for served, value in found:
                    send(served, value)

        while True:
            answer()
            free = batch - len(rows.runs)
            if free >= max(1, REFILL * batch) or not rows.runs:
                while new and under_way < batch:
                    under_way += 1
                    send(new.popleft(), None)
                answer()
                entering: list[Sequence] = []
                while ready and len(entering) < free:
                    served, job = ready.popleft()
                    run = Sequence(job, served.kept.pop(job.sampling_params.head, []))
                    places[run] = served
                    entering.append(run)
                if entering:
                    rows.enter(entering)
            if not rows.runs and (new or ready or pictures):
                continue
            if not rows.runs:
                del (
                    rows,
                    pictures,
                )  # the functions here know each other, so that nothing they know is freed at once
                return results
            rows.sample()
            for run, turn in rows.leave():
                served = places.pop(run)
                if run.job.keep:
                    served.kept[turn.sampling_params.head], run.kept = run.kept, []
                send(served, turn)
            rows.advance()
            step += 1
