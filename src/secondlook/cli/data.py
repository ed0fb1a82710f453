"""Training data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secondlook.cli.common import (
    Config,
    Out,
    Seed,
    Set,
    at_least,
    load_engine,
    name_left_out,
    own_device,
    say,
)
from secondlook.models.shipped import locate
from secondlook.types import WorkerShard

if TYPE_CHECKING:
    from secondlook.engine.engine import Engine

data_app = typer.Typer(no_args_is_help=True, help="Make training data.")

Built = Annotated[Path, typer.Argument(help="A folder that data build wrote.")]


@data_app.command("fetch")
def data_fetch(out: Out = Path("out/files")) -> None:
    """Fetch seed prompts and benchmarks' files at pinned revisions, their hashes checked, with
    their licences."""
    from secondlook.evals import fetch
    from secondlook.io import counted, writable_folder, write_text

    writable_folder(out)
    fetched_files = fetch.fetch_all(out)
    seed_prompts = fetch.seeds(out)
    write_text(out / "seeds.txt", "".join(f"{prompt}\n" for prompt in seed_prompts))
    sources = {(file.repository, file.commit, file.licence) for file in fetched_files.values()}
    for repository, commit, licence in sorted(sources):
        say(f"  {repository} at {commit[:9]}: {licence}")
    say(
        f"written to {out}: {counted(len(fetched_files), 'file')}, SOURCES.json, seeds.txt "
        f"({counted(len(seed_prompts), 'prompt')})"
    )


@data_app.command("build")
def data_build(config: Config, out: Out = Path("out/data"), set_: Set = []) -> None:  # noqa: B006
    """Draw pictures of prompts, score them, and make examples of the three tasks; torchrun's
    processes share the work."""
    from dataclasses import replace
    from functools import lru_cache

    from secondlook import config as configs
    from secondlook.data.build_config import BuildConfig
    from secondlook.data.generate import build
    from secondlook.io import claimed_folder, read_json
    from secondlook.rewards.config import make_reward

    build_config = configs.load(BuildConfig, config, set_)
    build_config = replace(build_config, device=own_device(build_config.device))
    device = build_config.device
    largest_batch = max(generator.batch for generator in build_config.generators)

    @lru_cache(maxsize=1)  # generators take turns: one model is in memory at a time
    def load_generator(model: str) -> Engine:
        return load_engine(locate(model), device, largest_batch)

    with claimed_folder(out):
        reward = make_reward(
            build_config.rewards, device, reasons=True, prompts=build_config.prompts
        )
        build(build_config, reward, out, load_generator, WorkerShard.of_environment())
    if (out / "manifest.json").exists():  # the last of several processes writes it
        _name_all_left_out(read_json(out / "manifest.json", dict))
    examples = "" if build_config.examples == "none" else "examples-*, "
    say(f"written to {out}: images-*.parquet, {examples}samples.html, manifest.json")


def _name_all_left_out(manifest: dict[str, Any]) -> None:
    """Print what a build did not use, and which of its sources lack scores."""
    for reason, prompts in manifest["left_out_prompts"].items():
        name_left_out(f"prompts left out ({reason})", prompts)
    for folder, left_out in manifest.get("folders", {}).items():
        for what, names in left_out.items():
            name_left_out(f"{what} ({folder})", names)
    sources_with_missing = []
    for name, source_counts in manifest["sources"].items():
        if source_counts["missing"]:
            sources_with_missing.append(f"{name}: {source_counts['missing']}")
    name_left_out("sources with pictures that got no score", sources_with_missing)


@data_app.command("sanity-pairs")
def data_sanity_pairs(
    data: Built,
    out: Out = Path("out/sanity-pairs"),
    n: Annotated[int, typer.Option("--n", help="Good ones, and as many bad ones.")] = 16,
    sure: Annotated[
        float, typer.Option(help="Score from which on a picture may be a good one.")
    ] = 0.95,
    seed: Seed = 0,
) -> None:
    """Choose pictures on which a reward is checked before it rewards anything; look at them before
    they are used."""
    from secondlook.data.choose_sanity_pairs import choose

    at_least("n", n)
    pairs_path = choose(data, out, n, sure, seed)
    say(f"written to {pairs_path}; look at {out / 'sanity_pairs.html'} before it is used")


@data_app.command("edits")
def data_edits(
    data: Built,
    url: Annotated[str, typer.Option(help="An OpenAI-compatible endpoint.")],
    model: Annotated[str, typer.Option(help="The language model's name there.")],
    out: Out = Path("out/edits"),
    pictures: Annotated[
        int, typer.Option(help="At most so many pictures, one of a prompt.")
    ] = 10_000,
    each: Annotated[int, typer.Option(help="Instructions for each.")] = 3,
    good: Annotated[float, typer.Option(help="Score from which on a picture may be edited.")] = 0.8,
    seed: Seed = 0,
) -> None:
    """Have a language model write instructions to edit a build's good pictures."""
    from secondlook.data.edit_instructions import write_instructions
    from secondlook.llm.endpoint import Endpoint

    at_least("pictures", pictures)
    at_least("each", each)
    written_path, prompts_without = write_instructions(
        data, out, Endpoint(url, model), pictures, each, good, seed
    )
    name_left_out("prompts without an instruction", prompts_without)
    say(f"written to {written_path}")
