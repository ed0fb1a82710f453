"""A benchmark's pictures and their scores, as files: drawn first, scored then, part by part, by any number of processes.

Job j (a row's k-th sample) belongs to process j mod the number of processes; what a file says is done is not done again,
whoever did it. So a benchmark resumes on another number of processes, and whoever ends last writes the result.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from secondlook.bench.base import check_counts
from secondlook.bench.rows import Row
from secondlook.engine.decode import Engine
from secondlook.files import read_image, same_config, write_image, write_json
from secondlook.introspect import Sampling, introspect
from secondlook.rewards.base import tell_missing, why_missing
from secondlook.types import Prompt, Share, Stopped

Progress = Callable[[int, int], None]
MOST_MISSING = 0.05


@dataclass(frozen=True)
class Settings:
    """Everything that a score depends on. A folder holds results of one of them."""

    benchmark: str
    model: str
    samples: int
    rounds: int = 3
    fresh: int = 0
    """Independent first images beside each episode, for best-of-N."""
    seed: int = 0
    guidance: float = 5.0
    edit_guidance: float = 4.0
    only: int = 0
    """The first rows alone; 0: all."""
    judge: str = ""
    """Who scored: detector and CLIP, or the model that answers questions."""

    def __post_init__(self) -> None:
        check_counts(self, "samples", "rounds")
        check_counts(self, "fresh", "only", least=0)


class Scorer(Protocol):
    """Scores of pictures: the metrics' names with their values, and what else is worth keeping; None where it failed."""

    def __call__(self, items: Sequence[tuple[Row, Image.Image]]) -> Sequence[dict[str, Any] | None]: ...


def begin(out: Path, settings: Settings, extra: dict[str, Any]) -> None:
    """Refuse a folder of other settings; write down these. Raises InputError."""
    now = json.loads(json.dumps(asdict(settings) | extra))
    same_config(out, now)
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    write_json(out / "config.json", now)


def read_lines(out: Path, kind: str) -> list[dict[str, Any]]:
    """All processes' lines of a kind; half a line at a file's end is left out."""
    found = []
    for path in sorted(out.glob(f"{kind}-*.jsonl")):
        for line in path.read_text().splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
    return found


def _append(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    """A half line that a killed process left is ended first."""
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    with open(path, "a+") as file:
        file.seek(0, os.SEEK_END)
        if file.tell():
            file.seek(file.tell() - 1)
            text = text if file.read(1) == "\n" else "\n" + text
        file.write(text)


def jobs_of(rows: Sequence[Row], settings: Settings) -> list[tuple[int, int, int]]:
    """(row, sample, seed) of every job."""
    return [(i, k, settings.seed * 10**7 + i * 1000 + k) for i in range(len(rows)) for k in range(settings.samples)]


def draw(
    engine: Engine,
    rows: Sequence[Row],
    settings: Settings,
    sampling: Sampling,
    out: Path,
    share: Share = Share(),
    progress: Progress = lambda *_: None,
) -> None:
    """Draw (or edit), judge and redraw this process's jobs: pictures/*.png and a line of episodes-RANK.jsonl each."""
    done = {(r["row"], r["k"]) for r in read_lines(out, "episodes")}
    jobs = [job for j, job in enumerate(jobs_of(rows, settings)) if j % share.size == share.rank]
    left = [job for job in jobs if job[:2] not in done]
    for start in range(0, len(left), engine.batch):
        progress(len(jobs) - len(left) + start, len(jobs))
        part = left[start : start + engine.batch]
        prompts = [_prompt(rows[i]) for i, _, _ in part]
        episodes = introspect(engine, prompts, [seed for *_, seed in part], settings.rounds, sampling)
        alike = [p for p in prompts for _ in range(settings.fresh)]
        seeds = [10**12 + seed * 100 + n for *_, seed in part for n in range(settings.fresh)]
        fresh = introspect(engine, alike, seeds, 1, replace(sampling, reason_tokens=1)) if alike else []
        lines = []
        for n, ((i, k, seed), episode) in enumerate(zip(part, episodes, strict=True)):
            alone = [e.rounds[0] for e in fresh[n * settings.fresh : (n + 1) * settings.fresh]]
            named = {f"{i:05d}-{k}-{t}.png": r for t, r in enumerate(episode.rounds, 1)}
            beside = {f"{i:05d}-{k}-fresh-{t}.png": r for t, r in enumerate(alone, 1)}
            for name, r in (named | beside).items():
                write_image(out / "pictures" / name, r.image)
            told = [
                [{"picture": name, "yes": r.yes, "p_yes": round(r.p_yes, 5), "reason": r.reason} for name, r in those.items()]
                for those in (named, beside)
            ]
            about = {"row": i, "k": k, "id": rows[i].id, "prompt": rows[i].prompt, "task": rows[i].task, "seed": seed}
            lines.append(about | {"final": episode.final, "rounds": told[0], "fresh": told[1]})
        _append(out / f"episodes-{share.rank:03d}.jsonl", lines)
    progress(len(jobs), len(jobs))


def _prompt(row: Row) -> Prompt:
    return Prompt(row.prompt, read_image(row.source) if row.source else None)


def unscored(out: Path, settings: Settings, share: Share = Share()) -> Iterator[tuple[int, str]]:
    """Row and picture of this process's jobs that have no score yet."""
    done = {s["picture"] for s in read_lines(out, "scores")}
    for record in read_lines(out, "episodes"):
        if (record["row"] * settings.samples + record["k"]) % share.size != share.rank:
            continue
        for r in (*record["rounds"], *record["fresh"]):
            if r["picture"] not in done:
                yield record["row"], r["picture"]


def score(
    scorer: Scorer,
    rows: Sequence[Row],
    settings: Settings,
    out: Path,
    share: Share = Share(),
    progress: Progress = lambda *_: None,
    batch: int = 16,
) -> None:
    """Score this process's pictures: a line of scores-RANK.jsonl each. A failed score is missing, and asked for again the next
    time. Raises Stopped where more than a twentieth are missing."""
    left = list(unscored(out, settings, share))
    missing = 0
    for start in range(0, len(left), batch):
        progress(start, len(left))
        part = left[start : start + batch]
        found = scorer([(rows[i], read_image(out / "pictures" / name)) for i, name in part])
        known = [{"picture": name} | f for (_, name), f in zip(part, found, strict=True) if f is not None]
        missing += len(part) - len(known)
        _append(out / f"scores-{share.rank:03d}.jsonl", known)
    progress(len(left), len(left))
    if missing > MOST_MISSING * len(left):
        why = why_missing(scorer)
        raise Stopped(f"scores: {missing} of {len(left)} pictures got none; at most {MOST_MISSING:.0%} may be missing{why}")
    tell_missing(scorer)


def complete(rows: Sequence[Row], settings: Settings, out: Path) -> bool:
    """Whether every job of every process is drawn."""
    return len({(r["row"], r["k"]) for r in read_lines(out, "episodes")}) == len(rows) * settings.samples
