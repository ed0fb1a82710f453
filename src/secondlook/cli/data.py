"""Training data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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

data_app = typer.Typer(no_args_is_help=True, help="Make training data.")

Built = Annotated[Path, typer.Argument(help="A folder that data build wrote.")]


@data_app.command("fetch")
def data_fetch(out: Out = Path("out/files")) -> None:
    """Fetch seed prompts and benchmarks' files at pinned revisions, their hashes checked, with
    their licences."""
    from secondlook.evals import fetch
    from secondlook.io import writable_folder, write_text

    writable_folder(out)
    files = fetch.fetch_all(out)
    seeds = fetch.seeds(out)
    write_text(out / "seeds.txt", "".join(f"{seed}\n" for seed in seeds))
    for repository, commit, licence in sorted(
        {(f.repository, f.commit, f.licence) for f in files.values()}
    ):
        say(f"  {repository} at {commit[:9]}: {licence}")
    say(f"written to {out}: {len(files)} files, SOURCES.json, seeds.txt ({len(seeds)} prompts)")


@data_app.command("build")
def data_build(config: Config, out: Out = Path("out/data"), set_: Set = []) -> None:  # noqa: B006
    """Draw pictures of prompts, score them, and make examples of the three tasks; torchrun's
    processes share the work."""
    from dataclasses import replace
    from functools import lru_cache

    from secondlook import config as configs
    from secondlook.data.build_config import BuildConfig
    from secondlook.data.generate import build
    from secondlook.io import read_json, writable_folder
    from secondlook.rewards.config import make_reward

    loaded = configs.load(BuildConfig, config, set_)
    loaded = replace(loaded, device=own_device(loaded.device))
    batch = max(g.batch for g in loaded.generators)
    load = lru_cache(maxsize=1)(lambda model: load_engine(locate(model), loaded.device, batch))
    writable_folder(out)
    build(
        loaded,
        make_reward(loaded.rewards, loaded.device, reasons=True, prompts=loaded.prompts),
        out,
        load,
        WorkerShard.of_environment(),
    )
    manifest = out / "manifest.json"
    if manifest.exists():
        told = read_json(manifest, dict)
        for reason, prompts in told["left_out_prompts"].items():
            name_left_out(f"prompts left out ({reason})", prompts)
        for folder, left_out in told.get("folders", {}).items():
            for what, names in left_out.items():
                name_left_out(f"{what} ({folder})", names)
        missing = {name: of["missing"] for name, of in told["sources"].items() if of["missing"]}
        name_left_out(
            "sources with pictures that got no score",
            [f"{name}: {n}" for name, n in missing.items()],
        )
    examples = "" if loaded.examples == "none" else "examples-*, "
    say(f"written to {out}: images-*.parquet, {examples}samples.html, manifest.json")


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
    say(
        f"written to {choose(data, out, n, sure, seed)}; look at "
        f"{out / 'sanity_pairs.html'} before it is used"
    )


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
    path, without = write_instructions(data, out, Endpoint(url, model), pictures, each, good, seed)
    name_left_out("prompts got no instruction", without)
    say(f"written to {path}")
