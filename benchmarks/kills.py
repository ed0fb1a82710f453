"""A run that is killed again and again, at random moments, against one that is not: the final
weights must be equal.

    python benchmarks/kills.py --kills 20 --json out/kills.json

Both run `secondlook train rl` on the miniature. Exits with 1 where the weights differ.
"""

import argparse
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import load_file

from secondlook.io import versions, write_json
from secondlook.train.state_files import saved_steps

SETTINGS = """
model = "mini"

[rollout]
prompts_per_step = 2
group_size = 3
rounds = 2

[advantage]
credit = "expected"

[optim]
epochs = 1
lr = 1e-4
warmup_steps = 2

[runtime]
device = "cpu"
threads = 1
log_every = 1
save_every = 1

[reward_checks]
max_flat_steps = 1000

[auto_recovery]
window = 3
drop = 0.15
max_actions = 1000
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument(
        "--longest", type=float, default=25.0, help="a life's most seconds, start included"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/kills"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    config = args.out / "config.toml"
    config.write_text(f"steps = {args.steps}\n" + SETTINGS)
    console, rng = Console(), random.Random(args.seed)

    def start(name: str) -> subprocess.Popen:
        command = ["train", "rl", "--config", str(config), "--out", str(args.out / name)]
        return subprocess.Popen(
            [sys.executable, "-m", "secondlook.cli", *command], stdout=subprocess.DEVNULL
        )

    lives = []
    while len(lives) < args.kills:
        process, seconds = start("killed"), rng.uniform(0, args.longest)
        began = time.perf_counter()
        while time.perf_counter() - began < seconds and process.poll() is None:
            time.sleep(0.01)
        if process.poll() is not None:
            raise SystemExit(
                f"the run ended (code {process.returncode}) after {len(lives)} kills; give more "
                "--steps"
            )
        process.send_signal(signal.SIGKILL)
        process.wait()
        lives.append(
            {"seconds": seconds, "saved": max(saved_steps(args.out / "killed"), default=0)}
        )
        console.print(f"kill {len(lives)} after {seconds:.1f} s, at step {lives[-1]['saved']}")
    if start("killed").wait() or start("whole").wait():
        raise SystemExit("a run failed")
    a, b = (
        load_file(args.out / name / "final" / "model.safetensors") for name in ("killed", "whole")
    )
    equal = a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    logs = [(args.out / name / "acts.jsonl") for name in ("killed", "whole")]
    acts = [p.read_text().splitlines() if p.exists() else [] for p in logs]
    console.print(
        f"{args.kills} kills: weights {'equal' if equal else 'DIFFER'}; auto recovery acted "
        f"{len(acts[1])} times"
    )
    if args.json:
        result = {
            "equal": equal,
            "lives": lives,
            "acts": len(acts[1]),
            "same_acts": acts[0] == acts[1],
            "steps": args.steps,
            "seed": args.seed,
            "versions": versions(),
        }
        write_json(args.json, result)
    sys.exit(not equal)


if __name__ == "__main__":
    main()
