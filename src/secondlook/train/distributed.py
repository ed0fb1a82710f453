"""The processes of a run: each knows its number, and what all of them know.

One process (no launcher) is a run of one rank, and nothing here talks to anybody. Under torchrun
every rank holds a part of the weights (``train.shard``) and draws its share of a step's episodes;
small facts (scores, verdicts, counts, sums) are told to all.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from secondlook.errors import InputError, Stopped
from secondlook.models.device import resolve_device

T = TypeVar("T")
PATIENCE = timedelta(hours=2)
"""How long ranks wait for one whose judge is slow."""


def backend(device: str) -> str:
    """Who carries messages between processes on such devices."""
    return "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"


def _store_of_this_start(size: int) -> dist.Store | None:
    """The launcher's store, where ranks find each other, with names of this start alone: after a
    restart it may still hold the addresses of ranks that are gone. None: another launcher, which
    says in the environment where its store is."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    where = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.PrefixStore(
        f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}",
        dist.TCPStore(*where, size, is_master=False),
    )


def _number_of_environment(name: str) -> int:
    text = os.environ.get(name, "")
    if not text.isdecimal():
        said = f"is {text!r}" if text else "is missing although RANK is set"
        raise InputError(
            f"environment: {name} {said}; start the ranks with torchrun, which sets RANK, "
            "WORLD_SIZE and LOCAL_RANK"
        )
    return int(text)


@dataclass(frozen=True)
class Ranks:
    """``rank`` of ``size`` processes, on ``device``."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @staticmethod
    def start(device: str) -> Ranks:
        """Join the processes that torchrun started; without it, a run of one. ``device``
        "auto" is resolved, and "cuda" becomes the rank's own GPU.

        Raises InputError where a node has fewer GPUs than ranks, or the environment does not say
        all that a rank must know.
        """
        device = str(resolve_device(device))
        if "TORCHELASTIC_RUN_ID" not in os.environ and "RANK" not in os.environ:
            return Ranks(0, 1, device)
        rank, size, local = (
            _number_of_environment(n) for n in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        )
        if size > 1 and not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
            raise InputError(
                "environment: MASTER_ADDR or MASTER_PORT is missing; start the ranks with "
                "torchrun, which sets them"
            )
        if device == "cuda":
            if local >= torch.cuda.device_count():
                raise InputError(
                    f"device: rank {rank} would be the {local + 1}. on a node with "
                    f"{torch.cuda.device_count()} GPUs; "
                    "start as many ranks a node as it has GPUs"
                )
            device = f"cuda:{local}"
            torch.cuda.set_device(device)
        if not dist.is_initialized():
            store = _store_of_this_start(size)
            if store is None:
                dist.init_process_group(backend(device), timeout=PATIENCE)
            else:
                dist.init_process_group(
                    backend(device), timeout=PATIENCE, store=store, rank=rank, world_size=size
                )
        return Ranks(rank, size, device)

    @property
    def first(self) -> bool:
        """The one that writes files."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """This rank's items: every ``size``-th."""
        return list(items[self.rank :: self.size])

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in order of ranks; all of them must ask."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def merge(self, shares: list[T]) -> list[T]:
        """The whole of which every rank has its ``share``."""
        parts = self.gather(shares)
        return [parts[i % self.size][i // self.size] for i in range(sum(map(len, parts)))]

    @contextmanager
    def together(self) -> Iterator[None]:
        """What one rank raises inside (InputError, Stopped), all of them raise after it: none waits
        for one that is gone. All must come here."""
        problem: InputError | Stopped | None = None
        try:
            yield
        except (InputError, Stopped) as error:
            problem = error
        for found in self.gather(problem):
            if found is not None:
                raise found

    def total(self, sums: dict[str, float]) -> dict[str, float]:
        """Each number summed over ranks."""
        found = self.gather(sums)
        return {name: sum(each[name] for each in found) for name in sums}

    def add_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Sum the gradients of parameters that every rank has whole."""
        if self.size > 1:
            for p in parameters:
                if p.grad is None:
                    p.grad = torch.zeros_like(p)
                dist.all_reduce(p.grad)

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.size > 1:
            dist.barrier()
