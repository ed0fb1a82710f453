"""Loading the scorers' models, which others have made, and what they give."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from secondlook.errors import InputError


class NotANumber(Exception):
    """A model's outputs for a picture are no numbers: nothing can be said of it."""


def check_finite(values: Tensor, who: str) -> Tensor:
    """The values themselves. Raises NotANumber where one is NaN or infinite."""
    if not bool(torch.isfinite(values).all()):
        raise NotANumber(f"{who} gave values that are no numbers")
    return values


def pooled(features: Any) -> Tensor:
    """transformers gives features as they are, or (in later versions) in an output with a
    pooler."""
    return features if isinstance(features, Tensor) else features.pooler_output


@contextmanager
def loading(option: str, model_path: str, what: str) -> Iterator[None]:
    """Whatever goes wrong while a scorer's model is loaded. Raises InputError that names the option
    and the model."""
    try:
        yield
    except Exception as error:  # transformers raises whatever a foreign or damaged file leads it to
        reason = str(error).split("\n")[0] or type(error).__name__
        raise InputError(
            f"{option}: {model_path!r} is no {what} that transformers loads ({reason})"
        ) from error


def check_model(option: str, model_path: str) -> str:
    """The model's name, once its config could be read. Raises InputError that names the option."""
    from transformers import AutoConfig

    with loading(option, model_path, "model"):
        AutoConfig.from_pretrained(model_path)
    return model_path
