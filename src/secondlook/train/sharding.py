"""A model's weights divided among ranks by PyTorch's FSDP2, or whole in a run of one in float32.

The layers of the language model are gathered one at a time; everything else that is trained is
gathered with the first of a pass. The two frozen encoders are on every rank. For rollouts the ranks
gather everything once and the engine reads it where it lies, so there is no second full copy. With
``group`` ranks sharing a copy, the groups hold replicas (hybrid sharding: with the GPUs of a node,
gathering stays inside nodes). "bfloat16" computes in it and keeps the weights, their gradients'
sums and the optimizer in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)

from secondlook.errors import InputError
from secondlook.io import whole_folder
from secondlook.models.janus.model import Janus
from secondlook.train.distributed import Ranks, backend
from secondlook.train.lora import Adapters

Dtype = Literal["float32", "bfloat16"]


class _Pass(nn.Module):
    """A network as the root of sharding: any function of it is a forward pass."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, function: Callable) -> Any:
        return function()


class Shards:
    """``janus`` on the ranks; freeze what is not trained before. ``offload``: the weights are kept
    in the CPUs' memory while they are not used, for a reference on a GPU."""

    def __init__(
        self,
        janus: Janus,
        ranks: Ranks,
        dtype: Dtype = "float32",
        group: int = 0,
        adapters: Adapters | None = None,
        offload: bool = False,
    ):
        self.janus, self.ranks, self.adapters = janus, ranks, adapters
        self.root: Any = None
        self.encoders: dict[str, torch.Tensor] = {}
        """Frozen encoders' weights as they were read, of which bfloat16 holds less (on the first
        rank's CPU): they are written as they were."""
        self.offload = offload
        if ranks.size == 1 and dtype == "float32":
            return
        if not dist.is_initialized():  # bfloat16 without a launcher
            dist.init_process_group(
                backend(ranks.device), store=dist.HashStore(), rank=0, world_size=1
            )
        kind, group = ranks.device.split(":")[0], group or ranks.size
        if ranks.size % group:
            raise InputError(
                f"config: shard is {group}; it must divide the number of ranks, which is "
                f"{ranks.size}"
            )
        if group == ranks.size:
            mesh = init_device_mesh(kind, (group,))
        else:
            mesh = init_device_mesh(
                kind, (ranks.size // group, group), mesh_dim_names=("replicas", "shards")
            )
        model: Any = janus.net.model
        policy = MixedPrecisionPolicy()
        frozen = [*model.vqmodel.parameters(), *model.vision_model.parameters()]
        if dtype == "bfloat16":
            policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
            whole = {id(p) for p in frozen}
            for name, p in janus.net.named_parameters():
                if not p.requires_grad:  # nothing is added to it while training
                    half = p.data.to(torch.bfloat16)
                    if id(p) in whole and ranks.first and not torch.equal(half.to(p.dtype), p.data):
                        self.encoders[name] = p.data.cpu()
                    p.data = half
        for part in (model.vqmodel, model.vision_model):
            part.to(ranks.device)
        where = CPUOffloadPolicy() if offload and kind != "cpu" else OffloadPolicy()
        for layer in model.language_model.layers:
            fully_shard(layer, mesh=mesh, mp_policy=policy, offload_policy=where)
        self.root = fully_shard(
            _Pass(janus.net),
            mesh=mesh,
            mp_policy=policy,
            offload_policy=where,
            ignored_params=set(frozen),
        )
        self.sharded = [m for m in self.root.modules() if isinstance(m, FSDPModule)]
        for part in self.sharded:  # gradients are summed: losses have a global denominator
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)
        with torch.no_grad():
            self.run(lambda: None)  # the root must be the first of its modules to run

    def run(self, function: Callable, *args: Any) -> Any:
        """``function(*args)``, which computes with the model. All ranks must call it, with tokens
        of the same head."""
        if self.root is None:
            with self.on_device():
                return function(*args)
        # one argument that FSDP does not look into: it would make every dataclass in it anew, turns
        # code by code, and pictures that were read ahead would be read again
        found = self.root(partial(function, *args))
        if not torch.is_grad_enabled():  # else its weights wait for the backward pass
            self.root.reshard()
        return found

    @contextmanager
    def whole(self) -> Iterator[None]:
        """All weights on every rank, for the engine."""
        if self.root is None:
            yield
            return
        self.root.set_reshard_after_forward(False)
        for part in self.sharded:
            part.unshard()
        try:
            yield
        finally:
            for part in self.sharded:
                part.reshard()
                part.set_reshard_after_forward(part is not self.root, recurse=False)

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Weights that are not divided but offloaded, back on the device."""
        if self.offload:
            self.janus.to(self.ranks.device)
        yield
        if self.offload:
            self.janus.to("cpu")

    def weights(self) -> dict[str, Any]:
        """The whole state dict, on the first rank's CPU where it is divided (an empty one on the
        others)."""
        if self.root is None:
            return self.janus.net.state_dict()
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return get_model_state_dict(self.janus.net, options=options)

    def save(self, folder: Path) -> None:
        """Write the checkpoint, on the first rank, no weight in fewer than 32 bits; adapters are
        added to it, and lie in "adapter" by themselves too."""
        weights = self.weights()
        if self.ranks.first:
            with whole_folder(folder) as temporary:
                if self.adapters is not None:
                    self.adapters.export(weights, temporary / "adapter")
                    weights = self.adapters.merged(weights)
                weights |= self.encoders
                self.janus.save(
                    temporary,
                    {n: w.float() if w.dtype == torch.bfloat16 else w for n, w in weights.items()},
                )
        self.ranks.wait()
