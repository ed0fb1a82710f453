"""The data factory: prompts, several pictures of each from several generators, scored by a judge that also gives a reason, and
the examples of the three tasks of supervised fine-tuning.

Source: the data of stage 1 in arXiv 2506.01480. Work goes in shards of prompts: every generator's pictures are written first,
then the scored shard; what is there is not made again, so a build that was stopped goes on where it was. A shard depends only
on the config and its number.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from rich.progress import track

from secondlook.data import miniature, overlap
from secondlook.data.examples import write_examples
from secondlook.data.generators import GeneratorConfig, Load, Picture, Shard, make
from secondlook.data.pair import BAD, GOOD_TO_DRAW, GOOD_TO_JUDGE, Pool
from secondlook.data.prompts import Prompts
from secondlook.files import png, same_config, versions, write_json, write_text
from secondlook.report import embed, page
from secondlook.rewards.ask import Answers, Asker, Endpoint, Question
from secondlook.rewards.base import Reward
from secondlook.rewards.build import JudgeConfig
from secondlook.rewards.endpoint import in_words, questions_of
from secondlook.types import InputError

EXPAND = (
    "Write {short} short (at most 12 words) and {long} long (30 to 60 words) descriptions of images about the seed below, each "
    "of a scene that can be drawn and checked: objects, colours, numbers, positions. Answer with a JSON list of {total} "
    "strings and nothing else.\nSeed: {seed}"
)


@dataclass(frozen=True)
class ExpandConfig:
    """A language model that makes captions of seed prompts."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    url: str
    """The base address of an OpenAI-compatible endpoint."""
    model: str
    short: int = 2
    long: int = 3
    """Captions a seed (the paper has 80,000 short and 120,000 long ones)."""
    key_variable: str = "OPENAI_API_KEY"


@dataclass
class BuildConfig:
    """``data build``."""

    generators: list[GeneratorConfig]
    prompts: str = ""
    """A text file with one prompt a line; empty, without templates: prompts of the miniature's world."""
    templates: list[str] = field(default_factory=list)
    """Prompts with {names} that are filled with every combination of ``words``."""
    words: dict[str, list[str]] = field(default_factory=dict)
    n_prompts: int = 3000
    """How many (of a file: the first ones; of templates: a random choice)."""
    expand: ExpandConfig | None = None
    """Captions in place of the prompts, which are their seeds."""
    against: list[str] = field(default_factory=list)
    """Files of benchmark prompts: what overlaps with one (``data.overlap``) is left out."""
    share: float = 0.7
    """Runs of three words in common from which on two prompts overlap."""
    judges: list[JudgeConfig] = field(default_factory=list)
    """Who scores the pictures, a weighted mean when several; default: the verifier of the miniature's world."""
    kinds: dict[str, float] = field(default_factory=lambda: dict(miniature.KINDS))
    """Shares of the kinds of the world's prompts."""
    good_to_draw: float = GOOD_TO_DRAW
    good_to_judge: float = GOOD_TO_JUDGE
    examples: Literal["parquet", "webdataset", "none"] = "parquet"
    """Examples of the three tasks, for other trainers too; ``train sft`` pairs the scored pictures itself."""
    examples_per_prompt: int = 4
    """Most examples of a prompt and task."""
    shard: int = 250
    """Prompts a shard."""
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("n_prompts", "shard", "examples_per_prompt"):
            if getattr(self, name) < 1:
                raise InputError(f"config: {name} is {getattr(self, name)}; it must be at least 1")
        if not self.generators:
            raise InputError("config: generators is empty; give at least one [[generators]]")
        given = bool(self.prompts or self.templates)
        if given and any(g.kind == "render" for g in self.generators):
            raise InputError("config: generators: render draws the world's own prompts; leave prompts and templates out")
        if self.prompts and self.templates:
            raise InputError("config: prompts and templates are both given; use one of them")
        miniature.check_shares("kinds", self.kinds, miniature.KINDS)


