"""Drawing all prompts of a file: an episode in a folder each, resumable, with a page of all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from secondlook.api import Model
from secondlook.cli.common import load_model, progress_bar, say
from secondlook.cli.drawn_folder import CONFIG
from secondlook.data.prompts import Line, check_prompts, read_prompts
from secondlook.episode import SamplingConfig, stream_episodes
from secondlook.errors import InputError
from secondlook.io import (
    counted,
    finite,
    read_json,
    same_config,
    writable_folder,
    write_json,
    write_text,
)
from secondlook.models.shipped import locate
from secondlook.report import page, write_episode
from secondlook.types import Episode, EpisodeFinished

SUMMARY, INDEX = "summary.json", "index.html"
PART = 512
"""Episodes that are submitted to the engine together; the sources of no more are open."""


@dataclass(frozen=True)
class ListSettings:
    """What the episodes of a folder depend on, beside the prompts."""

    model: str
    n: int
    """Episodes of each prompt."""
    rounds: int
    seed: int
    guidance: float | None
    """None: the checkpoint's own."""
    temperature: float


@dataclass(frozen=True)
class Job:
    """One episode to draw."""

    line: Line
    seed: int
    name: str
    """Its folder: number of the prompt and of the sample, from 1."""


def draw_list(
    prompts_path: Path, settings: ListSettings, out: Path, loading: dict[str, Any]
) -> None:
    """Draw ``settings.n`` episodes of each prompt of a file into folders of ``out``, and write
    summary.json and index.html. Sample j of prompt i has the seed ``seed + i * n + j``.
    ``loading`` are arguments of ``load_model``.

    Episodes that are there whole are not drawn again. Raises InputError where ``out`` was begun
    with other settings or prompts.
    """
    lines = read_prompts(prompts_path)
    locate(settings.model)
    writable_folder(out)
    _check_folder(out, settings, lines, prompts_path)
    jobs = _jobs_of(lines, settings)
    missing_jobs = [job for job in jobs if not _is_whole(out / job.name, job)]
    if len(missing_jobs) < len(jobs):
        say(f"episodes that are there: {len(jobs) - len(missing_jobs)} of {len(jobs)}")
    if missing_jobs:
        model = load_model(settings.model, **loading)
        check_prompts(model.engine.template, lines)
        _draw_missing(model, settings, missing_jobs, len(jobs), out)
    episode_rows = [read_json(out / job.name / "episode.json", dict) for job in jobs]
    summary = summarize(episode_rows, len(lines))
    write_json(out / SUMMARY, summary)
    index_page = _index_page(jobs, episode_rows, summary, str(prompts_path), settings)
    write_text(out / INDEX, index_page)
    say_summary(summary)
    say(f"written to {out}: {INDEX}, {SUMMARY}, a folder of each episode")


def _jobs_of(lines: Sequence[Line], settings: ListSettings) -> list[Job]:
    """``settings.n`` episodes of each prompt, side by side."""
    jobs: list[Job] = []
    for line_number, line in enumerate(lines, 1):
        for sample_number in range(1, settings.n + 1):
            seed = settings.seed + len(jobs)  # = seed + i * n + j, both counted from 0
            jobs.append(Job(line, seed, f"{line_number:05d}-{sample_number}"))
    return jobs


def say_summary(summary: dict[str, Any]) -> None:
    """Print what ``summarize`` found."""
    say(
        f"{counted(summary['prompts'], 'prompt')}, {counted(summary['episodes'], 'episode')} of "
        f"{summary['mean_rounds']:.2f} images on average"
    )
    say(
        f"the model says Yes to {summary['yes_first']:.1%} of the first and "
        f"{summary['yes_final']:.1%} of the final images"
    )


def summarize(episode_rows: Sequence[dict[str, Any]], num_prompts: int) -> dict[str, Any]:
    """Shares and means over episodes (``episode.json``). The verdicts are the model's own."""
    num_images = yes_first = yes_final = 0
    p_yes_final = []
    for episode in episode_rows:
        final_round = episode["rounds"][episode["final"] - 1]  # counted from 1
        num_images += len(episode["rounds"])
        yes_first += episode["rounds"][0]["yes"]
        yes_final += final_round["yes"]
        p_yes_final.append(final_round["p_yes"])
    num_episodes = len(episode_rows)
    return {
        "prompts": num_prompts,
        "episodes": num_episodes,
        "mean_rounds": num_images / num_episodes,
        "yes_first": yes_first / num_episodes,
        "yes_final": yes_final / num_episodes,
        "mean_p_yes_final": sum(p_yes_final) / num_episodes,
    }


