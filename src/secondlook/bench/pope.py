"""POPE: whether a model says that objects are in a picture which are not. Its own plain question answering, greedy.

Source: arXiv 2305.10355: three times 3,000 questions about 500 pictures of COCO (val2014); the score is the F1 of "yes".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from secondlook.bench import fetch, rows
from secondlook.bench.answers import pope, pope_answer
from secondlook.bench.base import Interval, bootstrap
from secondlook.bench.gather import MOST_MISSING
from secondlook.bench.rows import Row
from secondlook.engine.decode import Engine
from secondlook.files import read_image, versions, write_json, write_text
from secondlook.report import page
from secondlook.types import InputError, Request, Rule


@dataclass(frozen=True)
class Settings:
    """Everything that a score depends on."""

    model: str
    images: str
    """The folder of COCO's pictures."""
    only: int = 0
    """The first questions of each split alone; 0: all."""
    max_tokens: int = 16


def chosen(settings: Settings, data: Path | None) -> list[Row]:
    """The questions whose pictures are there. Raises InputError where more than a twentieth have none."""
    every = rows.pope(data)
    if settings.only:
        every = [r for split in rows.POPE for r in [r for r in every if r.task == split][: settings.only]]
    there = [r for r in every if (Path(settings.images) / r.facts["image"]).is_file()]
    if len(every) - len(there) > MOST_MISSING * len(every):
        name = next(r for r in every if r not in there).facts["image"]
        raise InputError(f"images: {settings.images!r} lacks {name} and others; give the folder of COCO's val2014 pictures")
    return there


def run(
    engine: Engine, settings: Settings, asked: Sequence[Row], progress: Callable[[int, int], None] = lambda *_: None
) -> list[str]:
    """The model's answer to each question."""
    texts: list[str] = []
    for start in range(0, len(asked), engine.batch):
        part = asked[start : start + engine.batch]
        pictures = {r.facts["image"]: None for r in part}
        opened = {name: read_image(Path(settings.images) / name) for name in pictures}
        requests = [Request("ask", engine.protocol.ask(opened[r.facts["image"]], r.prompt), 0) for r in part]
        turns = engine.write(requests, Rule("text", temperature=0.0), settings.max_tokens)
        texts += [engine.protocol.words(t.tokens) for t in turns]
        progress(len(texts), len(asked))
    return texts


def _f1(asked: Sequence[Row], texts: Sequence[str]) -> Interval:
    """With an interval over pictures."""
    by_picture: dict[str, list[tuple[bool, bool]]] = {}
    for r, text in zip(asked, texts, strict=True):
        by_picture.setdefault(r.facts["image"], []).append((r.facts["label"] == "yes", pope_answer(text) == "yes"))

    def f1(units: dict[str, np.ndarray]) -> float:
        label, said = units["all"].T
        both = float((label & said).sum())
        return 2 * both / max(1.0, float(label.sum() + said.sum()))

    return bootstrap({"all": [np.array(v) for v in by_picture.values()]}, f1)


def write(out: Path, asked: Sequence[Row], texts: Sequence[str], settings: Settings) -> dict[str, Any]:
    """answers.json, pope.html and, last, result.json; returns the result."""
    splits: dict[str, dict[str, Any]] = {}
    for split in rows.POPE:
        those = [(r, t) for r, t in zip(asked, texts, strict=True) if r.task == split]
        if those:
            questions, said = zip(*those, strict=True)
            splits[split] = {**pope([r.facts["label"] for r in questions], said), "f1": _f1(questions, said)}
    f1s = [s["f1"]["mean"] for s in splits.values()]
    result = {
        "overall": {"f1": float(np.mean(f1s)), "accuracy": float(np.mean([s["accuracy"] for s in splits.values()]))},
        "splits": splits,
        "questions": len(asked),
        "settings": asdict(settings),
        "sources": fetch.stated(f"pope/coco_pope_{split}.json" for split in rows.POPE),
        "versions": versions(),
    }
    write_json(out / "answers.json", [{"id": r.id, **r.facts, "answer": t} for r, t in zip(asked, texts, strict=True)])
    write_text(out / "pope.html", page("pope.html", result=result))
    write_json(out / "result.json", result)
    return result
