"""A build's prompts: of a list, of templates, of a language model or of a registered source,
without overlaps and repetitions, in shards."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from secondlook.data import decontaminate
from secondlook.data.build_config import BuildConfig
from secondlook.data.expand import captions_of
from secondlook.data.generators import Shard
from secondlook.data.prompts import Line, check_prompts, open_prompts
from secondlook.errors import InputError
from secondlook.io import read_rows, write_text
from secondlook.models.janus.checkpoint import load_tokenizer
from secondlook.models.janus.template import ChatTemplate
from secondlook.types import Prompt


def shards_of(config: BuildConfig, out: Path) -> tuple[list[Shard], dict[str, list[str]]]:
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


def write_prompts(path: Path, shards: list[Shard]) -> None:
    """Write down each shard's prompts. Raises InputError where the folder was begun with others."""
    rows = [{"shard": s.number, "prompt": p.text} for s in shards for p in s.prompts]
    if path.exists() and [row for _, row in read_rows(path)] != rows:
        raise InputError(
            f"prompts: they are not those of {str(path)!r}, with which this folder was begun; "
            "use another folder"
        )
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def check_prompts_of_models(config: BuildConfig, shards: list[Shard]) -> None:
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
