"""The package's nouns. Frozen, each field explained, importable without torch."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from secondlook.errors import InputError, Stopped

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class WorkerShard:
    """This process's share of what several do together: job j belongs to process j mod ``size``."""

    rank: int = 0
    size: int = 1

    @staticmethod
    def of_environment() -> WorkerShard:
        """As torchrun says. Raises InputError where RANK or WORLD_SIZE is no number."""
        rank_text = os.environ.get("RANK", "0")
        size_text = os.environ.get("WORLD_SIZE", "1")
        if not rank_text.isdecimal() or not size_text.isdecimal():
            raise InputError(
                f"environment: RANK is {rank_text!r} and WORLD_SIZE {size_text!r}; they must "
                "be numbers"
            )
        return WorkerShard(int(rank_text), int(size_text))


def digest(image: Image) -> str:
    """A short name of a picture's pixels: 16 hexadecimal digits."""
    header = f"{image.mode} {image.size}".encode()  # equal bytes may be pictures of two shapes
    return sha256(header + image.tobytes()).hexdigest()[:16]


@dataclass(frozen=True)
class Prompt:
    """What is asked for: a picture, or with a ``source`` an edit of it.

    Attributes:
        text: What to draw; of an edit the instruction.
        source: The picture to edit.
        codes: The source's codes, where it was drawn; without them it is encoded.
    """

    text: str
    source: Image | None = None
    codes: tuple[int, ...] = ()

    @property
    def key(self) -> str:
        """Text by which equal prompts are known: the prompt itself, or an instruction with its
        source's digest."""
        return f"{self.text}\n{digest(self.source)}" if self.source else self.text


@dataclass(frozen=True)
class TokenIds:
    """A piece of a sequence: token ids. ``droppable`` are the prompt's own tokens, which the
    unconditional branch pads."""

    ids: tuple[int, ...]
    droppable: bool = False


@dataclass(frozen=True, eq=False)
class ImageInput:
    """A piece of a sequence: an image that is seen (understanding path). Compared by identity: two
    inputs of one image are not equal."""

    image: Image


@dataclass(frozen=True)
class ImageCodes:
    """A piece of a sequence: an image that was drawn, as codes (generation path)."""

    codes: tuple[int, ...]
    """Row by row from the top; of Janus-Pro 24 x 24 = 576."""


@dataclass(frozen=True)
class PositionSkip:
    """Positions passed over, without a token in them (what the public code masks keeps its
    place)."""

    size: int = 1


