"""Host memory and reads of stage 1 over an index of the paper's size, with the real code and
without weights.

python benchmarks/simulate_host.py 7b/sft --ranks 8 [--pictures 3600000] [--workers 2]

Data of that many pictures is made in a temporary folder, once as shards of data build and once in
the published layout; all are the same small picture. A process then does what rank 0 of the recipe
does: it makes the index, fills its cache of codes to the bound, and takes the batches of some
steps. Counted are the bytes of that process and of a worker that reads ahead, a node's for all
ranks, and each rank's reads of the same steps. The model's weights are not in it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from secondlook import config as configs
from secondlook.data import image_index as data_index
from secondlook.data.sft_dataset import TASKS, Pool
from secondlook.io import png, write_json
from secondlook.recipes import find_config
from secondlook.train.distributed import ProcessGroup
from secondlook.train.sft_config import SFTConfig
from secondlook.train.sft_data import CodeCache, SFTBatches

GIB = 2**30
PICTURES = 3_600_000
PER_PROMPT = 18
"""Pictures of a prompt, as in arXiv 2506.01480."""
PROMPTS_PER_SHARD, ROWS_PER_GROUP = 250, 24
"""As data build writes pictures of 384 pixels: 8 MiB a row group."""
NODE = 20e9
"""Bytes that a node's ranks may take, and its workers as much again each."""
CODES = 576
READ_ONCE = "each example is read by one rank"
SENTENCE = (
    "a small brown dog sits to the left of two blue cups on an old wooden table in "
    "front of a bright window"
)


def prompt(number: int) -> str:
    """Two of five are short, the others long."""
    return f"{number}: {SENTENCE[:40] if number % 5 < 2 else SENTENCE * 2}"


def make(folder: Path, form: str, n_prompts: int) -> Path:
    """Scored pictures in one of the two forms, as training takes them."""
    from PIL import Image

    picture = png(Image.new("RGB", (384, 384), (200, 40, 40)))
    scores, reasons = [], []  # of each prompt's pictures
    for i in range(PER_PROMPT):
        score = (i + 0.5) / PER_PROMPT
        scores.append(score)
        reasons.append(f"{'Yes' if score >= 0.5 else 'No'}, {SENTENCE} number {i}.")
    if form == "parquet":
        for start in range(0, n_prompts, PROMPTS_PER_SHARD):
            prompts = range(start, min(n_prompts, start + PROMPTS_PER_SHARD))
            shard_path = folder / f"images-{start // PROMPTS_PER_SHARD:05d}.parquet"
            _shard(shard_path, prompts, picture, scores, reasons)
        return folder
    (folder / "picture.png").write_bytes(picture)
    rows = []
    for reason, score in zip(reasons, scores, strict=True):
        row = {"img_path": "picture.png", "reason": reason, "prob": score, "state": score >= 0.5}
        rows.append(row)
    data = json.dumps(rows)
    with open(folder / "data.jsonl", "w", encoding="utf-8") as file:
        for i in range(n_prompts):
            file.write(f'{{"promptid": {i}, "prompt": {json.dumps(prompt(i))}, "data": {data}}}\n')
    return folder / "data.jsonl"


def _shard(
    path: Path, prompts: range, picture: bytes, scores: list[float], reasons: list[str]
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    num_rows = len(prompts) * PER_PROMPT
    ids, texts = [], []
    for number in prompts:
        ids += [f"{number:06d}-{i:02d}" for i in range(PER_PROMPT)]
        texts += [prompt(number)] * PER_PROMPT
    # the same bytes in every row, without a copy for each in Python
    image_bytes = pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(num_rows, dtype=np.int32)), pa.array([picture])
    ).cast(pa.binary())
    no_texts = pa.nulls(num_rows, pa.string())
    no_numbers = pa.nulls(num_rows, pa.float32())
    table = pa.table(
        {
            "id": ids,
            "prompt": texts,
            "source_id": no_texts,
            "score": pa.array(scores * len(prompts), pa.float32()),
            "reason": reasons * len(prompts),
            "following": no_numbers,
            "preserving": no_numbers,
            "image": pa.StructArray.from_arrays([image_bytes, no_texts], names=["bytes", "path"]),
        }
    )
    pq.write_table(table, path, row_group_size=ROWS_PER_GROUP)


