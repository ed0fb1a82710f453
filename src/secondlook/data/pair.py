"""Scored pictures to the examples of the three tasks of supervised fine-tuning. A prompt with a source is an edit of it: then
the tasks are to edit, to judge an edit and to edit again.

Source: arXiv 2506.01480, stage 1 (thresholds and context lengths as there; an edit is kept when following and preserving are at
least 0.7). Judging edits and editing again are ours.
"""

from __future__ import annotations

import io
import json
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from secondlook.types import InputError

GOOD_TO_DRAW, GOOD_TO_JUDGE, GOOD_EDIT, BAD = 0.8, 0.7, 0.7, 0.5


def short(rng: np.random.Generator, longest: int) -> int:
    """0 to ``longest`` - 1 earlier pictures, few more often than many: the smaller of two uniform draws, as in episodes that
    end with a Yes."""
    return int(rng.integers(longest, size=2).min())


@dataclass(frozen=True)
class Scored:
    """One scored picture; ``index`` is its row or, of a source, its name, by which its codes are cached."""

    index: int | str
    file: bytes
    score: float
    reason: str

    @cached_property
    def image(self) -> Image.Image:
        """Read when it is first asked for: codes may be known already."""
        return Image.open(io.BytesIO(self.file)).convert("RGB")


@dataclass(frozen=True)
class Example:
    """A prompt, earlier pictures that were wrong, the picture that is drawn or judged now, and what is edited, if anything."""

    prompt: str
    earlier: tuple[Scored, ...]
    target: Scored
    source: Scored | None = None

    @property
    def pictures(self) -> tuple[Scored, ...]:
        """All of them."""
        return (*self.earlier, self.target, *([self.source] if self.source else []))


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
                edit = [picture.get(name) for name in ("following", "preserving")]
                for name, value in zip(("prob", "following", "preserving"), (score, *edit), strict=True):
                    if value is not None and not 0 <= value <= 1:
                        raise ValueError(f"{name} is {value}")
                reason = None if reason is None else reason.strip()
                if reason and not reason.lower().startswith(("yes", "no")):
                    reason = f"{'Yes' if (score or 0) >= BAD else 'No'}, {reason}"
                row = {"id": f"{said['promptid']}-{k}", "prompt": said["prompt"], "score": score, "reason": reason}
                row |= {"path": str(path.parent / picture["img_path"]), "following": edit[0], "preserving": edit[1]}
                rows.append(row | {"source_id": str(path.parent / said["source"]) if said.get("source") else None})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"config: data, line {number} of {path} is not promptid, prompt, data with img_path, reason, prob ({error})"
            ) from error
    return rows


COLUMNS = ["id", "prompt", "score", "reason", "source_id", "following", "preserving"]


def quality(row: dict) -> float:
    """What a row is kept or left for: S, of an edit the lesser of following and preserving."""
    return min(row["following"], row["preserving"]) if row["source_id"] else row["score"]


