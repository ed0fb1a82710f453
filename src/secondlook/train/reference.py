"""The frozen policy that the KL is measured to: a copy, one in the CPU's memory, or the same
weights without their adapters."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from secondlook.errors import InputError
from secondlook.models import sampling
from secondlook.models.janus.model import Janus
from secondlook.models.janus.template import ChatTemplate
from secondlook.train.optim import trainable
from secondlook.train.rl.config import RLConfig
from secondlook.train.sharding import ShardedModel
from secondlook.types import Turn


class Reference:
    """The reference of a policy ``shards`` that has not been trained yet."""

    def __init__(self, config: RLConfig, shards: ShardedModel):
        self.adapters = shards.adapters
        self.shards = shards
        """The model that is asked: the policy's own where it has adapters, which are then off."""
        if self.adapters is None:
            runtime, ranks = config.runtime, shards.ranks
            is_offloaded = runtime.reference == "offload"
            janus = Janus.load(config.model, "cpu" if is_offloaded else ranks.device)
            janus.requires_grad_(False)
            self.shards = ShardedModel(
                janus, ranks, runtime.dtype, runtime.dp_shard_degree, offload=is_offloaded
            )

    def movable(self) -> nn.ParameterDict:
        """What ``become`` changes, as a part of a run's state. Raises InputError where the
        reference has no weights of its own."""
        if self.adapters is not None:
            raise InputError(
                "config: auto_recovery.on_decline is 'move_reference'; with lora_rank the "
                "reference is the model itself, use 'lower_beta'"
            )
        frozen_prefixes = ("model.vqmodel.", "model.vision_model.")
        parameters = {}
        for name, parameter in self.shards.janus.net.named_parameters():
            if not name.startswith(frozen_prefixes):
                parameters[name.replace(".", "/")] = parameter  # named as by ``optim.trainable``
        return nn.ParameterDict(parameters)

    @torch.no_grad()
    def become(self, policy: ShardedModel) -> None:
        """Take over the policy's weights as they are now."""
        policy_parameters = trainable(policy.janus)
        for name, own_parameter in self.movable().items():
            # both are sharded alike, so each rank copies its own part; the devices may differ
            _local(own_parameter.data).copy_(_local(policy_parameters[name].data))

    @torch.no_grad()
    def score(self, template: ChatTemplate, turns: list[Turn]) -> Tensor:
        """Log-probabilities (N,) of the turns' tokens."""
        if self.adapters is None:
            return self.shards.run(sampling.score, self.shards.janus, template, turns)
        with self.adapters.off():
            return self.shards.run(sampling.score, self.shards.janus, template, turns)


def _local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, all of it where it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
