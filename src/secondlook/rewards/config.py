"""Rewards from a config's ``[[rewards]]``, or from any callable."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from pydantic import model_validator

from secondlook import plugin_settings, registry
from secondlook.errors import InputError
from secondlook.rewards.function import of_function
from secondlook.rewards.reward import Reward, Weighted

OWN_KEYS = ("kind", "weight")
"""Of a ``[[rewards]]`` table; all others are settings of the kind."""
FROM_THE_JOB = frozenset({"device", "reasons"})
"""What a reward's class is given by the job, where its constructor names it: the job's device, and
whether reasons are needed (a model is taught to say them)."""
FROM_THE_PICTURE = frozenset({"prompt", "image", "source"})
"""Parameters of a reward that is a function; all others are its settings."""


@dataclass(frozen=True)
class RewardConfig:
    """One ``[[rewards]]``. Its keys beyond ``kind`` and ``weight`` are the settings of what is
    registered under ``kind``."""

    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}  # noqa: RUF012

    kind: str
    """The registered name: ``vlm`` (a served model), ``local`` (one of transformers),
    ``self_judge`` (a checkpoint of this package), ``mini`` (the miniature's reader), or a
    plugin's."""
    weight: float = 1.0
    """Of the weighted mean of several."""
    settings: Any = field(default_factory=dict)
    """In Python a dictionary or the kind's own config class; once checked, always the latter."""

    @model_validator(mode="before")
    @classmethod
    def _gather_settings(cls, values: Any) -> Any:
        """A TOML table has the settings beside ``kind`` and ``weight``."""
        if not isinstance(values, dict):
            return values
        own = {name: values[name] for name in OWN_KEYS if name in values}
        return own | {"settings": {k: v for k, v in values.items() if k not in own}}

    def __post_init__(self) -> None:
        try:
            thing = registry.rewards.get(self.kind)
        except InputError as error:
            raise InputError(f"config: {error}") from error
        checked = plugin_settings.check_settings(
            "rewards", self.kind, thing, self.settings, _provided(thing), OWN_KEYS
        )
        object.__setattr__(self, "settings", checked)


def make_reward(
    configs: Sequence[RewardConfig],
    device: str = "cpu",
    reasons: bool = False,
    prompts: str = "",
) -> Reward:
    """The reward, or the weighted mean of several.

    Without any, it is the one registered under the name of the job's ``prompts``, where there is
    one. ``reasons``: they are needed, so a served model is asked for them as well. Raises
    InputError.
    """
    if not configs:
        if prompts not in registry.rewards.names():
            raise InputError(
                "config: rewards is empty; give at least one [[rewards]] with a kind of "
                f"{', '.join(registry.rewards.names())}"
            )
        configs = [RewardConfig(prompts)]
    parts = [(config.weight, _make_one(config, device, reasons)) for config in configs]
    return parts[0][1] if len(parts) == 1 else Weighted(parts)


def as_reward(reward: str | Callable[..., Any]) -> Reward:
    """The reward of this name; a function ``(prompt, image)`` as a reward; an object that takes
    whole lists of pictures, as ``Reward`` says, unchanged. Raises InputError."""
    if isinstance(reward, str):
        return make_reward([RewardConfig(reward)])
    return _of_instance(reward)


def _make_one(config: RewardConfig, device: str, reasons: bool) -> Reward:
    thing = registry.rewards.get(config.kind)
    if isinstance(thing, type):
        made = plugin_settings.build(thing, config.settings, device=device, reasons=reasons)
        return _of_instance(made, config.kind)
    given = {f.name: getattr(config.settings, f.name) for f in fields(config.settings)}
    return of_function(thing, config.kind, given)


def _of_instance(reward: Callable[..., Any], name: str = "") -> Reward:
    """A reward takes one list; what needs a prompt and an image is a function of one picture."""
    parameters = inspect.signature(reward).parameters.values()
    needed = [p for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    if len(needed) == 1:
        return reward
    return of_function(reward, name or registry.origin(reward))


def _provided(thing: Callable[..., Any]) -> frozenset[str]:
    return FROM_THE_JOB if isinstance(thing, type) else FROM_THE_PICTURE