def _check_folder(
    out: Path, settings: ListSettings, lines: Sequence[Line], prompts_path: Path
) -> None:
    """Write config.json. A folder goes on with the settings and the prompts that it was begun with;
    the list itself may have moved. Raises InputError."""
    listed_prompts = [[line.text, str(line.source or "")] for line in lines]
    prompts_digest = sha256(json.dumps(listed_prompts).encode()).hexdigest()[:16]
    new_config = asdict(settings)
    new_config |= {"prompts": str(prompts_path), "prompts_digest": prompts_digest}
    config_path = out / CONFIG
    if config_path.exists():
        old_config = read_json(config_path, dict)
        if "prompts_digest" not in old_config:
            raise InputError(f"out: {str(out)!r} is the folder of another job; use another folder")
        same_config(out, new_config, may_change=("prompts", "prompts_digest"))
        if old_config["prompts_digest"] != prompts_digest:
            raise InputError(
                f"prompts: {str(prompts_path)!r} has other prompts than those that {str(out)!r} "
                "was begun with; bring those back, or use another folder"
            )
    elif any(out.glob("*/episode.json")) or (out / "episode.json").exists():
        raise InputError(
            f"out: {str(out)!r} holds episodes that were not drawn from a list; use another folder"
        )
    write_json(config_path, new_config)


def _is_whole(folder: Path, job: Job) -> bool:
    """Whether a folder has this episode. Its episode.json is written last."""
    episode_path = folder / "episode.json"
    if not episode_path.exists():
        return False
    try:
        episode = read_json(episode_path, dict)
        if (episode["prompt"], episode["seed"]) != (job.line.text, job.seed):
            return False
        picture_names = ["final.png"]
        if job.line.source is not None:
            picture_names.append("source.png")
        for round_row in episode["rounds"]:
            picture_names.append(round_row["image"])
            if not finite(round_row["p_yes"], 0, 1):
                return False
        has_pictures = all((folder / name).is_file() for name in picture_names)
        return has_pictures and finite(episode["final"], 1, len(episode["rounds"]))
    except (InputError, LookupError, TypeError):  # damaged, or another program's
        return False


def _draw_missing(
    model: Model, settings: ListSettings, jobs: Sequence[Job], total: int, out: Path
) -> None:
    """Draw episodes and write each as it is finished. ``total`` counts those that are there too."""
    sampling = model.sampling(settings.guidance, settings.temperature)
    episode_settings = {"model": settings.model, "max_rounds": settings.rounds} | asdict(sampling)
    with progress_bar() as progress:
        task_id = progress.add_task("drawing", total=total, completed=total - len(jobs))
        for part_start in range(0, len(jobs), PART):
            part_jobs = jobs[part_start : part_start + PART]
            for job, episode in _finished_episodes(model, part_jobs, settings.rounds, sampling):
                write_episode(out / job.name, episode, episode_settings)
                progress.advance(task_id)


def _finished_episodes(
    model: Model, jobs: Sequence[Job], rounds: int, sampling: SamplingConfig
) -> Iterator[tuple[Job, Episode]]:
    """Episodes in the order in which they are finished."""
    prompts = [job.line.prompt() for job in jobs]
    seeds = [job.seed for job in jobs]
    for event in stream_episodes(model.engine, prompts, seeds, rounds, sampling):
        if isinstance(event, EpisodeFinished):
            yield jobs[event.prompt_index], event.episode


def _index_page(
    jobs: Sequence[Job],
    episode_rows: Sequence[dict[str, Any]],
    summary: dict[str, Any],
    prompts: str,
    settings: ListSettings,
) -> str:
    """All episodes under their prompts; the pictures are those of the episodes' folders."""
    groups: list[dict[str, Any]] = []
    for i, job in enumerate(jobs):
        if i % settings.n == 0:  # the first sample of a prompt
            groups.append({"prompt": job.line.text, "strips": []})
        edited_picture = f"{job.name}/source.png" if job.line.source is not None else None
        episode_strip = episode_rows[i] | {"folder": job.name, "source": edited_picture}
        groups[-1]["strips"].append(episode_strip)
    return page("drawn.html", groups=groups, summary=summary, prompts=prompts, settings=settings)
