"""Rows of the public benchmarks: what is asked, of which task, and what a scorer needs to know of
it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from secondlook.data.prompts import Line
from secondlook.errors import InputError
from secondlook.evals import fetch
from secondlook.evals.question_metrics import parents_of, table
from secondlook.io import finite, read_json, read_lines, read_rows, text_field


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
    where: str = field(default="", compare=False)
    """ "line 3 of evaluation_metadata.jsonl" """

    def line(self) -> Line:
        """As `prompts.check_prompts` wants it."""
        return Line(self.prompt, self.source, self.where or f"row {self.id}")


def geneval(data: Path | None = None, long: bool = False) -> list[Row]:
    """GenEval's 553 prompts; ``long``: those of the same specifications that a language model
    rewrote."""
    path = fetch.file(f"geneval/evaluation_metadata{'_long' if long else ''}.jsonl", data)
    listed = enumerate(read_rows(path))
    return [
        Row(f"{i:05d}", row["prompt"], row["tag"], row, where=f"line {n} of {path}")
        for i, (n, row) in listed
    ]


BLIP_VQA = ("color", "shape", "texture")
COMPBENCH = (*BLIP_VQA, "non_spatial")


def compbench(data: Path | None = None) -> list[Row]:
    """T2I-CompBench's validation prompts of four categories, 300 each."""
    found = []
    for category in COMPBENCH:
        path = fetch.file(f"t2i_compbench/{category}_val.txt", data)
        listed = enumerate(read_lines(path))
        found += [
            Row(f"{category}-{i:03d}", p, category, where=f"line {n} of {path}")
            for i, (n, p) in listed
        ]
    return found


def _questions(path: Path, task: Callable[[str], str]) -> list[Row]:
    """Rows of a table in DSG's columns, one a prompt. An item with a malformed dependency has none.
    Raises InputError that names the row."""
    columns = (
        "item_id",
        "text",
        "proposition_id",
        "dependency",
        "tuple",
        "question_natural_language",
    )
    by_item: dict[str, dict[int, dict[str, str]]] = {}
    places: dict[str, str] = {}
    for where, row in table(path, columns):
        for name in ("item_id", "text", "question_natural_language"):
            text_field(row, name, where)
        number = row["proposition_id"].strip()
        if not number.isdecimal():
            raise InputError(
                f"proposition_id: it is {number!r} in {where}; it must be a number from 1 on"
            )
        questions = by_item.setdefault(row["item_id"], {})
        if int(number) in questions:
            raise InputError(
                f"proposition_id: {number} is in {where} for item {row['item_id']!r} a second time"
            )
        questions[int(number)] = row
        places.setdefault(row["item_id"], where)
    found = []
    for item, questions in by_item.items():
        parents = {q: parents_of(r["dependency"]) for q, r in questions.items()}
        facts = {
            "questions": {q: r["question_natural_language"] for q, r in questions.items()},
            "tuples": {q: r["tuple"] for q, r in questions.items()},
            "parents": {} if None in parents.values() else parents,
        }
        text = next(iter(questions.values()))["text"].strip()
        found.append(Row(item, text, task(item), facts, where=places[item]))
    return found


def dsg(data: Path | None = None) -> list[Row]:
    """DSG-1k: 1,060 prompts of ten sources (the tasks), 8,182 questions."""
    return _questions(
        fetch.file("dsg/dsg-1k-anns.csv", data), lambda item: item.rstrip("0123456789").rstrip("_")
    )


def dpg(data: Path | None = None) -> list[Row]:
    """DPG-Bench's 1,065 prompts with their questions, from ``data``/dpg_bench/dpg_bench.csv: its
    hash is not known here, so that it is taken as given."""
    if data is None:
        raise InputError(
            "data: DPG-Bench's questions are not fetched; give a folder with "
            "dpg_bench/dpg_bench.csv of its repository"
        )
    return _questions(data / "dpg_bench" / "dpg_bench.csv", lambda item: "dpg")


POPE = ("random", "popular", "adversarial")


def pope(data: Path | None = None) -> list[Row]:
    """POPE's questions about 500 pictures of COCO: three times 3,000; ``facts`` has picture and
    label."""
    found = []
    for split in POPE:
        path = fetch.file(f"pope/coco_pope_{split}.json", data)
        for n, row in read_rows(path):
            facts = {"image": row["image"], "label": row["label"]}
            found.append(
                Row(
                    f"{split}-{row['question_id']}",
                    row["text"],
                    split,
                    facts,
                    where=f"line {n} of {path}",
                )
            )
    return found


def gedit(data: Path | None = None, images: Path | None = None) -> list[Row]:
    """GEdit-Bench's 604 English instructions of 11 types; the sources lie in ``images`` under their
    ids."""
    path = fetch.file("gedit/gedit_edit.json", data)
    found = []
    for key, row in read_json(path, dict).items():
        source = _picture(images, row["id"], "GEdit-Bench")
        found.append(
            Row(key, row["prompt"], row["edit_type"], source=source, where=f"{key!r} of {path}")
        )
    return found


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
    """PIE-Bench's 700 edits, from ``data``/pie_bench with mapping_file.json and annotation_images
    (handed out by its authors through a form, so never fetched)."""
    if data is None:
        raise InputError(
            "data: PIE-Bench is handed out through a form; give a folder that has "
            "pie_bench/mapping_file.json"
        )
    folder = data / "pie_bench"
    path = folder / "mapping_file.json"
    found = []
    for key, row in read_json(path, dict).items():
        where = f"{key!r} of {path}"
        if not isinstance(row, dict):
            raise InputError(f"data: {where} is not an object")
        names = ("image_path", "editing_prompt", "editing_instruction")
        picture, target, instruction = (text_field(row, name, where) for name in names)
        kind = str(row.get("editing_type_id"))
        if kind not in map(str, range(len(PIE_TYPES))):
            raise InputError(
                f"editing_type_id: it is {kind!r} in {where}; it must be from 0 to "
                f"{len(PIE_TYPES) - 1}"
            )
        facts = {
            "mask": _runs(row.get("mask"), where),
            "target": target.replace("[", "").replace("]", ""),
        }
        source = _picture(folder / "annotation_images", picture, "PIE-Bench")
        found.append(Row(key, instruction, PIE_TYPES[int(kind)], facts, source, where))
    return found


def _runs(mask: Any, where: str, size: int = 512) -> list[int]:
    """A mask as PIE-Bench stores it: [start, length, …] over the rows of a picture of ``size``²;
    what goes beyond its end is cut off, as released. Raises InputError."""
    whole = (
        isinstance(mask, list)
        and len(mask) % 2 == 0
        and all(finite(n, 0, size**2) and n == int(n) for n in mask)
    )
    if not whole:
        raise InputError(
            f"mask: it is not [start, length, …] within {size} x {size} pixels in {where}"
        )
    return [int(n) for n in mask]


def _picture(folder: Path | None, name: str, benchmark: str) -> Path:
    if folder is None:
        raise InputError(f"images: {benchmark}'s pictures are needed; give their folder")
    path = folder / name
    if not path.is_file():
        raise InputError(f"images: {str(path)!r} is missing; {benchmark}'s pictures must lie there")
    return path
