"""What a user's word for a device means."""

import re

import pytest
import torch

from secondlook.errors import InputError
from secondlook.models.device import available_devices, resolve_device, worker_device


@pytest.fixture
def machine(monkeypatch):
    """A stand-in for a machine with so many CUDA GPUs, and perhaps Apple's."""

    def make(gpus: int, mps: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return make


@pytest.mark.parametrize(
    ("gpus", "mps", "best"),
    [(2, False, "cuda"), (1, True, "cuda"), (0, True, "mps"), (0, 0, "cpu")],
)
def test_auto_takes_the_best_device(machine, gpus, mps, best):
    machine(gpus, bool(mps))
    assert resolve_device() == resolve_device("auto") == torch.device(best)


def test_one_gpu_by_its_index(machine):
    machine(2)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    assert resolve_device(torch.device("cpu")) == torch.device("cpu")
    assert available_devices() == ["cpu", "cuda:0", "cuda:1"]


@pytest.mark.parametrize("word", ["cuda:2", "mps", "gpu", "cuda:-1", "xpu", ""])
def test_a_device_that_is_not_there_is_one_sentence(machine, word):
    machine(2)
    with pytest.raises(InputError, match=f"device: {re.escape(repr(word))} is no") as raised:
        resolve_device(word)
    assert "\n" not in str(raised.value) and "auto" in str(raised.value)


def test_workers_have_a_gpu_each(machine, monkeypatch):
    machine(2)
    assert worker_device() == torch.device("cuda")
    for local_rank, index in ((0, 0), (1, 1), (2, 0)):
        monkeypatch.setenv("LOCAL_RANK", str(local_rank))
        assert worker_device("auto") == torch.device("cuda", index)
        assert worker_device("cuda:1") == torch.device("cuda", 1)
        assert worker_device("cpu") == torch.device("cpu")


def test_a_device_without_data_is_refused():
    with pytest.raises(InputError, match="'meta' is not there, torch finds cpu"):
        resolve_device("meta")
