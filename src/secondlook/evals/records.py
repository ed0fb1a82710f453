"""A benchmark's pictures and their scores, as files: drawn first, scored then, part by part, by any
number of processes.

Job j (a row's k-th sample) belongs to process j mod the number of processes; what a file says is
done is not done again, whoever did it. So a benchmark resumes on another number of processes, and
whoever ends last writes the result. What a file says of pictures that are not whole, and scores
that are no numbers of their range, are as if not there: drawn or scored again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from PIL import Image

from secondlook.engine.engine import Engine
from secondlook.episode import SamplingConfig, run_episodes
from secondlook.errors import InputError, Stopped
from secondlook.evals.intervals import check_counts
from secondlook.evals.rows import Row
from secondlook.io import (
    append_rows,
    finite,
    read_image,
    same_config,
    stored_rows,
    write_image,
    write_json,
)
from secondlook.llm.missing import missing_of, tell_missing
from secondlook.types import Prompt, WorkerShard

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
        """The most are those up to which no two pictures have one seed (`jobs_of`, `draw`)."""
        check_counts(self, "rounds")
        check_counts(self, "samples", most=1000)
        check_counts(self, "fresh", least=0, most=100)
        check_counts(self, "seed", least=0, most=10**5 - 1)
        check_counts(self, "only", least=0)


Scored = dict[str, Any] | str
"""A picture's score: the metrics' names with their values, and what else is worth keeping; or why
it has none."""


class Scorer(Protocol):
    """Scores of pictures."""

    def __call__(self, items: Sequence[tuple[Row, Image.Image]]) -> Sequence[Scored]: ...


class RowRange(NamedTuple):
    """The values that a metric can have; ``optional``: it may be undefined (None), which is no
    fault."""

    low: float = 0.0
    high: float = 1.0
    optional: bool = False


Metrics = Mapping[str, RowRange]
SHARE: Metrics = {"value": RowRange()}
ROUNDING = 1e-3
"""A cosine of equal vectors may be a little more than 1."""


def fault_of(score: Mapping[str, Any], metrics: Metrics) -> str:
    """Which metric is missing, is no number or lies outside its range; empty where none does."""
    for name, of in metrics.items():
        value = score.get(name)
        if value is None and of.optional and name in score:
            continue
        if not finite(value, of.low - ROUNDING, of.high + ROUNDING):
            return f"{name} is {value}, not a number from {of.low:g} to {of.high:g}"
    return ""


def begin(out: Path, settings: Settings, extra: dict[str, Any]) -> None:
    """Refuse a folder of other settings; write down these. Raises InputError."""
    now = json.loads(json.dumps(asdict(settings) | extra))
    same_config(out, now)
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    write_json(out / "config.json", now)


def stored(out: Path, kind: str) -> list[dict[str, Any]]:
    """All processes' rows of a kind; torn ones are left out."""
    return [row for path in sorted(out.glob(f"{kind}-*.jsonl")) for row in stored_rows(path)]


def records_of(out: Path) -> list[dict[str, Any]]:
    """What was drawn, one record a job (the latest attempt), in the jobs' order. A damaged one is
    as if not drawn."""
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for record in filter(_is_record, stored(out, "episodes")):
        job = record["row"], record["k"]
        if job not in found or record.get("attempt", 0) > found[job].get("attempt", 0):
            found[job] = record
    return [found[job] for job in sorted(found)]


def episodes_of(out: Path, rows: Sequence[Row], settings: Settings) -> list[dict[str, Any]]:
    """`records_of` a benchmark with these rows. Raises InputError for records of other rows: the
    folder is another benchmark's, or the data have changed."""
    found = records_of(out)
    for record in found:
        i, k = record["row"], record["k"]
        if i >= len(rows) or k >= settings.samples or rows[i].prompt != record["prompt"]:
            raise InputError(
                f"out: {str(out)!r} holds a picture of {record['prompt']!r} as row {i}, sample "
                f"{k}, which is no row of these "
                "data; use another folder"
            )
    return found


