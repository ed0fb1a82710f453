"""The data factory: prompts, several pictures of each from several generators, scored by a reward
that also gives a reason, and the examples of the three tasks of supervised fine-tuning.

Source: the data of stage 1 in arXiv 2506.01480. Work goes in shards of prompts: every generator's
pictures are written first, then the scored shard; what is there is not made again, so a build that
was stopped goes on where it was. A shard depends only on the config and its number: of several
processes each takes its share, and the first one waits for the others' and ends.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from rich.markup import escape
from rich.progress import track

from secondlook.data.build_config import BuildConfig
from secondlook.data.build_pictures import (
    picture_key,
    picture_of,
    read_pictures,
    row_of,
    write_pictures,
    write_sources,
)
from secondlook.data.build_prompts import check_prompts_of_models, shards_of, write_prompts
from secondlook.data.build_report import manifest_of, samples_page
from secondlook.data.export import write_examples
from secondlook.data.folder_generator import check_folders, left_out
from secondlook.data.generators import Load, Shard, make_generator
from secondlook.data.redraw_targets import (
    edits_of_wrong,
    pair_made,
    pair_nearest,
    repairs_of_wrong,
)
from secondlook.data.sft_dataset import Pool
from secondlook.episode import turn_seed
from secondlook.errors import InputError
from secondlook.io import same_config, writable_folder, write_json, write_text
from secondlook.llm.missing import tell_missing, why_missing
from secondlook.rewards.reward import Reward, score, try_out
from secondlook.types import Prompt, WorkerShard


def build(
    config: BuildConfig,
    reward: Reward,
    out: Path,
    load: Load,
    worker: WorkerShard = WorkerShard(),
) -> Path:
    """Write prompts.jsonl, images-*.parquet, examples, samples.html and, last, manifest.json to the
    folder ``out``, which is returned; ``load`` makes a model's engine. Raises InputError."""
    if config.expand and worker.size > 1:
        raise InputError(
            f"config: expand is set, but each of {worker.size} processes would get other "
            "captions; use one process"
        )
    writable_folder(out)
    settings = json.loads(json.dumps(asdict(config)))
    # shards of different settings are not mixed
    same_config(out, settings, ("examples", "examples_per_prompt", "device"))
    shards, unused_prompts = shards_of(config, out)
    check_prompts_of_models(config, shards)
    unused_files = left_out(config.generators, shards)
    # All that can be refused is refused before these: a mended config may use the same folder.
    write_json(out / "config.json", settings)
    write_prompts(out / "prompts.jsonl", shards)
    own_shards = [shard for shard in shards if shard.number % worker.size == worker.rank]
    unscored_shards = [shard for shard in own_shards if not _scored_path(out, shard).exists()]
    check_folders(config.generators, unscored_shards)
    if unscored_shards:
        try_out(reward)
    # All is drawn before anything is judged: generators and the judge share a GPU's memory.
    _draw(config, unscored_shards, out, load)
    _score(config, unscored_shards, out, reward)
    _pair(config, unscored_shards, out, reward, load)
    if worker.rank:
        return out  # the first process ends the build
    while not all(_scored_path(out, shard).exists() for shard in shards):
        time.sleep(0.5)  # other processes are still at it
    shutil.rmtree(out / "parts", ignore_errors=True)
    examples: dict[str, Any] = {}
    if config.examples != "none":
        pool = Pool(out, config.good_to_draw, config.good_to_judge, config.good_edit)
        if pool.unused:
            print(f"data: {pool.unused}", file=sys.stderr)
        examples = write_examples(
            pool, out, config.examples, config.examples_per_prompt, config.seed
        )
    write_text(out / "samples.html", samples_page(config, out))
    manifest = manifest_of(config, out, unused_prompts, unused_files, examples)
    write_json(out / "manifest.json", manifest)
    return out


def _scored_path(out: Path, shard: Shard) -> Path:
    """Where a shard's pictures lie once they have scores."""
    return out / f"images-{shard.number:05d}.parquet"


def _drawn_path(out: Path, generator_place: int, shard: Shard) -> Path:
    """Where the pictures of a generator, by its place in the config, wait for their scores."""
    return out / "parts" / f"{generator_place:02d}-{shard.number:05d}.parquet"


