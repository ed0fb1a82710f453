"""Runs the image benchmarks: every row is drawn (or edited), then every picture is scored, by any
number of processes.

Job j (a row's k-th sample) belongs to process j mod the number of processes; what a file says is
done is not done again, whoever did it. So a benchmark resumes on another number of processes, and
whoever ends last writes the result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secondlook.engine.engine import Engine
from secondlook.episode import SamplingConfig, run_episodes
from secondlook.errors import InputError, Stopped
from secondlook.evals import records, report
from secondlook.evals.benchmark import (
    VALUE_IN_UNIT,
    EvalSession,
    ImageBenchmark,
    Metrics,
    Row,
    Scorer,
)
from secondlook.evals.records import EvalSettings, Job, Record
from secondlook.io import append_rows, read_image, write_image
from secondlook.llm.missing import missing_of, tell_missing
from secondlook.types import Prompt, WorkerShard

if TYPE_CHECKING:
    from secondlook.types import Episode, Round

MAX_MISSING = 0.05
"""Share of pictures that may be without a score."""
SCORED_TOGETHER = 16
Progress = Callable[[int, int], None]


def run_image_benchmark(benchmark: ImageBenchmark, session: EvalSession) -> dict[str, Any] | None:
    """Draw what is not drawn, score what has no score, and write the result once all processes'
    shares are there; else None. Says what must be done again."""
    sampling = sampling_of(benchmark)
    settings = settings_of(benchmark, session.name, sampling)
    rows, metrics, out = benchmark.checked_rows, benchmark.metrics, session.out
    shard = WorkerShard.of_environment()
    records.begin(out, settings, asdict(sampling))

    damaged = damaged_jobs(out, rows, settings, shard, metrics)
    for reason in damaged.values():
        session.say(f"drawn again: {reason}")
    for score in records.stored(out, "scores"):
        if fault := records.score_fault(score, metrics):
            session.say(f"scored again: {score.get('picture')}: {fault}")

    if damaged or not records.all_drawn(out, rows, settings):
        benchmark.try_out_judge()
        engine = session.load_engine(benchmark.model)

        def drawn(done: int, total: int) -> None:
            session.progress("drawing", done, total)

        draw(engine, rows, settings, sampling, out, shard, drawn, damaged)

    own = records.own_episodes(out, rows, settings, shard)
    if records.unscored(own, records.read_scores(out, metrics)):  # else no model is loaded

        def scored(done: int, total: int) -> None:
            session.progress("scoring", done, total)

        scorer = benchmark.scorer(session.device)
        score_pictures(scorer, rows, settings, out, shard, scored, metrics)

    if not complete(out, rows, settings, metrics):
        return None
    return report.write(out, benchmark, settings, records.read_episodes(out, rows, settings))


def sampling_of(benchmark: ImageBenchmark) -> SamplingConfig:
    """How episodes are sampled: as the checkpoint says, or with the guidance that is asked for."""
    from transformers import GenerationConfig

    from secondlook.models.shipped import locate

    try:
        generation_config = GenerationConfig.from_pretrained(locate(benchmark.model))
    except OSError:
        generation_config = GenerationConfig()
    sampling = SamplingConfig.of(generation_config)
    if benchmark.guidance is None:
        return sampling
    return replace(sampling, guidance=benchmark.guidance, edit_guidance=benchmark.guidance)


def settings_of(benchmark: ImageBenchmark, name: str, sampling: SamplingConfig) -> EvalSettings:
    """What the scores of a benchmark with these options depend on."""
    shared = ImageBenchmark.model_fields
    own = {key: value for key, value in benchmark.settings().items() if key not in shared}
    return EvalSettings(
        benchmark=name,
        model=benchmark.model,
        samples=benchmark.samples or benchmark.default_samples,
        rounds=benchmark.rounds,
        fresh=benchmark.fresh,
        seed=benchmark.seed,
        guidance=sampling.guidance,
        edit_guidance=sampling.edit_guidance,
        only=benchmark.only,
        judge=benchmark.judge(),
        options=own,
    )


def complete(out: Path, rows: Sequence[Row], settings: EvalSettings, metrics: Metrics) -> bool:
    """Whether every picture is drawn and all but a few have their scores."""
    if not records.all_drawn(out, rows, settings):
        return False
    every = records.read_episodes(out, rows, settings)
    n_pictures = sum(len(records.pictures_of(record)) for record in every)
    n_unscored = len(records.unscored(every, records.read_scores(out, metrics)))
    return n_unscored <= MAX_MISSING * n_pictures


# ----------------------------------------------------------------------------------------- drawing


def draw(
    engine: Engine,
    rows: Sequence[Row],
    settings: EvalSettings,
    sampling: SamplingConfig,
    out: Path,
    shard: WorkerShard = WorkerShard(),
    progress: Progress = lambda *_: None,
    redo: Collection[Job] = (),
) -> None:
    """Draw (or edit), judge and redraw this process's jobs: pictures/*.png and a row of
    episodes-RANK.jsonl each. Jobs to ``redo`` get pictures of other names, so that no older score
    counts for them."""
    done = {}
    for record in records.read_episodes(out, rows, settings):
        done[record["row"], record["k"]] = record.get("attempt", 0)
    scored_stems = {
        _stem(score["picture"])
        for score in records.stored(out, "scores")
        if isinstance(score.get("picture"), str)
    }
    jobs = records.jobs_of(len(rows), settings)[shard.rank :: shard.size]
    left = [job for job in jobs if job[:2] not in done or job[:2] in redo]
    for start in range(0, len(left), engine.batch):
        progress(len(jobs) - len(left) + start, len(jobs))
        part = left[start : start + engine.batch]
        lines = []
        for (i, k, seed), episode, fresh in _episodes(engine, rows, part, settings, sampling):
            attempt = done.get((i, k), -1) + 1
            while _attempt_stem(i, k, attempt) in scored_stems:
                attempt += 1
            record = {
                "row": i,
                "k": k,
                "id": rows[i].id,
                "prompt": rows[i].prompt,
                "task": rows[i].task,
                "seed": seed,
            }
            if attempt:
                record["attempt"] = attempt
            stem = _attempt_stem(i, k, attempt)
            record["final"] = episode.final
            record["rounds"] = _write_rounds(out, stem, episode.rounds)
            record["fresh"] = _write_rounds(out, f"{stem}-fresh", fresh)
            lines.append(record)
        append_rows(out / f"episodes-{shard.rank:03d}.jsonl", lines)
    progress(len(jobs), len(jobs))


def _episodes(
    engine: Engine,
    rows: Sequence[Row],
    jobs: Sequence[tuple[int, int, int]],
    settings: EvalSettings,
    sampling: SamplingConfig,
) -> list[tuple[tuple[int, int, int], Episode, list[Round]]]:
    """Of each job its episode, and the independent first images beside it."""
    prompts = []
    for i, _, _ in jobs:
        source = rows[i].source
        prompts.append(Prompt(rows[i].prompt, read_image(source) if source else None))
    seeds = [seed for _, _, seed in jobs]
    episodes = run_episodes(engine, prompts, seeds, settings.rounds, sampling)

    n_fresh = settings.fresh
    fresh_prompts = [prompt for prompt in prompts for _ in range(n_fresh)]
    # seeds that no episode has
    fresh_seeds = [10**12 + seed * 100 + n for seed in seeds for n in range(n_fresh)]
    fresh: list[Episode] = []
    if fresh_prompts:
        verdict_only = replace(sampling, reason_tokens=1)
        fresh = run_episodes(engine, fresh_prompts, fresh_seeds, 1, verdict_only)

    together = []
    for n, (job, episode) in enumerate(zip(jobs, episodes, strict=True)):
        beside = [e.rounds[0] for e in fresh[n * n_fresh : (n + 1) * n_fresh]]
        together.append((job, episode, beside))
    return together


def _write_rounds(out: Path, stem: str, rounds: Sequence[Round]) -> list[dict[str, Any]]:
    """Write the rounds' pictures; returns what the record says of each."""
    written = []
    for t, shown in enumerate(rounds, 1):
        name = f"{stem}-{t}.png"
        write_image(out / "pictures" / name, shown.image)
        written.append(
            {
                "picture": name,
                "yes": shown.yes,
                "p_yes": round(shown.p_yes, 5),
                "reason": shown.reason,
            }
        )
    return written


