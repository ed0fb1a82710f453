"""Rows of the public benchmarks: what is asked, of which task, and what a scorer needs to know of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from secondlook.bench import fetch
from secondlook.bench.answers import parents_of, table
from secondlook.types import InputError


@dataclass(frozen=True)
class Row:
    """One row. ``id`` is the benchmark's own where it has one."""

    id: str
    prompt: str
    task: str
    facts: dict[str, Any] = field(default_factory=dict, compare=False)
    """What the scorer needs: GenEval's metadata, questions with their parents, masks …"""
    source: Path | None = None
    """The picture that is to be edited."""


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise InputError(f"data: {str(path)!r} cannot be read ({error})") from error


def geneval(data: Path | None = None, long: bool = False) -> list[Row]:
    """GenEval's 553 prompts; ``long``: those of the same specifications that a language model rewrote."""
    path = fetch.file(f"geneval/evaluation_metadata{'_long' if long else ''}.jsonl", data)
    return [Row(f"{i:05d}", row["prompt"], row["tag"], row) for i, row in enumerate(_lines(path))]


COMPBENCH = ("color", "shape", "texture", "non_spatial")


def compbench(data: Path | None = None) -> list[Row]:
    """T2I-CompBench's validation prompts of four categories, 300 each."""
    found = []
    for category in COMPBENCH:
        path = fetch.file(f"t2i_compbench/{category}_val.txt", data)
        prompts = [line.strip() for line in path.read_text().splitlines() if line.strip()]
        found += [Row(f"{category}-{i:03d}", p, category) for i, p in enumerate(prompts)]
    return found


def _questions(path: Path, task: Callable[[str], str]) -> list[Row]:
    """Rows of a table in DSG's columns, one a prompt. An item with a malformed dependency has none."""
    listed = table(path)
    wanted = {"item_id", "text", "proposition_id", "dependency", "tuple", "question_natural_language"}
    if not listed or not wanted <= set(listed[0]):
        raise InputError(f"data: {str(path)!r} lacks one of the columns {', '.join(sorted(wanted))}")
    by_item: dict[str, list[dict[str, str]]] = {}
    for row in listed:
        by_item.setdefault(row["item_id"], []).append(row)
    found = []
    for item, rows in by_item.items():
        parents = {int(r["proposition_id"]): parents_of(r["dependency"]) for r in rows}
        facts = {
            "questions": {int(r["proposition_id"]): r["question_natural_language"] for r in rows},
            "tuples": {int(r["proposition_id"]): r["tuple"] for r in rows},
            "parents": {} if None in parents.values() else parents,
        }
        found.append(Row(item, rows[0]["text"], task(item), facts))
    return found


def dsg(data: Path | None = None) -> list[Row]:
    """DSG-1k: 1,060 prompts of ten sources (the tasks), 8,182 questions."""
    return _questions(fetch.file("dsg/dsg-1k-anns.csv", data), lambda item: item.rstrip("0123456789").rstrip("_"))


def dpg(data: Path | None = None) -> list[Row]:
    """DPG-Bench's 1,065 prompts with their questions, from ``data``/dpg_bench/dpg_bench.csv: its hash is not known here, so
    that it is taken as given."""
    if data is None:
        raise InputError(
            "data: DPG-Bench's questions are not fetched; give a folder with dpg_bench/dpg_bench.csv of its repository"
        )
    return _questions(data / "dpg_bench" / "dpg_bench.csv", lambda item: "dpg")


POPE = ("random", "popular", "adversarial")


def pope(data: Path | None = None) -> list[Row]:
    """POPE's questions about 500 pictures of COCO: three times 3,000; ``facts`` has picture and label."""
    found = []
    for split in POPE:
        for row in _lines(fetch.file(f"pope/coco_pope_{split}.json", data)):
            found.append(
                Row(f"{split}-{row['question_id']}", row["text"], split, {"image": row["image"], "label": row["label"]})
            )
    return found


def gedit(data: Path | None = None, images: Path | None = None) -> list[Row]:
    """GEdit-Bench's 604 English instructions of 11 types; the sources lie in ``images`` under their ids."""
    try:
        rows = json.loads(fetch.file("gedit/gedit_edit.json", data).read_text())
    except ValueError as error:
        raise InputError(f"data: gedit_edit.json cannot be read ({error})") from error
    return [Row(k, r["prompt"], r["edit_type"], source=_picture(images, r["id"], "GEdit-Bench")) for k, r in rows.items()]


PIE_TYPES = (
    "random",
    "change object",
    "add object",
    "delete object",
    "content",
    "pose",
    "color",
    "material",
    "background",
    "style",
)


def pie(data: Path | None = None) -> list[Row]:
    """PIE-Bench's 700 edits, from ``data``/pie_bench with mapping_file.json and annotation_images (handed out by its authors
    through a form, so never fetched)."""
    if data is None:
        raise InputError("data: PIE-Bench is handed out through a form; give a folder that has pie_bench/mapping_file.json")
    folder = data / "pie_bench"
    try:
        mapping = json.loads((folder / "mapping_file.json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"data: {str(folder / 'mapping_file.json')!r} cannot be read ({error})") from error
    found = []
    for key, row in mapping.items():
        target = row["editing_prompt"].replace("[", "").replace("]", "")
        facts = {"mask": row["mask"], "target": target}
        source = _picture(folder / "annotation_images", row["image_path"], "PIE-Bench")
        found.append(Row(key, row["editing_instruction"], PIE_TYPES[int(row["editing_type_id"])], facts, source))
    return found


def _picture(folder: Path | None, name: str, benchmark: str) -> Path:
    if folder is None:
        raise InputError(f"images: {benchmark}'s pictures are needed; give their folder")
    path = folder / name
    if not path.is_file():
        raise InputError(f"images: {str(path)!r} is missing; {benchmark}'s pictures must lie there")
    return path
