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
from secondlook.data.prompts import Line, check_prompts, read_prompts
from secondlook.episode import SamplingConfig, stream_episodes
from secondlook.errors import InputError
from secondlook.io import finite, read_json, same_config, writable_folder, write_json, write_text
from secondlook.models.shipped import locate
from secondlook.report import page, write_episode
from secondlook.types import EpisodeFinished

CONFIG, SUMMARY, INDEX = "config.json", "summary.json", "index.html"
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


def draw_list(prompts: Path, settings: ListSettings, out: Path, how: dict[str, Any]) -> None:
    """Draw ``settings.n`` episodes of each prompt of a file into folders of ``out``, and write
    summary.json and index.html. Sample j of prompt i has the seed ``seed + i * n + j``.

    Episodes that are there whole are not drawn again. Raises InputError where ``out`` was begun
    with other settings or prompts.
    """
    lines = read_prompts(prompts)
    locate(settings.model)
    writable_folder(out)
    _check_folder(out, settings, lines, prompts)
    jobs = [
        Job(line, settings.seed + i * settings.n + j, f"{i + 1:05d}-{j + 1}")
        for i, line in enumerate(lines)
        for j in range(settings.n)
    ]
    missing = [job for job in jobs if not _is_whole(out / job.name, job)]
    if len(missing) < len(jobs):
        say(f"{len(jobs) - len(missing)} of {len(jobs)} episodes are there")
    if missing:
        model = load_model(settings.model, **how)
        check_prompts(model.engine.template, lines)
        _draw_missing(model, settings, missing, len(jobs), out)
    episodes = [read_json(out / job.name / "episode.json", dict) for job in jobs]
    summary = summarize(episodes, len(lines))
    write_json(out / SUMMARY, summary)
    write_text(out / INDEX, _index_page(jobs, episodes, summary, str(prompts), settings))
    say_summary(summary)
    say(f"written to {out}: {INDEX}, {SUMMARY}, a folder of each episode")


def refuse_list_folder(out: Path) -> None:
    """Raises InputError where ``draw --prompts`` has written to ``out``: single episodes are not
    mixed with a list's."""
    if (out / SUMMARY).exists() or (out / CONFIG).exists():
        raise InputError(f"out: {str(out)!r} is the folder of another job; use another folder")


def say_summary(summary: dict[str, Any]) -> None:
    """Print what ``summarize`` found."""
    say(
        f"{summary['prompts']} prompts, {summary['episodes']} episodes of "
        f"{summary['mean_rounds']:.2f} images"
    )
    say(
        f"the model says Yes to {summary['yes_first']:.1%} of the first and "
        f"{summary['yes_final']:.1%} of the final images"
    )


def summarize(episodes: Sequence[dict[str, Any]], prompts: int) -> dict[str, Any]:
    """Shares and means over episodes (``episode.json``). The verdicts are the model's own."""
    finals = [e["rounds"][e["final"] - 1] for e in episodes]
    n = len(episodes)
    return {
        "prompts": prompts,
        "episodes": n,
        "mean_rounds": sum(len(e["rounds"]) for e in episodes) / n,
        "yes_first": sum(e["rounds"][0]["yes"] for e in episodes) / n,
        "yes_final": sum(r["yes"] for r in finals) / n,
        "mean_p_yes_final": sum(r["p_yes"] for r in finals) / n,
    }


def _check_folder(out: Path, settings: ListSettings, lines: list[Line], prompts: Path) -> None:
    """A folder goes on with the settings and the prompts that it was begun with. Raises
    InputError."""
    listed = [[line.text, str(line.source or "")] for line in lines]
    digest = sha256(json.dumps(listed).encode()).hexdigest()[:16]
    now = asdict(settings) | {"prompts": str(prompts), "prompts_digest": digest}
    path = out / CONFIG
    if path.exists():
        before = read_json(path, dict)
        if "prompts_digest" not in before:
            raise InputError(f"out: {str(out)!r} is the folder of another job; use another folder")
        same_config(out, now, may_change=("prompts", "prompts_digest"))
        if before["prompts_digest"] != digest:
            raise InputError(
                f"prompts: {str(prompts)!r} has other prompts than those that {str(out)!r} was "
                "begun with; bring those back, or use another folder"
            )
    elif any(out.glob("*/episode.json")) or (out / "episode.json").exists():
        raise InputError(
            f"out: {str(out)!r} holds episodes that were not drawn from a list; use another folder"
        )
    write_json(path, now)


def _is_whole(folder: Path, job: Job) -> bool:
    """Whether a folder has this episode. Its episode.json is written last."""
    path = folder / "episode.json"
    if not path.exists():
        return False
    try:
        episode = read_json(path, dict)
        if (episode["prompt"], episode["seed"]) != (job.line.text, job.seed):
            return False
        names = ["final.png", *(r["image"] for r in episode["rounds"])]
        if job.line.source is not None:
            names.append("source.png")
        numbers = [r["p_yes"] for r in episode["rounds"]]
        return (
            all((folder / name).is_file() for name in names)
            and all(finite(p_yes, 0, 1) for p_yes in numbers)
            and finite(episode["final"], 1, len(numbers))
        )
    except (InputError, LookupError, TypeError):
        return False


def _draw_missing(
    model: Model, settings: ListSettings, jobs: Sequence[Job], total: int, out: Path
) -> None:
    """Draw episodes and write each as it is finished."""
    sampling = model.sampling(settings.guidance, settings.temperature)
    written = {"model": settings.model, "max_rounds": settings.rounds} | asdict(sampling)
    with progress_bar() as progress:
        bar = progress.add_task("drawing", total=total, completed=total - len(jobs))
        for start in range(0, len(jobs), PART):
            part = jobs[start : start + PART]
            for job, finished in _finished(model, part, settings.rounds, sampling):
                write_episode(out / job.name, finished.episode, written)
                progress.advance(bar)


def _finished(
    model: Model, jobs: Sequence[Job], rounds: int, sampling: SamplingConfig
) -> Iterator[tuple[Job, EpisodeFinished]]:
    """Episodes in the order in which they are finished."""
    prompts = [job.line.prompt() for job in jobs]
    seeds = [job.seed for job in jobs]
    for event in stream_episodes(model.engine, prompts, seeds, rounds, sampling):
        if isinstance(event, EpisodeFinished):
            yield jobs[event.prompt_index], event


def _index_page(
    jobs: Sequence[Job],
    episodes: Sequence[dict[str, Any]],
    summary: dict[str, Any],
    prompts: str,
    settings: ListSettings,
) -> str:
    """All episodes under their prompts; the pictures are those of the episodes' folders."""
    strips = []
    for job, episode in zip(jobs, episodes, strict=True):
        edited = f"{job.name}/source.png" if job.line.source is not None else None
        strips.append(episode | {"folder": job.name, "source": edited})
    n = settings.n
    groups = [
        {"prompt": jobs[i].line.text, "strips": strips[i : i + n]} for i in range(0, len(jobs), n)
    ]
    return page("drawn.html", groups=groups, summary=summary, prompts=prompts, settings=settings)
