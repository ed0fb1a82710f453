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
    """A page of ``n`` prompts with their pictures, scores and reasons, of a shard chosen at random:
    to read one is enough."""
    rng = np.random.default_rng(config.seed)
    all_shards = sorted(out.glob("images-*.parquet"))
    shard_path = all_shards[rng.integers(len(all_shards))]
    rows_by_prompt: dict[str, list[dict[str, Any]]] = {}
    for row in read_pictures(shard_path):
        rows_by_prompt.setdefault(Pool.key(row), []).append(row)
    prompt_keys = list(rows_by_prompt)
    num_prompts = min(n, len(prompt_keys))
    chosen_places = sorted(rng.choice(len(prompt_keys), num_prompts, replace=False))
    source_urls: dict[str, str] = {}  # the pictures themselves, as data: addresses
    sources_path = out / shard_path.name.replace("images", "sources")
    if sources_path.exists():
        for row in read_pictures(sources_path):
            source_urls[row["id"]] = embed(picture_of(row))
    strips = []
    for place in chosen_places:
        prompt_rows = rows_by_prompt[prompt_keys[place]][:10]  # one line of pictures
        first_row = prompt_rows[0]
        strip_pictures = []  # rows with their pictures as data: addresses
        for row in prompt_rows:
            shown_quality = None if row["score"] is None else quality(row)
            strip_pictures.append(row | {"src": embed(picture_of(row)), "quality": shown_quality})
        strips.append(
            {
                "prompt": first_row["prompt"],
                "source": source_urls.get(first_row["source_id"]),
                "pictures": strip_pictures,
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
    unused_prompts: dict[str, list[str]],
    unused_files: dict[str, dict[str, list[str]]],
    examples: dict[str, Any],
) -> dict[str, Any]:
    """What manifest.json says: counts by the pictures' source, what was left out and why, checksums
    of all files, the settings and the versions."""
    shard_paths = sorted(out.glob("images-*.parquet"))
    source_counts, prompt_keys = _counts(config, shard_paths)
    source_paths = sorted(out.glob("sources-*.parquet"))
    example_paths = [out / name for name in examples.get("files", [])]
    checksums = {}
    for path in (*shard_paths, *source_paths, *example_paths):
        checksums[path.name] = _sha256(path)
    return {
        "prompts": len(prompt_keys),
        "left_out": {reason: len(prompts) for reason, prompts in unused_prompts.items()},
        "left_out_prompts": unused_prompts,
        "folders": unused_files,
        "sources": source_counts,
        "examples": examples,
        "sha256": checksums,
        "shards": [path.name for path in shard_paths],
        "rewards": [asdict(reward) for reward in config.rewards] or [config.prompts],
        "seed": config.seed,
        "config": asdict(config),
        "versions": versions(),
    }


def _counts(
    config: BuildConfig, shard_paths: list[Path]
) -> tuple[dict[str, dict[str, Any]], set[str]]:
    """How many pictures of each source there are and of what use they are, and the prompts."""
    # all but the pictures: Parquet reads only the columns that it is asked for
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
    source_counts: dict[str, dict[str, Any]] = {}
    prompt_keys: set[str] = set()
    for path in shard_paths:
        for row in read_parquet(path, columns).to_pylist():
            prompt_keys.add(Pool.key(row))
            if row["source"] not in source_counts:
                source_counts[row["source"]] = {
                    "pictures": 0,
                    "right": 0,
                    "missing": 0,
                    "positives": 0,
                    "negatives": 0,
                    "licence": row["licence"],
                }
            counts = source_counts[row["source"]]
            counts["pictures"] += 1
            # "correct" is None where the judge did not answer
            counts["right"] += row["correct"] is True
            counts["missing"] += row["correct"] is None
            if row["score"] is not None:
                threshold = config.good_edit if row["source_id"] else config.good_to_draw
                # between the two a picture is neither drawn nor judged wrong
                counts["positives"] += quality(row) >= threshold
                counts["negatives"] += quality(row) < BAD
    return source_counts, prompt_keys
