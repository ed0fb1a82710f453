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
from collections.abc import Sequence
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


def parse_arguments() -> argparse.Namespace:
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
    return parser.parse_args()


def same_weights(folders: Sequence[Path]) -> bool:
    """Whether two runs ended with the same weights, to the bit."""
    killed, whole = [load_file(folder / "final" / "model.safetensors") for folder in folders]
    if killed.keys() != whole.keys():
        return False
    return all(torch.equal(killed[name], whole[name]) for name in killed)


def recovery_lines(folder: Path) -> list[str]:
    """What auto recovery did in a run."""
    log_path = folder / "acts.jsonl"
    return log_path.read_text().splitlines() if log_path.exists() else []


def main() -> None:
    args = parse_arguments()
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    config = args.out / "config.toml"
    config.write_text(f"steps = {args.steps}\n" + SETTINGS)
    console, rng = Console(), random.Random(args.seed)

    def start(name: str) -> subprocess.Popen:
        command = ["train", "rl", "--config", str(config), "--out", str(args.out / name)]
        return subprocess.Popen(
            [sys.executable, "-m", "secondlook", *command], stdout=subprocess.DEVNULL
        )

    lives: list[dict] = []
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
    killed_folder, whole_folder = args.out / "killed", args.out / "whole"
    are_equal = same_weights([killed_folder, whole_folder])
    killed_acts, whole_acts = recovery_lines(killed_folder), recovery_lines(whole_folder)
    console.print(
        f"{args.kills} kills: weights {'equal' if are_equal else 'DIFFER'}; auto recovery acted "
        f"{len(whole_acts)} times"
    )
    if args.json:
        result = {
            "equal": are_equal,
            "lives": lives,
            "acts": len(whole_acts),
            "same_acts": killed_acts == whole_acts,
            "steps": args.steps,
            "seed": args.seed,
            "versions": versions(),
        }
        write_json(args.json, result)
    sys.exit(not are_equal)


if __name__ == "__main__":
    main()
