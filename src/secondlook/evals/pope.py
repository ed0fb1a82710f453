"""POPE: whether a model says that objects are in a picture which are not. Its own plain question
answering, greedy.

Source: arXiv 2305.10355: three times 3,000 questions about 500 pictures of COCO (val2014); the
score is the F1 of "yes", with answers read as the released evaluate.py does. Any number of
processes share the questions; what is answered is not asked again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from secondlook.engine.engine import Engine
from secondlook.errors import InputError
from secondlook.evals import fetch, rows
from secondlook.evals.intervals import Interval, bootstrap
from secondlook.evals.question_metrics import pope, pope_answer
from secondlook.evals.records import MOST_MISSING, stored
from secondlook.evals.rows import Row
from secondlook.io import append_rows, read_image, same_config, versions, write_json, write_text
from secondlook.report import page
from secondlook.types import Request, SamplingParams, WorkerShard


@dataclass(frozen=True)
class Settings:
    """Everything that a score depends on."""

    model: str
    images: str
    """The folder of COCO's pictures."""
    only: int = 0
    """The first questions of each split alone; 0: all."""
    max_tokens: int = 16


def chosen(settings: Settings, data: Path | None) -> tuple[list[Row], list[str]]:
    """The questions whose pictures can be read, and why others' cannot. Raises InputError where
    more than a twentieth of the questions have none."""
    every = rows.pope(data)
    if settings.only:
        every = [
            r for split in rows.POPE for r in [r for r in every if r.task == split][: settings.only]
        ]
    broken: dict[str, str] = {}
    for name in dict.fromkeys(r.facts["image"] for r in every):
        try:
            read_image(Path(settings.images) / name)
        except InputError as error:
            broken[name] = str(error)
    there = [r for r in every if r.facts["image"] not in broken]
    if len(every) - len(there) > MOST_MISSING * len(every):
        raise InputError(
            f"images: {settings.images!r} lacks {len(broken)} pictures, first "
            f"{next(iter(broken))}; give the folder of COCO's "
            "val2014 pictures"
        )
    return there, list(broken.values())


def answers_of(out: Path) -> dict[str, str]:
    """A question's id -> the model's answer, of all questions that are answered."""
    return {
        a["id"]: a["answer"]
        for a in stored(out, "answers")
        if all(isinstance(a.get(k), str) for k in ("id", "answer"))
    }


def run(
    load: Callable[[], Engine],
    settings: Settings,
    asked: Sequence[Row],
    out: Path,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> list[str] | None:
    """Ask this process's questions that have no answer yet: a row of answers-RANK.jsonl each.
    Returns the answers to all questions, or None where others' are not there yet. Raises InputError
    for a folder of other settings."""
    share = WorkerShard.of_environment()
    same_config(out, asdict(settings))
    write_json(out / "config.json", asdict(settings))
    done = answers_of(out)
    own = asked[share.rank :: share.size]
    left = [r for r in own if r.id not in done]
    engine = load() if left else None
    while engine and left:
        progress(len(own) - len(left), len(own))
        part, left = left[: engine.batch], left[engine.batch :]
        opened = {
            name: read_image(Path(settings.images) / name)
            for name in {r.facts["image"] for r in part}
        }
        requests = [
            Request("ask", engine.template.ask(opened[r.facts["image"]], r.prompt), 0) for r in part
        ]
        turns = engine.write(requests, SamplingParams("text", temperature=0.0), settings.max_tokens)
        told = [
            {"id": r.id, "answer": engine.template.words(t.tokens)}
            for r, t in zip(part, turns, strict=True)
        ]
        append_rows(out / f"answers-{share.rank:03d}.jsonl", told)
    progress(len(own), len(own))
    done = answers_of(out)
    return [done[r.id] for r in asked] if all(r.id in done for r in asked) else None


def _f1(asked: Sequence[Row], texts: Sequence[str]) -> Interval:
    """With an interval over pictures."""
    by_picture: dict[str, list[tuple[bool, bool]]] = {}
    for r, text in zip(asked, texts, strict=True):
        by_picture.setdefault(r.facts["image"], []).append(
            (r.facts["label"] == "yes", pope_answer(text) == "yes")
        )

    def f1(units: dict[str, np.ndarray]) -> float:
        label, said = units["all"].T
        both = float((label & said).sum())
        return 2 * both / max(1.0, float(label.sum() + said.sum()))

    return bootstrap({"all": [np.array(v) for v in by_picture.values()]}, f1)


def write(
    out: Path,
    asked: Sequence[Row],
    texts: Sequence[str],
    settings: Settings,
    left_out: Sequence[str] = (),
) -> dict[str, Any]:
    """answers.json, pope.html and, last, result.json; returns the result. ``left_out`` says which
    pictures' questions were not asked, and why."""
    splits: dict[str, dict[str, Any]] = {}
    for split in rows.POPE:
        those = [(r, t) for r, t in zip(asked, texts, strict=True) if r.task == split]
        if those:
            questions, said = zip(*those, strict=True)
            splits[split] = {
                **pope([r.facts["label"] for r in questions], said),
                "f1": _f1(questions, said),
            }
    f1s = [s["f1"]["mean"] for s in splits.values()]
    result = {
        "overall": {
            "f1": float(np.mean(f1s)),
            "accuracy": float(np.mean([s["accuracy"] for s in splits.values()])),
        },
        "splits": splits,
        "questions": len(asked),
        "left_out": list(left_out),
        "settings": asdict(settings),
        "sources": fetch.stated(f"pope/coco_pope_{split}.json" for split in rows.POPE),
        "versions": versions(),
    }
    write_json(
        out / "answers.json",
        [{"id": r.id, **r.facts, "answer": t} for r, t in zip(asked, texts, strict=True)],
    )
    write_text(out / "pope.html", page("pope.html", result=result))
    write_json(out / "result.json", result)
    return result
