"""A training job of one number, for tests of what all jobs share."""

from dataclasses import dataclass

import torch


@dataclass
class Toy:
    steps: int = 40


class Weight:
    """One number that grows by the rate; beyond a limit the reward is gone."""

    def __init__(self):
        self.value = torch.zeros(1)

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]
