"""What has to be computed before sequences can be decoded: each distinct prompt once, from where a
cached prefix ends, in slots side by side."""

from __future__ import annotations

from dataclasses import dataclass, field

from secondlook.engine.sequence import CachedPrefix, Sequence
from secondlook.models.janus.segments import Column, columns_of, in_common
from secondlook.models.janus.template import ChatTemplate
from secondlook.types import Segment


@dataclass(eq=False)
class Prefill:
    """A distinct prompt, for every sequence or unconditional branch that has it."""

    segments: tuple[Segment, ...]
    users: list[tuple[Sequence, bool]] = field(default_factory=list)
    """Who needs it: (sequence, whether it is the unconditional branch)."""
    columns: list[Column] = field(default_factory=list)
    """Of the whole prompt."""
    cached: int = 0
    """Columns at its beginning that ``prefix`` holds."""
    prefix: CachedPrefix | None = None
    slot: int = -1
    """Where it is computed; its further users are copies."""


def distinct_prompts(
    entering: list[Sequence], template: ChatTemplate, n_patches: int
) -> list[Prefill]:
    """The prompts of all branches, each with the cached prefix that has most in common with it."""
    prefill_of_prompt: dict[tuple[Segment, ...], Prefill] = {}
    for sequence in entering:
        segments = sequence.spec.request.segments
        branches = [(False, segments)]  # (whether it is the unconditional one, its prompt)
        if sequence.guided:
            branches.append((True, template.unconditional(segments)))
        for is_uncond, prompt in branches:
            prefill = prefill_of_prompt.setdefault(prompt, Prefill(prompt))
            prefill.users.append((sequence, is_uncond))
    prefills = list(prefill_of_prompt.values())
    for prefill in prefills:
        prefill.columns = columns_of(prefill.segments, n_patches)
        _find_prefix(prefill)
    return prefills


def _find_prefix(prefill: Prefill) -> None:
    """Of all prefixes that its users bring, take the one with most columns in common."""
    for sequence, _ in prefill.users:
        for prefix in sequence.prefixes:
            num_common = in_common(prefill.columns, prefix.columns)
            if num_common > prefill.cached:
                prefill.cached, prefill.prefix = num_common, prefix


def assign_slots(
    prefills: list[Prefill], buckets: list[list[Prefill]], first_slot: int
) -> tuple[list[int], list[int]]:
    """Give every prefill a slot from ``first`` on, buckets side by side, and every further user of
    one a slot after them. Returns the slots to fork from and those to fork to."""
    next_slot = first_slot
    for bucket in buckets:
        for prefill in bucket:
            prefill.slot = next_slot
            next_slot += 1
    source_slots, target_slots = [], []
    for prefill in prefills:
        for user_number, (sequence, is_uncond) in enumerate(prefill.users):
            user_slot = prefill.slot  # of the first user
            if user_number > 0:
                user_slot = next_slot
                next_slot += 1
                source_slots.append(prefill.slot)
                target_slots.append(user_slot)
            if is_uncond:
                sequence.uncond_slot = user_slot
            else:
                sequence.slot = user_slot
            sequence.length = len(prefill.columns)
    return source_slots, target_slots
