"""A step's learning: reference and old log-probabilities of its turns, the critic's passes, then
the policy's minibatches.

Suffixes: n tokens of a turn, N tokens of a micro-batch, D hidden width.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor

from secondlook.models import sampling
from secondlook.models.janus.template import ChatTemplate
from secondlook.train.optim import Optimizer
from secondlook.train.reference import Reference
from secondlook.train.rl.algorithms import Algorithm
from secondlook.train.rl.algorithms.checks import naming
from secondlook.train.rl.config import RLConfig
from secondlook.train.rl.logprob_agreement import Agreement
from secondlook.train.rl.micro_batches import (
    MicroBatch,
    idle_turn,
    minibatches,
    pack,
    with_idle,
)
from secondlook.train.rl.trajectory import TrajectoryTurn
from secondlook.train.rl.turn_weights import total_weight
from secondlook.train.sharding import ShardedModel
from secondlook.types import Turn


class PolicyUpdate:
    """Learns from a step's turns. All ranks call its methods with their own turns, and with the
    same numbers (``TrajectoryTurn.index``) of all ranks' turns in each minibatch."""

    def __init__(
        self,
        config: RLConfig,
        algorithm: Algorithm,
        shards: ShardedModel,
        reference: Reference,
        template: ChatTemplate,
        agreement: Agreement,
    ):
        self.config, self.algorithm = config, algorithm
        self.shards, self.reference, self.template = shards, reference, template
        self.agreement = agreement
        self.janus, self.ranks = shards.janus, shards.ranks
        self.optimizer = Optimizer(
            self.janus.net,
            weight_decay=config.optim.weight_decay,
            max_grad_norm=config.optim.max_grad_norm,
            eps=1e-6,
        )
        self.idle_turns: dict[str, TrajectoryTurn] = {}
        """Of each head, a turn for micro-batches in which this rank has nothing to learn."""

    def naming(self) -> AbstractContextManager[None]:
        """Around what the algorithm computes: an error of its own names it."""
        return naming(type(self.algorithm), self.config.algorithm)

    def set_idle(self, turns: list[Turn]) -> None:
        """Take a step's idle turns from all that this rank sampled: the last one of each head."""
        last_of_head = {turn.sampling_params.head: turn for turn in turns}
        self.idle_turns = {head: idle_turn(turn) for head, turn in last_of_head.items()}

    def learn(
        self,
        rng: np.random.Generator,
        turns: list[TrajectoryTurn],
        n_turns: int,
        lr: float,
        step: int,
        beta: float,
    ) -> dict[str, float]:
        """Learn from this rank's ``turns`` of all ranks' ``n_turns``. ``beta`` is the weight of the
        KL. Returns means of the metrics of all updates."""
        algorithm, optim = self.algorithm, self.config.optim
        own = {turn.index: turn for turn in self.score_reference(turns)}
        # all ranks draw the same numbers: the critic's minibatches first, then the policy's
        critic_epochs = algorithm.critic_epochs(rng, n_turns)
        epochs = [minibatches(rng, n_turns, optim.minibatches) for _ in range(optim.epochs)]
        metrics: dict[str, float] = {}
        # old log-probabilities are scored before any update changes the policy
        if algorithm.has_critic:
            states = self.score_before(own, epochs[0])  # of every turn: an epoch has them all
            if not algorithm.updates_policy(step):  # then no update compares sampler and scorer
                metrics |= self.agreement.check()
            own_states = [states[index] for index in own]
            with self.naming():
                metrics |= algorithm.learn_before(
                    list(own.values()), own_states, critic_epochs, step, beta
                )
        else:  # the first minibatch scores its own turns, in its update
            self.score_before(own, epochs[0][1:])
        if algorithm.updates_policy(step):
            metrics |= self.update_policy(own, epochs, lr, beta)
        return metrics

    def update_policy(
        self, own: dict[int, TrajectoryTurn], epochs: list[list[list[int]]], lr: float, beta: float
    ) -> dict[str, float]:
        """One update for each minibatch of each epoch; ``own`` are this rank's turns by their
        numbers. Returns means of the metrics of all updates."""
        metric_history: dict[str, list[float]] = defaultdict(list)
        is_first = True
        for epoch in epochs:
            for numbers in epoch:
                own_turns = turns_of(numbers, own)
                update_metrics = self.update_minibatch(own_turns, lr, beta, is_first)
                for name, value in update_metrics.items():
                    metric_history[name].append(value)
                is_first = False
        return {name: float(np.mean(values)) for name, values in metric_history.items()}

    def update_minibatch(
        self, own_turns: list[TrajectoryTurn], lr: float, beta: float, is_first: bool
    ) -> dict[str, float]:
        """One update from this rank's turns of a minibatch; returns its metrics. A turn without old
        log-probabilities gets those of its own forward pass, for before the step's first update
        they are the same."""
        # of all ranks' turns, so that every micro-batch is divided by the same number
        denominator = self.ranks.all_sum({"weight": total_weight(own_turns)})["weight"]
        sums = {"kl": 0.0, "clipped": 0.0, "loss": 0.0, "entropy": 0.0, "tokens": 0.0}
        for batch in self.micro_batches(own_turns):
            logprobs_N = self.shards.run(sampling.score, self.janus, self.template, batch.turns)
            if not len(batch.old_logprobs):
                batch = batch.with_old(logprobs_N.detach())
                self.agreement.add(batch, batch.old_logprobs)
            with self.naming():
                batch_loss = self.algorithm.loss(batch, logprobs_N, denominator, beta)
                batch_loss.loss.backward()
            sums["loss"] += float(batch_loss.loss.detach())
            sums["kl"] += float(batch_loss.kl) / denominator
            sums["clipped"] += float(batch_loss.clipped)
            # the mean of -log p over sampled tokens is an unbiased estimate of the entropy
            sums["entropy"] -= float((batch.weights * logprobs_N.detach()).sum()) / denominator
            sums["tokens"] += float((batch.weights > 0).sum())
        metrics = self.ranks.all_sum(sums)
        # from a number of tokens to the share of those that weigh anything
        metrics["clipped"] /= metrics.pop("tokens")
        if is_first:
            metrics |= self.agreement.check() | {"clipped_first": metrics["clipped"]}
        return metrics | self.optimizer.step(lr)

    def micro_batches(self, turns: list[TrajectoryTurn]) -> list[MicroBatch]:
        """Of this rank's turns, as many of each head as every other rank has."""
        own_batches = pack(turns, self.config.runtime.micro_batch_size, self.janus.device)
        return with_idle(own_batches, self.idle_turns, self.ranks)

    @torch.no_grad()
    def score_reference(self, turns: list[TrajectoryTurn]) -> list[TrajectoryTurn]:
        """Set ``reference_logprobs``, which all epochs share; returns the turns in the order of the
        micro-batches."""
        scored_turns = []
        for batch in self.micro_batches(turns):
            logprobs_N = self.reference.score(self.template, batch.turns)
            for turn, logprobs_n in batch.split(logprobs_N):
                turn.reference_logprobs = tuple(logprobs_n.tolist())
                scored_turns.append(turn)
        return scored_turns

    @torch.no_grad()
    def score_before(
        self, own: dict[int, TrajectoryTurn], parts: list[list[int]]
    ) -> dict[int, Tensor]:
        """Set ``old_logprobs`` of this rank's turns of the minibatches ``parts``: the policy's
        before the step's first update.

        They are computed in the micro-batches of the update, so that they are rounded in the same
        way. Returns, for algorithms with a critic, the final hidden states (n, D) from which each
        turn's tokens were predicted.
        """
        hidden_states: dict[int, Tensor] = {}
        for numbers in parts:
            for batch in self.micro_batches(turns_of(numbers, own)):
                logprobs_N, hidden_ND = self.shards.run(
                    sampling.evaluate, self.janus, self.template, batch.turns
                )
                self.agreement.add(batch, logprobs_N)
                for turn, logprobs_n in batch.split(logprobs_N):
                    turn.old_logprobs = tuple(logprobs_n.tolist())
                if self.algorithm.has_critic:
                    for turn, hidden_nD in batch.split(hidden_ND):
                        hidden_states[turn.index] = hidden_nD
        return hidden_states


def turns_of(numbers: list[int], own: dict[int, TrajectoryTurn]) -> list[TrajectoryTurn]:
    """The turns of these numbers that are this rank's own."""
    return [own[number] for number in numbers if number in own]
