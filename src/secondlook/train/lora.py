"""Low-rank adapters by peft (LoRA, arXiv 2106.09685), on the language model's layers and the
generation aligner and head (not on the last layers, whose log-probabilities are computed in parts).
Everything else is frozen; the reference is the same model with its adapters off.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from secondlook.errors import InputError
from secondlook.models.janus.model import Janus

NAME = "default"
"""What peft calls the adapter in the names of its weights."""


class Adapters:
    """Adapters of ``rank`` in ``janus``, which are added and are all that is trained. ``alpha`` 0:
    twice the rank; ``base``: the model's name, folder or hub id, which peft's config names.

    Raises InputError where peft is not installed.
    """

    def __init__(self, janus: Janus, rank: int, alpha: int = 0, seed: int = 0, base: str = ""):
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as error:
            raise InputError(
                "lora: peft is not installed; run pip install 'secondlook[lora]'"
            ) from error
        self.janus = janus
        self.config = LoraConfig(
            base_model_name_or_path=base or None,
            r=rank,
            lora_alpha=alpha or 2 * rank,
            target_modules=_adapted_layers(janus),
        )
        janus.requires_grad_(False)
        torch.manual_seed(seed)  # peft draws A; B is 0, so that training begins at the model
        inject_adapter_in_model(self.config, janus.net, adapter_name=NAME)

    @contextmanager
    def off(self) -> Iterator[None]:
        """The model as it was without adapters, inside."""
        from peft.helpers import rescale_adapter_scale

        with rescale_adapter_scale(self.janus.net, 0.0):
            yield

    def merged(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """A whole state dict with the adapters added to the weights, under the plain model's names.
        Sums are in float32 at least: in the bfloat16 of a frozen base a small change would be lost
        in part."""
        scale = self.config.lora_alpha / self.config.r
        merged_weights = {}
        for name, weight in weights.items():
            if ".lora_" in name:
                continue
            if name.endswith(".base_layer.weight"):  # (out, in)
                lora_a = weights[name.replace("base_layer", f"lora_A.{NAME}")]  # (rank, in)
                lora_b = weights[name.replace("base_layer", f"lora_B.{NAME}")]  # (out, rank)
                dtype = torch.promote_types(weight.dtype, torch.float32)
                weight = weight.to(dtype) + scale * (lora_b.to(dtype) @ lora_a.to(dtype))
            merged_weights[name.replace(".base_layer", "")] = weight
        return merged_weights

    def export(self, weights: dict[str, Tensor], folder: Path) -> None:
        """Write the adapters of a whole state dict alone, as peft loads them."""
        folder.mkdir(parents=True, exist_ok=True)
        adapter_weights = {}
        for name, weight in weights.items():
            if ".lora_" in name:
                # peft's files have its wrapper's prefix, and not the adapter's name
                stored_name = f"base_model.model.{name.replace(f'.{NAME}', '')}"
                adapter_weights[stored_name] = weight.contiguous()
        save_file(adapter_weights, folder / "adapter_model.safetensors")
        self.config.save_pretrained(str(folder))


def _adapted_layers(janus: Janus) -> list[str]:
    """Names in ``janus.net`` of the linear layers that get adapters."""
    model: Any = janus.net.model
    adapted_parts = {
        "model.language_model.layers": model.language_model.layers,
        "model.generation_aligner": model.generation_aligner,
        "model.generation_head": model.generation_head,
    }
    layer_names = []
    for prefix, part in adapted_parts.items():
        for name, module in part.named_modules():
            is_last_layer = module is model.generation_head.vision_head
            if isinstance(module, nn.Linear) and not is_last_layer:
                layer_names.append(f"{prefix}.{name}")
    return layer_names
