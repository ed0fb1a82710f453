"""Where a run's metrics and pictures go beside ``metrics.jsonl``: TensorBoard, Weights & Biases,
Trackio.

A tracker is opened when the first step begins and closed after the last one. All of them may be
given the same step twice, after a run went back to an earlier state: the later values count.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import numpy as np
from PIL import Image

from secondlook.errors import InputError
from secondlook.io import read_json, write_json
from secondlook.types import Episode

PROJECT = "secondlook"
"""The project that runs belong to at Weights & Biases and Trackio, unless their own environment
variables (WANDB_PROJECT, TRACKIO_PROJECT) say otherwise."""
GAP = 4
"""Pixels between the pictures of a filmstrip."""


@dataclass(frozen=True)
class CaptionedImage:
    image: Image.Image
    caption: str


class Tracker(Protocol):
    def log_metrics(self, metrics: dict[str, float], step: int) -> None: ...
    def log_images(self, name: str, images: Sequence[CaptionedImage], step: int) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Events in the run's folder ``tensorboard``. What an earlier process wrote of later steps is
    purged."""

    def __init__(self, out: Path, config: dict[str, Any], step: int):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(out / "tensorboard"), purge_step=step)

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    def log_images(self, name: str, images: Sequence[CaptionedImage], step: int) -> None:
        """TensorBoard shows no captions beside pictures: they are a text of the same name."""
        for i, captioned in enumerate(images):
            pixels = np.asarray(captioned.image)  # (H, W, 3)
            self.writer.add_image(f"{name}/{i}", pixels, step, dataformats="HWC")
            self.writer.add_text(f"{name}/{i}", captioned.caption, step)

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run of wandb, named after the folder. Its id is kept in the folder (``wandb.json``), by
    which a resumed run goes on there."""

    def __init__(self, out: Path, config: dict[str, Any], step: int):
        import wandb

        id_file = out / "wandb.json"
        if not id_file.exists():
            write_json(id_file, {"id": uuid4().hex[:12]})
        self.wandb = wandb
        self.run = wandb.init(
            project=_project("WANDB_PROJECT"),
            name=out.resolve().name,
            id=read_json(id_file, dict)["id"],
            resume="allow",
            dir=str(out),
            config=config,
        )
        # wandb's own step must not fall, and a run that goes back begins again at an earlier one
        self.run.define_metric("*", step_metric="step")

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.run.log({**metrics, "step": step})

    def log_images(self, name: str, images: Sequence[CaptionedImage], step: int) -> None:
        wandb_images = []
        for captioned in images:
            wandb_images.append(self.wandb.Image(captioned.image, caption=captioned.caption))
        self.run.log({name: wandb_images, "step": step})

    def close(self) -> None:
        self.run.finish()


class Trackio:
    """A run of trackio, named after the folder; a resumed run goes on under its name."""

    def __init__(self, out: Path, config: dict[str, Any], step: int):
        import trackio

        self.trackio = trackio
        trackio.init(
            project=_project("TRACKIO_PROJECT"),
            name=out.resolve().name,
            config=config,
            resume="allow",
        )

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.trackio.log(metrics, step=step)

    def log_images(self, name: str, images: Sequence[CaptionedImage], step: int) -> None:
        # one name each: trackio takes no lists of pictures
        for i, captioned in enumerate(images):
            trackio_image = self.trackio.Image(captioned.image, caption=captioned.caption)
            self.trackio.log({f"{name}/{i}": trackio_image}, step=step)

    def close(self) -> None:
        self.trackio.finish()


TRACKERS: dict[str, type[TensorBoard] | type[WeightsAndBiases] | type[Trackio]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "trackio": Trackio,
}


def check_trackers(report_to: Sequence[str]) -> None:
    """Refuse trackers that are unknown or whose library, named like the tracker, is not
    installed. Raises InputError."""
    for name in report_to:
        if name not in TRACKERS:
            raise InputError(f"config: report_to has {name!r}; choose from {', '.join(TRACKERS)}")
        # find_spec fails for a module that is loaded without one
        if name not in sys.modules and find_spec(name) is None:
            raise InputError(
                f"config: report_to has {name!r}, which is not installed; run pip install {name}, "
                "or leave it out"
            )


def open_trackers(
    report_to: Sequence[str], out: Path, config: dict[str, Any], step: int
) -> list[Tracker]:
    """The trackers of a run in the folder ``out`` that goes on after ``step`` steps."""
    return [TRACKERS[name](out, config, step) for name in report_to]


def episode_strip(episode: Episode) -> CaptionedImage:
    """An episode as one picture, its rounds side by side, with what was said of each."""
    images = [episode.prompt.source] if episode.prompt.source else []
    captions = [episode.prompt.text]
    for number, each_round in enumerate(episode.rounds, 1):
        images.append(each_round.image)
        captions.append(f"{number}. {each_round.reason} (P(yes) {each_round.p_yes:.2f})")
    total_width = sum(image.width for image in images) + GAP * (len(images) - 1)
    max_height = max(image.height for image in images)
    strip = Image.new("RGB", (total_width, max_height), "white")
    left = 0
    for image in images:
        strip.paste(image, (left, 0))
        left += image.width + GAP
    return CaptionedImage(strip, " | ".join(captions))


def _project(variable: str) -> str:
    """The project's name of an environment variable, else our own."""
    return os.environ.get(variable) or PROJECT
