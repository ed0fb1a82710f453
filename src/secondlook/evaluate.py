"""A checkpoint as evaluator of given pictures: P(Yes), verdict and reason of every pair, written part by part."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secondlook.files import versions, write_json
from secondlook.rewards.base import score
from secondlook.rewards.policy import PolicyJudge
from secondlook.types import InputError

if TYPE_CHECKING:
    from secondlook.data.pairs import Pair
    from secondlook.engine.decode import Engine

PART = 256
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
    """One row a pair: name, prompt, p_yes, yes, and the reason that the model writes after its own (greedy) verdict."""
    scores = score(PolicyJudge(engine), [(p.asked(), p.open()) for p in pairs])
    rows = []
    for pair, said in zip(pairs, scores, strict=True):
        assert said is not None
        p = said.value
        row = {"image": pair.name, "prompt": pair.prompt, "p_yes": p, "yes": p > threshold, "reason": f"{said.reason}."}
        rows.append(row | ({} if pair.good is None else {"good": pair.good}))
    return rows


def write(engine: Engine, pairs: list[Pair], settings: Settings, out: Path) -> Iterator[int]:
    """verdicts.jsonl and, last, result.json in ``out``; yields how many pairs are judged. What an interrupted call has judged
    with the same settings is not judged again. Raises InputError where ``out`` holds verdicts of other settings."""
    path, part = out / "verdicts.jsonl", out / "verdicts.jsonl.part"
    head = json.dumps(vars(settings) | {"pairs": len(pairs)})
    done = part.read_text().splitlines() if part.exists() else []
    if done and done[0] != head:
        raise InputError(f"out: {str(out)!r} holds verdicts of other settings that were interrupted; use another folder")
    if not done:
        part.write_text(head + "\n")
        done = [head]
    done = [line for line in done if line.endswith("}")]
    judged, seconds = len(done) - 1, 0.0
    part.write_text("".join(line + "\n" for line in done))  # without a half line
    yield judged
    rest = iter(pairs[judged:])
    new = 0
    while some := list(islice(rest, PART)):
        began = time.perf_counter()
        rows = evaluate(engine, some, settings.threshold)
        seconds += time.perf_counter() - began
        new += len(rows)
        with open(part, "a") as file:
            file.write("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
        judged += len(rows)
        yield judged
    lines = part.read_text().splitlines()[1:]
    part.write_text("".join(line + "\n" for line in lines))
    part.replace(path)
    rows = [json.loads(line) for line in lines]
    result = {
        "pairs": len(rows),
        "yes": sum(r["yes"] for r in rows),
        "mean_p_yes": sum(r["p_yes"] for r in rows) / len(rows),
        "images_per_second": new / seconds if seconds else None,
        "settings": vars(settings),
        "versions": versions(),
    }
    write_json(out / "result.json", result)
