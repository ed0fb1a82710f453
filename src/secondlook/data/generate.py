"""The data factory: prompts, several pictures of each from several generators, scored by a judge
that also gives a reason, and the examples of the three tasks of supervised fine-tuning.

Source: the data of stage 1 in arXiv 2506.01480. Work goes in shards of prompts: every generator's
pictures are written first, then the scored shard; what is there is not made again, so a build that
was stopped goes on where it was. A shard depends only on the config and its number: of several
processes each takes its share, and the first one waits for the others' and ends.
"""

from __future__ import annotations

import itertools
import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from rich.markup import escape
from rich.progress import track

from secondlook import registry
from secondlook.data import decontaminate
from secondlook.data.expand import ExpandConfig, captions_of
from secondlook.data.export import write_examples
from secondlook.data.generators import (
    GeneratorConfig,
    Load,
    Picture,
    Shard,
    left_out,
    make_generator,
)
from secondlook.data.prompts import Line, check_prompt_options, check_prompts, open_prompts
from secondlook.data.sft_dataset import BAD, GOOD_EDIT, GOOD_TO_DRAW, GOOD_TO_JUDGE, Pool, quality
from secondlook.errors import InputError
from secondlook.io import (
    decode_image,
    png,
    read_parquet,
    read_rows,
    same_config,
    versions,
    whole_file,
    writable_folder,
    write_json,
    write_text,
)
from secondlook.llm.missing import tell_missing, why_missing
from secondlook.models.janus.checkpoint import load_tokenizer
from secondlook.models.janus.template import ChatTemplate
from secondlook.report import embed, page
from secondlook.rewards.config import RewardConfig
from secondlook.rewards.reward import Reward, score
from secondlook.types import Prompt, WorkerShard, digest


@dataclass
class BuildConfig:
    """``data build``."""

    generators: list[GeneratorConfig]
    prompts: str = ""
    """A text file with one prompt a line, a JSONL file of prompts and of instructions with sources
    (``data.prompts``), or a registered name (``mini``); empty where ``templates`` are given."""
    prompt_options: dict[str, Any] = field(default_factory=dict)
    """Settings of a registered prompt source."""
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
    rewards: list[RewardConfig] = field(default_factory=list)
    """Who scores the pictures, a weighted mean when several; default: the reward registered under
    the name of ``prompts``."""
    good_to_draw: float = GOOD_TO_DRAW
    good_to_judge: float = GOOD_TO_JUDGE
    good_edit: float = GOOD_EDIT
    """Following and preserving from which on an edit is learned."""
    examples: Literal["parquet", "webdataset", "none"] = "parquet"
    """Examples of the three tasks, for other trainers too; ``train sft`` pairs the scored pictures
    itself."""
    examples_per_prompt: int = 4
    """Most examples of a prompt and task."""
    shard: int = 250
    """Prompts a shard."""
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("n_prompts", "shard", "examples_per_prompt"):
            if getattr(self, name) < 1:
                raise InputError(f"config: {name} is {getattr(self, name)}; it must be at least 1")
        if not self.generators:
            raise InputError("config: generators is empty; give at least one [[generators]]")
        if self.prompts and self.templates:
            raise InputError("config: prompts and templates are both given; use one of them")
        if not self.prompts and not self.templates:
            raise InputError(
                "config: prompts is empty; give a file, a registered name of "
                f"{', '.join(registry.prompts.names())}, or templates"
            )
        check_prompt_options(self.prompts, self.prompt_options)
        for generator in self.generators:
            only = getattr(registry.generators.get(generator.kind), "only_prompts", self.prompts)
            if only != self.prompts:
                raise InputError(
                    f"config: generators: {generator.kind} draws its own world's prompts; set "
                    f"prompts = {only!r}"
                )