def _draw(config: BuildConfig, shards: list[Shard], out: Path, load: Load) -> None:
    """Pictures of ``shards`` by every generator; one generator is loaded at a time."""
    for place, generator_config in enumerate(config.generators):
        undrawn_shards = [shard for shard in shards if not _drawn_path(out, place, shard).exists()]
        if not undrawn_shards:
            continue
        generator = make_generator(
            generator_config, load, config.seed, config.device, config.prompt_options
        )
        progress_label = escape(f"drawing: {generator_config.kind} {generator_config.model}")
        for shard in track(undrawn_shards, progress_label):
            rows = [row_of(picture, generator_config) for picture in generator(shard)]
            write_pictures(_drawn_path(out, place, shard), rows)
        del generator  # its memory is needed for the next one


def _score(config: BuildConfig, shards: list[Shard], out: Path, reward: Reward) -> None:
    """Score the pictures of ``shards``, of all generators together."""
    for shard in track(shards, "judging"):
        judged_path = _scored_path(out, shard)
        if config.redraw != "any":
            judged_path = _judged_path(out, shard)
        if judged_path.exists():  # of a build that was stopped while redraws got their targets
            continue
        rows: list[dict[str, Any]] = []
        for place in range(len(config.generators)):
            rows += read_pictures(_drawn_path(out, place, shard))
        sources = {prompt.key: prompt.source for prompt in shard.prompts if prompt.source}
        if sources:
            # before the scored shard: where that one exists, the shard is whole
            write_sources(out / f"sources-{shard.number:05d}.parquet", sources)
        write_pictures(judged_path, _judged(shard, rows, reward, sources))


def _judged_path(out: Path, shard: Shard) -> Path:
    """Where a shard's scored pictures wait until redraws have their targets."""
    return out / "parts" / f"judged-{shard.number:05d}.parquet"


def _pair(config: BuildConfig, shards: list[Shard], out: Path, reward: Reward, load: Load) -> None:
    """Give the wrong pictures of ``shards`` the ones that their redraws are taught to become."""
    if config.redraw == "any" or not shards:
        return
    repairer = config.repairing_generator
    if config.redraw == "repair" and repairer:
        generator: Any = make_generator(
            repairer, load, config.seed, config.device, config.prompt_options
        )
    else:
        engine = load(config.redraw_model)
    for shard in track(shards, "targets of redraws"):
        rows = read_pictures(_judged_path(out, shard))
        if config.redraw == "nearest":
            pair_nearest(rows, engine, config)
            made_rows = []
        elif config.redraw == "edit":
            made_rows = edits_of_wrong(rows, engine, config, turn_seed(config.seed, shard.start))
        else:
            made_rows = repairs_of_wrong(rows, generator.repairs, "repair")
        sources = {prompt.key: prompt.source for prompt in shard.prompts if prompt.source}
        kept_rows = pair_made(rows, made_rows, partial(_set_scores, reward, sources), config)
        write_pictures(_scored_path(out, shard), rows + kept_rows)


def _judged(
    shard: Shard, rows: list[dict[str, Any]], reward: Reward, sources: dict[str, Image.Image]
) -> list[dict[str, Any]]:
    """The rows with scores and names, without pictures that a prompt has twice. ``sources`` are the
    edited pictures by ``Prompt.key``.

    Raises InputError where not one of them got a score.
    """
    distinct_rows: dict[tuple[str, str, bytes], dict[str, Any]] = {}
    for row in rows:
        key = picture_key(row)
        if key not in distinct_rows:
            row["id"] = f"{shard.number:05d}-{len(distinct_rows):05d}"
            distinct_rows[key] = row
    judged_rows = list(distinct_rows.values())
    num_scored = _set_scores(reward, sources, judged_rows)
    if judged_rows and not num_scored:
        raise InputError(
            f"reward: not one of {len(judged_rows)} pictures got a score; check the judge and the "
            f"prompts{why_missing(reward)}"
        )
    return judged_rows


def _set_scores(reward: Reward, sources: dict[str, Image.Image], rows: list[dict[str, Any]]) -> int:
    """Judge the pictures of rows. Returns how many got a score; the others stay without one."""
    to_judge: list[tuple[Prompt, Image.Image]] = []
    for row in rows:
        to_judge.append((Prompt(row["prompt"], sources.get(Pool.key(row))), picture_of(row)))
    scores = score(reward, to_judge)
    tell_missing(reward)
    for row, row_score in zip(rows, scores, strict=True):
        if row_score is None:  # the judge did not answer
            continue
        row["score"] = row_score.value
        row["correct"] = row_score.correct
        row["reason"] = row_score.answer
        if row_score.edit is not None:
            row["following"], row["preserving"] = row_score.edit
    return len(scores) - scores.count(None)
