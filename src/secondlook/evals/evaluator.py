"""A checkpoint as evaluator of given pictures: P(Yes), verdict and reason of every pair, written
part by part."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secondlook.errors import InputError
from secondlook.io import append_rows, finite, stored_rows, versions, write_json, write_text
from secondlook.rewards.reward import score
from secondlook.rewards.self_judge import SelfJudge
from secondlook.types import Prompt

if TYPE_CHECKING:
    from PIL.Image import Image

    from secondlook.data.labelled_images import Pair
    from secondlook.engine.engine import Engine

PICTURES_A_WRITE = 256
"""Pictures between two writings."""


@dataclass(frozen=True)
class Settings:
    """What the verdicts depend on."""

    model: str
    images: str
    threshold: float = 0.5
    """P(Yes) above which the verdict is Yes."""
    source: str = ""
    """What was edited, where it is one picture for all."""


def evaluate(engine: Engine, pairs: list[Pair], threshold: float = 0.5) -> list[dict[str, Any]]:
    """One row a pair: name, prompt, p_yes, yes, and the reason that the model writes after its own
    (greedy) verdict; where a picture cannot be read, ``p_yes``, ``yes`` and ``reason`` are None and
    ``error`` says why."""
    readable_items: list[tuple[Prompt, Image]] = []
    error_of_pair: dict[int, str] = {}
    for index, pair in enumerate(pairs):
        try:
            readable_items.append((pair.asked(), pair.open()))
        except InputError as error:
            error_of_pair[index] = f"{pair.where}: {error}" if pair.where else str(error)
    # scored together, then handed out to the readable pairs in their order
    scores = iter(score(SelfJudge(engine), readable_items))
    verdict_rows = []
    for index, pair in enumerate(pairs):
        row: dict[str, Any] = {"image": pair.name, "prompt": pair.prompt}
        if index in error_of_pair:
            row |= {"p_yes": None, "yes": None, "reason": None, "error": error_of_pair[index]}
        else:
            verdict = next(scores)
            assert verdict is not None  # the model itself always answers
            p_yes = verdict.value
            row |= {"p_yes": p_yes, "yes": p_yes > threshold, "reason": f"{verdict.reason}."}
        if pair.good is not None:
            row["good"] = pair.good
        verdict_rows.append(row)
    return verdict_rows


def _finished_rows(rows: list[dict[str, Any]], pairs: list[Pair]) -> list[dict[str, Any]]:
    """The first rows of an interrupted call that are whole and of the first pairs; from one that is
    not on all is judged anew, and so are pictures that could not be read."""
    finished_rows = []
    for row, pair in zip(rows, pairs, strict=False):  # the call was interrupted: fewer rows
        is_whole = (
            finite(row.get("p_yes"), 0, 1)
            and isinstance(row.get("yes"), bool)
            and isinstance(row.get("reason"), str)
        )
        is_of_pair = row.get("image") == pair.name and row.get("prompt") == pair.prompt
        if not (is_whole and is_of_pair):
            break
        finished_rows.append(row)
    return finished_rows


def _list_digest(pairs: list[Pair]) -> str:
    """A hash by which another list of pairs is known."""
    listed = [(pair.name, pair.prompt, pair.good, pair.source_name) for pair in pairs]
    # names of files may hold bytes that are no UTF-8
    return sha256(repr(listed).encode("utf-8", "backslashreplace")).hexdigest()


def write(engine: Engine, pairs: list[Pair], settings: Settings, out: Path) -> Iterator[int]:
    """verdicts.jsonl and, last, result.json in ``out``; yields how many pairs are done. What an
    interrupted call has judged with the same settings is not judged again. Raises InputError where
    ``out`` holds verdicts of other settings."""
    part_file = out / "verdicts.jsonl.part"
    # its first row says what the verdicts depend on, the others are verdicts
    header = vars(settings) | {"pairs": len(pairs), "list": _list_digest(pairs)}
    earlier_header, *earlier_rows = stored_rows(part_file) or [header]
    if earlier_header != header:
        raise InputError(
            f"out: {str(out)!r} holds verdicts of other settings that were interrupted; use "
            "another folder"
        )
    rows = _finished_rows(earlier_rows, pairs)
    yield len(rows)
    judging_seconds, num_earlier = 0.0, len(rows)
    write_text(part_file, "")  # without the rows that are judged anew
    append_rows(part_file, [header, *rows])
    while len(rows) < len(pairs):
        next_pairs = pairs[len(rows) : len(rows) + PICTURES_A_WRITE]
        start_time = time.perf_counter()
        new_rows = evaluate(engine, next_pairs, settings.threshold)
        judging_seconds += time.perf_counter() - start_time
        append_rows(part_file, new_rows)
        rows += new_rows
        yield len(rows)
    judged_rows, unreadable = [], []
    for row in rows:
        if row["p_yes"] is None:
            unreadable.append(row["error"])
        else:
            judged_rows.append(row)
    if not judged_rows:
        part_file.unlink()  # the pictures may be mended
        raise InputError(f"images: none of {len(rows)} pictures can be read ({unreadable[0]})")
    verdict_lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    write_text(out / "verdicts.jsonl", "".join(verdict_lines))
    num_judged_now = len(rows) - num_earlier
    result = {
        "pairs": len(judged_rows),
        "unreadable": unreadable,
        "yes": sum(row["yes"] for row in judged_rows),
        "mean_p_yes": sum(row["p_yes"] for row in judged_rows) / len(judged_rows),
        "images_per_second": num_judged_now / judging_seconds if judging_seconds else None,
        "settings": vars(settings),
        "versions": versions(),
    }
    write_json(out / "result.json", result)
    part_file.unlink()  # after the result, so that a call that ends in between goes on
