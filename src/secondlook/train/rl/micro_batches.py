"""Turns side by side in tensors: a step's minibatches, each computed in micro-batches.

Suffix of tensors: N tokens of a micro-batch's turns, one turn behind another.
"""

from __future__ import annotations

from collections import defaultdict
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
        token_counts = [len(turn.tokens) for turn in self.turns]
        turns_and_values: list[tuple[TrajectoryTurn, Tensor]] = []
        for turn, turn_values in zip(
            self.trajectory_turns, values_N.split(token_counts), strict=True
        ):
            if turn.index >= 0:  # -1: an idle turn
                turns_and_values.append((turn, turn_values))
        return turns_and_values


def minibatches(rng: np.random.Generator, n_turns: int, n_minibatches: int) -> list[list[int]]:
    """Turns' numbers in random order in ``n_minibatches`` parts of nearly equal size; fewer where
    there are not as many turns."""
    number_parts = np.array_split(rng.permutation(n_turns), n_minibatches)
    return [numbers.tolist() for numbers in number_parts if len(numbers)]


def pack(
    turns: list[TrajectoryTurn], max_turns: int, device: torch.device | str = "cpu"
) -> list[MicroBatch]:
    """Micro-batches of at most ``max_turns`` turns; each holds turns of the same sampling
    parameters and, as far as that goes, of one length. Drawn ones come first."""
    turns_by_params: dict[SamplingParams, list[TrajectoryTurn]] = defaultdict(list)
    for turn in turns:
        turns_by_params[turn.turn.sampling_params].append(turn)
    micro_batches = []
    for params in sorted(turns_by_params, key=lambda params: params.head):  # "code" before "text"
        params_turns = turns_by_params[params]
        # neighbours of one length are padded least
        params_turns.sort(key=lambda turn: (len(turn.turn.segments), len(turn.turn.tokens)))
        for start in range(0, len(params_turns), max_turns):
            micro_batches.append(_side_by_side(params_turns[start : start + max_turns], device))
    return micro_batches


def _side_by_side(turns: list[TrajectoryTurn], device: torch.device | str) -> MicroBatch:
    """One micro-batch of turns."""
    behaviour_logprobs: list[float] = []
    old_logprobs: list[float] = []
    reference_logprobs: list[float] = []
    advantages: list[float] = []
    token_weights: list[float] = []
    for turn in turns:
        behaviour_logprobs += turn.turn.logprobs
        old_logprobs += turn.old_logprobs
        reference_logprobs += turn.reference_logprobs
        advantages += turn.token_advantages
        token_weights += [turn.token_weight] * len(turn.turn.tokens)
    return MicroBatch(
        trajectory_turns=turns,
        behaviour_logprobs=torch.tensor(behaviour_logprobs, device=device),
        old_logprobs=torch.tensor(old_logprobs, device=device),
        reference_logprobs=torch.tensor(reference_logprobs, device=device),
        advantages=torch.tensor(advantages, device=device),
        weights=torch.tensor(token_weights, device=device),
    )


def idle_turn(turn: Turn) -> TrajectoryTurn:
    """A turn of weight and advantage 0, for micro-batches in which a rank has nothing to learn: its
    gradient is 0."""
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
    weights gather them together, so all must compute as many. ``idle_turns`` has one turn for each
    head."""
    if ranks.world_size == 1:
        return batches
    batches_of_head: dict[str, list[MicroBatch]] = defaultdict(list)
    for batch in batches:
        batches_of_head[batch.sampling_params.head].append(batch)
    own_counts = {head: len(own) for head, own in batches_of_head.items()}
    counts_of_ranks = ranks.all_gather(own_counts)
    padded_batches: list[MicroBatch] = []
    for head, turn in sorted(idle_turns.items()):  # "code" before "text", as ``pack`` has them
        n_most = max(counts.get(head, 0) for counts in counts_of_ranks)
        n_missing = n_most - own_counts.get(head, 0)
        padded_batches += batches_of_head[head]
        padded_batches += pack([turn], 1, ranks.device) * n_missing
    return padded_batches
