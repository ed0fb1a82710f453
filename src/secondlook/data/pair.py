"""Scored pictures to the examples of the three tasks of supervised fine-tuning.

Source: arXiv 2506.01480, stage 1 (thresholds and context lengths as there; method notes in docs/HOUSE.md).
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from secondlook.types import InputError

GOOD_TO_DRAW, GOOD_TO_JUDGE, BAD = 0.8, 0.7, 0.5


def short(rng: np.random.Generator, longest: int) -> int:
    """0 to ``longest`` - 1 earlier pictures, few more often than many: the smaller of two uniform draws, as in episodes that
    end with a Yes."""
    return int(rng.integers(longest, size=2).min())


@dataclass(frozen=True)
class Scored:
    """One scored picture; ``index`` is its row, by which its codes are cached."""

    index: int
    image: Image.Image
    score: float
    reason: str


@dataclass(frozen=True)
class Example:
    """A prompt, earlier pictures that were wrong, and the picture that is drawn or judged now."""

    prompt: str
    earlier: tuple[Scored, ...]
    target: Scored


def published(path: Path) -> list[dict]:
    """Rows of a JSONL file in the published layout. Raises InputError that names the line."""
    if not path.is_file():
        raise InputError(
            f"config: data = {str(path)!r} is not a file; give a JSONL of scored pictures or a folder of data build"
        )
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            said = json.loads(line)
            for k, picture in enumerate(said["data"]):
                score, reason = picture["prob"], picture["reason"]
                if score is not None and not 0 <= score <= 1:
                    raise ValueError(f"prob is {score}")
                reason = None if reason is None else reason.strip()
                if reason and not reason.lower().startswith(("yes", "no")):
                    reason = f"{'Yes' if (score or 0) >= BAD else 'No'}, {reason}"
                place = str(path.parent / picture["img_path"])
                rows.append(
                    {"id": f"{said['promptid']}-{k}", "prompt": said["prompt"], "score": score, "reason": reason, "path": place}
                )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"config: data, line {number} of {path} is not promptid, prompt, data with img_path, reason, prob ({error})"
            ) from error
    return rows


class Pool:
    """Scored pictures by prompt: the Parquet shards of `data build`, or a JSONL file in the layout of the paper's published
    data, whose lines are {"promptid", "prompt", "data": [{"img_path", "reason", "prob", "state"}]} with paths beside the file.
    Pictures are read when they are needed. Prompts that no task can use are left out."""

    def __init__(self, source: str | Path, good_to_draw: float = GOOD_TO_DRAW, good_to_judge: float = GOOD_TO_JUDGE):
        folder = Path(source)
        self.rows: list[dict] = []
        """Of every picture: id, prompt, score and reason."""
        self._images: Any = None
        if folder.suffix == ".jsonl":
            self.rows = published(folder)
        else:
            self._open(folder)
        by_prompt: dict[str, list[int]] = {}
        for i, row in enumerate(self.rows):
            by_prompt.setdefault(row["prompt"], []).append(i)
        self.bad = self._those(by_prompt, lambda s: s < BAD)
        self.draw = self._those(by_prompt, lambda s: s >= good_to_draw)
        self.judge = self._those(by_prompt, lambda s: s >= good_to_judge)
        self.prompts = {
            "draw": sorted(self.draw),
            "judge": sorted(set(self.judge) & set(self.bad)),
            "redraw": sorted(set(self.draw) & set(self.bad)),
        }
        for name, prompts in self.prompts.items():
            if not prompts:
                raise InputError(f"config: data = {str(folder)!r} has no prompt with pictures for {name!r}; build more")

    def _those(self, by_prompt: dict[str, list[int]], keep: Callable[[float], bool]) -> dict[str, list[int]]:
        kept = [row["score"] is not None and row["reason"] is not None and keep(row["score"]) for row in self.rows]
        found = {p: [i for i in rows if kept[i]] for p, rows in by_prompt.items()}
        return {p: rows for p, rows in found.items() if rows}

    def _open(self, folder: Path) -> None:
        import pyarrow.parquet as pq
        from datasets import Image as ImageFeature
        from datasets import disable_progress_bars, load_dataset

        shards = sorted(folder.glob("images-*.parquet"))
        if not shards:
            raise InputError(f"config: data = {str(folder)!r} holds no images-*.parquet; run data build first")
        for path in shards:
            self.rows += pq.read_table(path, columns=["id", "prompt", "score", "reason"]).to_pylist()
        disable_progress_bars()
        files = [str(p) for p in shards]
        stored = load_dataset("parquet", data_files=files, split="train", cache_dir=str(folder / ".arrow"))  # mapped, not read
        self._images = stored.select_columns(["image"]).cast_column("image", ImageFeature(decode=False))

    def bytes(self, index: int) -> bytes:
        """A picture's file."""
        if self._images is None:
            return Path(self.rows[index]["path"]).read_bytes()
        return self._images[index]["image"]["bytes"]

    def _scored(self, index: int) -> Scored:
        row = self.rows[index]
        image = Image.open(io.BytesIO(self.bytes(index))).convert("RGB")
        return Scored(index, image, row["score"], row["reason"])

    def _pick(self, rng: np.random.Generator, rows: list[int], n: int) -> tuple[Scored, ...]:
        chosen = rng.choice(len(rows), size=min(n, len(rows)), replace=False)
        return tuple(self._scored(rows[i]) for i in chosen)

    def drawing(self, rng: np.random.Generator) -> Example:
        """Task I: a picture with S >= 0.8."""
        prompt = self.prompts["draw"][rng.integers(len(self.prompts["draw"]))]
        return Example(prompt, (), self._pick(rng, self.draw[prompt], 1)[0])

    def judging(self, rng: np.random.Generator, longest: int = 3) -> tuple[Example, Example]:
        """Task II: up to ``longest`` - 1 wrong pictures (``short``), then one to judge: S >= 0.7, and for the same prompt
        S < 0.5. Side by side in a batch the two teach what tells them apart."""
        prompt = self.prompts["judge"][rng.integers(len(self.prompts["judge"]))]
        right = Example(
            prompt, self._pick(rng, self.bad[prompt], short(rng, longest)), self._pick(rng, self.judge[prompt], 1)[0]
        )
        *earlier, target = self._pick(rng, self.bad[prompt], short(rng, longest) + 1)
        return right, Example(prompt, tuple(earlier), target)

    def redrawing(self, rng: np.random.Generator, longest: int = 2) -> Example:
        """Task III: one to ``longest`` wrong pictures (S < 0.5; ``short``), then one with S >= 0.8."""
        prompt = self.prompts["redraw"][rng.integers(len(self.prompts["redraw"]))]
        earlier = self._pick(rng, self.bad[prompt], 1 + short(rng, longest))
        return Example(prompt, earlier, self._pick(rng, self.draw[prompt], 1)[0])
