"""Tensors with a shape and no numbers, ranks that are pretended, and an account of what is held:
what ``simulate_update`` runs a job's own code on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import _disable_current_modes
from transformers import JanusConfig, JanusForConditionalGeneration, JanusProcessor
from transformers.initialization import no_init_weights

from secondlook.models import packing
from secondlook.models.janus.model import Janus
from secondlook.models.shipped import locate
from secondlook.train.distributed import ProcessGroup
from secondlook.train.memory_plan import GIB

T = TypeVar("T")


class EqualRanks(ProcessGroup):
    """Ranks that all have the same work, so that each knows what the others say."""

    def all_gather(self, value: T) -> list[T]:
        return [value] * self.world_size


class _NoModules:
    """MemTracker's account by modules, left out: it refuses a module that is called again."""

    parents: frozenset[str] = frozenset()

    @property
    def is_bw(self) -> bool:
        return torch._C._current_graph_task_id() != -1

    def _nothing(self, *args: Any) -> None: ...

    register_user_hooks = clear_user_hooks = __enter__ = __exit__ = _nothing


def without_mask(index: Tensor | None) -> Tensor | None:
    """A mask as places, as many as it has: it picks all of them."""
    is_mask = index is not None and index.dtype == torch.bool
    return index.long().flatten() if is_mask else index  # type: ignore[union-attr]


class Memory(MemTracker):
    """Counts the bytes of all tensors that are made inside. A number read from a tensor that has
    none is 1, and a mask picks every place: what depends on values is counted at its most."""

    def __init__(self) -> None:
        super().__init__()
        self._mod_tracker: Any = _NoModules()
        self.peaks: dict[str, float] = {}
        """The most GiB that were held in each phase."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(issubclass(t, FakeTensor) for t in types):
            if func is torch.ops.aten._local_scalar_dense.default:
                return 1.0 if args[0].is_floating_point() else args[0].dtype == torch.bool or 1
            if func is torch.ops.aten.equal.default:
                return True
            if func is torch.ops.aten.index.Tensor:
                args = (args[0], [without_mask(index) for index in args[1]])
        return super().__torch_dispatch__(func, types, args, kwargs)

    @property
    def now(self) -> float:
        return sum(snap["Total"] for snap in self._curr_mem_snap.values()) / GIB

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Note the peak inside under this name, where it is the phase's highest. Phases may lie in
        one another."""
        before, self._peak_mem = (
            self._peak_mem,
            {device: snap["Total"] for device, snap in self._curr_mem_snap.items()},
        )
        yield
        self.peaks[name] = max(self.peaks.get(name, 0.0), sum(self._peak_mem.values()) / GIB)
        self._peak_mem = {
            device: max(most, before.get(device, 0)) for device, most in self._peak_mem.items()
        }

    def watch(self, owner: Any, method: str, name: str) -> None:
        """Every call of that method is a phase."""
        own: Callable = getattr(owner, method)

        def watched(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name):
                return own(*args, **kwargs)

        setattr(owner, method, watched)


@contextmanager
def weightless(config: JanusConfig, ranks: int, flash: bool) -> Iterator[Memory]:
    """Inside, ``Janus.load`` gives a model of that config without weights, ``ranks`` processes are
    pretended, and what is held is counted."""

    def model(*args: Any, **kwargs: Any) -> Janus:
        with no_init_weights():
            net = JanusForConditionalGeneration._from_config(
                config, dtype=torch.float32, attn_implementation="sdpa"
            )
        return Janus(net.eval(), JanusProcessor.from_pretrained(locate("mini-base")))

    def mesh(*args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes():  # who is where is asked of real numbers
            return init_device_mesh(*args, **kwargs)

    def zeros(x: Tensor) -> np.ndarray:
        return np.zeros(x.shape, dtype=float if x.is_floating_point() else int)

    to_list, to_array = Tensor.tolist, Tensor.numpy
    changes = (
        patch.object(Janus, "load", model),
        patch("secondlook.train.sharding.init_device_mesh", mesh),
        patch.object(torch.nn.Module, "to", lambda module, *args, **kwargs: module),
        patch.object(
            Tensor,
            "tolist",
            lambda x: zeros(x).tolist() if isinstance(x, FakeTensor) else to_list(x),
        ),
        patch.object(
            Tensor, "numpy", lambda x: zeros(x) if isinstance(x, FakeTensor) else to_array(x)
        ),
        patch.object(packing, "flash_works", lambda *args: flash),
        # what DTensor makes to learn shapes must not be counted: it takes a mode of its own for it
        patch("torch.distributed.tensor._sharding_prop.detect_fake_mode", lambda *args: None),
        patch(
            "torch.optim.adam._default_to_fused_or_foreach", lambda *args, **kwargs: (False, True)
        ),
    )
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        with ExitStack() as stack:
            for change in changes:
                stack.enter_context(change)
            packing._ends.cache_clear()
            stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
            yield stack.enter_context(Memory())
    finally:
        packing._ends.cache_clear()
        dist.destroy_process_group()
