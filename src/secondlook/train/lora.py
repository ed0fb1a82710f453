"""Low-rank adapters by peft, on the language model's layers and the generation aligner and head
(not on the last layers, whose log-probabilities are computed in parts). Everything else is frozen;
the reference is the same model with its adapters off.
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
        model: Any = janus.net.model
        parts = {
            "model.language_model.layers": model.language_model.layers,
            "model.generation_aligner": model.generation_aligner,
            "model.generation_head": model.generation_head,
        }
        targets = [
            f"{prefix}.{name}"
            for prefix, part in parts.items()
            for name, m in part.named_modules()
            if isinstance(m, nn.Linear) and m is not model.generation_head.vision_head
        ]
        self.janus = janus
        self.config = LoraConfig(
            base_model_name_or_path=base or None,
            r=rank,
            lora_alpha=alpha or 2 * rank,
            target_modules=targets,
        )
        janus.requires_grad_(False)
        torch.manual_seed(seed)
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
        found = {}
        for name, value in weights.items():
            if ".lora_" in name:
                continue
            if name.endswith(".base_layer.weight"):
                a, b = (weights[name.replace("base_layer", f"lora_{x}.{NAME}")] for x in "AB")
                kind = torch.promote_types(value.dtype, torch.float32)
                value = value.to(kind) + scale * (b.to(kind) @ a.to(kind))
            found[name.replace(".base_layer", "")] = value
        return found

    def export(self, weights: dict[str, Tensor], folder: Path) -> None:
        """Write the adapters alone, as peft loads them."""
        folder.mkdir(parents=True, exist_ok=True)
        alone = {
            f"base_model.model.{n.replace(f'.{NAME}', '')}": v.contiguous()
            for n, v in weights.items()
            if ".lora_" in n
        }
        save_file(alone, folder / "adapter_model.safetensors")
        self.config.save_pretrained(str(folder))
