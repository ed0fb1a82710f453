"""Two ranks (gloo, CPU) against one: the same losses and weights, also after a rank was killed, and
resumed on one."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import torch
from safetensors.torch import load_file

from jobs import BASE, RL, SFT
from secondlook.data.build_config import BuildConfig
from secondlook.data.generate import build
from secondlook.data.generators import GeneratorConfig
from secondlook.engine.engine import Engine
from secondlook.errors import InputError
from secondlook.mini.pretrain.base_model import BaseJob
from secondlook.mini.pretrain.config import BaseConfig
from secondlook.mini.verifier import Verifier
from secondlook.models.janus.model import Janus
from secondlook.models.shipped import locate
from secondlook.train.distributed import ProcessGroup
from secondlook.train.rl.config import RLConfig
from secondlook.train.rl.loop import train_rl
from secondlook.train.sft import train_sft
from secondlook.train.sft_config import SFTConfig

pytestmark = pytest.mark.distributed
HERE = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    config = BuildConfig(
        [GeneratorConfig("render", "mini-base", 5)], prompts="mini", n_prompts=20, examples="none"
    )
    return str(
        build(
            config,
            Verifier(),
            tmp_path_factory.mktemp("data"),
            lambda m: Engine(Janus.load(locate(m))),
        )
    )


@pytest.fixture(scope="module")
def two(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("two")
    done = subprocess.run(
        [sys.executable, str(HERE / "ranks_job.py"), str(out), data],
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def furthest(a: Path, b: Path) -> float:
    """The largest difference between two runs' weights."""
    left, right = (load_file(p / "final" / "model.safetensors") for p in (a, b))
    assert left.keys() == right.keys()
    return max(float((left[k] - right[k]).abs().max()) for k in left)


def check(one: Path, two: Path) -> None:
    rows = [
        [json.loads(line) for line in (p / "metrics.jsonl").read_text().splitlines()]
        for p in (one, two)
    ]
    assert [r["step"] for r in rows[0]] == [r["step"] for r in rows[1]] == [1, 2, 3]
    for a, b in zip(*rows, strict=True):
        assert a.keys() == b.keys()
        timed = {"seconds", "rollout_seconds", "tokens_per_second"}
        for name in (
            n for n in a.keys() - timed if not n.startswith("sampler_gap")
        ):  # those are rounding
            assert a[name] == pytest.approx(b[name], rel=1e-3, abs=1e-5), name
    assert furthest(one, two) < 1e-5


def test_a_base_learns_of_what_all_ranks_have(two, tmp_path):
    """A rank's sequences are its own; the update is of the mean of their gradients."""
    config = BaseConfig(**BASE)
    values, barrier = [None, None], Barrier(2)

    class Thread(ProcessGroup):
        def all_gather(self, value):
            values[self.rank] = value
            barrier.wait()
            both = list(values)
            barrier.wait()
            return both

    jobs = [BaseJob(config, tmp_path) for _ in range(2)]
    for rank, job in enumerate(jobs):
        job.ranks = Thread(rank, 2)
        job.local_counts = job._local_counts()
    assert (
        sum((job.local_counts for job in jobs), Counter()) == BaseJob(config, tmp_path).local_counts
    )
    with ThreadPoolExecutor(2) as pool:
        shares = list(pool.map(lambda job: job._weights({"draw": job.local_counts["draws"]}), jobs))
        assert [share["draw"] for share in shares] == [0.6, 0.4], "of five"
        losses = []
        for step in range(config.steps):
            metrics = list(pool.map(BaseJob.backward, jobs, (step, step)))
            losses.append([rank_metrics["draw_loss"] for rank_metrics in metrics])
            learn_together(jobs, step)
    with jobs[0].average.applied():
        jobs[0].janus.save(tmp_path / "final")
    assert furthest(tmp_path, two / "base") < 1e-4  # Muon enlarges what rounding leaves
    rows = [json.loads(row) for row in (two / "base" / "metrics.jsonl").read_text().splitlines()]
    for row, of_ranks in zip(rows, losses, strict=True):
        assert row["draw_loss"] == pytest.approx(sum(of_ranks) / 2, rel=1e-3)


def learn_together(jobs, step):
    for first, second in zip(*(job.optimizer.parameters for job in jobs), strict=True):
        if first.grad is not None or second.grad is not None:
            gradients = [p.grad for p in (first, second) if p.grad is not None]
            first.grad = second.grad = sum(gradients)
    for job in jobs:
        job.optimizer.step(job.schedule.at(step))
        job.average.update(step)


def test_what_no_rank_learns_of_stays_as_it_is(two):
    """Zeros in place of no gradient would let weight decay shrink it."""
    start, end = (
        load_file(folder / "model.safetensors")
        for folder in (Path(locate("mini-base")), two / "verdicts" / "final")
    )
    drawing = [name for name in start if "generation_head" in name]
    assert drawing and all(torch.equal(start[name], end[name]) for name in drawing)
    assert not torch.equal(start["lm_head.weight"], end["lm_head.weight"])


def test_supervised_fine_tuning(two, data, tmp_path):
    train_sft(SFTConfig(data=data, **SFT), tmp_path)
    check(tmp_path, two / "sft")


def test_grpo_of_which_a_rank_was_killed(two, tmp_path):
    assert (two / "grpo" / "died").exists()
    train_rl(RLConfig(**RL), tmp_path / "one")
    check(tmp_path / "one", two / "grpo")
    for origin in (
        two / "grpo",
        tmp_path / "one",
    ):  # a state of two ranks goes on with one, and of one with one
        resumed = tmp_path / f"resumed-{origin.name}"
        shutil.copytree(origin, resumed, ignore=shutil.ignore_patterns("final", "step-00000003"))
        torch.manual_seed(99)  # whatever the process did in between must not matter
        train_rl(RLConfig(**RL), resumed)
        check(tmp_path / "one", resumed)
    assert furthest(tmp_path / "one", resumed) == 0


def test_ppo_with_a_replica_on_each_rank(two, tmp_path):
    train_rl(RLConfig(**RL, algorithm="ppo"), tmp_path)
    check(tmp_path, two / "ppo")


def test_numbers_that_do_not_fit_are_named(monkeypatch, tmp_path):
    from secondlook.train.rl.loop import RLLoop

    with pytest.raises(InputError, match="prompts_per_step is 4"):
        RLLoop(RLConfig(**RL), tmp_path, Verifier(), ProcessGroup(0, 3))
