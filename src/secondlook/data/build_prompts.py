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
    """The prompts in shards, and those that were left out, by the reason. Raises InputError where
    none is left."""
    benchmark_prompts: list[str] = []
    for benchmark_file in config.against:
        benchmark_prompts += decontaminate.read(Path(benchmark_file))
    benchmarks = decontaminate.Benchmarks(benchmark_prompts, config.share)
    reasons = ("overlap with a benchmark", "twice", "not expanded", "beyond n_prompts")
    left_out: dict[str, list[str]] = {reason: [] for reason in reasons}
    given_prompts = _given_prompts(config, left_out, out)  # []: a registered source draws them
    total = len(given_prompts) if given_prompts else config.n_prompts
    shards = []
    seen: set[str] = set()
    for start in range(0, total, config.shard):
        size = min(config.shard, total - start)
        if given_prompts:
            shard_prompts = given_prompts[start : start + size]
        else:
            prompt_source = open_prompts(config.prompts, config.prompt_options)
            shard_prompts = prompt_source.draw(np.random.default_rng([config.seed, start]), size)
            seen = set()  # drawn prompts repeat from shard to shard, each with other pictures
        kept_prompts = _without_repeated(shard_prompts, benchmarks, seen, left_out)
        if kept_prompts:
            # by ``start``, not by the shards before: a shard's number does not depend on others
            shards.append(Shard(start // config.shard, start, kept_prompts, size))
    if not shards:
        counts = {reason: len(prompts) for reason, prompts in left_out.items()}
        raise InputError(f"config: no prompt is left of {total} ({counts}); give others")
    return shards, left_out


def _without_repeated(
    prompts: list[Prompt],
    benchmarks: decontaminate.Benchmarks,
    seen: set[str],
    left_out: dict[str, list[str]],
) -> tuple[Prompt, ...]:
    """The prompts that are neither among those ``seen``, which grow, nor of a benchmark; the others
    go to ``left_out``."""
    kept_prompts = []
    for prompt in prompts:
        # prompts are the same but for case, punctuation and articles; edits by their source too
        normal_key = decontaminate.normal(prompt.text) + prompt.key.removeprefix(prompt.text)
        if normal_key in seen:
            left_out["twice"].append(prompt.text)
        elif prompt.text in benchmarks:
            left_out["overlap with a benchmark"].append(prompt.text)
        else:
            kept_prompts.append(prompt)
        seen.add(normal_key)
    return tuple(kept_prompts)


def write_prompts(path: Path, shards: list[Shard]) -> None:
    """Write down each shard's prompts. Raises InputError where the folder was begun with others."""
    rows = []
    for shard in shards:
        for prompt in shard.prompts:
            rows.append({"shard": shard.number, "prompt": prompt.text})
    if path.exists():
        rows_there = [row for _, row in read_rows(path)]
        if rows_there != rows:
            raise InputError(
                f"prompts: they are not those of {str(path)!r}, with which this folder was begun; "
                "use another folder"
            )
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    write_text(path, "".join(lines))


def check_prompts_of_models(config: BuildConfig, shards: list[Shard]) -> None:
    """Refuse prompts that a generator's model cannot read, before anything is drawn. Raises
    InputError that names the line."""
    where_stated = {line.text: line.where for line in _stated_lines(config)}
    lines = []
    for shard in shards:
        for prompt in shard.prompts:
            # captions and templates have no line: the text itself says which one it is
            where = where_stated.get(prompt.text, repr(prompt.text))
            source = Path() if prompt.source else None  # whether there is one is all that is asked
            lines.append(Line(prompt.text, source, where))
    model_names: dict[str, None] = {}  # in order, each tokenizer once
    for generator in config.generators:
        if generator.kind == "model":
            model_names[generator.model] = None
    if config.redraw in ("nearest", "edit"):
        model_names[config.redraw_model] = None  # it is needed when all is drawn and judged
    for model_name in model_names:
        check_prompts(ChatTemplate(load_tokenizer(model_name)), lines)


def _stated_lines(config: BuildConfig) -> Sequence[Line]:
    """Of a file or a registered list; none where prompts are made up or templates are given."""
    if not config.prompts:
        return []
    return open_prompts(config.prompts, config.prompt_options).lines


def _given_prompts(config: BuildConfig, left_out: dict[str, list[str]], out: Path) -> list[Prompt]:
    """Prompts of a list or of templates, or captions that a language model made of them; none where
    a registered source makes them up. Those beyond ``n_prompts`` and seeds without a caption go to
    ``left_out``. Raises InputError."""
    stated_lines = _stated_lines(config)
    if any(line.source for line in stated_lines):
        if config.expand:
            raise InputError(
                "config: expand makes captions; leave it out where prompts has instructions "
                "with sources"
            )
        left_out["beyond n_prompts"] = [line.text for line in stated_lines[config.n_prompts :]]
        return [line.prompt() for line in stated_lines[: config.n_prompts]]
    texts = [line.text for line in stated_lines]
    if config.templates:  # then no lines are stated
        texts = _texts_of_templates(config)
    left_out["beyond n_prompts"] = texts[config.n_prompts :]
    texts = texts[: config.n_prompts]
    if config.expand is None:
        return [Prompt(text) for text in texts]
    if not texts:
        raise InputError("config: expand needs seeds; give prompts or templates")
    prompts = []
    for seed_text, captions in captions_of(config.expand, texts, out / "captions.jsonl"):
        if not captions:
            left_out["not expanded"].append(seed_text)
        prompts += [Prompt(caption) for caption in captions]
    return prompts


def _texts_of_templates(config: BuildConfig) -> list[str]:
    """All templates with all of their words, each text once, in a random order."""
    texts: list[str] = []
    for template in config.templates:
        texts += _filled(template, config.words)
    texts = list(dict.fromkeys(texts))  # not a set, whose order differs from run to run
    order = np.random.default_rng(config.seed).permutation(len(texts))
    return [texts[i] for i in order]


def _filled(template: str, words: dict[str, list[str]]) -> Iterator[str]:
    """A template with every combination of the words that it names. Raises InputError where it
    names others."""
    used_names = [name for name in words if "{" + name + "}" in template]
    for values in itertools.product(*(words[name] for name in used_names)):
        try:
            yield template.format(**dict(zip(used_names, values, strict=True)))
        except (KeyError, IndexError, ValueError) as error:
            raise InputError(
                f"config: templates: {template!r} asks for {error}, which words does not have"
            ) from error