def own_bytes() -> dict[str, int]:
    """This process's memory: what is its own ("anonymous"), changed by it since it was forked
    ("private"), and of files that all processes share; and the most that it had."""
    bytes_of = {}
    for name in ("smaps_rollup", "status"):
        for line in Path(f"/proc/self/{name}").read_text().splitlines():
            if line.endswith("kB"):
                key, kilobytes, _ = line.split()
                bytes_of[key.rstrip(":")] = int(kilobytes) * 1024
    file_bytes = bytes_of["Rss"] - bytes_of["Anonymous"]
    return {
        "anonymous": bytes_of["Anonymous"],
        "private": bytes_of["Private_Dirty"],
        "files": file_bytes,
        "peak": bytes_of["VmHWM"] - file_bytes,
    }


class MeasuredBatches(SFTBatches):
    """Batches, each with the memory of the process that made it."""

    def __getitem__(self, step: int) -> Any:
        return super().__getitem__(step), own_bytes()


def measure(config: SFTConfig, ranks: int, steps: int) -> dict[str, Any]:
    """What rank 0 does, in a process of its own."""
    before = own_bytes()["anonymous"]
    began = time.perf_counter()
    tasks = [task for task, weight in zip(TASKS, config.mix, strict=True) if weight]
    pool = Pool(
        config.data,
        config.good_to_draw,
        config.good_to_judge,
        config.good_edit,
        config.data_weights,
        tasks,
    )
    found: dict[str, Any] = {
        "index_seconds": time.perf_counter() - began,
        "at_start": own_bytes(),
        "pictures": len(pool.index),
    }
    found["pool"] = found["at_start"]["anonymous"] - before
    cache = CodeCache()
    for i in range(cache.max_pictures):
        cache.add(i, np.full(CODES, 16383))
    found["codes"] = cache.max_pictures
    config = replace(config, steps=steps)
    began, n = time.perf_counter(), 0
    batches = MeasuredBatches(config, pool, ProcessGroup(0, ranks))
    for batch, found["worker"] in batches.from_step(0):
        n += batch.read
    found |= {"seconds_a_read": (time.perf_counter() - began) / max(1, n), "rank": own_bytes()}
    return found | reads(config, pool, ranks)


def reads(config: SFTConfig, pool: Pool, ranks: int) -> dict[str, Any]:
    """Of the same steps, what all ranks read: pictures a step of each, and whether each example is
    read once."""
    seen: list[Counter[int]] = [Counter() for _ in range(ranks)]
    once = True
    read_image = data_index.Index.image
    for rank in range(ranks):

        def counted(index: Any, row: int, seen: Counter[int] = seen[rank]) -> Any:
            seen[row] += 1
            return read_image(index, row)

        data_index.Index.image = counted  # type: ignore[method-assign]
        for step in range(config.steps):
            batch = SFTBatches(config, pool, ProcessGroup(rank, ranks))[step]
            sizes = len(batch.drawing), len(batch.redrawing), len(batch.judging)
            once &= sizes == tuple(len(range(rank, n, ranks)) for n in batch.counts)
    data_index.Index.image = read_image  # type: ignore[method-assign]
    chosen: Counter[int] = Counter()
    for step in range(config.steps):
        drawing, redrawing, judging, _ = SFTBatches(config, pool, ProcessGroup()).choose(step)
        for choice in (*drawing, *redrawing, *judging):
            chosen.update((*choice.earlier, choice.target))
    reads_of_all: Counter[int] = Counter()
    ranks_of_row: Counter[int] = Counter()
    for rank_reads in seen:
        reads_of_all.update(rank_reads)
        ranks_of_row.update(rank_reads.keys())
    num_shared = sum(num_ranks > 1 for num_ranks in ranks_of_row.values())
    return {
        "reads": [rank_reads.total() / config.steps for rank_reads in seen],
        "chosen": chosen.total() / config.steps,
        "once": once and reads_of_all == chosen,
        "shared": num_shared / max(1, len(reads_of_all)),
    }


