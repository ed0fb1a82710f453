r"""One GRPO or PPO step of a model of Janus-Pro's size with random weights: seconds, tokens a
second
and peak memory, for full training and for adapters.

    python benchmarks/rl_step.py --size 1b --device cuda --dtype bfloat16 \
        --lora 0 32 --json out/rl_step.json

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

from decode import SIZES, watch
from fullsize import write
from secondlook.io import versions, write_json
from secondlook.rewards.reward import Score
from secondlook.train.rl.config import RLConfig
from secondlook.train.rl.loop import RLLoop


class Bright:
    """A judge that needs no time."""

    def __call__(self, items):
        values = [float(np.asarray(image).mean()) / 255 for _, image in items]
        return [Score(v, v > 0.5, "it is bright") for v in values]


def fresh_peak(device: str):
    """Start to watch; the returned function says the largest memory in use since then, in bytes."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated
    base = int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) * 1024
    peak = watch(device)
    return lambda: base + peak()


def measure(args, lora: int) -> dict:
    prompts = Path(args.out) / "prompts.txt"
    prompts.write_text("a photo of a cat below a cup\na photo of two red kites\n")
    config = RLConfig(
        model=str(args.folder),
        prompts=str(prompts),
        algorithm=args.algorithm,
        prompts_per_step=args.prompts,
        group=args.group,
        rounds=args.rounds,
        micro=args.micro,
        epochs=1,
        minibatches=args.minibatches,
        lora=lora,
        lr=1e-6,
        device=args.device,
        dtype=args.dtype,
        checkpointing=args.checkpointing,
        reference=args.reference,
        patience=1000,
        picture_every=10**9,
        value_warmup=0,
    )
    job = RLLoop(config, Path(args.out), Bright())
    learn, seen = job.learn, {}

    def timed(rng, rows, n_rows, lr, step):
        seen["rollout_peak"] = rolled_out()
        peak, start = fresh_peak(args.device), time.perf_counter()
        told = learn(rng, rows, n_rows, lr, step)
        if args.device == "cuda":
            torch.cuda.synchronize()
        seen["update_seconds"], seen["update_peak"] = time.perf_counter() - start, peak()
        lengths = [len(r.turn.tokens) for r in rows]
        seen["turns"], seen["tokens"] = len(rows), sum(lengths)
        return told

    job.learn = timed
    rolled_out = fresh_peak(args.device)
    for step in range(1 + args.repeat):
        rolled_out = fresh_peak(args.device)
        start = time.perf_counter()
        told = job.step(step)
        seen["seconds"] = time.perf_counter() - start
    compared = (
        "sampler_gap",
        "sampler_gap_mean",
        "sampler_gap_99",
        "sampler_outside",
        "importance",
    )
    seen |= {name: told[name] for name in ("rollout_seconds", *compared)} | {"lora": lora}
    seen["rollout_tokens_per_second"] = seen["tokens"] / told["rollout_seconds"]
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
    parser.add_argument("--group", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--micro", type=int, default=8)
    parser.add_argument("--minibatches", type=int, default=2)
    parser.add_argument("--lora", type=int, nargs="+", default=[0, 32])
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
    for lora in args.lora:
        with TemporaryDirectory() as args.out:
            rows.append(measure(args, lora))
        print(json.dumps({k: float(f"{v:.4g}") for k, v in rows[-1].items()}), flush=True)
        gc.collect()
        if args.device == "cuda":
            torch.cuda.empty_cache()
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        settings = {
            k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k != "out"
        }
        write_json(args.json, {"runs": rows, "settings": settings, "versions": versions()})


if __name__ == "__main__":
    main()
