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
        return plugin_settings.gather_settings(values, OWN_KEYS)

    def __post_init__(self) -> None:
        try:
            registered = registry.rewards.get(self.kind)
        except InputError as error:
            raise InputError(f"config: {error}") from error
        checked_settings = plugin_settings.check_settings(
            "rewards", self.kind, registered, self.settings, _provided(registered), OWN_KEYS
        )
        object.__setattr__(self, "settings", checked_settings)  # the dataclass is frozen


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
    weighted_rewards = []
    for config in configs:
        weighted_rewards.append((config.weight, _make_one(config, device, reasons)))
    if len(weighted_rewards) == 1:
        return weighted_rewards[0][1]
    return Weighted(weighted_rewards)


def as_reward(reward: str | Callable[..., Any]) -> Reward:
    """The reward of this name; a function ``(prompt, image)`` as a reward; an object that takes
    whole lists of pictures, as ``Reward`` says, unchanged. Raises InputError."""
    if isinstance(reward, str):
        return make_reward([RewardConfig(reward)])
    return _of_instance(reward)


def _make_one(config: RewardConfig, device: str, reasons: bool) -> Reward:
    registered = registry.rewards.get(config.kind)
    if isinstance(registered, type):
        instance = plugin_settings.build(
            registered, config.settings, device=device, reasons=reasons
        )
        return _of_instance(instance, config.kind)
    # a function of one picture: its checked settings become keyword arguments
    keyword_arguments = {}
    for setting in fields(config.settings):
        keyword_arguments[setting.name] = getattr(config.settings, setting.name)
    return of_function(registered, config.kind, keyword_arguments)


def _of_instance(reward: Callable[..., Any], name: str = "") -> Reward:
    """A reward takes one list; what needs a prompt and an image is a function of one picture.
    Raises InputError for what can be called in neither way."""
    shown_name = name or repr(reward)
    if isinstance(reward, type) or not callable(reward):
        raise InputError(
            f"reward: {shown_name} is no reward; give a registered name, a function (prompt, "
            "image), or an object of a class with the methods of a Reward"
        )
    try:
        parameters = inspect.signature(reward).parameters.values()
    except ValueError as error:  # some that are not written in Python
        raise InputError(
            f"reward: {shown_name} does not say its parameters; give a function (prompt, image)"
        ) from error
    n_required = 0
    for parameter in parameters:
        is_optional = parameter.default is not parameter.empty
        is_rest = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        n_required += not is_optional and not is_rest
    if n_required == 1:
        return reward
    return of_function(reward, name or registry.origin(reward))


def _provided(registered: Callable[..., Any]) -> frozenset[str]:
    """Names of the parameters that are no settings."""
    return FROM_THE_JOB if isinstance(registered, type) else FROM_THE_PICTURE