Segment = TokenIds | ImageInput | ImageCodes | PositionSkip


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen from logits: everything the behaviour log-probability depends on, in
    order of application."""

    head: str
    """``"code"`` (generation head) or ``"text"`` (lm_head)."""
    guidance: float = 1.0
    """Classifier-free guidance s: logits u + s (c - u); 1 is no guidance and needs no unconditional
    branch."""
    temperature: float = 1.0
    """Logits are divided by it; 0 is greedy (log-probabilities are then those of temperature 1)."""
    top_k: int = 0
    """Only the k largest logits may be sampled; 0 is all."""
    first: tuple[int, ...] = ()
    """The only ids that the first token may take (the verdict's Yes and No); () is all."""


@dataclass(frozen=True)
class Request:
    """One sequence for the engine to continue."""

    kind: str
    """``draw``, ``judge``, ``redraw``, ``edit`` or ``ask``."""
    segments: tuple[Segment, ...]
    seed: int


@dataclass(frozen=True)
class Turn:
    """One sequence that the model continued."""

    kind: str
    segments: tuple[Segment, ...]
    """What it was given."""
    tokens: tuple[int, ...]
    """What was sampled: codes, or text ids up to and with the end of sentence."""
    logprobs: tuple[float, ...]
    """Behaviour log-probability of each sampled token under ``sampling_params``."""
    sampling_params: SamplingParams
    seed: int
    p_yes: float | None = None
    """Judge turns: P(Yes) / (P(Yes) + P(No)) at the first token."""

    def __post_init__(self) -> None:
        """Raises Stopped where a probability is not a number, so that none becomes a verdict, a
        score or a reward."""
        has_logprobs = math.isfinite(sum(self.logprobs))
        has_p_yes = self.p_yes is None or 0 <= self.p_yes <= 1  # NaN is in no range
        if not has_logprobs or not has_p_yes:
            raise Stopped(
                f"model: a {self.kind} turn has probabilities that are no numbers (p(yes) "
                f"{self.p_yes}); "
                "its weights are damaged, or its dtype is too small for them"
            )


@dataclass(frozen=True)
class Verdict:
    """What the model says of an image after looking at it.

    Attributes:
        yes: Whether it matches its prompt.
        p_yes: P(Yes) / (P(Yes) + P(No)), from 0 to 1.
        reason: One sentence: "there is a red star but no blue cat."
    """

    yes: bool
    p_yes: float
    reason: str

    def __str__(self) -> str:
        return f"{'Yes' if self.yes else 'No'} (p(yes) {self.p_yes:.2f}): {self.reason}"


@dataclass(frozen=True)
class Round:
    """One image of an episode with the model's own verdict on it.

    Attributes:
        image: The picture.
        codes: Its codes, row by row from the top; of Janus-Pro 24 x 24 = 576.
        yes: The verdict, which was sampled: whether the image matches the prompt.
        p_yes: P(Yes) / (P(Yes) + P(No)), from 0 to 1.
        reason: One sentence, written after the verdict.
    """

    image: Image
    codes: tuple[int, ...]
    yes: bool
    p_yes: float
    reason: str

    @property
    def verdict(self) -> Verdict:
        """``yes``, ``p_yes`` and ``reason`` together."""
        return Verdict(self.yes, self.p_yes, self.reason)


@dataclass(frozen=True)
class Episode:
    """A prompt's rounds in order. The one object that the CLI, the benchmarks and the trainers
    receive.

    Attributes:
        prompt: What was asked for.
        seed: The episode's seed: with the prompt and the settings it decides everything.
        rounds: Each image with its verdict; the last one was not redrawn.
        turns: The sequences behind the rounds, each a drawing or a verdict, with their tokens and
            log-probabilities: what training learns from.
    """

    prompt: Prompt
    seed: int
    rounds: tuple[Round, ...]
    turns: tuple[Turn, ...] = field(repr=False)

    @property
    def final(self) -> int:
        """Index of the final image: the one that the model said Yes to, else the one with the
        highest p(yes)."""
        for round_index, each in enumerate(self.rounds):
            if each.yes:
                return round_index
        p_yes = [each.p_yes for each in self.rounds]
        return p_yes.index(max(p_yes))  # of equal ones the first

    @property
    def image(self) -> Image:
        """The final image."""
        return self.rounds[self.final].image

    @property
    def verdict(self) -> Verdict:
        """The model's verdict on the final image."""
        return self.rounds[self.final].verdict

    def save(self, folder: str | Path) -> Path:
        """Write round-1.png …, final.png, of an edit source.png, episode.json and episode.html.

        An episode that was there before is replaced. Returns the folder. Raises InputError where
        it cannot be written.
        """
        from secondlook.report import write_episode

        write_episode(Path(folder), self, settings={}, claimed=False)
        return Path(folder)

    def _repr_html_(self) -> str:
        """A filmstrip of the rounds, as a notebook shows it."""
        from secondlook.report import episode_strip

        return episode_strip(self)


@dataclass(frozen=True)
class RowDrawn:
    """While an episode is drawn: another row of its current image is there."""

    prompt_index: int
    round_index: int
    codes: tuple[int, ...]
    """All codes of the image so far, row by row from the top."""
    rows: int
    """Rows that are finished."""


@dataclass(frozen=True)
class VerdictGiven:
    """While an episode is drawn: a round has its image and its verdict.

    Attributes:
        prompt_index: Which of the prompts that are drawn together it is of; of a stream 0.
        round_index: 0 for the first image, 1 for the first redraw.
        round: The image with its verdict.
    """

    prompt_index: int
    round_index: int
    round: Round


@dataclass(frozen=True)
class EpisodeFinished:
    """An episode is whole.

    Attributes:
        prompt_index: Which of the prompts that are drawn together it is of; of a stream 0.
        episode: The episode, the same that ``draw`` returns.
    """

    prompt_index: int
    episode: Episode


Event = RowDrawn | VerdictGiven | EpisodeFinished
