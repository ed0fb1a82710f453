"""Does a recipe run on its GPUs? One step of its own code at full size, without weights.

    python benchmarks/simulate.py 7b/grpo --ranks 8 --memory 80
    python benchmarks/simulate.py 1b/grpo 1b/sft 7b/grpo 7b/sft --json out/simulate.json

A part is a module of its own: ``rollout`` (episodes, by the engine's own scheduler), ``update`` (a
minibatch under FSDP), ``order`` (collectives of ranks with unequal work) and ``host`` (stage 1's
memory and reads on a CPU). Peaks are GiB a rank, beside those of ``secondlook plan``. Exits with 1
where a recipe does not fit, or where the plan is more than a tenth away.
"""

from __future__ import annotations

import argparse
import importlib
import re
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from secondlook import config as configs
from secondlook.errors import InputError
from secondlook.io import versions, write_json
from secondlook.recipes import find_config, name_of
from secondlook.train.rl.config import RLConfig
from secondlook.train.sft_config import SFTConfig

PARTS = {"rollout": ("rl",), "update": ("rl", "sft"), "order": ("rl",), "host": ("sft",)}
"""Parts, and the stages that have them."""
OF_SIZE = {
    "model",
    "data",
    "rollout.rollout_batch_size",
    "runtime.micro_batch_size",
    "runtime.activation_checkpointing",
    "lora_rank",
    "optim.lr",
    "steps",
    "good_edit",
    "runtime.dtype",
    "runtime.device",
}
"""Settings that differ between the recipes of two sizes and do not matter to ``order`` and
``host``."""
NEAR = 0.1
"""How far the plan may be from the peak, as a share of it."""


def named(recipe: Path) -> tuple[int, float]:
    """The GPUs that a recipe says it is for: how many, and the GB of each."""
    match = re.search(r"For (\w+) GPUs? of (\d+) GB", recipe.read_text())
    if not match:
        raise InputError(
            f"{recipe}: it does not say for which GPUs it is; give --ranks and --memory"
        )
    num_gpus, gigabytes = match.groups()
    return 1 if num_gpus == "one" else int(num_gpus), float(gigabytes)


def load(recipe: Path, settings: Sequence[str] = ()) -> tuple[str, Any]:
    """A recipe's stage ("rl" or "sft") and its settings; ("", None) for one that trains nothing."""
    values = tomllib.loads(recipe.read_text())
    if "algorithm" in values:
        return "rl", configs.load(RLConfig, recipe, list(settings))
    if "data" in values:
        return "sft", configs.load(SFTConfig, recipe, list(settings))
    return "", None


def dotted(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by "section.key"."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= dotted(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


@dataclass(frozen=True)
class Task:
    """A part of a recipe."""

    recipe: Path
    part: str
    config: Any
    ranks: int
    memory: float
    yes: tuple[float, ...]

    @property
    def key(self) -> str:
        """Equal for tasks whose results are: ``order`` runs on a small model and ``host`` without
        one, whatever the size."""
        if self.part not in ("order", "host"):
            return f"{self.recipe} {self.part}"
        settings = dotted(asdict(self.config))
        for name in OF_SIZE:
            settings.pop(name, None)
        has_adapters = self.part == "order" and bool(self.config.lora_rank)
        is_edit = "edit" in self.recipe.stem
        return f"{self.part} {self.ranks} {is_edit} {has_adapters} {settings!r}"


def tasks_of(recipe: Path, args: argparse.Namespace) -> list[Task]:
    """The wanted parts of one recipe."""
    stage, config = load(recipe, args.set)
    if not stage:
        print(f"{name_of(recipe)}: it trains nothing")
        return []
    own_ranks, own_memory = named(recipe)
    ranks, memory = args.ranks or own_ranks, args.memory or own_memory
    tasks = []
    for part, stages in PARTS.items():
        if stage in stages and args.part in (part, "all"):
            tasks.append(Task(recipe, part, config, ranks, memory, tuple(args.yes)))
    return tasks


def run(task: Task) -> dict[str, Any]:
    """Simulate one part, in this process."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    module = importlib.import_module(f"simulate_{task.part}")
    result = module.run(task.recipe, task.config, task.ranks, task.memory, yes=task.yes)
    result |= {
        "part": task.part,
        "ranks": task.ranks,
        "memory": task.memory,
        "seconds": time.perf_counter() - began,
    }
    result["near"] = True  # a part without a plan
    if "plan" in result:
        deviation = result["plan"] / max(result["peaks"].values()) - 1
        result["near"] = abs(deviation) <= NEAR
    return result


def simulate(tasks: Sequence[Task], jobs: int) -> Iterator[tuple[Task, dict[str, Any]]]:
    """Results in the order of ``tasks``, ``jobs`` of them at a time; those with one key are run
    once."""
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        task_of_key = {task.key: task for task in reversed(tasks)}  # the first of equal ones
        running = {key: pool.submit(run, task) for key, task in task_of_key.items()}
        for task in tasks:
            yield task, running[task.key].result()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="+", help="TOML files, or names as 7b/grpo")
    parser.add_argument(
        "--ranks", type=int, default=0, help="default: as many GPUs as the recipe says it is for"
    )
    parser.add_argument(
        "--memory", type=float, default=0.0, help="GiB of a GPU; default: as the recipe says"
    )
    parser.add_argument(
        "--yes", type=float, nargs="+", default=[0.4], help="shares of the verdicts that are Yes"
    )
    parser.add_argument("--part", choices=[*PARTS, "all"], default="all")
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        help="key=value in place of the recipe's, as runtime.dp_shard_degree=8",
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results = []
    shown: dict[str, str] = {}
    try:
        tasks: list[Task] = []
        for recipe in args.recipes:
            tasks += tasks_of(find_config(recipe), args)
        for task, result in simulate(tasks, args.jobs):
            recipe_name = name_of(task.recipe)
            outcome = "fits" if result["fits"] else "DOES NOT FIT"
            far_off = "" if result["near"] else ", PLAN IS FAR OFF"
            first_name = shown.setdefault(task.key, recipe_name)
            as_of = "" if first_name == recipe_name else f" (as of {first_name})"
            print(
                f"{recipe_name}, {task.part}, {task.ranks} x {task.memory:.0f}: "
                f"{outcome}{far_off}{as_of}"
            )
            if not as_of:  # else its lines stand above already
                for line in result["lines"]:
                    print(f"  {line}", flush=True)
            results.append(result | {"recipe": recipe_name})
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.json, {"results": results, "versions": versions()})
    return 0 if all(result["fits"] and result["near"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