def _is_record(record: dict[str, Any]) -> bool:
    """Whether a row is one that `draw` writes."""
    rounds, fresh = record.get("rounds"), record.get("fresh")
    numbers = [record.get("row"), record.get("k"), record.get("final"), record.get("attempt", 0)]
    if not (
        isinstance(rounds, list)
        and isinstance(fresh, list)
        and all(type(n) is int and n >= 0 for n in numbers)
    ):
        return False
    shown = [
        isinstance(x, dict)
        and all(isinstance(x.get(name), str) for name in ("picture", "reason"))
        and type(x.get("yes")) is bool
        and finite(x.get("p_yes"), 0, 1)
        for x in (*rounds, *fresh)
    ]
    return (
        all(shown)
        and record["final"] < len(rounds)
        and all(isinstance(record.get(name), str) for name in ("prompt", "task", "id"))
    )


def scores_of(out: Path, metrics: Metrics) -> dict[str, dict[str, Any]]:
    """The picture's name -> its score, of all pictures that have one."""
    return {
        s["picture"]: s
        for s in stored(out, "scores")
        if isinstance(s.get("picture"), str) and not fault_of(s, metrics)
    }


def pictures_of(record: dict[str, Any]) -> list[str]:
    """Names of an episode's pictures: of its rounds, then the independent ones beside it."""
    return [x["picture"] for x in (*record["rounds"], *record["fresh"])]


def jobs_of(rows: Sequence[Row], settings: Settings) -> list[tuple[int, int, int]]:
    """(row, sample, seed) of every job."""
    return [
        (i, k, settings.seed * 10**7 + i * 1000 + k)
        for i in range(len(rows))
        for k in range(settings.samples)
    ]


def draw(
    engine: Engine,
    rows: Sequence[Row],
    settings: Settings,
    sampling: SamplingConfig,
    out: Path,
    share: WorkerShard = WorkerShard(),
    progress: Progress = lambda *_: None,
    again: Collection[tuple[int, int]] = (),
) -> None:
    """Draw (or edit), judge and redraw this process's jobs: pictures/*.png and a row of
    episodes-RANK.jsonl each. Jobs (row, sample) to do ``again`` get pictures of other names, so
    that no older score counts for them."""
    done = {(r["row"], r["k"]): r.get("attempt", 0) for r in episodes_of(out, rows, settings)}
    seen = {_stem(s["picture"]) for s in stored(out, "scores") if isinstance(s.get("picture"), str)}
    jobs = [job for j, job in enumerate(jobs_of(rows, settings)) if j % share.size == share.rank]
    left = [job for job in jobs if job[:2] not in done or job[:2] in again]
    for start in range(0, len(left), engine.batch):
        progress(len(jobs) - len(left) + start, len(jobs))
        part = left[start : start + engine.batch]
        prompts = [_prompt(rows[i]) for i, _, _ in part]
        episodes = run_episodes(
            engine, prompts, [seed for *_, seed in part], settings.rounds, sampling
        )
        alike = [p for p in prompts for _ in range(settings.fresh)]
        seeds = [10**12 + seed * 100 + n for *_, seed in part for n in range(settings.fresh)]
        fresh = (
            run_episodes(engine, alike, seeds, 1, replace(sampling, reason_tokens=1))
            if alike
            else []
        )
        lines = []
        for n, ((i, k, seed), episode) in enumerate(zip(part, episodes, strict=True)):
            attempt = done.get((i, k), -1) + 1
            while (stem := f"{i:05d}-{k}" + (f".{attempt}" if attempt else "")) in seen:
                attempt += 1
            alone = [e.rounds[0] for e in fresh[n * settings.fresh : (n + 1) * settings.fresh]]
            named = {f"{stem}-{t}.png": r for t, r in enumerate(episode.rounds, 1)}
            beside = {f"{stem}-fresh-{t}.png": r for t, r in enumerate(alone, 1)}
            for name, r in (named | beside).items():
                write_image(out / "pictures" / name, r.image)
            told = [
                [
                    {"picture": name, "yes": r.yes, "p_yes": round(r.p_yes, 5), "reason": r.reason}
                    for name, r in those.items()
                ]
                for those in (named, beside)
            ]
            about = {
                "row": i,
                "k": k,
                "id": rows[i].id,
                "prompt": rows[i].prompt,
                "task": rows[i].task,
                "seed": seed,
            }
            about |= {"attempt": attempt} if attempt else {}
            lines.append(about | {"final": episode.final, "rounds": told[0], "fresh": told[1]})
        append_rows(out / f"episodes-{share.rank:03d}.jsonl", lines)
    progress(len(jobs), len(jobs))