def _attempt_stem(row: int, k: int, attempt: int) -> str:
    """How the names of a job's pictures begin: "00003-1", and ".2" where it is drawn anew."""
    return f"{row:05d}-{k}" + (f".{attempt}" if attempt else "")


def _stem(picture: str) -> str:
    """The job's (and attempt's) part of a picture's name."""
    return "-".join(picture.split("-")[:2])


def damaged_jobs(
    out: Path,
    rows: Sequence[Row],
    settings: EvalSettings,
    shard: WorkerShard = WorkerShard(),
    metrics: Metrics = VALUE_IN_UNIT,
) -> dict[Job, str]:
    """This process's jobs of which a picture is missing or, without a score yet, cannot be read;
    and why."""
    scores = records.read_scores(out, metrics)
    damaged = {}
    for record in records.own_episodes(out, rows, settings, shard):
        for name in records.pictures_of(record):
            path = out / "pictures" / name
            if name in scores and path.is_file():
                continue
            try:
                read_image(path)
            except InputError as error:
                damaged[record["row"], record["k"]] = str(error)
                break
    return damaged


# ----------------------------------------------------------------------------------------- scoring


def score_pictures(
    scorer: Scorer,
    rows: Sequence[Row],
    settings: EvalSettings,
    out: Path,
    shard: WorkerShard = WorkerShard(),
    progress: Progress = lambda *_: None,
    metrics: Metrics = VALUE_IN_UNIT,
) -> None:
    """Score this process's pictures: a row of scores-RANK.jsonl each, or of missing-RANK.jsonl,
    which says why.

    A score is missing where the scorer gives none, or one that is not within its metric's range; it
    is asked for again the next time. Raises Stopped where more than a twentieth of this process's
    pictures have none.
    """
    own = records.own_episodes(out, rows, settings, shard)
    left = records.unscored(own, records.read_scores(out, metrics))
    reasons: Counter[str] = Counter()
    for start in range(0, len(left), SCORED_TOGETHER):
        progress(start, len(left))
        part = left[start : start + SCORED_TOGETHER]
        for missing_answers in missing_of(scorer):
            missing_answers.begin()
        scores, missing = _score_part(scorer, rows, out, part, metrics)
        reasons.update(row["why"] for row in missing)
        append_rows(out / f"scores-{shard.rank:03d}.jsonl", scores)
        if missing:
            append_rows(out / f"missing-{shard.rank:03d}.jsonl", missing)
    progress(len(left), len(left))
    _check_missing(reasons, own)
    tell_missing(scorer)


def _score_part(
    scorer: Scorer,
    rows: Sequence[Row],
    out: Path,
    part: Sequence[tuple[int, str]],
    metrics: Metrics,
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Rows for the pictures that have a score, and for those that have none."""
    scores: list[dict[str, Any]] = []
    missing = []
    answers = scorer([(rows[i], read_image(out / "pictures" / name)) for i, name in part])
    for (_, name), score in zip(part, answers, strict=True):
        if isinstance(score, Mapping):
            fault = records.score_fault(score, metrics)
            if not fault:
                scores.append({"picture": name, **score})
                continue
        else:
            fault = score
        missing.append({"picture": name, "why": fault})
    return scores, missing


def _check_missing(reasons: Counter[str], own: Sequence[Record]) -> None:
    n_pictures = sum(len(records.pictures_of(record)) for record in own)
    if reasons.total() > MAX_MISSING * n_pictures:
        commonest, n = reasons.most_common(1)[0]
        raise Stopped(
            f"scores: {reasons.total()} of {n_pictures} pictures got none ({n}: {commonest}); at "
            f"most {MAX_MISSING:.0%} may be missing"
        )
