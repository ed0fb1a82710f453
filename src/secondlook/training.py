"""Training from Python: the jobs of the command line, with their settings as dictionaries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from secondlook import config as configs
from secondlook.api import Model, load
from secondlook.arguments import as_path
from secondlook.io import claimed_folder

Settings = Mapping[str, Any] | str | Path
"""A job's settings: a dictionary, a recipe's name, or the path of a TOML file."""
NOTHING: Settings = {}


def train_sft(config: Settings = NOTHING, out: str | Path = "out/sft", **settings: Any) -> Model:
    """Stage 1: supervised fine-tuning on draw, judge and redraw.

    Args:
        config: The settings of ``secondlook train sft``: a dictionary, a TOML file's path, or the
            name of a recipe that comes with the package, as ``"mini/sft"`` (``secondlook recipes``
            lists them).
        out: The folder of the run; one that was interrupted is resumed.
        settings: Single settings, which override those of ``config``; those of a section are a
            dictionary: ``optim={"lr": 1e-5}``.

    Returns:
        The trained model, which is also in ``out``/final.

    Raises:
        InputError: A setting is unknown or wrong; the message names it.
        Stopped: The run ended itself because going on would do harm.
    """
    from secondlook.train import sft

    folder = as_path("out", out)
    job_config = configs.parse(sft.SFTConfig, _values(config, settings), _where(config))
    with claimed_folder(folder):
        sft.train_sft(job_config, folder)
    return load(folder / "final", job_config.runtime.device)


def train_rl(
    config: Settings = NOTHING,
    out: str | Path = "out/rl",
    reward: Callable[..., Any] | str | None = None,
    **settings: Any,
) -> Model:
    """Stage 2: reinforcement learning (GRPO, PPO, or a registered algorithm) on whole episodes.

    Args:
        config: The settings of ``secondlook train rl``: a dictionary, a TOML file's path, or the
            name of a recipe that comes with the package, as ``"mini/rl"`` (``secondlook recipes``
            lists them).
        out: The folder of the run; one that was interrupted is resumed.
        reward: Who scores the images; default: the ``[[rewards]]`` of the settings. Either a
            registered name, or a function ``reward(prompt: str, image) -> float | None``: a number
            in [0, 1], None where none could be had, which is masked and never counts as 0. A
            function ``reward(prompt, image, source=None)`` scores edits too: then ``source`` is
            the image that was edited, and ``prompt`` the instruction. A callable of *one* required
            parameter is called for many images at once: it gets a list of (prompt, image) and
            returns a list of as many ``secondlook.rewards.reward.Score`` or None. A callable may
            want anything, so it need not tell the prompts' sanity pairs apart, unless
            ``sanity_pairs`` names some.
        settings: Single settings, which override those of ``config``; those of a section are a
            dictionary: ``rollout={"group_size": 8}``.

    Returns:
        The trained model, which is also in ``out``/final.

    Raises:
        InputError: A setting is unknown or wrong; the message names it.
        Stopped: The run ended itself because going on would do harm.
    """
    from secondlook.rewards.config import as_reward
    from secondlook.train.rl import loop
    from secondlook.train.rl.config import RLConfig

    folder, values = as_path("out", out), _values(config, settings)
    if callable(reward) and not values.get("sanity_pairs"):
        # such a reward may want anything; a min_separation of the settings' own counts all the same
        values["reward_checks"] = {"min_separation": 0.0, **values.get("reward_checks", {})}
    job_config = configs.parse(RLConfig, values, _where(config))
    image_reward = None if reward is None else as_reward(reward)
    with claimed_folder(folder):
        loop.train_rl(job_config, folder, image_reward)
    return load(folder / "final", job_config.runtime.device)


def _values(config: Settings, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A job's settings as nested dictionaries: ``config``'s, with ``settings`` over them."""
    if isinstance(config, Mapping):
        values = dict(config)
    else:
        values = configs.read(as_path("config", config))
    for name, value in settings.items():
        section = values.get(name)
        if isinstance(section, Mapping) and isinstance(value, Mapping):
            values[name] = {**section, **value}  # the section's other keys stay
        else:
            values[name] = value
    return values


def _where(config: Settings) -> str:
    """What a message calls the settings' source."""
    return "the settings" if isinstance(config, Mapping) else repr(str(config))
