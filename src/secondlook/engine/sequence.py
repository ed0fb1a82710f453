"""A sequence that is being continued, what is kept of one that has ended, and what a step gives."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from secondlook.engine.requests import GenerateRequest
from secondlook.errors import Stopped
from secondlook.models.janus.segments import Column
from secondlook.types import Segment, Turn


@dataclass(eq=False)
class CachedPrefix:
    """Columns of a sequence that has ended, with their keys and values: a later sequence that
    begins alike need not compute them again."""

    segments: tuple[Segment, ...]
    """Kept because ``columns`` know a seen image by its identity only."""
    columns: list[Column]
    keys_values: Tensor
    """(2, layers, key-value heads, columns, head_dim), keys first."""


@dataclass(eq=False)
class Sequence:
    """One sequence from its prefill to its last token."""

    spec: GenerateRequest
    prefixes: list[CachedPrefix] = field(default_factory=list)
    """What it, or its unconditional branch, may begin like; dropped once it has entered."""
    report_every: int = 0
    """Its tokens so far are reported each time so many more were sampled; 0: to nobody."""
    slot: int = -1
    """Its row of the key-value cache and of the decode state; -1 before it has entered."""
    uncond_slot: int | None = None
    """The row of its unconditional branch; None without guidance."""
    length: int = 0
    """Columns in the cache; the unconditional branch has as many."""
    num_sampled: int = 0
    """Tokens sampled so far."""
    ended: bool = False
    """The end of sentence was sampled."""

    @property
    def guided(self) -> bool:
        return self.spec.sampling_params.guidance != 1

    @property
    def slots(self) -> list[int]:
        """Its rows: the conditional branch's, then the unconditional one's if it has one."""
        return [self.slot] if self.uncond_slot is None else [self.slot, self.uncond_slot]

    @property
    def finished(self) -> bool:
        return self.ended or self.num_sampled == self.spec.max_tokens

    @property
    def report_is_due(self) -> bool:
        """Its tokens so far are to be reported now; the last ones come with its turn."""
        if not self.report_every or self.finished:
            return False
        return self.num_sampled % self.report_every == 0


@dataclass(frozen=True)
class StepOutput:
    """What one step of the batch gave."""

    partial: list[tuple[Sequence, tuple[int, ...]]]
    """Sequences whose tokens so far are to be reported, with these."""
    finished: list[tuple[Sequence, Turn | Stopped]]
    """Sequences that have ended; Stopped where the model gave numbers that are none."""