def build(
    config: BuildConfig, reward: Reward, out: Path, load: Load, share: WorkerShard = WorkerShard()
) -> Path:
    """``out`` gets prompts.jsonl, images-*.parquet, examples, samples.html and, last,
    manifest.json; ``load`` makes a model's engine. Raises InputError."""
    if config.expand and share.size > 1:
        raise InputError(
            f"config: expand is set, but each of {share.size} processes would get other "
            "captions; use one process"
        )
    writable_folder(out)
    settings = json.loads(json.dumps(asdict(config)))
    same_config(
        out, settings, ("examples", "examples_per_prompt", "device")
    )  # shards of different settings are not mixed
    shards, unused = _shards(config, out)
    _check_prompts(config, shards)
    folders = left_out(config.generators, shards)
    write_json(out / "config.json", settings)
    _write_prompts(out / "prompts.jsonl", shards)
    mine = [s for s in shards if s.number % share.size == share.rank]
    parts = out / "parts"
    for g, generator in enumerate(config.generators):
        part = {s.number: parts / f"{g:02d}-{s.number:05d}.parquet" for s in mine}
        missing = [s for s in mine if not _scored(out, s).exists() and not part[s.number].exists()]
        if not missing:
            continue
        run = make_generator(generator, load, config.seed, config.device, config.prompt_options)
        for shard in track(missing, escape(f"drawing: {generator.kind} {generator.model}")):
            _write(part[shard.number], [_row(p, generator) for p in run(shard)])
        del run
    for shard in track([s for s in mine if not _scored(out, s).exists()], "judging"):
        files = [
            parts / f"{g:02d}-{shard.number:05d}.parquet" for g in range(len(config.generators))
        ]
        sources = {p.key: p.source for p in shard.prompts if p.source}
        if sources:
            _write_sources(out / f"sources-{shard.number:05d}.parquet", sources)
        _write(
            _scored(out, shard),
            _judged(shard, [row for f in files for row in _read(f)], reward, sources),
        )
    if share.rank:
        return out
    while not all(_scored(out, s).exists() for s in shards):
        time.sleep(0.5)
    shutil.rmtree(parts, ignore_errors=True)
    examples: dict[str, Any] = {}
    if config.examples != "none":
        pool = Pool(out, config.good_to_draw, config.good_to_judge, config.good_edit)
        if pool.unused:
            print(f"data: {pool.unused}", file=sys.stderr)
        examples = write_examples(
            pool, out, config.examples, config.examples_per_prompt, config.seed
        )
    write_text(out / "samples.html", _sheet(config, out))
    write_json(out / "manifest.json", _manifest(config, out, unused, folders, examples))
    return out


