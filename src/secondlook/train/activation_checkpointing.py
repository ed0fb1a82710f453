"""Activations of the language model's layers while training: kept, partly kept, or computed again
for the gradient."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from secondlook.models.janus.model import Janus
from secondlook.train.job_config import Checkpointing

aten = torch.ops.aten
COSTLY = {
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._flash_attention_forward.default,
}
"""What "selective" keeps: results of multiplications and of attention. All else is cheap and takes
more than half."""


def _policy(context, op, *args, **kwargs) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in COSTLY else CheckpointPolicy.PREFER_RECOMPUTE


@contextmanager
def activation_checkpointing(janus: Janus, how: Checkpointing) -> Iterator[None]:
    """Passes with gradients of the language model, inside. Values and gradients do not depend on
    it."""
    model = janus.net.model.language_model
    if how == "none":
        yield
        return
    kwargs: dict = {"use_reentrant": False}
    if how == "selective":
        kwargs["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    for layer in model.layers:
        layer.gradient_checkpointing, layer._gradient_checkpointing_func = (
            True,
            partial(checkpoint, **kwargs),
        )
    model.train()  # transformers repeats only then; these layers have no dropout
    try:
        yield
    finally:
        model.eval()
        for layer in model.layers:
            layer.gradient_checkpointing = False
