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

    from secondlook.io import counted, finite, write_json
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
    available_bytes = memory * plans.GIB
    billions = (sizes.trained_params + sizes.frozen_params) / 1e9
    account = plans.account(sizes, job, gpus, editing)
    which_gpus = "one GPU" if gpus == 1 else f"each of {gpus} GPUs"
    _print_table(
        account,
        f"GiB of {which_gpus}: {model}, {billions:.2f} billion parameters",
    )
    changes, fits_with_changes = memory_advice.advice(sizes, job, gpus, available_bytes, editing)
    _say_whether_it_fits(account, memory, changes, fits_with_changes)
    if changes or not fits_with_changes:
        num_ranks = memory_advice.ranks_needed(sizes, job, available_bytes, editing)
        on_ranks = counted(num_ranks, "such GPU") if num_ranks else "no number of such GPUs"
        say(f"as it is, it fits on {on_ranks}")
    if isinstance(job, RLConfig) and any(reward.kind == "vlm" for reward in job.rewards):
        say("the judge's server is not counted; it needs GPUs of its own")
    if json_:
        account_row = {
            "fits": not changes and fits_with_changes,
            "changes": changes,
            "enough": fits_with_changes,
            "bytes": vars(account),
            "spare": plans.SPARE,
        }
        write_json(json_, json.loads(json.dumps(account_row)))


def _say_whether_it_fits(
    account: Plan, memory: float, changes: list[str], fits_with_changes: bool
) -> None:
    """``memory`` is GiB of a GPU; ``changes`` are what would have to be set otherwise."""
    from secondlook.train.memory_plan import GIB, SPARE

    peak_gib, spare_gib = account.peak / GIB, SPARE / GIB
    fits = not changes and fits_with_changes
    say(
        f"{'fits' if fits else 'does not fit'}: {peak_gib:.1f} GiB, and {spare_gib:.0f} for "
        f"fragments and the CUDA context, are {peak_gib + spare_gib:.1f} of {memory:g}"
    )
    if not fits:
        say(f"it would {'fit' if fits_with_changes else 'not even fit'} with {', '.join(changes)}")


def _job_of(config: Path, settings: list[str]) -> tuple[Path, RLConfig | SFTConfig]:
    """The file of a job's settings, and the settings. Stage 1 has ``data`` and stage 2 has not,
    which is looked for in the text: settings of the other stage would be refused."""
    from secondlook import config as configs
    from secondlook.io import read_text
    from secondlook.recipes import find_config
    from secondlook.train.rl.config import RLConfig
    from secondlook.train.sft import SFTConfig

    config_path = find_config(config)
    if re.search(r"^data\s*=", read_text(config_path), re.MULTILINE):
        return config_path, configs.load(SFTConfig, config_path, settings)
    return config_path, configs.load(RLConfig, config_path, settings)


def _print_table(account: Plan, title: str) -> None:
    """What a rank holds in GiB, by what it is for: a column for each phase's peak."""
    from rich.table import Table

    headings = {"rollout": "drawing episodes", "update": "updating"}
    table = Table("", title=title)
    phases: list[dict[str, float]] = []
    row_names: dict[str, None] = {}  # in order, each once: the phases share some
    for phase_name, bytes_of_row in vars(account).items():
        if bytes_of_row:  # stage 1 draws no episodes
            table.add_column(headings[phase_name], justify="right")
            phases.append(bytes_of_row)
            row_names |= dict.fromkeys(bytes_of_row)
    for row_name in row_names:
        cells = []
        for bytes_of_row in phases:
            bytes_held = bytes_of_row.get(row_name)
            cells.append("" if bytes_held is None else f"{bytes_held / 2**30:.1f}")
        table.add_row(row_name, *cells)
    table.add_section()
    totals = [f"{sum(bytes_of_row.values()) / 2**30:.1f}" for bytes_of_row in phases]
    table.add_row("together", *totals)
    console.print(table)
