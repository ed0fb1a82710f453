"""The three tasks' examples as files: Parquet that names pictures, or WebDataset's tars that hold
them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from secondlook.data.sft_dataset import Pool, short
from secondlook.io import decode_image, png, whole_file

PER_FILE = 5000


def examples(
    pool: Pool, per_prompt: int, seed: int, judge_context: int = 3, redraw_context: int = 2
) -> Iterator[dict[str, Any]]:
    """Rows of a task ("draw", "judge", "redraw"), a prompt, the earlier wrong pictures and the
    target, by their numbers in the pool.

    Task II has as many right targets as wrong ones. Each prompt's examples depend on the seed and
    the prompt's place alone.
    """
    prompts = np.union1d(np.union1d(pool.draw.prompts, pool.judge.prompts), pool.bad.prompts)
    for i, prompt in enumerate(prompts.tolist()):
        rng = np.random.default_rng([seed, i])
        good, right, bad = (part[prompt].tolist() for part in (pool.draw, pool.judge, pool.bad))

        def some(rows: list[int], n: int, rng=rng) -> list[int]:
            return [rows[k] for k in rng.choice(len(rows), min(n, len(rows)), replace=False)]

        for target in some(good, per_prompt):
            yield {"task": "draw", "prompt": prompt, "earlier": [], "target": target}
        if not bad:
            continue
        n = min(len(right), len(bad), max(1, per_prompt // 2))
        for target in some(right, n) if right else []:
            yield {
                "task": "judge",
                "prompt": prompt,
                "earlier": some(bad, short(rng, judge_context)),
                "target": target,
            }
        for target in some(bad, n) if right else []:
            others = [b for b in bad if b != target]
            earlier = some(others, short(rng, judge_context)) if others else []
            yield {"task": "judge", "prompt": prompt, "earlier": earlier, "target": target}
        for target in some(good, per_prompt):
            earlier = some(bad, 1 + short(rng, redraw_context))
            yield {"task": "redraw", "prompt": prompt, "earlier": earlier, "target": target}


def write_examples(
    pool: Pool, out: Path, kind: Literal["parquet", "webdataset"], per_prompt: int, seed: int
) -> dict[str, Any]:
    """examples-*.parquet or examples-*.tar in a random order; returns their names and how many
    there are of each task. A tar's examples have as many earlier pictures each as its name says,
    for readers want the same fields in all of a file.

    What a tar holds is a PNG of each picture as the package reads it, wherever it was: no other
    kind of file gets into one. Raises InputError that names the row or line of a picture that
    cannot be read."""
    for stale in (*out.glob("examples-*.parquet"), *out.glob("examples-*.tar")):
        stale.unlink()
    rows = list(examples(pool, per_prompt, seed))
    rows = [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]
    write, files, groups = _write_parquet, list[str](), {"": rows}
    if kind == "webdataset":
        write, groups = _write_tar, {}
        for row in rows:
            editing = "-edit" if pool.rows[row["target"]]["source_id"] else ""
            groups.setdefault(f"{editing}-{len(row['earlier'])}-earlier", []).append(row)
        groups = dict(sorted(groups.items()))
    for name, alike in groups.items():
        for k, start in enumerate(range(0, len(alike), PER_FILE)):
            path = out / f"examples{name}-{k:05d}.{'tar' if kind == 'webdataset' else 'parquet'}"
            with whole_file(path) as temporary:
                write(pool, alike[start : start + PER_FILE], temporary)
            files.append(path.name)
    tasks = {task: sum(r["task"] == task for r in rows) for task in ("draw", "judge", "redraw")}
    return {"files": files, "kind": kind, "tasks": tasks}


def _said(pool: Pool, row: dict[str, Any]) -> dict[str, Any]:
    """An example in words: its pictures by their ids."""
    target = pool.rows[row["target"]]
    return {
        "task": row["task"],
        "prompt": target["prompt"],
        "edit_of": target["source_id"],
        "earlier": [pool.rows[i]["id"] for i in row["earlier"]],
        "earlier_reasons": [pool.rows[i]["reason"] for i in row["earlier"]],
        "target": target["id"],
        "score": target["score"],
        "answer": target["reason"],
    }


def _write_parquet(pool: Pool, rows: list[dict[str, Any]], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([_said(pool, row) for row in rows]), path)


def _write_tar(pool: Pool, rows: list[dict[str, Any]], path: Path) -> None:
    index = pool.index
    with tarfile.open(path, "w") as tar:

        def add(name: str, data: bytes) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))

        for i, row in enumerate(rows):
            add(f"{i:08d}.json", json.dumps(_said(pool, row), ensure_ascii=False).encode())
            add(
                f"{i:08d}.target.png",
                _as_png(index.file_of(row["target"]), index.where(row["target"])),
            )
            if pool.rows[row["target"]]["source_id"]:
                add(
                    f"{i:08d}.source.png",
                    png(index.source_image(row["target"], index.words(row["target"]))),
                )
            for k, earlier in enumerate(row["earlier"], 1):
                add(
                    f"{i:08d}.earlier{k}.png", _as_png(index.file_of(earlier), index.where(earlier))
                )


def _as_png(data: bytes, name: str) -> bytes:
    """A picture's file as a PNG that every reader shows alike: the file itself where it is one.
    Raises InputError."""
    image = decode_image(data, name)
    with Image.open(io.BytesIO(data)) as stored:
        if stored.format == "PNG" and stored.mode == "RGB" and stored.tobytes() == image.tobytes():
            return data
    return png(image)
