"""Which device a job runs on, and in which number type a model draws and judges there."""

from __future__ import annotations

import os

import torch

from secondlook.errors import InputError


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """The device that a user's word means; "auto" is CUDA, else MPS, else the CPU.

    "cuda" stays without an index, so that each rank of a distributed job can be given its own GPU.
    No memory is taken on any GPU. Raises InputError where the device is not there.
    """
    if device == "auto":
        return torch.device(_best_device_type())
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError(
            f"device: {str(device)!r} is no device; use auto, cpu, cuda, cuda:1 or mps"
        ) from error
    if not _is_there(resolved):
        raise InputError(
            f"device: {str(device)!r} is not there, torch finds {', '.join(available_devices())}; "
            "use auto or one of these"
        )
    return resolved


def worker_device(device: str | torch.device = "auto") -> torch.device:
    """``resolve_device`` for one of several processes that share a job without talking to each
    other (torchrun numbers them in LOCAL_RANK): a GPU of its own, as far as there are as many."""
    resolved = resolve_device(device)
    local_rank = os.environ.get("LOCAL_RANK", "")
    if resolved == torch.device("cuda") and local_rank.isdecimal():
        return torch.device("cuda", int(local_rank) % torch.cuda.device_count())
    return resolved


def available_devices() -> list[str]:
    """Names of all devices that torch finds, the CPU first."""
    names = ["cpu"]
    for index in range(torch.cuda.device_count()):
        names.append(f"cuda:{index}")
    if torch.backends.mps.is_available():
        names.append("mps")
    return names


def _best_device_type() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _is_there(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
    if device.type == "mps":
        return torch.backends.mps.is_available()
    if device.type == "meta":  # torch makes tensors without data there
        return False
    try:  # of the other types torch has no common way to ask
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        return False
    return True


def inference_dtype(device: torch.device, stored: torch.dtype | None) -> torch.dtype | None:
    """The number type to draw and judge in (``dtype="auto"``), of a checkpoint stored in ``stored``
    (None: it does not say).

    On a CPU it is float32, for most CPUs multiply half precision many times slower. On a GPU it is
    the half precision that the checkpoint is stored in, or bfloat16 for the float32 that training
    writes. Elsewhere it is the stored one (None).
    """
    if device.type == "cpu":
        return torch.float32
    is_half = stored in (torch.bfloat16, torch.float16)
    if device.type == "cuda" and not is_half:
        return torch.bfloat16
    return stored
