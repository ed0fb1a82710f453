"""What a build says of itself: a page of samples to look at, and its manifest."""

from __future__ import annotations

from dataclasses import asdict
from hashlib import file_digest
from pathlib import Path
from typing import Any

import numpy as np

from secondlook.data.build_config import BuildConfig
from secondlook.data.build_pictures import picture_of, read_pictures
from secondlook.data.sft_dataset import BAD, Pool, quality
from secondlook.io import read_parquet, versions
from secondlook.report import embed, page


def samples_page(config: BuildConfig, out: Path, n: int = 24) -> str:
    """Some prompts with their pictures, scores and reasons, to look at."""
    rng = np.random.default_rng(config.seed)
    shards = sorted(out.glob("images-*.parquet"))
    shards = [shards[rng.integers(len(shards))]]
    rows = read_pictures(shards[0])
    prompts = list(dict.fromkeys(Pool.key(r) for r in rows))
    stored = out / shards[0].name.replace("images", "sources")
    sources = (
        {r["id"]: embed(picture_of(r)) for r in read_pictures(stored)} if stored.exists() else {}
    )
    chosen = [
        prompts[i] for i in sorted(rng.choice(len(prompts), min(n, len(prompts)), replace=False))
    ]
    strips = []
    for prompt in chosen:
        own = [r for r in rows if Pool.key(r) == prompt][:10]
        pictures = [
            r | {"src": embed(picture_of(r)), "quality": None if r["score"] is None else quality(r)}
            for r in own
        ]
        strips.append(
            {
                "prompt": own[0]["prompt"],
                "source": sources.get(own[0]["source_id"]),
                "pictures": pictures,
            }
        )
    return page(
        "samples.html", strips=strips, bad=BAD, good=config.good_to_draw, good_edit=config.good_edit
    )


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return file_digest(file, "sha256").hexdigest()


def manifest_of(
    config: BuildConfig,
    out: Path,
    unused: dict[str, list[str]],
    folders: dict[str, dict[str, list[str]]],
    examples: dict[str, Any],
) -> dict:
    shards = sorted(out.glob("images-*.parquet"))
    counts: dict[str, dict[str, Any]] = {}
    prompts = set()
    for path in shards:
        columns = [
            "prompt",
            "source",
            "correct",
            "licence",
            "score",
            "source_id",
            "following",
            "preserving",
        ]
        for row in read_parquet(path, columns).to_pylist():
            start = {
                "pictures": 0,
                "right": 0,
                "missing": 0,
                "positives": 0,
                "negatives": 0,
                "licence": row["licence"],
            }
            of = counts.setdefault(row["source"], start)
            of["pictures"] += 1
            of["right"] += row["correct"] is True
            of["missing"] += row["correct"] is None
            known = row["score"] is not None
            of["positives"] += known and quality(row) >= (
                config.good_edit if row["source_id"] else config.good_to_draw
            )
            of["negatives"] += known and quality(row) < BAD
            prompts.add(Pool.key(row))
    files = [
        *shards,
        *sorted(out.glob("sources-*.parquet")),
        *(out / name for name in examples.get("files", [])),
    ]
    return {
        "prompts": len(prompts),
        "left_out": {reason: len(prompts) for reason, prompts in unused.items()},
        "left_out_prompts": unused,
        "folders": folders,
        "sources": counts,
        "examples": examples,
        "sha256": {p.name: _sha256(p) for p in files},
        "shards": [p.name for p in shards],
        "rewards": [asdict(reward) for reward in config.rewards] or [config.prompts],
        "seed": config.seed,
        "config": asdict(config),
        "versions": versions(),
    }