def _shards(config: BuildConfig, out: Path) -> tuple[list[Shard], dict[str, list[str]]]:
    """The prompts in shards, and those that were left out, by the reason."""
    benchmarks = decontaminate.Benchmarks(
        [p for f in config.against for p in decontaminate.read(Path(f))], config.share
    )
    reasons = ("overlap with a benchmark", "twice", "not expanded", "beyond n_prompts")
    left_out: dict[str, list[str]] = {reason: [] for reason in reasons}

    def kept(prompts: list[Prompt], seen: set[str]) -> tuple[Prompt, ...]:
        found = []
        for prompt in prompts:
            same = decontaminate.normal(prompt.text) + prompt.key.removeprefix(prompt.text)
            reason = (
                "twice"
                if same in seen
                else "overlap with a benchmark"
                if prompt.text in benchmarks
                else ""
            )
            seen.add(same)
            if reason:
                left_out[reason].append(prompt.text)
            else:
                found.append(prompt)
        return tuple(found)

    lines = _given(config, left_out, out)
    total = len(lines) if lines else config.n_prompts
    shards, seen = [], set[str]()
    for start in range(0, total, config.shard):
        size = min(config.shard, total - start)
        if lines:
            prompts = kept(lines[start : start + size], seen)
        else:  # drawn prompts repeat from shard to shard, each with pictures of its own
            source = open_prompts(config.prompts, config.prompt_options)
            drawn = source.draw(np.random.default_rng([config.seed, start]), size)
            prompts = kept(drawn, set())
        shards.append(Shard(start // config.shard, start, prompts, size))
    shards = [s for s in shards if s.prompts]
    if not shards:
        counts = {reason: len(prompts) for reason, prompts in left_out.items()}
        raise InputError(f"config: no prompt is left of {total} ({counts}); give others")
    return shards, left_out


def _write_prompts(path: Path, shards: list[Shard]) -> None:
    """Write down each shard's prompts. Raises InputError where the folder was begun with others."""
    rows = [{"shard": s.number, "prompt": p.text} for s in shards for p in s.prompts]
    if path.exists() and [row for _, row in read_rows(path)] != rows:
        raise InputError(
            f"prompts: they are not those of {str(path)!r}, with which this folder was begun; "
            "use another folder"
        )
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _check_prompts(config: BuildConfig, shards: list[Shard]) -> None:
    """Refuse prompts that a generator's model cannot read, before anything is drawn. Raises
    InputError that names the line."""
    stated = {line.text: line.where for line in _stated_lines(config)}
    prompts = [p for shard in shards for p in shard.prompts]
    lines = [
        Line(p.text, Path() if p.source else None, stated.get(p.text, repr(p.text)))
        for p in prompts
    ]
    for model in dict.fromkeys(g.model for g in config.generators if g.kind == "model"):
        check_prompts(ChatTemplate(load_tokenizer(model)), lines)


def _stated_lines(config: BuildConfig) -> Sequence[Line]:
    """Of a file or a registered list; none where prompts are made up or templates are given."""
    return open_prompts(config.prompts, config.prompt_options).lines if config.prompts else []


def _given(config: BuildConfig, left_out: dict[str, list[str]], out: Path) -> list[Prompt]:
    """Prompts of a list or of templates, or captions that a language model made of them; none where
    a registered source makes them up."""
    stated = _stated_lines(config)
    if any(line.source for line in stated):
        if config.expand:
            raise InputError(
                "config: expand makes captions; leave it out where prompts has instructions "
                "with sources"
            )
        left_out["beyond n_prompts"] = [line.text for line in stated[config.n_prompts :]]
        return [line.prompt() for line in stated[: config.n_prompts]]
    lines = [line.text for line in stated]
    if config.templates:
        lines = list(dict.fromkeys(p for t in config.templates for p in _filled(t, config.words)))
        order = np.random.default_rng(config.seed).permutation(len(lines))
        lines = [lines[i] for i in order]
    lines, left_out["beyond n_prompts"] = lines[: config.n_prompts], lines[config.n_prompts :]
    if config.expand is None:
        return [Prompt(line) for line in lines]
    if not lines:
        raise InputError("config: expand needs seeds; give prompts or templates")
    captions = captions_of(config.expand, lines, out / "captions.jsonl")
    left_out["not expanded"] = [seed for seed, found in captions if not found]
    return [Prompt(caption) for _, found in captions for caption in found]


def _filled(template: str, words: dict[str, list[str]]) -> Iterator[str]:
    names = [n for n in words if "{" + n + "}" in template]
    for values in itertools.product(*(words[n] for n in names)):
        try:
            yield template.format(**dict(zip(names, values, strict=True)))
        except (KeyError, IndexError, ValueError) as error:
            raise InputError(
                f"config: templates: {template!r} asks for {error}, which words does not have"
            ) from error


def _scored(out: Path, shard: Shard) -> Path:
    return out / f"images-{shard.number:05d}.parquet"


def _row(picture: Picture, generator: GeneratorConfig) -> dict[str, Any]:
    return {
        "id": "",
        "prompt": picture.prompt.text,
        "source_id": digest(picture.prompt.source) if picture.prompt.source else None,
        "image": {"bytes": png(picture.image)},
        "source": picture.source,
        "seed": None if picture.seed is None else str(picture.seed),
        "licence": generator.licence,
        "score": None,
        "correct": None,
        "reason": None,
        "following": None,
        "preserving": None,
    }


def _judged(
    shard: Shard, rows: list[dict[str, Any]], reward: Reward, sources: dict[str, Image.Image]
) -> list[dict[str, Any]]:
    """With scores and names, without pictures that a prompt has twice."""
    seen, alone = set[tuple[str, bytes]](), []
    for row in rows:
        image = _picture(row)
        key = Pool.key(row), sha256(image.tobytes()).digest()
        if key not in seen:
            seen.add(key)
            alone.append((row, image))
    scores = score(
        reward, [(Prompt(row["prompt"], sources.get(Pool.key(row))), image) for row, image in alone]
    )
    if scores and not any(scores):
        why = why_missing(reward)
        raise InputError(
            f"reward: not one of {len(scores)} pictures got a score; check the judge and the "
            f"prompts{why}"
        )
    tell_missing(reward)
    for i, ((row, _), said) in enumerate(zip(alone, scores, strict=True)):
        row["id"] = f"{shard.number:05d}-{i:05d}"
        if said:
            row |= {"score": said.value, "correct": said.correct, "reason": said.answer}
            row |= dict(zip(("following", "preserving"), said.edit or (None, None), strict=True))
    return [row for row, _ in alone]


ROW_GROUP = 8 * 2**20
"""Bytes of pictures in a row group of Parquet: a picture is read with all of its group."""
KINDS = {
    "id": "string",
    "prompt": "string",
    "source_id": "string",
    "source": "string",
    "seed": "string",
    "licence": "string",
}
KINDS |= {
    "score": "float32",
    "correct": "bool",
    "reason": "string",
    "following": "float32",
    "preserving": "float32",
}


def _write_sources(path: Path, sources: dict[str, Image.Image]) -> None:
    alone = {digest(image): image for image in sources.values()}
    _write(
        path,
        [{"id": name, "image": {"bytes": png(image)}} for name, image in alone.items()],
        {"id": "string"},
    )


def _write(path: Path, rows: list[dict[str, Any]], kinds: dict[str, str] = KINDS) -> None:
    from datasets import Dataset, Features, Value, disable_progress_bars
    from datasets import Image as ImageFeature

    disable_progress_bars()  # one bar, ours
    features = Features(
        {name: Value(kind) for name, kind in kinds.items()} | {"image": ImageFeature()}
    )
    path.parent.mkdir(exist_ok=True)
    with whole_file(path) as temporary:
        size = sum(len(row["image"]["bytes"]) for row in rows) // max(1, len(rows)) + 1
        table = (
            Dataset.from_list(rows, features=features)
            if rows
            else Dataset.from_dict({n: [] for n in features}, features)
        )
        with open(temporary, "wb") as file:  # a name of its own may look like an address
            table.to_parquet(file, batch_size=max(1, ROW_GROUP // size))


def _read(path: Path) -> list[dict[str, Any]]:
    return read_parquet(path).to_pylist()


def _picture(row: dict[str, Any]) -> Image.Image:
    return decode_image(
        row["image"]["bytes"], f"picture {row['id'] or ''} of {row.get('prompt', 'a source')}"
    )


def _sheet(config: BuildConfig, out: Path, n: int = 24) -> str:
    """Some prompts with their pictures, scores and reasons, to look at."""
    rng = np.random.default_rng(config.seed)
    shards = sorted(out.glob("images-*.parquet"))
    shards = [shards[rng.integers(len(shards))]]
    rows = _read(shards[0])
    prompts = list(dict.fromkeys(Pool.key(r) for r in rows))
    stored = out / shards[0].name.replace("images", "sources")
    sources = {r["id"]: embed(_picture(r)) for r in _read(stored)} if stored.exists() else {}
    chosen = [
        prompts[i] for i in sorted(rng.choice(len(prompts), min(n, len(prompts)), replace=False))
    ]
    strips = []
    for prompt in chosen:
        own = [r for r in rows if Pool.key(r) == prompt][:10]
        pictures = [
            r | {"src": embed(_picture(r)), "quality": None if r["score"] is None else quality(r)}
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


def _manifest(
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
