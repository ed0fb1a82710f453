"""What to change where a training job does not fit into a GPU's memory."""

from __future__ import annotations

import json
from typing import Any

from secondlook.config import changed
from secondlook.train.memory_plan import SPARE, account, episodes_of_rank
from secondlook.train.model_sizes import ModelSizes
from secondlook.train.rl.config import RLConfig
from secondlook.train.sft_config import SFTConfig


def advice(
    sizes: ModelSizes,
    config: RLConfig | SFTConfig,
    num_ranks: int,
    memory: float,
    editing: bool = False,
) -> tuple[list[str], bool]:
    """Settings to change ("section.key = value"), the least costly first, until a rank fits into
    ``memory`` bytes (nothing where it does), and whether it then does."""
    changes: dict[str, str] = {}
    while True:
        plan = account(sizes, config, num_ranks, editing)
        too_high = {}
        for phase, parts in vars(plan).items():
            too_high[phase] = sum(parts.values()) + SPARE > memory
        if not any(too_high.values()):
            return list(changes.values()), True
        change = _next_change(sizes, config, num_ranks, memory, editing, too_high)
        if change is None:
            return list(changes.values()), False
        config = changed(config, change)
        for name, value in change.items():
            changes[name] = f"{name} = {json.dumps(value)}"


def _next_change(
    sizes: ModelSizes,
    config: Any,
    num_ranks: int,
    memory: float,
    editing: bool,
    too_high: dict[str, bool],
) -> dict[str, Any] | None:
    """The least costly change for the peaks ("rollout", "update") that are too high; None: there is
    none left."""
    is_rl, runtime = isinstance(config, RLConfig), config.runtime
    checkpointing = runtime.activation_checkpointing
    if too_high["rollout"] and config.rollout.rollout_batch_size != 1:
        largest = largest_rollout_batch(sizes, config, num_ranks, memory, editing)
        return {"rollout.rollout_batch_size": largest or 1}
    if too_high["update"] and checkpointing != "full":
        costlier = {"none": "selective", "selective": "full"}
        return {"runtime.activation_checkpointing": costlier[checkpointing]}
    if too_high["update"] and runtime.micro_batch_size > 1:
        return {"runtime.micro_batch_size": runtime.micro_batch_size // 2}
    if runtime.dp_shard_degree and runtime.dp_shard_degree < num_ranks:
        return {"runtime.dp_shard_degree": 0}
    if is_rl and runtime.reference == "copy" and not config.lora_rank:
        return {"runtime.reference": "offload"}
    # adapters are trained by AdamW only
    if not config.lora_rank and not getattr(config.optim, "muon_lr_ratio", 0.0):
        return {"lora_rank": 64}
    return None


def largest_rollout_batch(
    sizes: ModelSizes, config: RLConfig, num_ranks: int, memory: float, editing: bool = False
) -> int:
    """The most episodes that a rank draws together in ``memory`` bytes; 0 where there is no room
    for one."""
    for num_episodes in range(episodes_of_rank(config, num_ranks), 0, -1):
        tried_config = changed(config, {"rollout.rollout_batch_size": num_episodes})
        rollout = account(sizes, tried_config, num_ranks, editing).rollout
        if sum(rollout.values()) + SPARE <= memory:
            return num_episodes
    return 0


def ranks_needed(
    sizes: ModelSizes,
    config: RLConfig | SFTConfig,
    memory: float,
    editing: bool = False,
    max_ranks: int = 1024,
) -> int | None:
    """The fewest ranks (1, 2, 4 …) on which ``config`` fits as it is; None: not on
    ``max_ranks``."""
    config = changed(config, {"runtime.dp_shard_degree": 0})  # one copy on all of them
    num_ranks = 1
    while num_ranks <= max_ranks:
        if account(sizes, config, num_ranks, editing).peak + SPARE <= memory:
            return num_ranks
        num_ranks *= 2
    return None
