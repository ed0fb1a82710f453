"""Targets of ``fuzz``: what training jobs read (settings, data) and what the package writes itself
(a run's folder, episodes, stored answers)."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from fuzz_checks import config_values, differ, published_rows, shard_rows
from fuzz_target import TEXT, Target, in_folder, odd_parquet, write_lines
from secondlook import config as configs
from secondlook.cli.show import show
from secondlook.data.build_config import BuildConfig
from secondlook.data.sft_dataset import Pool
from secondlook.io import stored_rows
from secondlook.llm.client import Answers
from secondlook.mini.pretrain.base_model import BaseConfig
from secondlook.train.job_config import BasicRuntimeConfig
from secondlook.train.rl.config import RLConfig
from secondlook.train.sft_config import SFTConfig
from secondlook.train.trainer import Trainer

ROOT = Path(__file__).parents[1]
CONFIGS: dict[str, type] = {
    "src/secondlook/recipes/7b/sft": SFTConfig,
    "src/secondlook/recipes/7b/ppo": RLConfig,
    "src/secondlook/recipes/1b/edit_grpo": RLConfig,
    "src/secondlook/recipes/mini/data": BuildConfig,
    "src/secondlook/recipes/mini/base": BaseConfig,
    "tests/cases/judge": BuildConfig,
}
PICTURES = (
    {"img_path": "right.png", "reason": "Yes, a star.", "prob": 0.95, "state": "x"},
    {"img_path": "wrong.png", "reason": "No, it is blue.", "prob": 0.1, "state": "x"},
)
"""Of every prompt of the published layout."""
STORED_ANSWERS = {"a": 0.75, "b": "a red star", "c": ["Is it red?"]}


# --- what jobs read ---


def training_targets(home: Path) -> list[Target]:
    return [*_config_targets(home), *_sft_targets(home)]


def _config_targets(home: Path) -> list[Target]:
    targets = []
    for stem, config_class in CONFIGS.items():
        folder = in_folder(home / stem.replace("/", "-"), {})
        shutil.copy(ROOT / f"{stem}.toml", folder)
        name = f"{Path(stem).name}.toml"
        targets.append(
            Target(
                f"toml/{name}",
                folder,
                name,
                _config_reader(config_class, name),
                config_values,
                names=("config: ", "judge: "),
            )
        )
    return targets


def _config_reader(config_class: type, name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        return configs.load(config_class, folder / name, [])

    return read


def read_published(folder: Path) -> Pool:
    return Pool(folder / "data.jsonl")


def _sft_targets(home: Path) -> list[Target]:
    """The same examples in the published layout and as a shard of ``data build``."""
    folder = in_folder(home / "published", {"right.png": "red", "wrong.png": "blue"})
    rows = []
    for number, prompt in enumerate(TEXT):
        rows.append({"promptid": number, "prompt": prompt, "data": PICTURES})
    write_lines(folder / "data.jsonl", rows)
    columns: dict[str, list] = {"id": [], "prompt": [], "image": [], "score": [], "reason": []}
    for number, prompt in enumerate(TEXT):
        for picture_number, picture in enumerate(PICTURES):
            image_bytes = (folder / picture["img_path"]).read_bytes()
            columns["id"].append(f"{number}-{picture_number}")
            columns["prompt"].append(prompt)
            columns["image"].append({"bytes": image_bytes, "path": None})
            columns["score"].append(picture["prob"])
            columns["reason"].append(picture["reason"])
    shard_folder, shard = in_folder(home / "shards", {}), "images-000.parquet"
    pq.write_table(pa.table(columns), shard_folder / shard)
    published = Target(
        "sft/data.jsonl", folder, "data.jsonl", read_published, published_rows, json_lines=True
    )
    built = Target(
        f"sft/{shard}", shard_folder, shard, Pool, shard_rows, rebuilt=odd_parquet(columns)
    )
    return [published, built]


# --- what the package writes itself ---


class JobState:
    """A job's state of one tensor and one number."""

    def __init__(self) -> None:
        self.tensor, self.number = torch.zeros(3), 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"tensor": self.tensor, "plain": self.number}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.tensor, self.number = state["tensor"], state["plain"]


