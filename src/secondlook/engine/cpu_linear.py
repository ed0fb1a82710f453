"""Linear layers on a CPU."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

MIN_WEIGHT_SIZE = 2**18
"""Values of a weight from which on oneDNN is faster than torch's default, at any number of rows."""


class OneDNN(TorchFunctionMode):
    """While it is entered, large float32 linear layers are multiplied by oneDNN instead of torch's
    default library: with the two to 64 rows of a decoding step that is 1.3 to 2.7 times faster
    (docs/LOG.md). Without gradients only."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.linear and not kwargs:
            x, weight, bias = (*args, None)[:3]  # (…, in), (out, in), (out,) or None
            is_plain = type(weight) in (torch.Tensor, torch.nn.Parameter)  # not quantized
            if (
                is_plain
                and weight.numel() >= MIN_WEIGHT_SIZE
                and weight.dtype == torch.float32
                and weight.device.type == "cpu"
            ):
                return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return func(*args, **(kwargs or {}))


def fast_linear(device: torch.device) -> AbstractContextManager:
    """The mode to enter on this device."""
    if device.type == "cpu" and torch.backends.mkldnn.is_available():
        return OneDNN()
    return nullcontext()