def lines_of(
    measured: dict[str, Any], peaks: dict[str, float], ranks: int, workers: int, made: float
) -> list[str]:
    """What is printed of one form. ``peaks`` are GiB, ``made`` the seconds that the data took."""
    reads_of_ranks = ", ".join(f"{number:.0f}" for number in measured["reads"])
    return [
        f"{measured['pictures']:,} pictures, made in {made:.0f} s, indexed in "
        f"{measured['index_seconds']:.0f} s a rank, "
        f"{measured['pool'] / measured['pictures']:.0f} bytes a picture",
        f"a rank {peaks['rank']:.2f} GiB (codes of {measured['codes']:,} pictures in it), a "
        f"worker {peaks['worker']:.2f} more, a node of {ranks} ranks with {workers} workers each "
        f"{peaks['node']:.2f} GiB, of {NODE * (1 + workers) / GIB:.1f}",
        f"a step chooses {measured['chosen']:.0f} pictures; the ranks read {reads_of_ranks}; "
        f"{READ_ONCE if measured['once'] else 'EXAMPLES READ TWICE OR NEVER'} "
        f"({measured['shared']:.1%} of the pictures are in examples of two ranks); "
        f"{measured['seconds_a_read'] * 1e3:.1f} ms a picture",
    ]


def run(
    recipe: Path, config: SFTConfig, ranks: int, memory: float, **options: Any
) -> dict[str, Any]:
    """One recipe of stage 1. ``memory`` (of a GPU, GiB) does not matter here. ``options``:
    ``pictures``, ``workers`` (of each rank; else the recipe's), ``steps``, ``forms``. Gives the
    peaks in GiB, what to print, and whether a node's ranks take no more than ``NODE`` for each
    process of a rank."""
    n_prompts = options.get("pictures", PICTURES) // PER_PROMPT
    workers = options.get("workers")
    if workers is None:
        workers = config.runtime.dataloader_workers
    steps = options.get("steps", 10)
    peaks, lines, fits, details = {}, [], True, {}
    for form in options.get("forms", ("parquet", "jsonl")):
        with tempfile.TemporaryDirectory() as name:
            folder, began = Path(name), time.perf_counter()
            settings = {
                "data": str(make(folder, form, n_prompts)),
                "data_weights": [],
                "runtime.dataloader_workers": workers,
            }
            here = configs.changed(config, settings)
            made = time.perf_counter() - began
            write_json(
                folder / "asked.json", {"config": asdict(here), "ranks": ranks, "steps": steps}
            )
            command = [sys.executable, __file__, "--measure", str(folder / "asked.json")]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(done.stderr)
            measured = json.loads(done.stdout)
        rank = measured["rank"]["anonymous"]
        worker = measured["worker"]["private"] if workers else 0
        # a node is fullest at the start, where all ranks make the index, or while it trains
        at_start = ranks * measured["at_start"]["peak"] + measured["rank"]["files"]
        node = max(ranks * (rank + workers * worker) + measured["rank"]["files"], at_start)
        fits &= node <= NODE * (1 + workers) and measured["once"]
        form_peaks = {"rank": rank / GIB, "worker": worker / GIB, "node": node / GIB}
        for name, peak in form_peaks.items():
            peaks[f"{form}: {name}"] = peak
        details[form] = measured
        for line in lines_of(measured, form_peaks, ranks, workers, made):
            lines.append(f"{form}: {line}")
    return {
        "name": f"{recipe.stem}: host",
        "peaks": peaks,
        "fits": fits,
        "lines": lines,
        "details": details,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", type=find_config, nargs="?", default="7b/sft")
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--pictures", type=int, default=PICTURES)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        asked = json.loads(args.measure.read_text())
        print(json.dumps(measure(SFTConfig(**asked["config"]), asked["ranks"], asked["steps"])))
        return
    config = configs.load(SFTConfig, args.recipe, [])
    result = run(
        args.recipe, config, args.ranks, 80.0, pictures=args.pictures, workers=args.workers
    )
    print("\n".join([result["name"], *result["lines"]]))
    raise SystemExit(0 if result["fits"] else 1)


if __name__ == "__main__":
    main()
