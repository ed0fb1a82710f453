r"""One GRPO or PPO step of a model of Janus-Pro's size with random weights: seconds, tokens a
second and peak memory, for full training and for adapters.

    python benchmarks/rl_step.py --size 1b --device cuda --dtype bfloat16 \
        --lora-rank 0 32 --json out/rl_step.json

The judge is a toy (how bright a picture is), so that what is timed is rolling out and updating. The
first step, which compiles and warms up, is not counted.
"""

import argparse
import gc
import json
import time
import warnings
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from decode import SIZES
from fullsize import write
from measuring import process_bytes, settings_of, watch, write_result
from secondlook.io import versions
from secondlook.rewards.reward import Score
from secondlook.train.rl.config import (
    PPOConfig,
    RewardChecksConfig,
    RLConfig,
    RLOptimConfig,
    RLRuntimeConfig,
    RolloutConfig,
)
from secondlook.train.rl.loop import RLLoop


class Bright:
    """A judge that needs no time."""

    def __call__(self, items):
        scores = []
        for _, image in items:
            brightness = float(np.asarray(image).mean()) / 255
            scores.append(Score(brightness, brightness > 0.5, "it is bright"))
        return scores


def fresh_peak(device: str):
    """Start to watch; the returned function says the largest memory in use since then, in bytes."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated
    bytes_before = process_bytes("VmRSS:")
    peak = watch(device)
    return lambda: bytes_before + peak()


def measure(args, lora_rank: int) -> dict:
    prompts = Path(args.out) / "prompts.txt"
    prompts.write_text("a photo of a cat below a cup\na photo of two red kites\n")
    config = RLConfig(
        model=str(args.folder),
        prompts=str(prompts),
        algorithm=args.algorithm,
        lora_rank=lora_rank,
        rollout=RolloutConfig(
            prompts_per_step=args.prompts, group_size=args.group_size, rounds=args.rounds
        ),
        ppo=PPOConfig(value_warmup_steps=0),
        optim=RLOptimConfig(lr=1e-6, epochs=1, minibatches=args.minibatches),
        runtime=RLRuntimeConfig(
            device=args.device,
            dtype=args.dtype,
            micro_batch_size=args.micro_batch_size,
            activation_checkpointing=args.checkpointing,
            reference=args.reference,
            picture_every=10**9,
        ),
        reward_checks=RewardChecksConfig(max_flat_steps=1000),
    )
    loop = RLLoop(config, Path(args.out), Bright())
    seen: dict[str, float] = {}  # of the last step
    learn = loop.policy_update.learn

    def timed(rng, turns, *rest):
        """Learning begins where the rollout has ended."""
        seen["rollout_peak"] = rollout_peak()
        peak, start = fresh_peak(args.device), time.perf_counter()
        metrics = learn(rng, turns, *rest)
        if args.device == "cuda":
            torch.cuda.synchronize()
        seen["update_seconds"], seen["update_peak"] = time.perf_counter() - start, peak()
        seen["turns"] = len(turns)
        seen["tokens"] = sum(len(turn.turn.tokens) for turn in turns)
        return metrics

    loop.policy_update.learn = timed
    for step in range(1 + args.repeat):
        rollout_peak = fresh_peak(args.device)
        start = time.perf_counter()
        metrics = loop.step(step)
        seen["seconds"] = time.perf_counter() - start
    compared = (
        "sampler_gap",
        "sampler_gap_mean",
        "sampler_gap_99",
        "sampler_outside",
        "importance",
    )
    seen |= {name: metrics[name] for name in ("rollout_seconds", *compared)}
    seen["lora_rank"] = lora_rank
    seen["rollout_tokens_per_second"] = seen["tokens"] / metrics["rollout_seconds"]
    seen["update_tokens_per_second"] = seen["tokens"] / seen["update_seconds"]
    seen["tokens_per_second"] = seen["tokens"] / seen["seconds"]
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="1b")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("out/fullsize"),
        help="kept, and used again when it is there",
    )
    parser.add_argument("--algorithm", default="grpo")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--group-size", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--micro-batch-size", type=int, default=8)
    parser.add_argument("--minibatches", type=int, default=2)
    parser.add_argument("--lora-rank", type=int, nargs="+", default=[0, 32])
    parser.add_argument("--checkpointing", default="selective")
    parser.add_argument("--reference", default="copy")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if not args.folder.exists():
        writer = get_context("spawn").Process(target=write, args=(args.folder, args.size))
        writer.start()
        writer.join()
    rows = []
    for lora_rank in args.lora_rank:
        with TemporaryDirectory() as args.out:
            rows.append(measure(args, lora_rank))
        rounded = {name: float(f"{value:.4g}") for name, value in rows[-1].items()}
        print(json.dumps(rounded), flush=True)
        gc.collect()
        if args.device == "cuda":
            torch.cuda.empty_cache()
    settings = settings_of(args)
    settings.pop("out", None)  # a temporary folder
    write_result(args.json, {"runs": rows, "settings": settings, "versions": versions()})


if __name__ == "__main__":
    main()
