"""Turns side by side in tensors: a step's minibatches, each computed in micro-batches.

Suffix of tensors: N tokens of a micro-batch's turns, one turn behind another.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from secondlook.train.distributed import ProcessGroup
from secondlook.train.rl.trajectory import TrajectoryTurn
from secondlook.types import SamplingParams, Turn


@dataclass(frozen=True)
class MicroBatch:
    """Turns sampled with the same parameters, their tokens one after another."""

    trajectory_turns: list[TrajectoryTurn]
    behaviour_logprobs: Tensor
    """(N,) log-probabilities that the engine recorded while sampling."""
    old_logprobs: Tensor
    """(N,) those that the policy scored before the step's first update; (0,) where they are not
    known yet."""
    reference_logprobs: Tensor
    """(N,) those under the frozen reference; (0,) where they are not known yet."""
    advantages: Tensor
    """(N,)"""
    weights: Tensor
    """(N,)"""

    @property
    def turns(self) -> list[Turn]:
        """What was sampled."""
        return [turn.turn for turn in self.trajectory_turns]

    @property
    def sampling_params(self) -> SamplingParams:
        return self.turns[0].sampling_params

    def with_old(self, logprobs_N: Tensor) -> MicroBatch:
        """The same with old log-probabilities (N,), which are put into its turns as well."""
        for turn, part in self.split(logprobs_N):
            turn.old_logprobs = tuple(part.tolist())
        return replace(self, old_logprobs=logprobs_N)

    def split(self, values_N: Tensor) -> list[tuple[TrajectoryTurn, Tensor]]:
        """Each turn, idle ones left out, with its tokens' part of ``values_N`` (N, …)."""
        parts = values_N.split([len(turn.tokens) for turn in self.turns])
        pairs = zip(self.trajectory_turns, parts, strict=True)
        return [(turn, part) for turn, part in pairs if turn.index >= 0]


def minibatches(rng: np.random.Generator, n_turns: int, n: int) -> list[list[int]]:
    """Turns' numbers in random order in ``n`` parts of nearly equal size; fewer where there are not
    as many turns."""
    parts = np.array_split(rng.permutation(n_turns), n)
    return [part.tolist() for part in parts if len(part)]


def pack(
    turns: list[TrajectoryTurn], size: int, device: torch.device | str = "cpu"
) -> list[MicroBatch]:
    """Micro-batches of at most ``size`` turns; each holds turns of the same sampling parameters
    and, as far as that goes, of one length. Drawn ones come first."""
    by_params: dict[SamplingParams, list[TrajectoryTurn]] = defaultdict(list)
    for turn in turns:
        by_params[turn.turn.sampling_params].append(turn)
    batches = []
    for params in sorted(by_params, key=lambda params: params.head):  # "code" before "text"
        alike = by_params[params]
        alike.sort(key=lambda turn: (len(turn.turn.segments), len(turn.turn.tokens)))
        for start in range(0, len(alike), size):
            batches.append(_side_by_side(alike[start : start + size], device))
    return batches


def _side_by_side(turns: list[TrajectoryTurn], device: torch.device | str) -> MicroBatch:
    """One micro-batch of turns."""
    behaviour: list[float] = []
    old: list[float] = []
    reference: list[float] = []
    advantages: list[float] = []
    weights: list[float] = []
    for turn in turns:
        behaviour += turn.turn.logprobs
        old += turn.old_logprobs
        reference += turn.reference_logprobs
        advantages += turn.token_advantages
        weights += [turn.token_weight] * len(turn.turn.tokens)
    columns = (behaviour, old, reference, advantages, weights)
    return MicroBatch(turns, *(torch.tensor(column, device=device) for column in columns))


def idle_turn(turn: Turn) -> TrajectoryTurn:
    """A turn that counts nothing and moves nothing."""
    return TrajectoryTurn(
        kind=turn.kind,
        image_score=0.0,
        sampled=turn,
        advantage=0.0,
        reference_logprobs=turn.logprobs,
        old_logprobs=turn.logprobs,
    )


def with_idle(
    batches: list[MicroBatch], idle_turns: dict[str, TrajectoryTurn], ranks: ProcessGroup
) -> list[MicroBatch]:
    """``batches``, and idle ones for the heads of which another rank has more: ranks that share
    weights gather them together. ``idle_turns`` has one turn for each head."""
    if ranks.world_size == 1:
        return batches
    counts = ranks.all_gather(Counter(batch.sampling_params.head for batch in batches))
    padded: list[MicroBatch] = []
    for head, turn in sorted(idle_turns.items()):
        own = [batch for batch in batches if batch.sampling_params.head == head]
        n_most = max(count[head] for count in counts)
        padded += own
        padded += pack([turn], 1, ranks.device) * (n_most - len(own))
    return padded
