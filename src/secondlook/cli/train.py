"""Training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from secondlook.cli.common import Config, Out, Set, say

train_app = typer.Typer(no_args_is_help=True, help="Train a part or a model.")


@train_app.command("tokenizer")
def train_tokenizer(config: Config, out: Out = Path("out/tokenizer"), set_: Set = []) -> None:  # noqa: B006
    """Train the image tokenizer (VQ)."""
    from secondlook.mini.pretrain import image_tokenizer

    _train(image_tokenizer.train_tokenizer, image_tokenizer.TokenizerConfig, config, out, set_)


@train_app.command("vision")
def train_vision(config: Config, out: Out = Path("out/vision"), set_: Set = []) -> None:  # noqa: B006
    """Pretrain the seeing encoder."""
    from secondlook.mini.pretrain import vision_encoder

    _train(vision_encoder.train_vision, vision_encoder.VisionConfig, config, out, set_)


@train_app.command("base")
def train_base(config: Config, out: Out = Path("out/base"), set_: Set = []) -> None:  # noqa: B006
    """Pretrain a base model."""
    from secondlook.mini.pretrain import base_model

    _train(base_model.train_base, base_model.BaseConfig, config, out, set_)


@train_app.command("sft")
def train_sft(config: Config, out: Out = Path("out/sft"), set_: Set = []) -> None:  # noqa: B006
    """Stage 1: supervised fine-tuning on draw, judge and redraw."""
    from secondlook.train import sft

    _train(sft.train_sft, sft.SFTConfig, config, out, set_)


@train_app.command("rl")
def train_rl(
    config: Config,
    algorithm: Annotated[str, typer.Option(help="grpo or ppo; default: the file's.")] = "",
    out: Out = Path("out/rl"),
    set_: Set = [],  # noqa: B006
) -> None:
    """Stage 2: GRPO or PPO on whole episodes."""
    from secondlook.train.rl import config as rl_config
    from secondlook.train.rl import loop

    settings = list(set_)
    if algorithm:
        settings.append(f"algorithm={algorithm}")
    _train(loop.train_rl, rl_config.RLConfig, config, out, settings)


def _train(
    train_job: Any, config_class: Any, config_path: Path, out: Path, settings: list[str]
) -> None:
    """Run a job with the settings of a file, and of ``--set`` over them."""
    from secondlook import config as configs
    from secondlook.io import claimed_folder
    from secondlook.train.termination import noted

    job_config = configs.load(config_class, config_path, settings)
    with claimed_folder(out), noted(out):  # how it ends is kept for a restart
        train_job(job_config, out)
    say(f"written to {out}")
