"""Segments of a sequence as columns, positions and embeddings.

A column is a place of a sequence: one token, one code or one patch of a seen image. Shapes: B rows,
T columns of the longest, N columns of all rows, D width of the language model.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from secondlook.models.janus.model import Janus
from secondlook.types import ImageCodes, ImageInput, PositionSkip, Segment, TokenIds


@dataclass
class Batch:
    """Sequences as tensors. Rows are padded on the right to one length."""

    embeds: Tensor
    """(B, T, D)."""
    lengths: Tensor
    """(B,) real columns of each row."""
    positions: Tensor
    """(B, T) the column's number within its row, moved on by the position skips before it; 0 where
    the row is padded."""


def length(segments: tuple[Segment, ...], n_patches: int) -> int:
    """Columns that segments take; a seen image takes ``n_patches``."""
    num_columns = 0
    for segment in segments:
        if isinstance(segment, TokenIds):
            num_columns += len(segment.ids)
        elif isinstance(segment, ImageCodes):
            num_columns += len(segment.codes)
        elif isinstance(segment, ImageInput):
            num_columns += n_patches
    return num_columns  # a PositionSkip takes none


class Column(NamedTuple):
    """One column of a sequence: its position, and what stands there."""

    position: int
    kind: str
    """"text", "code", or "look" with the identity of the image that is seen."""
    value: int
    """The id, the code, or the number of the patch."""


def columns_of(segments: tuple[Segment, ...], n_patches: int) -> list[Column]:
    """Segments column by column. A seen image is known by its identity, so keep the segments as
    long as the columns."""
    columns: list[Column] = []
    position = 0
    for segment in segments:
        if isinstance(segment, PositionSkip):
            position += segment.size
            continue
        column_values: Iterable[int]
        if isinstance(segment, TokenIds):
            column_kind, column_values = "text", segment.ids
        elif isinstance(segment, ImageCodes):
            column_kind, column_values = "code", segment.codes
        else:
            column_kind, column_values = f"look {id(segment.image)}", range(n_patches)
        for column_value in column_values:
            columns.append(Column(position, column_kind, column_value))
            position += 1
    return columns


def in_common(columns: list[Column], earlier: list[Column]) -> int:
    """How many columns at the beginning need not be computed again: not all, for the last one's
    hidden state is wanted, and no part of a seen image."""
    max_common = min(len(columns) - 1, len(earlier))
    num_common = 0
    while num_common < max_common and columns[num_common] == earlier[num_common]:
        num_common += 1
    first_new = columns[num_common]
    if first_new.kind.startswith("look"):
        return num_common - first_new.value  # back to the image's first patch
    return num_common


def rest(
    segments: tuple[Segment, ...], start: int, n_patches: int
) -> tuple[tuple[Segment, ...], int]:
    """The segments from column ``start`` on, and the position of their first column."""
    columns_to_skip, position = start, start
    for i, segment in enumerate(segments):
        segment_length = length((segment,), n_patches)
        if columns_to_skip < segment_length:
            if columns_to_skip and isinstance(segment, TokenIds):
                segment = replace(segment, ids=segment.ids[columns_to_skip:])
            elif columns_to_skip and isinstance(segment, ImageCodes):
                segment = ImageCodes(segment.codes[columns_to_skip:])
            return (segment, *segments[i + 1 :]), position
        columns_to_skip -= segment_length
        if isinstance(segment, PositionSkip):
            position += segment.size
    raise ValueError(f"start: {start} is beyond the last column")


def flat(janus: Janus, rows: list[tuple[Segment, ...]]) -> tuple[Tensor, Tensor]:
    """Embed rows of segments one behind another: text by the token table, drawn images by the
    generation path, seen ones by the seeing path.

    Returns embeddings (N, D) and positions (N,): the column's number in its row, moved on by the
    position skips before it.
    """
    device, pad = janus.device, janus.tokenizer.pad_token_id
    column_values: list[int] = []  # ids and codes; pads where an image is seen
    positions: list[int] = []
    drawn_mask: list[bool] = []  # whether a column is one of a drawn image
    seen_mask: list[bool] = []
    images: list[Image] = []
    for row in rows:
        position = 0
        for segment in row:
            if isinstance(segment, PositionSkip):
                position += segment.size
                continue
            segment_values: tuple[int, ...]
            if isinstance(segment, TokenIds):
                segment_values = segment.ids
            elif isinstance(segment, ImageCodes):
                segment_values = segment.codes
            else:
                segment_values = (pad,) * janus.n_patches
                images.append(segment.image)
            column_values += segment_values
            positions += range(position, position + len(segment_values))
            drawn_mask += [isinstance(segment, ImageCodes)] * len(segment_values)
            seen_mask += [isinstance(segment, ImageInput)] * len(segment_values)
            position += len(segment_values)
    tokens = torch.tensor(column_values, device=device)  # (N,)
    is_drawn = torch.tensor(drawn_mask, dtype=torch.bool, device=device)  # (N,)
    # of every column, for a code may be larger than any id; images are put in below
    embeds = janus.embed_text(tokens.masked_fill(is_drawn, pad))  # (N, D)
    if any(drawn_mask):
        code_embeds = janus.embed_codes(tokens[is_drawn])  # (drawn columns, D)
        embeds = embeds.masked_scatter(is_drawn[:, None], code_embeds.to(embeds.dtype))
    if images:
        is_seen = torch.tensor(seen_mask, dtype=torch.bool, device=device)  # (N,)
        patch_embeds = _patch_embeds(janus, images)  # (images, n_patches, D)
        embeds = embeds.masked_scatter(is_seen[:, None], patch_embeds.to(embeds.dtype))
    return embeds, torch.tensor(positions, device=device)


def _patch_embeds(janus: Janus, images: list[Image]) -> Tensor:
    """Seen images to (images, n_patches, D); one that stands in several rows is encoded once."""
    unique_images = list({id(image): image for image in images}.values())
    index_of_image = {id(image): index for index, image in enumerate(unique_images)}
    unique_embeds = janus.embed_seen(janus.seen(unique_images))  # (unique images, n_patches, D)
    return unique_embeds[[index_of_image[id(image)] for image in images]]


def assemble(janus: Janus, rows: list[tuple[Segment, ...]]) -> Batch:
    """``flat`` rows side by side, padded with zeros; a causal model never attends to those from a
    real column."""
    lengths = [length(row, janus.n_patches) for row in rows]
    flat_embeds, flat_positions = flat(janus, rows)  # (N, D), (N,)
    embeds = pad_sequence(flat_embeds.split(lengths), batch_first=True)  # (B, T, D)
    positions = pad_sequence(flat_positions.split(lengths), batch_first=True)  # (B, T)
    return Batch(embeds, torch.tensor(lengths, device=janus.device), positions)