def build(config: BuildConfig, reward: Reward, out: Path, load: Load) -> Path:
    """``out`` gets prompts.jsonl, images-*.parquet, examples, samples.html and, last, manifest.json; ``load`` makes a model's
    engine."""
    out.mkdir(parents=True, exist_ok=True)
    settings = json.loads(json.dumps(asdict(config)))
    same_config(out, settings, ("examples", "examples_per_prompt", "device"))  # shards of different settings are not mixed
    write_json(out / "config.json", settings)
    shards, left_out = _shards(config, out)
    parts = out / "parts"
    for g, generator in enumerate(config.generators):
        part = {s.number: parts / f"{g:02d}-{s.number:05d}.parquet" for s in shards}
        missing = [s for s in shards if not _scored(out, s).exists() and not part[s.number].exists()]
        if not missing:
            continue
        run = make(generator, load, config.seed, config.kinds, config.device)
        for shard in track(missing, f"drawing: {generator.kind} {generator.model}"):
            _write(part[shard.number], [_row(p, generator) for p in run(shard)])
        del run
    for shard in track([s for s in shards if not _scored(out, s).exists()], "judging"):
        files = [parts / f"{g:02d}-{shard.number:05d}.parquet" for g in range(len(config.generators))]
        _write(_scored(out, shard), _judged(shard, [row for f in files for row in _read(f)], reward))
    shutil.rmtree(parts, ignore_errors=True)
    examples: dict[str, Any] = {}
    if config.examples != "none":
        pool = Pool(out, config.good_to_draw, config.good_to_judge)
        examples = write_examples(pool, out, config.examples, config.examples_per_prompt, config.seed)
    write_text(out / "samples.html", _sheet(config, out))
    write_json(out / "manifest.json", _manifest(config, out, left_out, examples))
    return out


