"""Pictures of prompts with their scores: what supervised fine-tuning is taught from, as Parquet shards.

Source: the data of stage 1 in arXiv 2506.01480 (several pictures a prompt from several generators, scored by a judge that
also gives a reason). Here the generators are a model of this package and, for the world's prompts, the renderer: right
pictures and near misses. These pass through the image tokenizer, so that a verdict cannot be learned from the source alone
(a clean render is wrong, a decoded picture right). A shard depends only on (seed, its number), and one that is there is not
made again.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from PIL.Image import Image
from rich.progress import track

from secondlook.data import miniature
from secondlook.data.prompts import Prompts
from secondlook.engine.decode import Engine
from secondlook.files import png, versions, write_json
from secondlook.introspect import Sampling, turn_seed
from secondlook.rewards.base import Reward
from secondlook.rewards.build import JudgeConfig
from secondlook.types import InputError, Request


@dataclass
class SampleConfig:
    """``data sample``."""

    model: str
    """The model that draws, and whose mistakes become negatives."""
    prompts: str = ""
    """A text file with one prompt a line; empty: prompts of the miniature's world, with right pictures and near misses."""
    n_prompts: int = 3000
    """How many prompts (of a file: the first ones)."""
    draws: int = 6
    """Pictures a prompt drawn by the model."""
    near_misses: int = 3
    """Wrong pictures a prompt by the world's renderer, beside one right one."""
    aimed: float = 0.5
    """Share of them that attack what the prompt asks for: a relation, a count, who has which colour."""
    judges: list[JudgeConfig] = field(default_factory=list)
    """Who scores the pictures, a weighted mean when several; default: the verifier of the miniature's world."""
    kinds: dict[str, float] = field(default_factory=lambda: dict(miniature.KINDS))
    """Shares of the kinds of the world's prompts."""
    shard: int = 250
    """Prompts a shard."""
    batch: int = 96
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("n_prompts", "shard", "batch"):
            if getattr(self, name) < 1:
                raise InputError(f"config: {name} is {getattr(self, name)}; it must be at least 1")
        miniature.check_shares("kinds", self.kinds, miniature.KINDS)


def sample(config: SampleConfig, engine: Engine, reward: Reward, out: Path) -> Path:
    """Draw and score; ``out`` gets images-*.parquet and, last, manifest.json (counts, missing scores, config, versions)."""
    from datasets import Dataset, Features, Value, disable_progress_bars
    from datasets import Image as ImageFeature

    disable_progress_bars()  # one bar, ours
    kinds = {"prompt": "string", "score": "float32", "correct": "bool", "reason": "string", "source": "string"}
    features = Features({name: Value(kind) for name, kind in kinds.items()} | {"image": ImageFeature()})
    given = Prompts(config.prompts).lines
    total = min(config.n_prompts, len(given)) if given else config.n_prompts
    out.mkdir(parents=True, exist_ok=True)
    _same_config(config, out)
    for start in track(range(0, total, config.shard), "drawing and scoring"):
        path = out / f"images-{start // config.shard:05d}.parquet"
        if path.exists():
            continue
        n = min(config.shard, total - start)
        pictures = [] if given else _rendered(config, engine, start, n)
        prompts = given[start : start + n] or list(dict.fromkeys(p for p, _, _ in pictures))
        pictures += _drawn(config, engine, prompts, start)
        scores = reward([(prompt, image) for prompt, image, _ in pictures])
        rows = [
            {
                "prompt": prompt,
                "image": {"bytes": png(image)},
                "source": source,
                "score": score.value if score else None,
                "correct": score.correct if score else None,
                "reason": score.answer if score else None,
            }
            for (prompt, image, source), score in zip(pictures, scores, strict=True)
        ]
        if not any(scores):
            raise InputError(f"reward: not one of {len(scores)} pictures got a score; check the judge and the prompts")
        temporary = path.with_suffix(".tmp")
        Dataset.from_list(rows, features=features).to_parquet(str(temporary))
        os.replace(temporary, path)
    write_json(out / "manifest.json", _manifest(config, out))
    return out


def _same_config(config: SampleConfig, out: Path) -> None:
    """Shards of different settings are not mixed: a folder goes on with the config it was begun with."""
    path, now = out / "config.json", asdict(config)
    before = json.loads(path.read_text()) if path.exists() else now
    for key, value in now.items():
        if before.get(key) != value:
            raise InputError(
                f"config: {key} is {value!r} but {out} was begun with {before.get(key)!r}; "
                "use the same value, or another folder"
            )
    write_json(path, now)


def _rendered(config: SampleConfig, engine: Engine, start: int, n: int) -> list[tuple[str, Image, str]]:
    rng = np.random.default_rng([config.seed, start])
    out: list[tuple[str, Image, str]] = []
    for p in miniature.pictures(rng, n, kinds=config.kinds):
        out.append((p.spec.prompt, p.image, "render"))
        wrong = miniature.wrong(rng, p, config.near_misses, config.aimed)
        out += [(p.spec.prompt, image, "near miss") for image, _ in wrong]
    through = engine.pictures(engine.codes([image for _, image, _ in out]))
    return [(prompt, image, source) for (prompt, _, source), image in zip(out, through, strict=True)]


def _drawn(config: SampleConfig, engine: Engine, prompts: list[str], start: int) -> list[tuple[str, Image, str]]:
    rule = Sampling.of(engine.janus.net.generation_config).draw_rule()
    asked = [prompt for prompt in prompts for _ in range(config.draws)]
    first = config.seed * 10**9 + start * config.draws
    requests = [Request("draw", engine.protocol.draw(prompt), turn_seed(first + k, 0)) for k, prompt in enumerate(asked)]
    images = engine.pictures([t.tokens for t in engine.draw(requests, rule)])
    return [(prompt, image, config.model) for prompt, image in zip(asked, images, strict=True)]


def _manifest(config: SampleConfig, out: Path) -> dict:
    import pyarrow.parquet as pq

    shards = sorted(out.glob("images-*.parquet"))
    tables = [pq.read_table(p, columns=["source", "correct"]).to_pydict() for p in shards]
    counts: dict[str, dict[str, int]] = {}
    for table in tables:
        for source, correct in zip(table["source"], table["correct"], strict=True):
            row = counts.setdefault(source, {"pictures": 0, "right": 0, "missing": 0})
            row["pictures"] += 1
            row["right"] += correct is True
            row["missing"] += correct is None
    return {"shards": [p.name for p in shards], "sources": counts, "config": asdict(config), "versions": versions()}
