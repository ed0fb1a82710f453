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
    cached: int = 0
    """Columns at its beginning that ``prefix`` holds."""
    prefix: CachedPrefix | None = None
    slot: int = -1


def distinct_prompts(
    entering: list[Sequence], template: ChatTemplate, n_patches: int
) -> list[Prefill]:
    """The prompts of all branches, each with the cached prefix that has most in common with it."""
    prefills: dict[tuple[Segment, ...], Prefill] = {}
    for sequence in entering:
        segments = sequence.spec.request.segments
        branches = [(False, segments)]
        if sequence.guided:
            branches.append((True, template.unconditional(segments)))
        for is_uncond, prompt in branches:
            prefill = prefills.setdefault(prompt, Prefill(prompt))
            prefill.users.append((sequence, is_uncond))
    for prefill in prefills.values():
        prefill.columns = columns_of(prefill.segments, n_patches)
        _find_prefix(prefill)
    return list(prefills.values())


def _find_prefix(prefill: Prefill) -> None:
    for sequence, _ in prefill.users:
        for prefix in sequence.prefixes:
            common = in_common(prefill.columns, prefix.columns)
            if common > prefill.cached:
                prefill.cached, prefill.prefix = common, prefix


def assign_slots(
    prefills: list[Prefill], buckets: list[list[Prefill]], first: int
) -> tuple[list[int], list[int]]:
    """Give every prefill a slot from ``first`` on, buckets side by side, and every further user of
    one a slot after them. Returns the slots to fork from and those to fork to."""
    slot = first
    for bucket in buckets:
        for prefill in bucket:
            prefill.slot = slot
            slot += 1
    sources, targets = [], []
    for prefill in prefills:
        for i, (sequence, is_uncond) in enumerate(prefill.users):
            own = prefill.slot
            if i > 0:
                own = slot
                slot += 1
                sources.append(prefill.slot)
                targets.append(own)
            if is_uncond:
                sequence.uncond_slot = own
            else:
                sequence.slot = own
            sequence.length = len(prefill.columns)
    return sources, targets
