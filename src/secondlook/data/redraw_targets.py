"""What a redraw is taught to become: the nearest right picture, an edit of the wrong one, a repair.

Taught with any right picture of the prompt, as in the paper, a redraw is a fresh drawing that
ignores picture and reason (docs/LOG.md). The nearest one keeps what was right, so that there is
something to learn from both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL.Image import Image

from secondlook.data.build_config import BuildConfig
from secondlook.data.build_pictures import picture_key, picture_of
from secondlook.data.sft_dataset import BAD, Pool, quality
from secondlook.engine.engine import Engine
from secondlook.episode import SamplingConfig, turn_seed
from secondlook.io import png
from secondlook.types import Request

Repairs = Callable[[Sequence[tuple[str, Image]]], list[Image | None]]
"""Of each (prompt, wrong picture) the right one that is nearest, None where there is none; a method
of generators that can."""


def is_wrong(row: dict[str, Any]) -> bool:
    """Whether a redraw may begin with a picture: it is wrong, and somebody has said why."""
    return row["score"] is not None and row["reason"] is not None and quality(row) < BAD


def is_right(row: dict[str, Any], config: BuildConfig) -> bool:
    """Whether a redraw may become a picture."""
    if row["score"] is None:
        return False
    return quality(row) >= (config.good_edit if row["source_id"] else config.good_to_draw)


def pair_nearest(rows: Sequence[dict[str, Any]], engine: Engine, config: BuildConfig) -> None:
    """Set ``redraw_target`` of each wrong picture: the id of the right one of its prompt that
    shares most codes with it; the first of several. Pictures of prompts without a right one keep
    none."""
    rights_of_key: dict[str, list[int]] = {}
    wrongs: list[int] = []
    for i, row in enumerate(rows):
        if is_right(row, config):
            rights_of_key.setdefault(Pool.key(row), []).append(i)
    for i, row in enumerate(rows):
        if is_wrong(row) and Pool.key(row) in rights_of_key:
            wrongs.append(i)
    needed = sorted({*wrongs, *(i for i in wrongs for i in rights_of_key[Pool.key(rows[i])])})
    if not needed:
        return
    # codes are compared as the model draws them: both pictures pass through its image tokenizer
    all_codes = engine.codes([picture_of(rows[i]) for i in needed])
    codes_of_row = {i: np.array(codes) for i, codes in zip(needed, all_codes, strict=True)}
    for i in wrongs:
        rights = rights_of_key[Pool.key(rows[i])]
        shared = [int((codes_of_row[i] == codes_of_row[right]).sum()) for right in rights]
        rows[i]["redraw_target"] = rows[rights[int(np.argmax(shared))]]["id"]


def edits_of_wrong(
    rows: Sequence[dict[str, Any]], engine: Engine, config: BuildConfig, first_seed: int
) -> list[dict[str, Any]]:
    """``config.redraw_edits`` edits of each wrong picture by the model, told its prompt and what is
    wrong, as rows without a score. ``repairs`` names the picture that each is an edit of."""
    sampling = SamplingConfig.of(engine.janus.net.generation_config)
    wrongs = [row for row in rows if is_wrong(row)]
    codes_of_wrong = engine.codes([picture_of(row) for row in wrongs]) if wrongs else []
    requests: list[Request] = []
    edited: list[dict[str, Any]] = []
    for row, codes in zip(wrongs, codes_of_wrong, strict=True):
        segments = engine.template.repair(codes, row["prompt"], row["reason"])
        for _ in range(config.redraw_edits):
            seed = turn_seed(first_seed, len(requests))
            requests.append(Request("edit", segments, seed))
            edited.append(row)
    turns = engine.draw(requests, sampling.draw_params(editing=True)) if requests else []
    pictures = engine.pictures([turn.tokens for turn in turns]) if turns else []
    edit_rows = []
    for row, request, picture in zip(edited, requests, pictures, strict=True):
        edit_row = _row_of(picture, row, f"edit by {config.redraw_model}")
        edit_rows.append(edit_row | {"seed": str(request.seed)})
    return edit_rows


def repairs_of_wrong(
    rows: Sequence[dict[str, Any]], repairs: Repairs, source: str
) -> list[dict[str, Any]]:
    """What a generator makes of each wrong picture of a prompt without a source, as rows without a
    score, as ``edits_of_wrong`` has them."""
    wrongs = [row for row in rows if is_wrong(row) and not row["source_id"]]
    pictures = repairs([(row["prompt"], picture_of(row)) for row in wrongs]) if wrongs else []
    repaired_rows = []
    for row, picture in zip(wrongs, pictures, strict=True):
        if picture is not None:
            repaired_rows.append(_row_of(picture, row, source))
    return repaired_rows


def _row_of(picture: Image, wrong_row: dict[str, Any], source: str) -> dict[str, Any]:
    """A picture made of a wrong one, which ``repairs`` names."""
    unknown = ("seed", "score", "correct", "reason", "following", "preserving", "redraw_target")
    return wrong_row | {
        "id": "",
        "image": {"bytes": png(picture)},
        "source": source,
        "repairs": wrong_row["id"],
        **dict.fromkeys(unknown),
    }


def pair_made(
    rows: Sequence[dict[str, Any]],
    made_rows: Sequence[dict[str, Any]],
    score_rows: Callable[[list[dict[str, Any]]], Any],
    config: BuildConfig,
) -> list[dict[str, Any]]:
    """Set ``redraw_target`` of each wrong picture to the best that was made of it, where the judge
    accepts one. Returns the rows of those pictures, named after the first wrong one that they are
    made of; what was refused is of no use.

    ``score_rows`` sets the scores of rows. One picture may repair several, or be there already.
    """
    row_of_picture = {picture_key(row): row for row in rows}
    new_rows: list[dict[str, Any]] = []
    candidates: dict[str, list[dict[str, Any]]] = {}  # of each wrong picture's id
    for made_row in made_rows:
        wrong_id = made_row.pop("repairs")
        key = picture_key(made_row)
        if key not in row_of_picture:
            made_row["id"] = f"{wrong_id}-repair-{len(new_rows)}"
            row_of_picture[key] = made_row
            new_rows.append(made_row)
        candidates.setdefault(wrong_id, []).append(row_of_picture[key])
    if new_rows:
        score_rows(new_rows)
    target_ids: set[str] = set()
    for row in rows:
        accepted = [c for c in candidates.get(row["id"], []) if is_right(c, config)]
        if accepted:
            row["redraw_target"] = max(accepted, key=quality)["id"]  # the first of equals
            target_ids.add(row["redraw_target"])
    return [row for row in new_rows if row["id"] in target_ids]
