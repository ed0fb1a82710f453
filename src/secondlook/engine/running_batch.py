"""Sequences under way side by side: entering with a prefill, sampled one token at a time, leaving
when they are done.

Every run takes one slot of the cache, or two when it is guided: the sequence and its unconditional
twin, which consumes the same tokens. Runs of any kind, rule, guidance, seed and length share the
forward pass. A run draws its random numbers from its own seed: its tokens do not depend on its
neighbours. The host waits for the device only where a run ends.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import torch
from torch import Tensor

from secondlook.engine.kv_cache import KVCache, in_columns, rounded
from secondlook.engine.model_runner import ModelRunner
from secondlook.errors import Stopped
from secondlook.models import sampling
from secondlook.models.janus.model import Janus
from secondlook.models.janus.template import (
    ChatTemplate,
    Column,
    assemble,
    columns_of,
    in_common,
    rest,
)
from secondlook.types import GenerateRequest, SamplingParams, Segment, Turn


@dataclass(eq=False)
class CachedPrefix:
    """A sequence that has left: its columns, and their keys and values."""

    segments: tuple[Segment, ...]
    columns: list[Column]
    cache: Tensor


@dataclass(eq=False)
class Sequence:
    """One job under way. ``kept`` are sequences that it, or its twin, may begin like."""

    job: GenerateRequest
    kept: list[CachedPrefix] = field(default_factory=list)
    slots: dict[bool, int] = field(default_factory=dict)
    """The slot of the sequence (False) and of its twin (True)."""
    length: int = 0
    """Columns in the cache, as many for the twin."""
    step: int = 0
    """Tokens sampled."""
    ended: bool = False


@dataclass(eq=False)
class _PrefillGroup:
    """A distinct sequence to prefill: who needs it, how many columns it has and how many of them
    were computed before."""

    segments: tuple[Segment, ...]
    users: list[tuple[Sequence, bool]] = field(default_factory=list)
    columns: list[Column] = field(default_factory=list)
    begun: int = 0
    kept: CachedPrefix | None = None
    """The sequence that those were computed for."""
    slot: int = 0


@dataclass
class _SamplingGroup:
    """Runs sampled under one rule: the slots of their sequences and of their twins."""

    sampling_params: SamplingParams
    runs: list[Sequence]
    cond: Tensor
    twin: Tensor | None


class RunningBatch:
    """The runs under way of one model."""

    def __init__(self, janus: Janus, template: ChatTemplate):
        self.janus, self.template, self.device = janus, template, janus.device
        text, weight = janus.net.config.text_config, janus.net.lm_head.weight
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        self.cache = KVCache(text.num_hidden_layers, text.num_key_value_heads, head_dim, weight)
        self.step = ModelRunner(janus, self.cache)
        self.runs: list[Sequence] = []
        exact = torch.promote_types(janus.dtype, torch.float32)
        empty = weight.new_empty
        self._state = {  # a row for each slot; what is sampled stands at the sequence's own slot
            "length": empty(0, dtype=torch.long),
            "position": empty(0, dtype=torch.long),
            "step": empty(0, dtype=torch.long),
            "fed": empty(0, text.hidden_size),
            "hidden": empty(0, text.hidden_size),
            "uniform": empty(0, 0, dtype=torch.float32),
            "tokens": empty(0, 0, dtype=torch.long),
            "logprobs": empty(0, 0, dtype=exact),
            "p_yes": empty(0, dtype=exact),
        }
        self._groups: list[_SamplingGroup] = []
        self._flags: deque[tuple[list[Sequence], Tensor, torch.cuda.Event | None]] = deque()
        # on a GPU the end of a text is noticed a token late, so that the host need not wait for the
        # device
        self._late = 1 if self.device.type == "cuda" else 0

    @property
    def used(self) -> int:
        return sum(len(r.slots) for r in self.runs)

    def enter(self, runs: list[Sequence]) -> None:
        """Prefill: one pass over distinct sequences of like length, which are forked; what a kept
        one has in common with them is not computed again."""
        entries: dict[tuple[Segment, ...], _PrefillGroup] = {}
        for run in runs:
            given = run.job.request.segments
            for twin in (False, True) if run.job.sampling_params.guidance != 1 else (False,):
                segments = self.template.unconditional(given) if twin else given
                entries.setdefault(segments, _PrefillGroup(segments)).users.append((run, twin))
        first = slot = self.used
        for entry in entries.values():
            self._begin(entry)
        ordered = list(entries.values())
        groups = [
            [ordered[i] for i in g]
            for g in sampling.bucket_by_length([len(e.columns) - e.begun for e in ordered])
        ]
        for entry in (e for group in groups for e in group):
            entry.slot, slot = slot, slot + 1
        forks: tuple[list[int], list[int]] = ([], [])
        for entry in entries.values():
            for i, (run, twin) in enumerate(entry.users):
                run.slots[twin] = entry.slot if i == 0 else slot
                run.length = len(entry.columns)
                if i:
                    forks[0].append(entry.slot)
                    forks[1].append(slot)
                    slot += 1
        longest = max(len(e.columns) for e in ordered)
        self._reserve(
            slot, max(r.length + r.job.steps for r in runs), max(r.job.steps for r in runs)
        )
        for entry in entries.values():
            if entry.kept is not None:
                self.cache.put(entry.slot, entry.kept.cache, entry.begun)
                entry.kept = None
        for run in runs:
            run.kept = []  # what was kept is in the cache now
        for group in groups:
            self._prefill(group)
        self.cache.copy(*forks, longest)
        for name in ("length", "position", "hidden") if forks[0] else ():
            self._state[name][forks[1]] = self._state[name][forks[0]]
        self._state["step"][first:slot] = 0
        for run in runs:
            seeded = torch.rand(
                run.job.steps, generator=torch.Generator().manual_seed(run.job.request.seed)
            )
            self._state["uniform"][run.slots[False], : run.job.steps] = seeded.to(self.device)
        self.runs += runs
        self._regroup()

    def _begin(self, entry: _PrefillGroup) -> None:
        """Find the kept sequence that has most in common."""
        entry.columns = columns_of(entry.segments, self.janus.n_patches)
        for kept in (k for run, _ in entry.users for k in run.kept):
            common = in_common(entry.columns, kept.columns)
            if common > entry.begun:
                entry.begun, entry.kept = common, kept

    def _prefill(self, entries: list[_PrefillGroup]) -> None:
        """Entries stand in neighbouring slots."""
        patches, first = self.janus.n_patches, entries[0].slot
        parts = [rest(e.segments, e.begun, patches) for e in entries]
        batch = assemble(self.janus, [segments for segments, _ in parts])
        new = batch.embeds.shape[1]
        self._reserve(0, max(e.begun for e in entries) + new, 0)
        starts = torch.tensor([e.begun for e in entries], device=self.device)
        positions = (
            batch.positions + torch.tensor([p for _, p in parts], device=self.device)[:, None]
        )
        mask = self.cache.window(first, starts, new, max(e.begun for e in entries) + new)
        hidden = self.janus.hidden(batch.embeds, positions, mask, self.cache)
        here, last = slice(first, first + len(entries)), (batch.lengths - 1)[:, None]
        self._state["hidden"][here] = hidden.gather(
            1, last[..., None].expand(-1, -1, hidden.shape[-1])
        )[:, 0]
        self._state["length"][here] = starts + batch.lengths
        self._state["position"][here] = positions.gather(1, last)[:, 0] + 1

    def _reserve(self, slots: int, columns: int, steps: int) -> None:
        slots = rounded(slots)
        moved = self.cache.reserve(slots, in_columns(columns))
        for name, old in self._state.items():
            shape = [max(slots, old.shape[0]), *old.shape[1:]]
            if name in ("uniform", "tokens", "logprobs"):
                shape[1] = max(steps, shape[1])
            if shape != list(old.shape):
                moved = True
                self._state[name] = old.new_zeros(shape)
                self._state[name][tuple(slice(n) for n in old.shape)] = old
        if moved:
            self.step.forget()

    def _regroup(self) -> None:
        by_sampling_params: dict[SamplingParams, list[Sequence]] = {}
        for run in self.runs:
            by_sampling_params.setdefault(run.job.sampling_params, []).append(run)
        self._groups = []
        for sampling_params, runs in by_sampling_params.items():
            cond, twin = (
                torch.tensor([r.slots[t] for r in runs if t in r.slots], device=self.device)
                for t in (False, True)
            )
            self._groups.append(
                _SamplingGroup(
                    sampling_params, runs, cond, twin if sampling_params.guidance != 1 else None
                )
            )

    def sample(self) -> None:
        """One token for every run."""
        state, yes_no = self._state, (self.template.yes, self.template.no)
        for group in self._groups:
            sampling_params, cond = group.sampling_params, group.cond
            twins = None if group.twin is None else state["hidden"][group.twin]
            logits_V = sampling.logits(self.janus, sampling_params, state["hidden"][cond], twins)
            step = state["step"][cond]
            new = {run.step == 0 for run in group.runs}
            first = step == 0 if len(new) == 2 else new == {True}
            log_probs_V = sampling.log_probs(sampling_params, logits_V, first)
            if True in new and sampling_params.first == yes_no:
                p_yes = log_probs_V[:, self.template.yes].exp()
                state["p_yes"][cond] = torch.where(step == 0, p_yes, state["p_yes"][cond])
            tokens, logprobs = sampling.choose(
                sampling_params, log_probs_V, state["uniform"][cond, step]
            )
            state["tokens"][cond, step] = tokens
            state["logprobs"][cond, step] = logprobs
            state["step"][cond] = step + 1
            for run in group.runs:
                run.step += 1
            if sampling_params.head == "text":
                self._notice(group.runs, tokens == self.template.eos)

    def _notice(self, runs: list[Sequence], ended: Tensor) -> None:
        event = None
        if self._late:
            ended = torch.empty_like(ended, device="cpu", pin_memory=True).copy_(
                ended, non_blocking=True
            )
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(self.device))
        self._flags.append((runs, ended, event))

    def leave(self) -> list[tuple[Sequence, Turn]]:
        """The runs that are done, taken out, with their turns."""
        texts = sum(g.sampling_params.head == "text" for g in self._groups)
        while len(self._flags) > self._late * texts:
            runs, ended, event = self._flags.popleft()
            if event is not None:
                event.synchronize()
            for run, over in zip(runs, ended.tolist(), strict=True):
                run.ended |= over
        done = [r for r in self.runs if r.ended or r.step == r.job.steps]
        if not done:
            return []
        turns = self._turns(done)
        self._keep([(run, turn) for run, turn in zip(done, turns, strict=True) if run.job.keep])
        self._close({slot for run in done for slot in run.slots.values()})
        self.runs = [r for r in self.runs if r not in set(done)]
        self._regroup()
        return list(zip(done, turns, strict=True))

    def _turns(self, done: list[Sequence]) -> list[Turn]:
        at = torch.tensor([r.slots[False] for r in done], device=self.device)
        most = max(r.step for r in done)
        if self._state["logprobs"][at, :most].isnan().any():
            raise Stopped(
                f"model: what it says in {self.janus.dtype} is no number (NaN); use another "
                "dtype or other weights"
            )
        tokens, logprobs = (
            self._state[name][at, :most].tolist() for name in ("tokens", "logprobs")
        )
        yes, turns = self._state["p_yes"][at].tolist(), []
        for run, drawn, lp, p_yes in zip(done, tokens, logprobs, yes, strict=True):
            request, sampling_params, n = run.job.request, run.job.sampling_params, run.step
            if sampling_params.head == "text" and self.template.eos in drawn[:n]:
                n = drawn.index(self.template.eos) + 1
            asked = sampling_params.first == (self.template.yes, self.template.no)
            turns.append(
                Turn(
                    request.kind,
                    request.segments,
                    tuple(drawn[:n]),
                    tuple(lp[:n]),
                    sampling_params,
                    request.seed,
                    p_yes if asked else None,
                )
            )
        return turns

    def _keep(self, finished: list[tuple[Sequence, Turn]]) -> None:
        """Leave with a run what was computed for it, up to the last token that was fed."""
        for run, turn in finished:
            kind = "code" if turn.sampling_params.head == "code" else "text"
            for twin, slot in run.slots.items():
                segments = self.template.unconditional(turn.segments) if twin else turn.segments
                columns = columns_of(segments, self.janus.n_patches)
                after = columns[-1][0] + 1
                columns += [(p, kind, t) for p, t in enumerate(turn.tokens[:-1], after)]
                run.kept.append(
                    CachedPrefix(segments, columns, self.cache.take(slot, len(columns)))
                )

    def _close(self, holes: set[int]) -> None:
        """Move the last sequences into the holes, so that those that stay are neighbours."""
        left = self.used - len(holes)
        sources = [s for s in range(left, self.used) if s not in holes]
        targets = [s for s in sorted(holes) if s < left]
        moves = dict(zip(sources, targets, strict=True))
        if moves:
            self.cache.copy(sources, targets, max(r.length for r in self.runs))
            for values in self._state.values():
                values[targets] = values[sources]
            for run in self.runs:
                run.slots = {twin: moves.get(slot, slot) for twin, slot in run.slots.items()}
        self._state["length"][left:] = (
            0  # a pass may be made for more rows than are used: theirs must have a place
        )

    def advance(self) -> None:
        """Feed every run, and its twin, the token that was sampled for it."""
        if not self.runs:
            return
        state, rows = self._state, self.used
        for group in self._groups:
            tokens = state["tokens"][group.cond, state["step"][group.cond] - 1]
            fed = (
                self.janus.embed_codes(tokens)
                if group.sampling_params.head == "code"
                else self.janus.embed_text(tokens)
            )
            state["fed"][group.cond] = fed
            if group.twin is not None:
                state["fed"][group.twin] = fed
        for run in self.runs:
            run.length += 1
        self.step(state, rows, max(r.length for r in self.runs))
        state["length"][:rows] += 1
        state["position"][:rows] += 1