@dataclass
class JobConfig:
    model: str = "mini"
    steps: int = 4
    runtime: BasicRuntimeConfig = field(default_factory=BasicRuntimeConfig)


class ResumedRun(NamedTuple):
    step: int
    number: float
    """Of the state; the same as the step's."""
    metrics: list[dict[str, Any]]
    metrics_file: bytes


def resume(folder: Path) -> ResumedRun:
    state = JobState()
    trainer = Trainer(folder, JobConfig(), {"part": state}, weights="abc")
    metrics_path = folder / "metrics.jsonl"
    return ResumedRun(
        trainer.step, state.number, stored_rows(metrics_path), metrics_path.read_bytes()
    )


def check_resumed(data: bytes, resumed: ResumedRun) -> str:
    if (resumed.step, resumed.number) not in ((1, 1.0), (2, 2.0)):
        return f"it goes on at {resumed.step} with {resumed.number}"
    return differ("metrics", len(resumed.metrics), resumed.metrics_file.count(b"\n"))


def show_folder(folder: Path) -> None:
    show(folder)


def check_nothing(data: bytes, shown: Any) -> str:
    """What is printed is not compared: only how reading ends counts."""
    return ""


def read_answers(folder: Path) -> list[Any]:
    """What is stored under the three keys, and what was put under another one just now."""
    answers = Answers(folder / "answers.sqlite")
    stored_values = [answers.get(key) for key in STORED_ANSWERS]
    answers.put("d", 0.5)
    return [*stored_values, answers.get("d")]


def check_answers(data: bytes, values: list[Any]) -> str:
    wrong = differ("what was put", values[-1], 0.5)
    for value in values:
        if not wrong and isinstance(value, float) and not math.isfinite(value):
            wrong = f"{value} is no finite number"
    return wrong


def own_targets(home: Path) -> list[Target]:
    return [*_run_targets(home), *_shown_targets(home), _answers_target(home)]


def _run_targets(home: Path) -> list[Target]:
    folder = home / "run"
    state = JobState()
    trainer = Trainer(folder, JobConfig(), {"part": state}, weights="abc")
    for step in (1, 2):
        trainer.step = step
        state.tensor, state.number = torch.full((3,), float(step)), float(step)
        trainer.save()
    rows = [{"step": step, "loss": 1 / step, "seconds": 0.5} for step in (1, 2)]
    write_lines(folder / "metrics.jsonl", rows)
    (folder / ".lock").unlink(missing_ok=True)
    json_lines_of_file: dict[str, bool | None] = {
        "config.json": False,
        "origin.json": False,
        "metrics.jsonl": True,
        "states/step-00000002/.metadata": None,
        "states/step-00000002/__0_0.distcp": None,
    }
    targets = []
    for name, json_lines in json_lines_of_file.items():
        targets.append(Target(f"run/{name}", folder, name, resume, check_resumed, json_lines))
    return targets


def _shown_targets(home: Path) -> list[Target]:
    """An episode's folder and one with metrics (those of the run before)."""
    shown_round = {
        "image": "round-1.png",
        "yes": True,
        "p_yes": 0.9,
        "reason": "there is a star",
        "codes": [1, 2],
    }
    episode = {"prompt": TEXT[1], "seed": 0, "final": 0, "rounds": [shown_round]}
    episode_folder = in_folder(home / "episode", {})
    (episode_folder / "episode.json").write_text(json.dumps(episode))
    metrics_folder = in_folder(home / "metrics", {})
    shutil.copy(home / "run" / "metrics.jsonl", metrics_folder)
    targets = []
    for folder, name, json_lines in (
        (episode_folder, "episode.json", False),
        (metrics_folder, "metrics.jsonl", True),
    ):
        targets.append(Target(f"show/{name}", folder, name, show_folder, check_nothing, json_lines))
    return targets


def _answers_target(home: Path) -> Target:
    folder = in_folder(home / "answers", {})
    answers = Answers(folder / "answers.sqlite")
    for key, value in STORED_ANSWERS.items():
        answers.put(key, value)
    answers._db.close()
    return Target("judge/answers.sqlite", folder, "answers.sqlite", read_answers, check_answers)
