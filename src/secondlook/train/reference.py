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
    """Of the policy ``shards``, which has not been trained yet."""

    def __init__(self, config: RLConfig, shards: ShardedModel):
        self.adapters, self.shards = shards.adapters, shards
        if self.adapters is None:
            offload = config.runtime.reference == "offload"
            janus = Janus.load(config.model, "cpu" if offload else shards.ranks.device)
            janus.requires_grad_(False)
            runtime = config.runtime
            self.shards = ShardedModel(
                janus, shards.ranks, runtime.dtype, runtime.dp_shard_degree, offload=offload
            )

    def movable(self) -> nn.ParameterDict:
        """What ``become`` changes, as a part of a run's state. Raises InputError where the
        reference has no weights of its own."""
        if self.adapters is not None:
            raise InputError(
                "config: auto_recovery.on_decline is 'move_reference'; with lora_rank the "
                "reference is the model itself, use 'lower_beta'"
            )
        frozen = ("model.vqmodel.", "model.vision_model.")
        named = self.shards.janus.net.named_parameters()
        return nn.ParameterDict(
            {n.replace(".", "/"): p for n, p in named if not n.startswith(frozen)}
        )

    @torch.no_grad()
    def become(self, policy: ShardedModel) -> None:
        """The policy as it is now."""
        theirs = trainable(policy.janus)
        for name, p in self.movable().items():
            own, new = (
                x.to_local() if isinstance(x, DTensor) else x for x in (p.data, theirs[name].data)
            )
            own.copy_(new)

    @torch.no_grad()
    def score(self, template: ChatTemplate, turns: list[Turn]) -> Tensor:
        """Log-probabilities (N,) of the turns' tokens."""
        if self.adapters is None:
            return self.shards.run(sampling.score, self.shards.janus, template, turns)
        with self.adapters.off():
            return self.shards.run(sampling.score, self.shards.janus, template, turns)
