"""The ranks of tests/integration/test_distributed.py: the base and both stages in turn. The second
rank kills itself once, amid RL.

    python tests/ranks_job.py OUT DATA

They are started, and started again, by torchrun's agent, but forked from this process, which has
imported everything once.
"""

import os
import signal
import sys
import warnings
from pathlib import Path

from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from jobs import BASE, RL, SFT
from secondlook.mini.pretrain.base_model import train_base
from secondlook.mini.pretrain.config import BaseConfig
from secondlook.train.rl.config import RLConfig
from secondlook.train.rl.loop import train_rl
from secondlook.train.sft import SFTConfig, train_sft
from secondlook.train.trainer import Trainer

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


def run_rank(out: Path, data: str) -> None:
    warnings.simplefilter("ignore")
    Trainer.save = save_or_die
    train_base(BaseConfig(**BASE), out / "base")
    verdicts = BASE | {"draws": 0, "lessons": {}, "questions": 4, "steps": 2}
    train_base(BaseConfig(**verdicts), out / "verdicts")
    train_sft(SFTConfig(data=data, **SFT), out / "sft")
    train_rl(RLConfig(**RL), out / "grpo")
    replicas = RL | {"algorithm": "ppo", "runtime": RL["runtime"] | {"dp_shard_degree": 1}}
    train_rl(RLConfig(**replicas), out / "ppo")


if __name__ == "__main__":
    agent = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=1,
        monitor_interval=0.2,
        start_method="fork",
    )
    elastic_launch(agent, run_rank)(Path(sys.argv[1]), sys.argv[2])
