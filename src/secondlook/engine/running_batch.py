"""The sequences that are decoded together: they enter with a prefill, are sampled one token at a
time, and are taken out when they have ended.

Every sequence takes one slot of the cache, or two when it is guided: its unconditional branch
consumes the same tokens. Sequences of any kind, sampling parameters, seed and length share the
forward pass. A sequence draws its random numbers from its own seed, so its tokens do not depend on
its neighbours. The host waits for the device only where a sequence ends.

Slots in use are neighbours, from 0 on. Shapes: B sequences of a sampling group or rows of a
prefill, T sampled tokens, V ids of a head, D the model's width.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from secondlook.engine.decode_state import DecodeState
from secondlook.engine.kv_cache import KVCache, head_dim_of, in_columns, rounded
from secondlook.engine.model_runner import ModelRunner
from secondlook.engine.prefill import Prefill, assign_slots, distinct_prompts
from secondlook.engine.sequence import CachedPrefix, Sequence, StepOutput
from secondlook.errors import Stopped
from secondlook.models import sampling
from secondlook.models.janus.model import Janus
from secondlook.models.janus.segments import Column, assemble, columns_of, rest
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
    values: Tensor  # (sequences, …) in the host's memory, there once ``arrived`` has passed
    arrived: torch.cuda.Event | None
    """None where nothing had to be copied."""
    step: int
    """In which the copy began."""

    def rows(self) -> list:
        """The values, an entry a sequence."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.values.tolist()


