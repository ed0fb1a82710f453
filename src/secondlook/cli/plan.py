"""Does it fit?"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from secondlook.cli.common import Set, at_least, console, say
from secondlook.errors import InputError

if TYPE_CHECKING:
    from secondlook.train.memory_plan import Plan
    from secondlook.train.rl.config import RLConfig
    from secondlook.train.sft import SFTConfig


def plan(
    model: Annotated[
        str,
        typer.Option(
            help=(
                "1b, 7b, a shipped model, a folder or a hub id; default: the one of "
                "--config, or 7b."
            )
        ),
    ] = "",
    gpus: Annotated[int, typer.Option(help="Ranks, one a GPU.")] = 8,
    memory: Annotated[float, typer.Option(help="GiB of a GPU.")] = 80.0,
    config: Annotated[
        Path | None,
        typer.Option(help="A job's TOML file; or a recipe's name; default: 7b/grpo."),
    ] = None,
    editing: Annotated[
        bool | None, typer.Option(help="The prompts are edits; default: as the file's name says.")
    ] = None,
    prompt: Annotated[
        int, typer.Option(help="Tokens of the longest prompt with its template.")
    ] = 64,
    set_: Set = [],  # noqa: B006
    json_: Annotated[
        Path | None, typer.Option("--json", help="Also write the account here.")
    ] = None,
) -> None:
    """Say what a training job needs of each GPU's memory, whether it fits, and what to change."""
    from dataclasses import replace

    from secondlook.io import finite, write_json
    from secondlook.train import memory_advice, model_sizes
    from secondlook.train import memory_plan as plans
    from secondlook.train.rl.config import RLConfig

    at_least("gpus", gpus)
    at_least("prompt", prompt)
    if not finite(memory) or memory <= 0:
        raise InputError(f"memory: {memory} GiB is not a GPU's memory; give for example 80")
    job: RLConfig | SFTConfig = RLConfig(model or "7b", **plans.DEFAULT)
    if config is not None:
        config, job = _job_of(config, set_)
        model = model or model_sizes.model_of(config, job)
        editing = model_sizes.edits(config) if editing is None else editing
    elif set_:
        raise InputError(f"set: {set_[0]!r} changes a file's settings; give the file with --config")
    model, editing = model or "7b", bool(editing)
    sizes = replace(model_sizes.sizes_of(model), prompt_tokens=prompt)
    available = memory * plans.GIB
    billions = (sizes.trained_params + sizes.frozen_params) / 1e9
    account = plans.account(sizes, job, gpus, editing)
    _print_table(
        account,
        f"GiB of each of {gpus} GPUs: {model}, {billions:.2f} billion parameters",
    )
    changes, enough = memory_advice.advice(sizes, job, gpus, available, editing)
    held, spare = account.peak / plans.GIB, plans.SPARE / plans.GIB
    fits = not changes and enough
    say(
        f"{'fits' if fits else 'does not fit'}: {held:.1f} GiB, and {spare:.0f} for fragments "
        "and the CUDA context, "
        f"are {held + spare:.1f} of {memory:g}"
    )
    if not fits:
        say(f"it would {'fit' if enough else 'not even fit'} with {', '.join(changes)}")
        ranks = memory_advice.ranks_needed(sizes, job, available, editing)
        on_ranks = f"{ranks} such GPUs" if ranks else "no number of such GPUs"
        say(f"as it is, it fits on {on_ranks}")
    if isinstance(job, RLConfig) and any(reward.kind == "vlm" for reward in job.rewards):
        say("the judge's server is not counted; it needs GPUs of its own")
    if json_:
        said = {
            "fits": fits,
            "changes": changes,
            "enough": enough,
            "bytes": vars(account),
            "spare": plans.SPARE,
        }
        write_json(json_, json.loads(json.dumps(said)))


def _job_of(config: Path, settings: list[str]) -> tuple[Path, RLConfig | SFTConfig]:
    """The file of a job's settings, and the settings: stage 1 has ``data``, stage 2 has not."""
    from secondlook import config as configs
    from secondlook.io import read_text
    from secondlook.recipes import find_config
    from secondlook.train.rl.config import RLConfig
    from secondlook.train.sft import SFTConfig

    path = find_config(config)
    if re.search(r"^data\s*=", read_text(path), re.MULTILINE):
        return path, configs.load(SFTConfig, path, settings)
    return path, configs.load(RLConfig, path, settings)


def _print_table(account: Plan, title: str) -> None:
    """What a rank holds, by what it is for, at both peaks."""
    from rich.table import Table

    phases = {name: part for name, part in vars(account).items() if part}
    table = Table("", title=title)
    for name in phases:
        table.add_column(
            {"rollout": "drawing episodes", "update": "updating"}[name], justify="right"
        )
    for row in dict.fromkeys(row for part in phases.values() for row in part):
        table.add_row(
            row, *(f"{part[row] / 2**30:.1f}" if row in part else "" for part in phases.values())
        )
    table.add_section()
    table.add_row("together", *(f"{sum(part.values()) / 2**30:.1f}" for part in phases.values()))
    console.print(table)
