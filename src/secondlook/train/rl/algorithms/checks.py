"""Whether an algorithm from outside the package is one, and whether what it credits can be learned
from: each fault is told in one sentence that names the algorithm."""

from __future__ import annotations

import dataclasses
import reprlib
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from secondlook.errors import InputError, Stopped
from secondlook.io import disk_failure
from secondlook.registry import origin
from secondlook.train.rl.algorithms import Algorithm, algorithms
from secondlook.train.rl.trajectory import Trajectory, TrajectoryTurn


def get_algorithm(name: str) -> type[Algorithm]:
    """The class that is registered under ``name``. Raises InputError for an unknown name, and for
    something else than a class derived from ``Algorithm`` that has ``advantages``."""
    registered = algorithms.get(name)
    described = f"algorithm: {name!r} is {origin(registered)}, which"
    if not (isinstance(registered, type) and issubclass(registered, Algorithm)):
        raise InputError(f"{described} is no subclass of secondlook.train.rl.algorithms.Algorithm")
    if registered.advantages is Algorithm.advantages:
        raise InputError(f"{described} lacks the method advantages(self, trajectories)")
    options = registered.config_class
    if options is not None and not (
        isinstance(options, type) and dataclasses.is_dataclass(options)
    ):
        raise InputError(f"{described} has config_class {options!r}; it must be a dataclass")
    return registered


@contextmanager
def naming(algorithm: type[Algorithm], name: str) -> Iterator[None]:
    """Around code of an algorithm from outside the package: what it raises becomes an InputError
    that says where. What it raises on purpose (InputError, Stopped), a lack of memory and a disk
    that fails pass, and so does what one of the package's own algorithms raises."""
    try:
        yield
    except (InputError, Stopped, MemoryError, torch.OutOfMemoryError):
        raise
    except (Exception, SystemExit) as error:
        if algorithm.__module__.startswith("secondlook.") or disk_failure(error) is not None:
            raise
        message = " ".join(str(error).split())
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise InputError(
            f"algorithm: {name!r} raised {type(error).__name__}{f': {message}' if message else ''} "
            f"({Path(place.filename).name}, line {place.lineno})"
        ) from error


def check_advantages(name: str, trajectories: list[Trajectory]) -> None:
    """Turn each ``advantage`` that an algorithm set into a float or a tuple of one float a token.

    Raises InputError where one is no number, infinite, or of another length than its turn, and
    where every turn is masked although there are scores to learn from.
    """
    for trajectory in trajectories:
        for turn in trajectory.turns:
            turn.advantage = _checked_advantage(name, turn)
    complete_trajectories = [trajectory for trajectory in trajectories if trajectory.is_complete]
    for trajectory in complete_trajectories:
        if not all(turn.is_masked for turn in trajectory.turns):
            return
    if complete_trajectories:
        raise InputError(
            f"algorithm: {name!r} left the advantage of every turn NaN (masked), though "
            f"{len(complete_trajectories)} of {len(trajectories)} episodes have all their scores; "
            "its advantages() must set turn.advantage, to 0 where a turn is as good as the others"
        )


def _checked_advantage(name: str, turn: TrajectoryTurn) -> float | tuple[float, ...]:
    """A turn's advantage as the loss takes it. Raises InputError."""
    where = f"algorithm: {name!r} gave a {turn.kind} turn the advantage"
    values = _as_numbers(turn.advantage)
    if values is None or values.ndim > 1:
        if values is None:
            what = " ".join(reprlib.repr(turn.advantage).split())
        else:
            what = f"an array of shape {values.shape}"
        raise InputError(f"{where} {what}; it must be a number, or one number a token")
    if values.ndim == 0:
        if np.isinf(values):
            raise InputError(f"{where} {values}; it must be finite, or NaN for a masked turn")
        return float(values)
    if turn.sampled is not None and len(values) != len(turn.turn.tokens):
        raise InputError(
            f"{where} {len(values)} numbers, but it has {len(turn.turn.tokens)} tokens; give one "
            "number, or one a token"
        )
    if not np.isfinite(values).all():
        raise InputError(f"{where} of a token that is not finite; NaN can mask a whole turn only")
    return tuple(values.tolist())


def _as_numbers(advantage: Any) -> np.ndarray | None:
    """An array of any shape in float64; None where there are no numbers in it."""
    try:
        values = np.asarray(advantage)
    except (TypeError, ValueError, RuntimeError):  # ragged lists; tensors that numpy cannot read
        return None
    return values.astype(np.float64) if values.dtype.kind in "iuf" else None
