"""A model's weights divided among ranks by PyTorch's FSDP2, or whole in a group of one in float32.

The layers of the language model are gathered one at a time; everything else that is trained is
gathered with the first of a pass. The two frozen encoders are on every rank. For rollouts the ranks
gather everything once and the engine reads it where it lies, so there is no second full copy. Where
fewer ranks than all share a copy, there are replicas (hybrid sharding: with the GPUs of a node,
gathering stays inside nodes). "bfloat16" computes in it and keeps the weights, their gradients'
sums and the optimizer in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
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
from secondlook.train.distributed import ProcessGroup, backend
from secondlook.train.job_config import Dtype
from secondlook.train.lora import Adapters


class _AnyPass(nn.Module):
    """A network as the root of sharding, whose forward pass is any function of it."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, function: Callable) -> Any:
        return function()


class ShardedModel:
    """``janus`` on the ranks; what is not trained must be frozen before."""

    def __init__(
        self,
        janus: Janus,
        ranks: ProcessGroup,
        dtype: Dtype = "float32",
        shard_degree: int = 0,
        adapters: Adapters | None = None,
        offload: bool = False,
    ):
        """``shard_degree``: so many ranks share one copy of the weights; 0: all of them.
        ``offload``: the weights are kept in the CPUs' memory while they are not used, for a
        reference on a GPU.

        Raises InputError where ``shard_degree`` does not divide the number of ranks.
        """
        self.janus, self.ranks, self.adapters, self.offload = janus, ranks, adapters, offload
        self.root: Any = None
        """FSDP's root module; None: the model is whole."""
        self.exact_encoders: dict[str, torch.Tensor] = {}
        """Frozen encoders' weights as they were read, where bfloat16 holds less (on the first
        rank's CPU): they are written as they were."""
        if ranks.world_size == 1 and dtype == "float32":
            return  # nothing to divide, nothing to round
        if not dist.is_initialized():  # bfloat16 without a launcher
            dist.init_process_group(
                backend(ranks.device), store=dist.HashStore(), rank=0, world_size=1
            )
        if dtype == "bfloat16":
            self._frozen_to_bfloat16()
        self._shard(_mesh(ranks, shard_degree), dtype)
        with torch.no_grad():
            self.run(lambda: None)  # the root must be the first of its modules to run

    def _frozen_encoders(self) -> list[nn.Module]:
        model: Any = self.janus.net.model
        return [model.vqmodel, model.vision_model]

    def _encoder_parameters(self) -> set[nn.Parameter]:
        parameters: set[nn.Parameter] = set()
        for encoder in self._frozen_encoders():
            parameters.update(encoder.parameters())
        return parameters

    def _frozen_to_bfloat16(self) -> None:
        """Frozen weights need no float32: nothing is added to them while training."""
        encoder_parameters = self._encoder_parameters()
        for name, parameter in self.janus.net.named_parameters():
            if parameter.requires_grad:
                continue
            weight = parameter.data
            half_weight = weight.to(torch.bfloat16)
            is_written = self.ranks.is_main and parameter in encoder_parameters
            if is_written and not torch.equal(half_weight.to(weight.dtype), weight):
                self.exact_encoders[name] = weight.cpu()
            parameter.data = half_weight

    def _shard(self, mesh: DeviceMesh, dtype: Dtype) -> None:
        model: Any = self.janus.net.model
        is_on_cpu = self.ranks.device.split(":")[0] == "cpu"
        for encoder in self._frozen_encoders():
            encoder.to(self.ranks.device)  # FSDP does not move what it ignores
        precision = MixedPrecisionPolicy()
        if dtype == "bfloat16":
            precision = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        offload_policy = CPUOffloadPolicy() if self.offload and not is_on_cpu else OffloadPolicy()
        # layers before the root, which takes all parameters that are left
        for layer in model.language_model.layers:
            fully_shard(layer, mesh=mesh, mp_policy=precision, offload_policy=offload_policy)
        self.root = fully_shard(
            _AnyPass(self.janus.net),
            mesh=mesh,
            mp_policy=precision,
            offload_policy=offload_policy,
            ignored_params=self._encoder_parameters(),
        )
        self.fsdp_modules: list[FSDPModule] = []
        for module in self.root.modules():
            if isinstance(module, FSDPModule):
                # gradients are summed: losses have a global denominator
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
                self.fsdp_modules.append(module)

    def run(self, function: Callable, *args: Any) -> Any:
        """``function(*args)``, which computes with the model. All ranks must call it, with tokens
        of the same head ("code" or "text"): each head's layers are gathered by all together."""
        if self.root is None:
            with self.on_device():
                return function(*args)
        # one argument that FSDP does not look into: it would make every dataclass in it anew, turns
        # code by code, and pictures that were read ahead would be read again
        result = self.root(partial(function, *args))
        if not torch.is_grad_enabled():  # else the root's weights wait for the backward pass
            self.root.reshard()
        return result

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """All weights on every rank, for the engine."""
        if self.root is None:
            yield
            return
        self.root.set_reshard_after_forward(False)  # the engine's passes leave all gathered
        for module in self.fsdp_modules:
            module.unshard()
        try:
            yield
        finally:
            for module in self.fsdp_modules:
                module.reshard()
                # as FSDP has it at first: layers do, the root's weights stay for the backward pass
                module.set_reshard_after_forward(module is not self.root, recurse=False)

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Inside, weights that are offloaded but not divided are on the device (FSDP moves divided
        ones itself)."""
        if self.offload:
            self.janus.to(self.ranks.device)
        yield
        if self.offload:
            self.janus.to("cpu")

    def full_state_dict(self) -> dict[str, Any]:
        """The whole model's, on the first rank's CPU where it is divided (an empty one on the other
        ranks)."""
        if self.root is None:
            return self.janus.net.state_dict()
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return get_model_state_dict(self.janus.net, options=options)

    def save(self, folder: Path) -> None:
        """Write the checkpoint, on the first rank, no weight in fewer than 32 bits; adapters are
        added to it, and lie in "adapter" by themselves too."""
        weights = self.full_state_dict()
        if self.ranks.is_main:
            with whole_folder(folder) as temporary:
                if self.adapters is not None:
                    self.adapters.export(weights, temporary / "adapter")
                    weights = self.adapters.merged(weights)
                weights |= self.exact_encoders  # in place of the rounded ones
                for name, weight in weights.items():
                    if weight.dtype == torch.bfloat16:
                        weights[name] = weight.float()
                self.janus.save(temporary, weights)
        self.ranks.barrier()


def _mesh(ranks: ProcessGroup, shard_degree: int) -> DeviceMesh:
    """All ranks in one group that shares a copy, or (replicas, ranks of a replica)."""
    device_type = ranks.device.split(":")[0]
    degree = shard_degree or ranks.world_size
    if ranks.world_size % degree:
        raise InputError(
            f"config: dp_shard_degree is {degree}; it must divide the number of ranks, which is "
            f"{ranks.world_size}"
        )
    if degree == ranks.world_size:
        return init_device_mesh(device_type, (degree,))
    # of a mesh with two axes FSDP shards over the last, and replicates over the first
    num_replicas = ranks.world_size // degree
    return init_device_mesh(
        device_type, (num_replicas, degree), mesh_dim_names=("replicas", "shards")
    )
