"""A run's state from a stranger is data: whatever in it would run code is refused, and nothing of
it is run."""

import pickle

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException

from secondlook.train.distributed import ProcessGroup
from secondlook.train.state_files import load_state, save_state


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return exec, (f"open({str(self.path)!r}, 'w')",)


def state():
    plain = {
        "lr": 0.5,
        "name": "x",
        "none": None,
        "list": [1, (2.0, True)],
        "mean": np.float64(3.5),
    }
    return {
        "model": {"w": torch.arange(3.0), "half": torch.ones(2, 2).bfloat16()},
        "nurse": plain,
        "step": 7,
    }


@pytest.fixture
def folder(tmp_path):
    save_state(state(), tmp_path / "state", ProcessGroup())
    return tmp_path / "state"


def read(folder):
    found = state()
    found["model"]["w"].zero_()
    found["nurse"], found["step"] = dict.fromkeys(found["nurse"]) | {"list": [0, (0, 0)]}, 0
    load_state(found, folder, ProcessGroup())
    return found


def test_a_state_is_read_as_it_was_written(folder):
    found, wanted = read(folder), state()
    assert found["nurse"] == wanted["nurse"] and found["step"] == 7
    assert all(torch.equal(found["model"][n], wanted["model"][n]) for n in wanted["model"])


def test_code_in_a_value(tmp_path):
    owned = tmp_path / "owned"
    save_state(state() | {"step": Hostile(owned)}, tmp_path / "state", ProcessGroup())
    with pytest.raises(CheckpointException, match="Weights only load failed"):
        read(tmp_path / "state")
    assert not owned.exists()


def test_code_in_the_table_of_contents(folder, tmp_path, caplog):
    (folder / ".metadata").write_bytes(pickle.dumps(Hostile(tmp_path / "owned")))
    with pytest.raises((CheckpointException, pickle.UnpicklingError), match=r"builtins\.exec"):
        read(folder)
    assert not (tmp_path / "owned").exists() and not [r for r in caplog.records if r.name == "root"]