class Pool:
    """Scored pictures by prompt (for edits: by instruction and source), of one place or several: the Parquet shards of `data
    build`, or a JSONL file in the layout of the paper's published data, whose lines are {"promptid", "prompt", "data":
    [{"img_path", "reason", "prob", "state"}]} with paths beside the file; lines for edits have a "source" too, and their
    pictures "following" and "preserving". Pictures are read when they are needed. Prompts that no task can use are left out.

    ``shares`` says how often each place is drawn from; without, every prompt is drawn as often as any other. Raises InputError
    where they do not fit the places."""

    def __init__(
        self,
        places: str | Path | Sequence[str | Path],
        good_to_draw: float = GOOD_TO_DRAW,
        good_to_judge: float = GOOD_TO_JUDGE,
        good_edit: float = GOOD_EDIT,
        shares: Sequence[float] = (),
    ):
        self.rows: list[dict] = []
        """Of every picture: id, prompt, score and reason, and of an edit source_id, following and preserving."""
        self._stored: list[tuple[int, Any]] = []
        """Mapped pictures with the number of their first row."""
        self._sources: dict[str, tuple[Any, int]] = {}
        places = [places] if isinstance(places, str | Path) else places
        if shares and (len(shares) != len(places) or min(shares) < 0 or not sum(shares)):
            raise InputError(
                f"config: shares is {list(shares)}; give one for each of the {len(places)} places of data, not all 0"
            )
        ends = []
        for place in map(Path, places):
            if place.suffix == ".jsonl":
                self.rows += published(place)
            else:
                self._open(place)
            ends.append(len(self.rows))
        by_prompt: dict[str, list[int]] = {}
        for i, row in enumerate(self.rows):
            by_prompt.setdefault(self.key(row), []).append(i)

        def good(least: float) -> Callable[[dict], bool]:
            return lambda row: quality(row) >= (good_edit if row["source_id"] else least)

        self.bad = self._those(by_prompt, lambda row: quality(row) < BAD)
        self.draw = self._those(by_prompt, good(good_to_draw))
        self.judge = self._those(by_prompt, good(good_to_judge))
        self.prompts = {
            "draw": sorted(self.draw),
            "judge": sorted(set(self.judge) & set(self.bad)),
            "redraw": sorted(set(self.draw) & set(self.bad)),
        }
        for name, prompts in self.prompts.items():
            if not prompts:
                raise InputError(f"config: data = {str(places[0])!r} has no prompt with pictures for {name!r}; build more")
        self._places: dict[str, list[list[str]]] = {}
        self._shares = np.array(shares, dtype=float) / (sum(shares) or 1)
        if shares:
            of = {p: {bisect_right(ends, i) for i in rows} for p, rows in by_prompt.items()}  # a prompt may be in several
            for name, prompts in self.prompts.items():
                self._places[name] = [[p for p in prompts if k in of[p]] for k in range(len(places))]
                for where, share, own in zip(places, shares, self._places[name], strict=True):
                    if share and not own:
                        raise InputError(f"config: data = {str(where)!r} has no prompt with pictures for {name!r}; build more")

    def _prompt(self, rng: np.random.Generator, task: str) -> str:
        prompts = self.prompts[task]
        if len(self._shares):
            prompts = self._places[task][rng.choice(len(self._shares), p=self._shares)]
        return prompts[rng.integers(len(prompts))]

    @staticmethod
    def key(row: dict) -> str:
        """What a row is a picture of, as ``Prompt.key`` has it."""
        return f"{row['prompt']}\n{row['source_id']}" if row["source_id"] else row["prompt"]

    def _those(self, by_prompt: dict[str, list[int]], keep: Callable[[dict], bool]) -> dict[str, list[int]]:
        kept = [row["score"] is not None and row["reason"] is not None and keep(row) for row in self.rows]
        found = {p: [i for i in rows if kept[i]] for p, rows in by_prompt.items()}
        return {p: rows for p, rows in found.items() if rows}

    def _open(self, folder: Path) -> None:
        import pyarrow.parquet as pq

        shards = sorted(folder.glob("images-*.parquet"))
        if not shards:
            raise InputError(f"config: data = {str(folder)!r} holds no images-*.parquet; run data build first")
        start = len(self.rows)
        for path in shards:
            there = [c for c in COLUMNS if c in pq.read_schema(path).names]
            self.rows += [dict.fromkeys(COLUMNS) | row for row in pq.read_table(path, columns=there).to_pylist()]
        self._stored.append((start, self._mapped(folder, shards)))
        if sources := sorted(folder.glob("sources-*.parquet")):
            stored = self._mapped(folder, sources)
            names = [n for path in sources for n in pq.read_table(path, columns=["id"])["id"].to_pylist()]
            self._sources |= {name: (stored, i) for i, name in enumerate(names)}

    @staticmethod
    def _mapped(folder: Path, shards: list[Path]) -> Any:
        """The pictures of Parquet files: mapped, not read."""
        from datasets import Image as ImageFeature
        from datasets import disable_progress_bars, load_dataset

        disable_progress_bars()
        files = [str(p) for p in shards]
        stored = load_dataset("parquet", data_files=files, split="train", cache_dir=str(folder / ".arrow"))
        return stored.select_columns(["image"]).cast_column("image", ImageFeature(decode=False))

    def picture_bytes(self, index: int) -> bytes:
        """A picture's file."""
        if "path" in self.rows[index]:
            return Path(self.rows[index]["path"]).read_bytes()
        start, stored = next(s for s in reversed(self._stored) if s[0] <= index)
        return stored[index - start]["image"]["bytes"]

    def source_bytes(self, name: str) -> bytes:
        """A source's file, by a row's source_id."""
        if name not in self._sources:
            return Path(name).read_bytes()
        stored, i = self._sources[name]
        return stored[i]["image"]["bytes"]

    def _scored(self, index: int) -> Scored:
        row = self.rows[index]
        return Scored(index, self.picture_bytes(index), row["score"], row["reason"])

    def _example(self, key: str, earlier: tuple[Scored, ...], target: Scored) -> Example:
        name = self.rows[target.index]["source_id"] if isinstance(target.index, int) else None
        if name is None:
            return Example(key, earlier, target)
        return Example(key.rpartition("\n")[0], earlier, target, Scored(name, self.source_bytes(name), 1.0, ""))

    def _pick(self, rng: np.random.Generator, rows: list[int], n: int) -> tuple[Scored, ...]:
        chosen = rng.choice(len(rows), size=min(n, len(rows)), replace=False)
        return tuple(self._scored(rows[i]) for i in chosen)

    def drawing(self, rng: np.random.Generator) -> Example:
        """Task I: a picture with S >= 0.8."""
        prompt = self._prompt(rng, "draw")
        return self._example(prompt, (), self._pick(rng, self.draw[prompt], 1)[0])

    def judging(self, rng: np.random.Generator, longest: int = 3) -> tuple[Example, Example]:
        """Task II: up to ``longest`` - 1 wrong pictures (``short``), then one to judge: S >= 0.7, and for the same prompt
        S < 0.5. Side by side in a batch the two teach what tells them apart."""
        prompt = self._prompt(rng, "judge")
        right = self._example(
            prompt, self._pick(rng, self.bad[prompt], short(rng, longest)), self._pick(rng, self.judge[prompt], 1)[0]
        )
        *earlier, target = self._pick(rng, self.bad[prompt], short(rng, longest) + 1)
        return right, self._example(prompt, tuple(earlier), target)

    def redrawing(self, rng: np.random.Generator, longest: int = 2) -> Example:
        """Task III: one to ``longest`` wrong pictures (S < 0.5; ``short``), then one with S >= 0.8."""
        prompt = self._prompt(rng, "redraw")
        earlier = self._pick(rng, self.bad[prompt], 1 + short(rng, longest))
        return self._example(prompt, earlier, self._pick(rng, self.draw[prompt], 1)[0])
