"""What each rank of tests/integration/test_distributed.py runs: both stages in turn. The second
rank kills itself once, amid RL."""

import os
import signal
import sys
import warnings
from pathlib import Path

from jobs import RL, SFT
from secondlook.train.rl.config import RLConfig
from secondlook.train.rl.loop import train_rl
from secondlook.train.sft import SFTConfig, train_sft
from secondlook.train.trainer import Trainer

out, data = Path(sys.argv[1]), sys.argv[2]
warnings.simplefilter("ignore")
save = Trainer.save


def save_or_die(self):
    marker = self.out / "died"
    if (
        os.environ["RANK"] == "1"
        and self.out.name == "grpo"
        and self.step == 2
        and not marker.exists()
    ):
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    save(self)


Trainer.save = save_or_die
train_sft(SFTConfig(data=data, **SFT), out / "sft")
train_rl(RLConfig(**RL), out / "grpo")
replicas = RL | {"algorithm": "ppo", "runtime": RL["runtime"] | {"dp_shard_degree": 1}}
train_rl(RLConfig(**replicas), out / "ppo")
