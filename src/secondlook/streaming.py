"""What happens while an episode is drawn, with partial images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from PIL import Image

from secondlook.engine.engine import Engine
from secondlook.episode import SamplingConfig, stream_episodes
from secondlook.types import EpisodeFinished, Prompt, RowDrawn, VerdictGiven

GREY = (127, 127, 127)
"""Colour of the rows of a partial image that are not drawn yet."""


@dataclass(frozen=True)
class PartialImage:
    """An image while it is drawn.

    Attributes:
        round_index: 0 for the first image, 1 for the first redraw.
        rows: Rows of codes that are drawn.
        total_rows: Rows of codes of a whole image.
        image: What is drawn so far; the rest is grey.
    """

    round_index: int
    rows: int
    total_rows: int
    image: Image.Image


StreamEvent: TypeAlias = PartialImage | VerdictGiven | EpisodeFinished


def stream_events(
    engine: Engine, prompt: Prompt, seed: int, rounds: int, sampling: SamplingConfig
) -> Iterator[StreamEvent]:
    """An episode's events in order: of each round a PartialImage after each row of codes, then the
    verdict; at the end the episode. Closing the iterator ends the drawing."""
    for event in stream_episodes(engine, [prompt], [seed], rounds, sampling):
        if isinstance(event, RowDrawn):
            yield partial_image(engine, event.round_index, event.codes, event.rows)
        else:
            yield event


def partial_image(
    engine: Engine, round_index: int, codes: Sequence[int], num_rows: int
) -> PartialImage:
    """The picture of the first ``num_rows`` rows of codes. The decoder wants all codes, so the last
    row that is drawn stands for those below it, which are then painted grey."""
    total_codes = engine.janus.n_codes
    total_rows = round(total_codes**0.5)  # and codes a row: 24 of 576 codes
    row_length = total_rows
    drawn_codes = list(codes[: num_rows * row_length])
    last_row = drawn_codes[-row_length:] or [0] * row_length  # no row is drawn: any code will do
    drawn_codes += last_row * (total_rows - num_rows)
    [image] = engine.pictures([tuple(drawn_codes)])
    grey_top = num_rows * image.height // total_rows  # pixels
    image.paste(GREY, (0, grey_top, image.width, image.height))
    return PartialImage(round_index, num_rows, total_rows, image)