def _shards(config: BuildConfig, out: Path) -> tuple[list[Shard], dict[str, int]]:
    """The prompts in shards, written to prompts.jsonl, and how many were left out for what."""
    benchmarks = overlap.Benchmarks([p for f in config.against for p in overlap.read(Path(f))], config.share)
    counts = Counter({"overlap with a benchmark": 0, "twice": 0, "not expanded": 0})

    def kept(prompts: list[str], seen: set[str]) -> tuple[str, ...]:
        found = []
        for prompt in prompts:
            same = overlap.normal(prompt)
            reason = "twice" if same in seen else "overlap with a benchmark" if prompt in benchmarks else ""
            seen.add(same)
            if reason:
                counts[reason] += 1
            else:
                found.append(prompt)
        return tuple(found)

    lines = _given(config, counts)
    total = len(lines) if lines else config.n_prompts
    shards, seen = [], set[str]()
    for start in range(0, total, config.shard):
        size = min(config.shard, total - start)
        if lines:
            prompts = kept(lines[start : start + size], seen)
        else:  # the world's prompts repeat from shard to shard, each with pictures of its own
            drawn = miniature.pictures(np.random.default_rng([config.seed, start]), size, kinds=config.kinds)
            prompts = kept([p.spec.prompt for p in drawn], set())
        shards.append(Shard(start // config.shard, start, prompts, size))
    rows = [{"shard": s.number, "prompt": p} for s in shards for p in s.prompts]
    write_text(out / "prompts.jsonl", "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
    if not rows:
        raise InputError(f"config: no prompt is left of {total} ({dict(counts)}); give others")
    return [s for s in shards if s.prompts], dict(counts)


def _given(config: BuildConfig, counts: Counter) -> list[str]:
    """Prompts of a file or of templates, or captions that a language model made of them; none: the world's are meant."""
    lines = Prompts(config.prompts).lines
    if config.templates:
        lines = list(dict.fromkeys(p for t in config.templates for p in _filled(t, config.words)))
        order = np.random.default_rng(config.seed).permutation(len(lines))
        lines = [lines[i] for i in order]
    lines = lines[: config.n_prompts]
    if config.expand is None:
        return lines
    if not lines:
        raise InputError("config: expand needs seeds; give prompts or templates")
    e = config.expand
    asker = Asker(Endpoint(e.url, e.model, e.key_variable), Answers())
    texts = [EXPAND.format(short=e.short, long=e.long, total=e.short + e.long, seed=line) for line in lines]
    answers = asker([Question(in_words(t, tokens=1024).body, questions_of) for t in texts])
    counts["not expanded"] = sum(a is None for a in answers)
    return [caption.strip() for a in answers if a for caption in a if caption.strip()]


def _filled(template: str, words: dict[str, list[str]]) -> Iterator[str]:
    names = [n for n in words if "{" + n + "}" in template]
    for values in itertools.product(*(words[n] for n in names)):
        try:
            yield template.format(**dict(zip(names, values, strict=True)))
        except (KeyError, IndexError, ValueError) as error:
            raise InputError(f"config: templates: {template!r} asks for {error}, which words does not have") from error


def _scored(out: Path, shard: Shard) -> Path:
    return out / f"images-{shard.number:05d}.parquet"


def _row(picture: Picture, generator: GeneratorConfig) -> dict[str, Any]:
    return {
        "id": "",
        "prompt": picture.prompt,
        "image": {"bytes": png(picture.image)},
        "source": picture.source,
        "seed": None if picture.seed is None else str(picture.seed),
        "licence": generator.licence,
        "score": None,
        "correct": None,
        "reason": None,
    }


def _judged(shard: Shard, rows: list[dict[str, Any]], reward: Reward) -> list[dict[str, Any]]:
    """With scores and names, without pictures that a prompt has twice."""
    seen, alone = set[tuple[str, bytes]](), []
    for row in rows:
        image = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")
        key = row["prompt"], sha256(image.tobytes()).digest()
        if key not in seen:
            seen.add(key)
            alone.append((row, image))
    scores = reward([(row["prompt"], image) for row, image in alone])
    if not any(scores):
        raise InputError(f"reward: not one of {len(scores)} pictures got a score; check the judge and the prompts")
    for i, ((row, _), score) in enumerate(zip(alone, scores, strict=True)):
        row["id"] = f"{shard.number:05d}-{i:05d}"
        if score:
            row |= {"score": score.value, "correct": score.correct, "reason": score.answer}
    return [row for row, _ in alone]


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    from datasets import Dataset, Features, Value, disable_progress_bars
    from datasets import Image as ImageFeature

    disable_progress_bars()  # one bar, ours
    kinds = {"id": "string", "prompt": "string", "source": "string", "seed": "string", "licence": "string"}
    kinds |= {"score": "float32", "correct": "bool", "reason": "string"}
    features = Features({name: Value(kind) for name, kind in kinds.items()} | {"image": ImageFeature()})
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".tmp")
    Dataset.from_list(rows, features=features).to_parquet(str(temporary))
    os.replace(temporary, path)


def _read(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return pq.read_table(path).to_pylist()


def _sheet(config: BuildConfig, out: Path, n: int = 24) -> str:
    """Some prompts with their pictures, scores and reasons, to look at."""
    rng = np.random.default_rng(config.seed)
    shards = sorted(out.glob("images-*.parquet"))
    rows = _read(shards[rng.integers(len(shards))])
    prompts = list(dict.fromkeys(r["prompt"] for r in rows))
    chosen = [prompts[i] for i in sorted(rng.choice(len(prompts), min(n, len(prompts)), replace=False))]
    strips = []
    for prompt in chosen:
        own = [r for r in rows if r["prompt"] == prompt][:10]
        pictures = [r | {"src": embed(Image.open(io.BytesIO(r["image"]["bytes"])))} for r in own]
        strips.append({"prompt": prompt, "pictures": pictures})
    return page("samples.html", strips=strips, bad=BAD, good=config.good_to_draw)


def _manifest(config: BuildConfig, out: Path, left_out: dict[str, int], examples: dict[str, Any]) -> dict:
    import pyarrow.parquet as pq

    shards = sorted(out.glob("images-*.parquet"))
    counts: dict[str, dict[str, Any]] = {}
    prompts = set()
    for path in shards:
        columns = ["prompt", "source", "correct", "score", "licence"]
        for row in pq.read_table(path, columns=columns).to_pylist():
            start = {"pictures": 0, "right": 0, "missing": 0, "positives": 0, "negatives": 0, "licence": row["licence"]}
            of = counts.setdefault(row["source"], start)
            of["pictures"] += 1
            of["right"] += row["correct"] is True
            of["missing"] += row["correct"] is None
            of["positives"] += (row["score"] or 0) >= config.good_to_draw
            of["negatives"] += row["score"] is not None and row["score"] < BAD
            prompts.add(row["prompt"])
    files = [*shards, *(out / name for name in examples.get("files", []))]
    return {
        "prompts": len(prompts),
        "left_out": left_out,
        "sources": counts,
        "examples": examples,
        "sha256": {p.name: sha256(p.read_bytes()).hexdigest() for p in files},
        "shards": [p.name for p in shards],
        "judges": [asdict(j) for j in config.judges] or ["verifier"],
        "seed": config.seed,
        "config": asdict(config),
        "versions": versions(),
    }