def _stem(picture: str) -> str:
    """The job's (and attempt's) part of a picture's name."""
    return "-".join(picture.split("-")[:2])


def damaged(
    out: Path,
    rows: Sequence[Row],
    settings: Settings,
    share: WorkerShard = WorkerShard(),
    metrics: Metrics = SHARE,
) -> dict[tuple[int, int], str]:
    """This process's jobs (row, sample) of which a picture is missing or, without a score yet,
    cannot be read; and why."""
    scores, found = scores_of(out, metrics), {}
    for record in _own(out, rows, settings, share):
        try:
            for path in (out / "pictures" / name for name in pictures_of(record)):
                if path.name not in scores or not path.is_file():
                    read_image(path)
        except InputError as error:
            found[record["row"], record["k"]] = str(error)
    return found


def _own(
    out: Path, rows: Sequence[Row], settings: Settings, share: WorkerShard
) -> list[dict[str, Any]]:
    """The records of this process's jobs, whoever drew them."""
    every = episodes_of(out, rows, settings)
    return [r for r in every if (r["row"] * settings.samples + r["k"]) % share.size == share.rank]


def _prompt(row: Row) -> Prompt:
    return Prompt(row.prompt, read_image(row.source) if row.source else None)


def unscored(
    out: Path,
    rows: Sequence[Row],
    settings: Settings,
    share: WorkerShard = WorkerShard(),
    metrics: Metrics = SHARE,
) -> Iterator[tuple[int, str]]:
    """Row and picture of this process's jobs that have no score yet."""
    done = scores_of(out, metrics)
    for record in _own(out, rows, settings, share):
        yield from ((record["row"], name) for name in pictures_of(record) if name not in done)


def score(
    scorer: Scorer,
    rows: Sequence[Row],
    settings: Settings,
    out: Path,
    share: WorkerShard = WorkerShard(),
    progress: Progress = lambda *_: None,
    metrics: Metrics = SHARE,
    batch: int = 16,
) -> None:
    """Score this process's pictures: a row of scores-RANK.jsonl each, or of missing-RANK.jsonl,
    which says why. A score is missing where the scorer gives none, or one that is not within its
    metric's range; it is asked for again the next time. Raises Stopped where more than a twentieth
    of this process's pictures have none."""
    left = list(unscored(out, rows, settings, share, metrics))
    reasons: Counter[str] = Counter()
    for start in range(0, len(left), batch):
        progress(start, len(left))
        part = left[start : start + batch]
        for answers in missing_of(scorer):
            answers.begin()
        found = scorer([(rows[i], read_image(out / "pictures" / name)) for i, name in part])
        known, missing = [], []
        for (_, name), score in zip(part, found, strict=True):
            why = score if isinstance(score, str) else fault_of(score, metrics)
            if why:
                missing.append({"picture": name, "why": why})
            elif isinstance(score, dict):
                known.append({"picture": name} | score)
        reasons.update(m["why"] for m in missing)
        append_rows(out / f"scores-{share.rank:03d}.jsonl", known)
        if missing:
            append_rows(out / f"missing-{share.rank:03d}.jsonl", missing)
    progress(len(left), len(left))
    pictures = sum(len(pictures_of(record)) for record in _own(out, rows, settings, share))
    if reasons.total() > MOST_MISSING * pictures:
        why, n = reasons.most_common(1)[0]
        raise Stopped(
            f"scores: {reasons.total()} of {pictures} pictures got none ({n}: {why}); at most "
            f"{MOST_MISSING:.0%} may be missing"
        )
    tell_missing(scorer)


def reasons_of(out: Path) -> dict[str, str]:
    """The picture's name -> why it has no score, as it was said last."""
    return {str(m.get("picture")): str(m.get("why")) for m in stored(out, "missing")}


def complete(rows: Sequence[Row], settings: Settings, out: Path) -> bool:
    """Whether every job of every process is drawn."""
    return len(episodes_of(out, rows, settings)) == len(rows) * settings.samples
