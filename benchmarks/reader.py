"""How strict the world's reader is: share of pictures that satisfy their prompt, per task and per
way to spoil them.

python benchmarks/reader.py [--pictures 200]
"""

import argparse

import numpy as np

from secondlook.mini.world.adversarial import SPOILERS
from secondlook.mini.world.language import TASKS
from secondlook.mini.world.reader import judge
from secondlook.mini.world.render import render
from secondlook.mini.world.samples import sample_scene


def table(n: int, seed: int = 0) -> dict[str, dict[str, float]]:
    """Row name -> task -> share read as correct."""
    rng = np.random.default_rng(seed)
    by_task: dict[str, list] = {task: [] for task in TASKS}
    while any(len(v) < n for v in by_task.values()):
        spec, scene = sample_scene(rng)
        if len(by_task[spec.tag]) < n:
            by_task[spec.tag].append((spec, scene))
    rows: dict[str, dict[str, float]] = {"oracle": {}, "shuffled": {}} | {
        name: {} for name in SPOILERS
    }
    for task, pairs in by_task.items():
        others = [p[1] for p in pairs[1:]] + [pairs[0][1]]
        rows["oracle"][task] = float(np.mean([judge(s, render(c)).correct for s, c in pairs]))
        rows["shuffled"][task] = float(
            np.mean([judge(s, render(c)).correct for (s, _), c in zip(pairs, others, strict=True)])
        )
        for name, spoil in SPOILERS.items():
            rows[name][task] = float(np.mean([judge(s, spoil(rng, c)).correct for s, c in pairs]))
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--pictures", type=int, default=200)
    args = parser.parse_args()
    print("| | " + " | ".join(TASKS) + " |\n" + "|---" + "|---" * len(TASKS) + "|")
    for name, row in table(args.pictures).items():
        print(f"| {name} | " + " | ".join(f"{row[task]:.3f}" for task in TASKS) + " |")
