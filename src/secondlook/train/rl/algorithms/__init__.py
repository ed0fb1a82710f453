"""Algorithms of ``train rl``: a class each, chosen by ``algorithm = "name"``.

One of your own is a class in a file of your own::

    from secondlook import Algorithm, register_algorithm

    @register_algorithm("rloo")
    class RLOO(Algorithm):
        def advantages(self, trajectories): ...
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from secondlook.registry import Registry
from secondlook.train.rl.algorithms.base import Algorithm

A = TypeVar("A", bound=type[Algorithm])

algorithms: Registry[type[Algorithm]] = Registry(
    "algorithms",
    {
        "grpo": "secondlook.train.rl.algorithms.grpo",
        "ppo": "secondlook.train.rl.algorithms.ppo",
    },
)
"""All that ``algorithm`` may name; installed packages add to it by entry points of the group
``secondlook.algorithms``."""


def register_algorithm(name: str) -> Callable[[A], A]:
    """Register a class derived from ``Algorithm``, chosen by ``algorithm = "name"``."""

    def add(algorithm: A) -> A:
        algorithms.register(name)(algorithm)
        return algorithm

    return add


__all__ = ["Algorithm", "algorithms", "register_algorithm"]
