"""How strict the world's reader is: share of pictures that satisfy their prompt, per task and per
way to spoil them.

python benchmarks/reader.py [--pictures 200]
"""

import argparse
from collections import defaultdict
from collections.abc import Iterable

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
    while min(map(len, by_task.values())) < n:
        spec, scene = sample_scene(rng)
        if len(by_task[spec.tag]) < n:
            by_task[spec.tag].append((spec, scene))
    rows: dict[str, dict[str, float]] = defaultdict(dict)
    for task, pairs in by_task.items():
        specs = [spec for spec, _ in pairs]
        scenes = [scene for _, scene in pairs]
        next_scenes = [*scenes[1:], scenes[0]]  # each spec with another one's scene
        rows["oracle"][task] = share_right(specs, map(render, scenes))
        rows["shuffled"][task] = share_right(specs, map(render, next_scenes))
        for name, spoil in SPOILERS.items():
            rows[name][task] = share_right(specs, (spoil(rng, scene) for scene in scenes))
    return rows


def share_right(specs: list, pictures: Iterable) -> float:
    """Share of the pictures that the reader finds to satisfy their specs."""
    verdicts = []
    for spec, picture in zip(specs, pictures, strict=True):
        verdicts.append(judge(spec, picture).correct)
    return float(np.mean(verdicts))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--pictures", type=int, default=200)
    args = parser.parse_args()
    print("| | " + " | ".join(TASKS) + " |\n" + "|---" + "|---" * len(TASKS) + "|")
    for name, row in table(args.pictures).items():
        print(f"| {name} | " + " | ".join(f"{row[task]:.3f}" for task in TASKS) + " |")
