"""The engine: runs tasks that ask for turns, pictures and codes, many at once.

A task is a coroutine, such as ``episode.run_episode``::

    turn = await engine.generate(request, sampling_params, max_tokens)
    image = await engine.decode_image(turn.tokens)

``run`` takes tasks to their ends. Whoever has work coming in all the while calls ``submit`` when it
comes and ``step`` as long as the engine is not ``idle``. A step is: the scheduler chooses what
enters the batch, the batch samples one token of every sequence, and the scheduler resumes the tasks
whose sequences have ended. All of it happens in the caller's thread; an engine is not safe to use
from several at a time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal, TypeVar

import torch
from PIL.Image import Image
from torch.nn.attention import sdpa_kernel

from secondlook.engine.capacity import Need, episodes_that_fit
from secondlook.engine.cpu_linear import fast_linear
from secondlook.engine.handle import Handle
from secondlook.engine.image_codec import ImageCodec, in_passes
from secondlook.engine.requests import DecodeImage, EncodeImage, GenerateRequest, Task
from secondlook.engine.running_batch import RunningBatch
from secondlook.engine.scheduler import OnTokens, Scheduler
from secondlook.models.janus.model import Janus
from secondlook.models.janus.segments import length
from secondlook.models.janus.template import ChatTemplate
from secondlook.models.packing import KERNELS
from secondlook.types import Request, SamplingParams, Turn

T = TypeVar("T")


class Engine:
    """Runs one model. ``batch`` is the most tasks that are under way together (unconditional
    branches not counted). Where it is ``bounded`` they are fewer on a GPU whose free memory does
    not hold so many (``engine.capacity``); a training does not leave that to the moment, for in
    half precision other batches round otherwise, and it must resume exactly."""

    def __init__(self, janus: Janus, batch: int = 64, bounded: bool = True):
        self.janus, self.batch, self.bounded = janus, batch, bounded
        self.template = ChatTemplate.of(janus)
        self._scheduler: Scheduler | None = None
        self._running_batch: RunningBatch | None = None
        self._need: Need | None = None
        self._stepping = False
        self._unreported: list[Handle] = []
        """Done while ``run`` ran other tasks; told by the next ``step``."""

    # what a task awaits

    def generate(
        self,
        request: Request,
        sampling_params: SamplingParams,
        max_tokens: int,
        keep_prefix: bool = False,
    ) -> Awaitable[Turn]:
        """A sequence continued by at most ``max_tokens`` tokens. ``keep_prefix``: a later sequence
        of the task may begin like this one, so its keys and values are kept."""
        return GenerateRequest(request, sampling_params, max_tokens, keep_prefix)

    def decode_image(self, codes: tuple[int, ...]) -> Awaitable[Image]:
        """The picture of drawn codes."""
        return DecodeImage(codes)

    def encode_image(self, image: Image) -> Awaitable[tuple[int, ...]]:
        """The codes of a picture, as the drawing path has it."""
        return EncodeImage(image)

    # the scheduler

    def submit(
        self, task: Task[T], on_tokens: OnTokens | None = None, need: Need | None = None
    ) -> Handle[T]:
        """Queue a task; it begins in a later ``step``, also while others run.

        ``on_tokens(request, tokens)`` is called with all tokens so far of the task's sequence: of a
        drawing after each row of the image (24 codes of Janus-Pro's 24 x 24), of a text after each
        token, and once more with the whole. On a GPU only these tokens are copied to the host,
        beside the next step. ``need`` is what the task holds at the most; None: not known, and it
        is counted as small.
        """
        if self._scheduler is None:
            codes_per_row = round(self.janus.n_codes**0.5)  # images are squares
            self._scheduler = Scheduler(ImageCodec(self.janus), image_row=codes_per_row)
        handle = self._scheduler.submit(task, on_tokens)
        larger_need = need.or_larger(self._need) if need else self._need
        if larger_need != self._need:
            self._need = larger_need
            if self._running_batch is not None:
                self._scheduler.max_tasks = self._max_tasks()
        return handle

    @property
    def idle(self) -> bool:
        """No task is waiting or under way."""
        return self._scheduler is None or not self._scheduler.tasks

    def step(self) -> list[Handle]:
        """Sample one token of every sequence under way. Returns the handles that have become done,
        also those cancelled since the last step.

        An exception in a task ends that task only. One of the model itself ends all: it is raised
        here and by every handle.
        """
        if self._stepping:
            raise RuntimeError(
                "engine: a step is under way already; an engine belongs to one thread, so submit "
                "all work from there, or load the model once for each thread"
            )
        unreported, self._unreported = self._unreported, []
        scheduler = self._scheduler
        if scheduler is None:
            return unreported
        self._stepping = True
        try:
            with self._running(), fast_linear(self.janus.device), sdpa_kernel(KERNELS):
                if scheduler.tasks:
                    self._step(scheduler)
        except BaseException as error:
            self._unreported = unreported
            scheduler.cancel_all(error if isinstance(error, Exception) else None)
            self._release()
            raise
        finally:
            self._stepping = False
        return unreported + scheduler.take_done()

    def _step(self, scheduler: Scheduler) -> None:
        if self._running_batch is None:
            scheduler.max_tasks = self._max_tasks()
            self._running_batch = RunningBatch(self.janus, self.template)
        batch = self._running_batch
        entering = scheduler.schedule()
        # tasks that are resumed may cancel others, so after each resuming these are taken out
        batch.remove(scheduler.take_abandoned())
        if entering or batch.sequences:
            output = batch.run(entering)
            scheduler.postprocess(output)
            batch.remove(scheduler.take_abandoned())

    def cancel(self, handle: Handle) -> None:
        """End a task that is not done: its places in the batch, cached prefixes and pending
        pictures are freed at once. Nothing where it is done. A ``finally`` in the task runs.

        Raises RuntimeError where the task cancels itself.
        """
        if self._scheduler is None:
            return
        self._scheduler.cancel(handle)
        if self._running_batch is not None and not self._stepping:
            with self._running():
                self._running_batch.remove(self._scheduler.take_abandoned())

    def run(self, tasks: Iterable[Task[T]], need: Need | None = None) -> list[T]:
        """Run tasks to their ends; returns what they return, in order. Raises what the first task
        that fails raises, after cancelling the others. Work submitted before goes on beside
        them."""
        handles: list[Handle[T]] = []
        others_done: list[Handle] = []
        try:
            for task in tasks:
                handles.append(self.submit(task, need=need))
            unfinished = set(handles)
            while unfinished:
                failed = None
                for handle in self.step():
                    if handle not in unfinished:
                        others_done.append(handle)
                    elif handle.failed:
                        failed = failed or handle
                    unfinished.discard(handle)
                if failed is not None:
                    failed.result()  # raises
            return [handle.result() for handle in handles]
        finally:
            for handle in handles:
                self.cancel(handle)
            if self._scheduler is not None:
                others_done += self._scheduler.take_done()
            own_handles = set(handles)
            told_later = self._unreported + others_done
            self._unreported = [handle for handle in told_later if handle not in own_handles]
            self.release()

    def release(self) -> None:
        """Free the cache, the graphs and the buffers, if the engine is idle; the next task makes
        them anew. To be called after the last step, and before the weights change. ``run`` does so
        itself."""
        if self.idle and not self._stepping:
            self._release()

    def _release(self) -> None:
        if self._scheduler is not None:
            self._unreported += self._scheduler.take_done()
        self._scheduler = self._running_batch = self._need = None

    def _max_tasks(self) -> int:
        """Tasks under way together, by what each of them holds and the memory there is."""
        if self._need is None or not self.bounded:
            return self.batch
        held_bytes = 0 if self._running_batch is None else self._running_batch.cache.nbytes
        return episodes_that_fit(self.janus, self._need, self.batch, held_bytes)

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Around everything that the model runs: on a GPU streams, events and graphs are made on
        the current device, which need not be the model's."""
        device = self.janus.device
        as_current = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
        with torch.inference_mode(), as_current:
            yield

    # single requests

    def draw(self, requests: list[Request], sampling_params: SamplingParams) -> list[Turn]:
        """Sample one image (n_codes codes) per request. ``sampling_params.head`` must be "code"."""
        return self._generate_all(requests, sampling_params, "code", self.janus.n_codes)

    def write(
        self, requests: list[Request], sampling_params: SamplingParams, max_tokens: int = 64
    ) -> list[Turn]:
        """Sample text up to and with the end of sentence, at most ``max_tokens`` tokens.
        ``sampling_params.head`` must be "text".

        When the sampling parameters restrict the first token to (Yes, No), the turns carry p_yes.
        """
        return self._generate_all(requests, sampling_params, "text", max_tokens)

    def _generate_all(
        self,
        requests: list[Request],
        sampling_params: SamplingParams,
        head: Literal["code", "text"],
        max_tokens: int,
    ) -> list[Turn]:
        if sampling_params.head != head:
            raise ValueError(
                f"sampling_params: head is {sampling_params.head!r}; it must be {head!r} here"
            )

        async def continued(request: Request) -> Turn:
            return await self.generate(request, sampling_params, max_tokens)

        longest = 0  # columns
        for request in requests:
            longest = max(longest, length(request.segments, self.janus.n_patches) + max_tokens)
        return self.run(map(continued, requests), Need(drawn=longest, longest=longest))

    def pictures(self, codes: list[tuple[int, ...]]) -> list[Image]:
        """Decode drawn codes (n_codes of each), a part at a time."""
        images: list[Image] = []
        with self._running():
            for part in in_passes(self.janus, codes):
                part_codes = torch.tensor(part, device=self.janus.device)  # (B, n_codes)
                images += self.janus.to_images(part_codes)
        return images

    def codes(self, images: list[Image]) -> list[tuple[int, ...]]:
        """Encode pictures as the drawing path has them, a part at a time."""
        codes: list[tuple[int, ...]] = []
        with self._running():
            for part in in_passes(self.janus, images):
                part_codes = self.janus.to_codes(part)  # (B, n_codes)
                codes += map(tuple, part_codes.tolist())
        return codes
