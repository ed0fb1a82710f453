"""Targets of ``fuzz``: the files of a checkpoint."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from transformers import JanusConfig, JanusForConditionalGeneration

from fuzz_target import Target, in_folder
from mutate import mutate
from secondlook.io import read_json
from secondlook.models.janus import checkpoint
from secondlook.models.shipped import locate

WEIGHTS = "model.safetensors"
JSON_FILES = (
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
TINY_SIZES: dict[str, dict[str, Any]] = {
    "text_config": {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
    },
    "vision_config": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "projection_dim": 16,
    },
    "vq_config": {
        "base_channels": 32,
        "latent_channels": 32,
        "num_embeddings": 16,
        "embed_dim": 8,
        "projection_dim": 16,
        "image_token_embed_dim": 16,
        "channel_multiplier": [1, 1, 1, 1],
    },
}
"""What the tiny model has instead of the miniature's."""


class LoadedCheckpoint(NamedTuple):
    net: JanusForConditionalGeneration
    processor: Any
    different_weights: list[str]
    """Names of weights that are not the file's."""
    unread_weights: list[str]
    """Names of the file's weights that the network has not."""


def load_checkpoint(folder: Path) -> LoadedCheckpoint:
    net, processor = checkpoint.load(folder)
    file_weights = load_file(folder / WEIGHTS)
    net_weights = net.state_dict()
    different_weights = []
    for name, tensor in net_weights.items():
        if not torch.equal(tensor, file_weights[name].to(tensor.dtype)):
            different_weights.append(name)
    unread_weights = list(file_weights.keys() - net_weights.keys())
    return LoadedCheckpoint(net, processor, different_weights, unread_weights)


def load_sharded(folder: Path) -> LoadedCheckpoint:
    """Its weights are not compared: an index may leave some of them out."""
    net, processor = checkpoint.load(folder)
    return LoadedCheckpoint(net, processor, [], [])


def check_loaded(data: bytes, loaded: LoadedCheckpoint) -> str:
    wrong_weights = [*loaded.different_weights, *loaded.unread_weights]
    if wrong_weights:
        return f"weights differ or are left out: {wrong_weights[:3]}"
    largest_id = max(loaded.processor.tokenizer.get_vocab().values())
    vocabulary_size = loaded.net.config.text_config.vocab_size
    return "" if largest_id < vocabulary_size else "ids beyond the vocabulary"


def refuse_adapter(data: bytes, loaded: Any) -> str:
    """An adapter alone is no checkpoint, so all that is not refused is wrong."""
    return "an adapter was loaded"


def write_tiny_checkpoint(folder: Path) -> None:
    """A Janus of a few thousand weights with the miniature's tokenizer."""
    mini_folder = Path(locate("mini"))
    folder.mkdir(parents=True)
    for path in mini_folder.glob("*.json"):
        shutil.copy(path, folder)
    config = read_json(mini_folder / "config.json", dict)
    for part, sizes in TINY_SIZES.items():
        config[part] |= sizes
    torch.manual_seed(0)
    JanusForConditionalGeneration(JanusConfig.from_dict(config)).save_pretrained(folder)
    # save_pretrained has written one of its own
    shutil.copy(mini_folder / "generation_config.json", folder)


def checkpoint_targets(home: Path) -> list[Target]:
    folder = home / "checkpoint"
    write_tiny_checkpoint(folder)
    targets = []
    for name in JSON_FILES:
        targets.append(
            Target(f"checkpoint/{name}", folder, name, load_checkpoint, check_loaded, False)
        )
    data = (folder / WEIGHTS).read_bytes()
    # safetensors: 8 bytes of the header's length, the header in JSON, the tensors
    header_length = int.from_bytes(data[:8], "little")
    header, tensor_bytes = json.loads(data[8 : 8 + header_length]), data[8 + header_length :]

    def with_other_header(rng: random.Random) -> bytes:
        other_header = mutate(json.dumps(header).encode(), rng, json_lines=False)
        stated_length = len(other_header)
        if rng.random() >= 0.8:
            wrong_lengths = [0, 1, len(other_header) + 1, 2**27, 2**63, 2**64 - 1]
            stated_length = rng.choice(wrong_lengths)
        return stated_length.to_bytes(8, "little") + other_header + tensor_bytes

    targets.append(
        Target(
            f"checkpoint/{WEIGHTS}",
            folder,
            WEIGHTS,
            load_checkpoint,
            check_loaded,
            rebuilt=with_other_header,
        )
    )
    targets.append(
        _sharded_target(home, folder, [name for name in header if name != "__metadata__"])
    )
    adapter_folder = in_folder(home / "adapter", {})
    adapter_config = {"peft_type": "LORA", "base_model_name_or_path": "mini"}
    name = "adapter_config.json"
    (adapter_folder / name).write_text(json.dumps(adapter_config))
    targets.append(
        Target(f"checkpoint/{name}", adapter_folder, name, load_checkpoint, refuse_adapter, False)
    )
    return targets


def _sharded_target(home: Path, folder: Path, weight_names: list[str]) -> Target:
    """The index of a checkpoint whose weights are in one shard."""
    sharded_folder = home / "sharded"
    shutil.copytree(folder, sharded_folder)
    shard = "model-1.safetensors"
    (sharded_folder / WEIGHTS).rename(sharded_folder / shard)
    index = {"metadata": {}, "weight_map": dict.fromkeys(weight_names, shard)}
    index_name = f"{WEIGHTS}.index.json"
    (sharded_folder / index_name).write_text(json.dumps(index))
    return Target(
        "checkpoint/index.json", sharded_folder, index_name, load_sharded, check_loaded, False
    )
