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
"""Examples in a file at most."""


def examples(
    pool: Pool, per_prompt: int, seed: int, judge_context: int = 3, redraw_context: int = 2
) -> Iterator[dict[str, Any]]:
    """Rows of a task ("draw", "judge", "redraw"), a prompt, the earlier wrong pictures and the
    target, by their numbers in the pool.

    Task II has as many right targets as wrong ones. Each prompt's examples depend on the seed and
    the prompt's place alone.
    """
    # (prompts,) numbers of all that have a picture of any use, in order
    prompts = np.union1d(np.union1d(pool.draw.prompts, pool.judge.prompts), pool.bad.prompts)
    for place, prompt in enumerate(prompts.tolist()):
        rng = np.random.default_rng([seed, place])
        good_rows = pool.draw[prompt].tolist()
        right_rows = pool.judge[prompt].tolist()
        bad_rows = pool.bad[prompt].tolist()
        for target in _some(rng, good_rows, per_prompt):
            yield {"task": "draw", "prompt": prompt, "earlier": [], "target": target}
        if not bad_rows:
            continue
        if right_rows:
            # half of them right, half wrong
            num_targets = min(len(right_rows), len(bad_rows), max(1, per_prompt // 2))
            for target in _some(rng, right_rows, num_targets):
                earlier = _some(rng, bad_rows, short(rng, judge_context))
                yield {"task": "judge", "prompt": prompt, "earlier": earlier, "target": target}
            for target in _some(rng, bad_rows, num_targets):
                # a picture does not come before itself
                other_rows = [row for row in bad_rows if row != target]
                earlier = []
                if other_rows:
                    earlier = _some(rng, other_rows, short(rng, judge_context))
                yield {"task": "judge", "prompt": prompt, "earlier": earlier, "target": target}
        for target in _some(rng, good_rows, per_prompt):
            # at least one: what is drawn first is task I
            earlier = _some(rng, bad_rows, 1 + short(rng, redraw_context))
            target = pool.target_of(earlier[-1], good_rows, target)
            yield {"task": "redraw", "prompt": prompt, "earlier": earlier, "target": target}


def _some(rng: np.random.Generator, rows: list[int], n: int) -> list[int]:
    """``n`` of the rows, or all where they are fewer, in a random order."""
    places = rng.choice(len(rows), min(n, len(rows)), replace=False)
    return [rows[place] for place in places]


def write_examples(
    pool: Pool, out: Path, kind: Literal["parquet", "webdataset"], per_prompt: int, seed: int
) -> dict[str, Any]:
    """Write examples-*.parquet or examples-*.tar in a random order. Returns their names and how
    many examples there are of each task. A tar's examples have as many earlier pictures each as its
    name says, for readers want the same fields in all of a file.

    What a tar holds is a PNG of each picture as the package reads it, wherever it was: no other
    kind of file gets into one. Raises InputError that names the row or line of a picture that
    cannot be read."""
    # of an earlier call, which may have had more files or another kind
    for stale_path in (*out.glob("examples-*.parquet"), *out.glob("examples-*.tar")):
        stale_path.unlink()
    in_order = list(examples(pool, per_prompt, seed))
    # In order, a prompt's examples follow each other, and readers of tars shuffle a part at a time.
    rows = [in_order[i] for i in np.random.default_rng(seed).permutation(len(in_order))]
    if kind == "webdataset":
        write_file, suffix = _write_tar, "tar"
        rows_by_name = _by_fields(pool, rows)
    else:
        write_file, suffix = _write_parquet, "parquet"
        rows_by_name = {"": rows}
    file_names = []
    for name, named_rows in rows_by_name.items():
        for file_number, start in enumerate(range(0, len(named_rows), PER_FILE)):
            path = out / f"examples{name}-{file_number:05d}.{suffix}"
            with whole_file(path) as temporary_path:
                write_file(pool, named_rows[start : start + PER_FILE], temporary_path)
            file_names.append(path.name)
    task_counts = {"draw": 0, "judge": 0, "redraw": 0}
    for row in rows:
        task_counts[row["task"]] += 1
    return {"files": file_names, "kind": kind, "tasks": task_counts}


def _by_fields(pool: Pool, rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The rows by a part of a file's name that says which pictures each has, sorted by it."""
    rows_by_name: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        editing = "-edit" if pool.rows[row["target"]]["source_id"] else ""
        name = f"{editing}-{len(row['earlier'])}-earlier"
        rows_by_name.setdefault(name, []).append(row)
    return dict(sorted(rows_by_name.items()))


def _in_words(pool: Pool, row: dict[str, Any]) -> dict[str, Any]:
    """An example in words: its pictures by their ids."""
    target = pool.rows[row["target"]]
    earlier_rows = [pool.rows[earlier] for earlier in row["earlier"]]
    return {
        "task": row["task"],
        "prompt": target["prompt"],
        "edit_of": target["source_id"],
        "earlier": [earlier["id"] for earlier in earlier_rows],
        "earlier_reasons": [earlier["reason"] for earlier in earlier_rows],
        "target": target["id"],
        "score": target["score"],
        "answer": target["reason"],
    }


def _write_parquet(pool: Pool, rows: list[dict[str, Any]], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([_in_words(pool, row) for row in rows]), path)


def _write_tar(pool: Pool, rows: list[dict[str, Any]], path: Path) -> None:
    index = pool.index
    with tarfile.open(path, "w") as tar:

        def add(file_name: str, file_bytes: bytes) -> None:
            tar_info = tarfile.TarInfo(file_name)
            tar_info.size = len(file_bytes)
            tar.addfile(tar_info, io.BytesIO(file_bytes))

        # WebDataset: files with the same name up to the first dot are one example.
        for i, row in enumerate(rows):
            target = row["target"]
            add(f"{i:08d}.json", json.dumps(_in_words(pool, row), ensure_ascii=False).encode())
            add(f"{i:08d}.target.png", _as_png(index.file_of(target), index.where(target)))
            if pool.rows[target]["source_id"]:
                source_image = index.source_image(target, index.words(target))
                add(f"{i:08d}.source.png", png(source_image))
            for number, earlier in enumerate(row["earlier"], 1):
                earlier_png = _as_png(index.file_of(earlier), index.where(earlier))
                add(f"{i:08d}.earlier{number}.png", earlier_png)


def _as_png(image_bytes: bytes, where: str) -> bytes:
    """A picture's file as a PNG that every reader shows alike: the file itself where it is one.
    Raises InputError that says ``where`` it is."""
    image = decode_image(image_bytes, where)
    with Image.open(io.BytesIO(image_bytes)) as stored_image:
        # not so where the file has a palette, transparency or a rotation, which the package applies
        if (
            stored_image.format == "PNG"
            and stored_image.mode == "RGB"
            and stored_image.tobytes() == image.tobytes()
        ):
            return image_bytes
    return png(image)
