"""The processes of a run: each knows its number, and what all of them know.

One process (no launcher) is a group of one, and nothing here talks to anybody. Under torchrun every
rank holds a part of the weights (``train.sharding``; in ``train base`` all of them) and works on
its part of a step's items; small facts (scores, verdicts, counts, sums) are told to all.
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
TIMEOUT = timedelta(hours=2)
"""How long ranks wait for one whose judge is slow."""


def backend(device: str) -> str:
    """torch.distributed's backend for such a device: gloo for objects, nccl for tensors on GPUs."""
    return "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"


def _store_of_this_start(world_size: int) -> dist.Store | None:
    """The launcher's store, where ranks find each other, with a prefix for this start: after a
    restart it may still hold the addresses of ranks that are gone. None: another launcher, whose
    store torch finds by the environment."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    restart_count = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    # torchrun's own process holds the store, so no rank is its master
    launcher_store = dist.TCPStore(host, port, world_size, is_master=False)
    return dist.PrefixStore(f"start-{restart_count}", launcher_store)


def _number_of_environment(name: str) -> int:
    """The variable's number. Raises InputError where it has none."""
    text = os.environ.get(name, "")
    if not text.isdecimal():
        problem = f"is {text!r}" if text else "is missing although RANK is set"
        raise InputError(
            f"environment: {name} {problem}; start the ranks with torchrun, which sets RANK, "
            "WORLD_SIZE and LOCAL_RANK"
        )
    return int(text)


@dataclass(frozen=True)
class ProcessGroup:
    """This process as ``rank`` of ``world_size``, on ``device``. Methods that say "all" are
    collective: every rank must call them, in the same order."""

    rank: int = 0
    world_size: int = 1
    device: str = "cpu"

    @staticmethod
    def join(device: str) -> ProcessGroup:
        """Join the processes that torchrun started; without it, a group of one. ``device`` "auto"
        is resolved, and "cuda" becomes the rank's own GPU.

        Raises InputError where a node has fewer GPUs than ranks, or the environment does not say
        all that a rank must know.
        """
        device = str(resolve_device(device))
        if "TORCHELASTIC_RUN_ID" not in os.environ and "RANK" not in os.environ:
            return ProcessGroup(0, 1, device)
        rank = _number_of_environment("RANK")
        world_size = _number_of_environment("WORLD_SIZE")
        local_rank = _number_of_environment("LOCAL_RANK")
        if world_size > 1 and not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
            raise InputError(
                "environment: MASTER_ADDR or MASTER_PORT is missing; start the ranks with "
                "torchrun, which sets them"
            )
        if device == "cuda":
            if local_rank >= torch.cuda.device_count():
                raise InputError(
                    f"device: rank {rank} would be the {local_rank + 1}. on a node with "
                    f"{torch.cuda.device_count()} GPUs; "
                    "start as many ranks a node as it has GPUs"
                )
            device = f"cuda:{local_rank}"
            torch.cuda.set_device(device)
        if not dist.is_initialized():
            store = _store_of_this_start(world_size)
            if store is None:  # torch reads the same variables
                dist.init_process_group(backend(device), timeout=TIMEOUT)
            else:
                dist.init_process_group(
                    backend(device), timeout=TIMEOUT, store=store, rank=rank, world_size=world_size
                )
        return ProcessGroup(rank, world_size, device)

    @property
    def is_main(self) -> bool:
        """Whether this is the one rank that writes files."""
        return self.rank == 0

    def local_part(self, items: Sequence[T]) -> list[T]:
        """This rank's items: every ``world_size``-th."""
        return list(items[self.rank :: self.world_size])

    def all_gather(self, value: T) -> list[T]:
        """Every rank's value, in order of ranks."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def all_merge(self, local_items: list[T]) -> list[T]:
        """The items of which every rank has its ``local_part``, in their first order."""
        items_of_ranks = self.all_gather(local_items)
        num_items = sum(map(len, items_of_ranks))
        items = []
        for i in range(num_items):  # item i is the (i // world_size)-th of rank i % world_size
            items.append(items_of_ranks[i % self.world_size][i // self.world_size])
        return items

    def all_sum(self, numbers: dict[str, float]) -> dict[str, float]:
        """Each number summed over ranks, in the order of ranks: all of them round alike."""
        numbers_of_ranks = self.all_gather(numbers)
        sums = {}
        for name in numbers:
            sums[name] = sum(rank_numbers[name] for rank_numbers in numbers_of_ranks)
        return sums

    def all_sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Sum the gradients of parameters that every rank has in full, all in one message. What no
        rank has learned of stays without a gradient, so that no weight decay shrinks it."""
        if self.world_size == 1:
            return
        parameters = list(parameters)
        has_gradient = self.all_gather([parameter.grad is not None for parameter in parameters])
        gradients: list[torch.Tensor] = []
        for parameter, *on_ranks in zip(parameters, *has_gradient, strict=True):
            if not any(on_ranks):
                continue
            if parameter.grad is None:  # another rank has learned of it
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        if not gradients:
            return
        summed = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(summed)
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, sums in zip(gradients, summed.split(sizes), strict=True):
            gradient.copy_(sums.view_as(gradient))

    @contextmanager
    def all_raise(self) -> Iterator[None]:
        """What one rank raises inside (InputError, Stopped), all of them raise after it, so that
        none waits for one that is gone."""
        own_error: InputError | Stopped | None = None
        try:
            yield
        except (InputError, Stopped) as error:
            own_error = error
        for rank_error in self.all_gather(own_error):
            if rank_error is not None:
                raise rank_error

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        if self.world_size > 1:
            dist.barrier()
