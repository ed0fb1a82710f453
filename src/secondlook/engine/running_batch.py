"""The sequences that are decoded together: they enter with a prefill, are sampled one token at a
time, and are taken out when they have ended.

Every sequence takes one slot of the cache, or two when it is guided: its unconditional branch
consumes the same tokens. Sequences of any kind, sampling parameters, seed and length share the
forward pass. A sequence draws its random numbers from its own seed, so its tokens do not depend on
its neighbours. The host waits for the device only where a sequence ends.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from secondlook.engine.decode_state import DecodeState
from secondlook.engine.kv_cache import KVCache, in_columns, rounded
from secondlook.engine.model_runner import ModelRunner
from secondlook.engine.prefill import Prefill, assign_slots, distinct_prompts
from secondlook.engine.sequence import CachedPrefix, Sequence
from secondlook.errors import Stopped
from secondlook.models import sampling
from secondlook.models.janus.model import Janus
from secondlook.models.janus.segments import assemble, columns_of, rest
from secondlook.models.janus.template import ChatTemplate
from secondlook.types import SamplingParams, Turn


@dataclass
class _SamplingGroup:
    """Sequences with the same sampling parameters."""

    sampling_params: SamplingParams
    sequences: list[Sequence]
    cond: Tensor  # (B,) slots
    uncond: Tensor | None  # (B,) slots; None without guidance


@dataclass
class _HostCopy:
    """Values of some sequences on their way to the host."""

    sequences: list[Sequence]
    num_tokens: list[int]
    """Tokens that each had when the copy began."""
    values: Tensor  # one row a sequence
    arrived: torch.cuda.Event | None
    step: int

    def rows(self) -> list:
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.values.tolist()


@dataclass(frozen=True)
class StepOutput:
    """What one step of the batch gave."""

    partial: list[tuple[Sequence, tuple[int, ...]]]
    """Sequences whose tokens so far are to be reported, with these."""
    finished: list[tuple[Sequence, Turn | Stopped]]
    """Sequences that have ended; Stopped where the model gave numbers that are none."""


class RunningBatch:
    """The sequences under way of one model, their cache and their state. Used in inference mode."""

    def __init__(self, janus: Janus, template: ChatTemplate):
        self.janus, self.template, self.device = janus, template, janus.device
        text, weight = janus.net.config.text_config, janus.net.lm_head.weight
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        self.cache = KVCache(text.num_hidden_layers, text.num_key_value_heads, head_dim, weight)
        self.state = DecodeState.empty(weight, text.hidden_size)
        self.model_runner = ModelRunner(janus, self.cache)
        self.sequences: list[Sequence] = []
        self._groups: list[_SamplingGroup] = []
        self._end_flags: deque[_HostCopy] = deque()
        self._snapshots: deque[_HostCopy] = deque()
        self._step = 0
        # on a GPU the host reads what it was sent a step late, so that it need not wait for the
        # device; the end of a text is noticed a token late
        self._late = 1 if self.device.type == "cuda" else 0

    @property
    def slots_used(self) -> int:
        return sum(len(s.slots) for s in self.sequences)

    def run(self, entering: list[Sequence]) -> StepOutput:
        """One step: prefill what enters, sample a token of every sequence, take out those that have
        ended, and feed the others their token."""
        if entering:
            self.enter(entering)
        self.sample()
        finished = self.collect_finished()
        partial = self._collect_partial()
        self.advance()
        self._step += 1
        return StepOutput(partial, finished)

    # entering

    def enter(self, entering: list[Sequence]) -> None:
        """Prefill distinct prompts, those of like length in one pass; sequences with the same
        prompt fork from it. What a cached prefix has in common with a prompt is not computed
        again."""
        prefills = distinct_prompts(entering, self.template, self.janus.n_patches)
        new_columns = [len(p.columns) - p.cached for p in prefills]
        buckets = [[prefills[i] for i in b] for b in sampling.bucket_by_length(new_columns)]
        first = self.slots_used
        sources, targets = assign_slots(prefills, buckets, first)
        end = first + len(prefills) + len(targets)
        self._reserve(
            end,
            max(s.length + s.spec.max_tokens for s in entering),
            max(s.spec.max_tokens for s in entering),
        )
        for prefill in prefills:
            if prefill.prefix is not None:
                self.cache.put(prefill.slot, prefill.prefix.keys_values, prefill.cached)
                prefill.prefix = None
        for sequence in entering:
            sequence.prefixes = []  # what they held is in the cache now
        for bucket in buckets:
            self._prefill(bucket)
        if targets:
            self.cache.copy(sources, targets, max(len(p.columns) for p in prefills))
            self.state.fork(sources, targets)
        self.state.step[first:end] = 0
        for sequence in entering:
            self._seed(sequence)
        self.sequences += entering
        self._regroup()

    def _prefill(self, bucket: list[Prefill]) -> None:
        """One pass over prompts that stand in neighbouring slots, from where their cached columns
        end."""
        first = bucket[0].slot
        here = slice(first, first + len(bucket))
        remaining, offsets = [], []
        for prefill in bucket:
            segments, position = rest(prefill.segments, prefill.cached, self.janus.n_patches)
            remaining.append(segments)
            offsets.append(position)
        batch = assemble(self.janus, remaining)
        new = batch.embeds.shape[1]
        end = max(p.cached for p in bucket) + new
        self._reserve(0, end, 0)
        starts = torch.tensor([p.cached for p in bucket], device=self.device)
        positions = batch.positions + torch.tensor(offsets, device=self.device)[:, None]  # (B, new)
        mask = self.cache.window(first, starts, new, end)
        hidden = self.janus.hidden(batch.embeds, positions, mask, self.cache)  # (B, new, D)
        last = (batch.lengths - 1)[:, None]
        at_last = last[..., None].expand(-1, -1, hidden.shape[-1])
        self.state.hidden[here] = hidden.gather(1, at_last)[:, 0]
        self.state.length[here] = starts + batch.lengths
        self.state.position[here] = positions.gather(1, last)[:, 0] + 1

    def _seed(self, sequence: Sequence) -> None:
        """All uniform random numbers of a sequence, from its own seed."""
        n = sequence.spec.max_tokens
        generator = torch.Generator().manual_seed(sequence.spec.request.seed)
        uniform = torch.rand(n, generator=generator)
        self.state.uniform[sequence.slot, :n] = uniform.to(self.device)

    def _reserve(self, slots: int, columns: int, max_tokens: int) -> None:
        slots = rounded(slots)
        cache_moved = self.cache.reserve(slots, in_columns(columns))
        state_moved = self.state.reserve(slots, max_tokens)
        if cache_moved or state_moved:
            self.model_runner.forget()

    def _regroup(self) -> None:
        """Sort the sequences by their sampling parameters."""
        members: dict[SamplingParams, list[Sequence]] = {}
        for sequence in self.sequences:
            members.setdefault(sequence.spec.sampling_params, []).append(sequence)
        self._groups = []
        for sampling_params, sequences in members.items():
            cond = torch.tensor([s.slot for s in sequences], device=self.device)
            uncond = None
            if sampling_params.guidance != 1:
                uncond = torch.tensor([s.uncond_slot for s in sequences], device=self.device)
            self._groups.append(_SamplingGroup(sampling_params, sequences, cond, uncond))

    # sampling

    def sample(self) -> None:
        """One token of every sequence."""
        for group in self._groups:
            tokens = self._sample_group(group)
            if group.sampling_params.head == "text":
                ended = tokens == self.template.eos
                self._end_flags.append(self._to_host(group.sequences, ended))
        listening = [
            s
            for s in self.sequences
            if s.report_every and s.num_sampled % s.report_every == 0 and not s.finished
        ]
        if listening:
            slots = torch.tensor([s.slot for s in listening], device=self.device)
            longest = max(s.num_sampled for s in listening)
            tokens_so_far = self.state.tokens[slots, :longest]
            self._snapshots.append(self._to_host(listening, tokens_so_far))

    def _sample_group(self, group: _SamplingGroup) -> Tensor:
        """Returns the sampled tokens (B,)."""
        state, cond, sampling_params = self.state, group.cond, group.sampling_params
        uncond_hidden = None if group.uncond is None else state.hidden[group.uncond]
        logits_V = sampling.logits(
            self.janus, sampling_params, state.hidden[cond], uncond_hidden
        )  # (B, V)
        step = state.step[cond]
        # whether the restriction of the first token applies: to all, to none, or row by row
        is_first = {s.num_sampled == 0 for s in group.sequences}
        first = step == 0 if len(is_first) == 2 else is_first == {True}
        log_probs_V = sampling.log_probs(sampling_params, logits_V, first)
        if True in is_first and self._asks_yes_no(sampling_params):
            p_yes = log_probs_V[:, self.template.yes].exp()
            state.p_yes[cond] = torch.where(step == 0, p_yes, state.p_yes[cond])
        tokens, logprobs = sampling.choose(sampling_params, log_probs_V, state.uniform[cond, step])
        state.tokens[cond, step] = tokens
        state.logprobs[cond, step] = logprobs
        state.step[cond] = step + 1
        for sequence in group.sequences:
            sequence.num_sampled += 1
        return tokens

    def _asks_yes_no(self, sampling_params: SamplingParams) -> bool:
        return sampling_params.first == (self.template.yes, self.template.no)

    def _to_host(self, sequences: list[Sequence], values: Tensor) -> _HostCopy:
        num_tokens = [s.num_sampled for s in sequences]
        if not self._late:
            return _HostCopy(sequences, num_tokens, values, None, self._step)
        host = torch.empty_like(values, device="cpu", pin_memory=True)
        host.copy_(values, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record(torch.cuda.current_stream(self.device))
        return _HostCopy(sequences, num_tokens, host, arrived, self._step)

    # leaving

    def collect_finished(self) -> list[tuple[Sequence, Turn | Stopped]]:
        """The sequences that have ended, taken out, with their turns."""
        text_groups = sum(g.sampling_params.head == "text" for g in self._groups)
        while len(self._end_flags) > self._late * text_groups:
            flags = self._end_flags.popleft()
            for sequence, ended in zip(flags.sequences, flags.rows(), strict=True):
                sequence.ended |= ended
        finished = [s for s in self.sequences if s.finished]
        if not finished:
            return []
        turns = self._turns(finished)
        for sequence, turn in zip(finished, turns, strict=True):
            if sequence.spec.keep_prefix and isinstance(turn, Turn):
                self._keep_prefixes(sequence, turn)
        self.remove(finished)
        return list(zip(finished, turns, strict=True))

    def _collect_partial(self) -> list[tuple[Sequence, tuple[int, ...]]]:
        """Snapshots that have arrived, of sequences that are still under way."""
        partial = []
        while self._snapshots and self._snapshots[0].step <= self._step - self._late:
            copy = self._snapshots.popleft()
            for sequence, n, tokens in zip(
                copy.sequences, copy.num_tokens, copy.rows(), strict=True
            ):
                if sequence.slot >= 0:
                    partial.append((sequence, tuple(tokens[:n])))
        return partial

    def _turns(self, finished: list[Sequence]) -> list[Turn | Stopped]:
        slots = torch.tensor([s.slot for s in finished], device=self.device)
        longest = max(s.num_sampled for s in finished)
        tokens = self.state.tokens[slots, :longest].tolist()
        logprobs_BT = self.state.logprobs[slots, :longest]
        logprobs = logprobs_BT.tolist()
        not_a_number = logprobs_BT.isnan().any(-1).tolist()
        p_yes = self.state.p_yes[slots].tolist()
        turns: list[Turn | Stopped] = []
        for i, sequence in enumerate(finished):
            if not_a_number[i]:
                message = (
                    f"model: what it says in {self.janus.dtype} is no number (NaN); use another "
                    "dtype or other weights"
                )
                turns.append(Stopped(message))
                continue
            try:
                turns.append(self._turn(sequence, tokens[i], logprobs[i], p_yes[i]))
            except Stopped as error:
                turns.append(error)
        return turns

    def _turn(
        self, sequence: Sequence, tokens: list[int], logprobs: list[float], p_yes: float
    ) -> Turn:
        request, sampling_params = sequence.spec.request, sequence.spec.sampling_params
        n = sequence.num_sampled
        if sampling_params.head == "text" and self.template.eos in tokens[:n]:
            n = tokens.index(self.template.eos) + 1
        return Turn(
            request.kind,
            request.segments,
            tuple(tokens[:n]),
            tuple(logprobs[:n]),
            sampling_params,
            request.seed,
            p_yes if self._asks_yes_no(sampling_params) else None,
        )

    def _keep_prefixes(self, sequence: Sequence, turn: Turn) -> None:
        """Leave with a sequence what was computed for it and for its unconditional branch, up to
        the last token that was fed."""
        token_kind = "code" if turn.sampling_params.head == "code" else "text"
        for slot in sequence.slots:
            segments = turn.segments
            if slot == sequence.uncond_slot:
                segments = self.template.unconditional(segments)
            columns = columns_of(segments, self.janus.n_patches)
            next_position = columns[-1][0] + 1
            for position, token in enumerate(turn.tokens[:-1], next_position):
                columns.append((position, token_kind, token))
            keys_values = self.cache.take(slot, len(columns))
            sequence.prefixes.append(CachedPrefix(segments, columns, keys_values))

    def remove(self, leaving: list[Sequence]) -> None:
        """Take sequences out, ended or not; the last ones move into their slots, so that those that
        stay are neighbours."""
        if not leaving:
            return
        holes = {slot for sequence in leaving for slot in sequence.slots}
        remaining = self.slots_used - len(holes)
        sources = [s for s in range(remaining, self.slots_used) if s not in holes]
        targets = [s for s in sorted(holes) if s < remaining]
        gone = set(leaving)
        if sources:
            self.cache.copy(sources, targets, max(s.length for s in self.sequences))
            self.state.move(sources, targets)
        self.sequences = [s for s in self.sequences if s not in gone]
        moved_to = dict(zip(sources, targets, strict=True))
        for sequence in self.sequences:
            sequence.slot = moved_to.get(sequence.slot, sequence.slot)
            if sequence.uncond_slot is not None:
                sequence.uncond_slot = moved_to.get(sequence.uncond_slot, sequence.uncond_slot)
        for sequence in leaving:
            sequence.slot, sequence.uncond_slot = -1, None
        # a pass may be made for more rows than are used: theirs must have a place
        self.state.length[remaining:] = 0
        self._regroup()

    # the forward pass

    def advance(self) -> None:
        """Feed every sequence, and its unconditional branch, the token that was sampled for it."""
        if not self.sequences:
            return
        state, rows = self.state, self.slots_used
        for group in self._groups:
            tokens = state.tokens[group.cond, state.step[group.cond] - 1]
            if group.sampling_params.head == "code":
                embeds = self.janus.embed_codes(tokens)  # (B, D)
            else:
                embeds = self.janus.embed_text(tokens)
            state.embeds[group.cond] = embeds
            if group.uncond is not None:
                state.embeds[group.uncond] = embeds
        for sequence in self.sequences:
            sequence.length += 1
        self.model_runner(state, rows, max(s.length for s in self.sequences))
        state.length[:rows] += 1
        state.position[:rows] += 1
