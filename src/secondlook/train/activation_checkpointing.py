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
KEPT_OPERATIONS = {
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._flash_attention_forward.default,
}
"""What "selective" keeps: results of matrix multiplications and of attention. All else (norms, the
rotation, the activation) is cheap to compute again and takes more than half of the memory."""


def _policy(context, op, *args, **kwargs) -> CheckpointPolicy:
    if op in KEPT_OPERATIONS:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


@contextmanager
def activation_checkpointing(janus: Janus, how: Checkpointing) -> Iterator[None]:
    """Inside, passes of the language model with gradients keep what ``how`` says: "none" all,
    "selective" ``KEPT_OPERATIONS``, "full" the layers' inputs. Values and gradients do not depend
    on it."""
    language_model = janus.net.model.language_model
    if how == "none":
        yield
        return
    options: dict = {"use_reentrant": False}
    if how == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    for layer in language_model.layers:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = partial(checkpoint, **options)
    # transformers checkpoints in training mode only; these layers have no dropout
    language_model.train()
    try:
        yield
    finally:
        language_model.eval()
        for layer in language_model.layers:
            layer.gradient_checkpointing = False