class RunningBatch:
    """The sequences under way of one model, their cache and their state. Used in inference mode."""

    def __init__(self, janus: Janus, template: ChatTemplate):
        self.janus, self.template, self.device = janus, template, janus.device
        text, weight = janus.net.config.text_config, janus.net.lm_head.weight
        self.cache = KVCache(
            text.num_hidden_layers, text.num_key_value_heads, head_dim_of(text), weight
        )
        self.state = DecodeState.empty(weight, text.hidden_size)
        self.model_runner = ModelRunner(janus, self.cache)
        self.sequences: list[Sequence] = []
        self._groups: list[_SamplingGroup] = []
        self._end_flags: deque[_HostCopy] = deque()
        """Of each step and text group, whether the end of sentence was sampled (B,)."""
        self._snapshots: deque[_HostCopy] = deque()
        """Tokens so far (B, T), to be reported."""
        self._step = 0
        # on a GPU the host reads what it was sent a step late, so that it need not wait for the
        # device; the end of a text is noticed a token late
        self._late = 1 if self.device.type == "cuda" else 0

    @property
    def slots_used(self) -> int:
        return sum(len(sequence.slots) for sequence in self.sequences)

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
        lengths_to_compute = [len(prefill.columns) - prefill.cached for prefill in prefills]
        buckets = []
        for prefill_indices in sampling.bucket_by_length(lengths_to_compute):
            buckets.append([prefills[prefill_index] for prefill_index in prefill_indices])
        first_slot = self.slots_used
        fork_sources, fork_targets = assign_slots(prefills, buckets, first_slot)
        end_slot = first_slot + len(prefills) + len(fork_targets)
        max_length = max(sequence.length + sequence.spec.max_tokens for sequence in entering)
        max_tokens = max(sequence.spec.max_tokens for sequence in entering)
        # room for all their tokens now: buffers that moved later would make the graphs useless
        self._reserve(end_slot, max_length, max_tokens)
        for prefill in prefills:
            if prefill.prefix is not None:
                self.cache.put(prefill.slot, prefill.prefix.keys_values, prefill.cached)
                prefill.prefix = None
        for sequence in entering:
            sequence.prefixes = []  # what they held is in the cache now
        for bucket in buckets:
            self._prefill(bucket)
        if fork_targets:
            longest_prompt = max(len(prefill.columns) for prefill in prefills)
            self.cache.copy(fork_sources, fork_targets, longest_prompt)
            self.state.fork(fork_sources, fork_targets)
        self.state.step[first_slot:end_slot] = 0
        for sequence in entering:
            self._seed(sequence)
        self.sequences += entering
        self._regroup()

    def _prefill(self, bucket: list[Prefill]) -> None:
        """One pass over prompts that stand in neighbouring slots, from where their cached columns
        end."""
        first_slot = bucket[0].slot
        slots = slice(first_slot, first_slot + len(bucket))
        remaining, first_positions = [], []
        for prefill in bucket:
            segments, position = rest(prefill.segments, prefill.cached, self.janus.n_patches)
            remaining.append(segments)
            first_positions.append(position)
        num_cached = [prefill.cached for prefill in bucket]
        batch = assemble(self.janus, remaining)
        num_new = batch.embeds.shape[1]  # columns computed, with the padding of shorter rows
        # padding may reach behind the longest prompt
        end_column = max(num_cached) + num_new
        self._reserve(0, end_column, 0)
        start_columns = torch.tensor(num_cached, device=self.device)  # (B,)
        position_offsets = torch.tensor(first_positions, device=self.device)  # (B,)
        positions = batch.positions + position_offsets[:, None]  # (B, new)
        mask = self.cache.window(first_slot, start_columns, num_new, end_column)  # (B, 1, new, end)
        hidden = self.janus.hidden(batch.embeds, positions, mask, self.cache)  # (B, new, D)
        # each row's last real column, which the first token is sampled from
        last_column = (batch.lengths - 1)[:, None]  # (B, 1)
        gather_index = last_column[..., None].expand(-1, -1, hidden.shape[-1])  # (B, 1, D)
        self.state.hidden[slots] = hidden.gather(1, gather_index)[:, 0]
        self.state.length[slots] = start_columns + batch.lengths
        self.state.position[slots] = positions.gather(1, last_column)[:, 0] + 1

    def _seed(self, sequence: Sequence) -> None:
        """All uniform random numbers of a sequence, from its own seed."""
        max_tokens = sequence.spec.max_tokens
        # on the CPU, so that every device draws the same numbers
        generator = torch.Generator().manual_seed(sequence.spec.request.seed)
        uniform = torch.rand(max_tokens, generator=generator)  # (max_tokens,)
        self.state.uniform[sequence.slot, :max_tokens] = uniform.to(self.device)

    def _reserve(self, slots: int, columns: int, max_tokens: int) -> None:
        """Make room in the cache and the state."""
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
            cond = self._slots_of(sequences)
            uncond = None
            if sampling_params.guidance != 1:
                uncond_slots = [sequence.uncond_slot for sequence in sequences]
                uncond = torch.tensor(uncond_slots, device=self.device)
            self._groups.append(_SamplingGroup(sampling_params, sequences, cond, uncond))

    def _slots_of(self, sequences: list[Sequence]) -> Tensor:
        """(B,) slots of the conditional branches."""
        return torch.tensor([sequence.slot for sequence in sequences], device=self.device)

    # sampling

    def sample(self) -> None:
        """One token of every sequence."""
        for group in self._groups:
            tokens = self._sample_group(group)  # (B,)
            if group.sampling_params.head == "text":
                has_ended = tokens == self.template.eos  # (B,)
                self._end_flags.append(self._to_host(group.sequences, has_ended))
        due_sequences = [sequence for sequence in self.sequences if sequence.report_is_due]
        if due_sequences:
            max_sampled = max(sequence.num_sampled for sequence in due_sequences)
            tokens_so_far = self.state.tokens[self._slots_of(due_sequences), :max_sampled]  # (B, T)
            self._snapshots.append(self._to_host(due_sequences, tokens_so_far))

    def _sample_group(self, group: _SamplingGroup) -> Tensor:
        """Returns the sampled tokens (B,)."""
        state, cond, sampling_params = self.state, group.cond, group.sampling_params
        cond_hidden = state.hidden[cond]  # (B, D)
        uncond_hidden = None if group.uncond is None else state.hidden[group.uncond]  # (B, D)
        logits_V = sampling.logits(
            self.janus, sampling_params, cond_hidden, uncond_hidden
        )  # (B, V)
        step = state.step[cond]  # (B,)
        # whether the restriction of the first token applies: to all, to none, or row by row; the
        # host knows without asking the device
        num_first = sum(sequence.num_sampled == 0 for sequence in group.sequences)
        is_first: bool | Tensor = num_first > 0
        if 0 < num_first < len(group.sequences):
            is_first = step == 0
        log_probs_V = sampling.log_probs(sampling_params, logits_V, is_first)  # (B, V)
        if num_first > 0 and self._asks_yes_no(sampling_params):
            p_yes = log_probs_V[:, self.template.yes].exp()  # (B,)
            state.p_yes[cond] = torch.where(step == 0, p_yes, state.p_yes[cond])
        uniform = state.uniform[cond, step]  # (B,)
        tokens, logprobs = sampling.choose(sampling_params, log_probs_V, uniform)  # (B,) each
        state.tokens[cond, step] = tokens
        state.logprobs[cond, step] = logprobs
        state.step[cond] = step + 1
        for sequence in group.sequences:
            sequence.num_sampled += 1
        return tokens

    def _asks_yes_no(self, sampling_params: SamplingParams) -> bool:
        return sampling_params.first == (self.template.yes, self.template.no)

    def _to_host(self, sequences: list[Sequence], values: Tensor) -> _HostCopy:
        """Begin to copy values (B, …) of sequences to the host, without waiting for them."""
        num_tokens = [sequence.num_sampled for sequence in sequences]
        if not self._late:
            return _HostCopy(sequences, num_tokens, values, None, self._step)
        host_values = torch.empty_like(values, device="cpu", pin_memory=True)
        host_values.copy_(values, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record(torch.cuda.current_stream(self.device))
        return _HostCopy(sequences, num_tokens, host_values, arrived, self._step)

    # leaving

    def collect_finished(self) -> list[tuple[Sequence, Turn | Stopped]]:
        """The sequences that have ended, taken out, with their turns."""
        # the flags of this step, one a text group, stay where they are read a step late
        text_groups = sum(group.sampling_params.head == "text" for group in self._groups)
        while len(self._end_flags) > self._late * text_groups:
            flags_copy = self._end_flags.popleft()
            for sequence, has_ended in zip(flags_copy.sequences, flags_copy.rows(), strict=True):
                sequence.ended |= has_ended
        finished = [sequence for sequence in self.sequences if sequence.finished]
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
            snapshot = self._snapshots.popleft()
            tokens = snapshot.rows()
            for i, sequence in enumerate(snapshot.sequences):
                if sequence.slot >= 0:
                    partial.append((sequence, tuple(tokens[i][: snapshot.num_tokens[i]])))
        return partial

    def _turns(self, finished: list[Sequence]) -> list[Turn | Stopped]:
        """The turn of each, or what is wrong with its numbers."""
        slots = self._slots_of(finished)
        max_sampled = max(sequence.num_sampled for sequence in finished)
        tokens_BT = self.state.tokens[slots, :max_sampled]
        logprobs_BT = self.state.logprobs[slots, :max_sampled]
        tokens, logprobs = tokens_BT.tolist(), logprobs_BT.tolist()
        p_yes = self.state.p_yes[slots].tolist()
        turns: list[Turn | Stopped] = []
        for i, sequence in enumerate(finished):
            try:
                turns.append(self._turn(sequence, tokens[i], logprobs[i], p_yes[i]))
            except Stopped as error:
                turns.append(error)
        return turns

    def _turn(
        self, sequence: Sequence, tokens: list[int], logprobs: list[float], p_yes: float
    ) -> Turn:
        """A finished sequence as a turn; ``tokens`` and ``logprobs`` may go on behind its end, with
        what an earlier sequence left in its slot. Raises Stopped where a log-probability of its own
        is NaN."""
        request, sampling_params = sequence.spec.request, sequence.spec.sampling_params
        num_tokens = sequence.num_sampled
        # where the end is noticed a token late, that token is cut off
        if sampling_params.head == "text" and self.template.eos in tokens[:num_tokens]:
            num_tokens = tokens.index(self.template.eos) + 1
        if any(math.isnan(logprob) for logprob in logprobs[:num_tokens]):
            raise Stopped(
                f"model: what it says in {self.janus.dtype} is no number (NaN); use another dtype "
                "or other weights"
            )
        return Turn(
            kind=request.kind,
            segments=request.segments,
            tokens=tuple(tokens[:num_tokens]),
            logprobs=tuple(logprobs[:num_tokens]),
            sampling_params=sampling_params,
            seed=request.seed,
            p_yes=p_yes if self._asks_yes_no(sampling_params) else None,
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
            next_position = columns[-1].position + 1
            for position, token in enumerate(turn.tokens[:-1], next_position):
                columns.append(Column(position, token_kind, token))
            keys_values = self.cache.take(slot, len(columns))
            sequence.prefixes.append(CachedPrefix(segments, columns, keys_values))

    def remove(self, leaving: list[Sequence]) -> None:
        """Take sequences out, ended or not; the last ones move into their slots, so that those that
        stay are neighbours."""
        if not leaving:
            return
        free_slots: set[int] = set()
        for sequence in leaving:
            assert sequence.slot >= 0, "it was taken out before"
            free_slots.update(sequence.slots)
        num_remaining = self.slots_used - len(free_slots)
        # the slots in use from there on are as many as the free ones before, and move to them
        source_slots = [
            slot for slot in range(num_remaining, self.slots_used) if slot not in free_slots
        ]
        target_slots = [slot for slot in sorted(free_slots) if slot < num_remaining]
        if source_slots:
            max_length = max(sequence.length for sequence in self.sequences)
            self.cache.copy(source_slots, target_slots, max_length)
            self.state.move(source_slots, target_slots)
        left_out = set(leaving)
        self.sequences = [sequence for sequence in self.sequences if sequence not in left_out]
        moved_to = dict(zip(source_slots, target_slots, strict=True))
        for sequence in self.sequences:
            sequence.slot = moved_to.get(sequence.slot, sequence.slot)
            if sequence.uncond_slot is not None:
                sequence.uncond_slot = moved_to.get(sequence.uncond_slot, sequence.uncond_slot)
        for sequence in leaving:
            sequence.slot, sequence.uncond_slot = -1, None
        # a pass may be made for more rows than are used: theirs must have a place
        self.state.length[num_remaining:] = 0
        self._regroup()

    # the forward pass

    def advance(self) -> None:
        """Feed every sequence, and its unconditional branch, the token that was sampled for it."""
        if not self.sequences:
            return
        state, num_rows = self.state, self.slots_used  # a row for every slot in use
        for group in self._groups:
            tokens = state.tokens[group.cond, state.step[group.cond] - 1]  # (B,) the latest
            if group.sampling_params.head == "code":
                token_embeds = self.janus.embed_codes(tokens)  # (B, D)
            else:
                token_embeds = self.janus.embed_text(tokens)  # (B, D)
            state.embeds[group.cond] = token_embeds
            if group.uncond is not None:
                state.embeds[group.uncond] = token_embeds
        for sequence in self.sequences:
            sequence.length += 1
        max_length = max(sequence.length for sequence in self.sequences)
        self.model_runner(state, num_rows, max_length)
        state.length[:num_rows] += 1
        state.position[:num_rows] += 1
