"""Runs the image benchmarks: every row is drawn (or edited), then every picture is scored, by any
number of processes.

Job j (a row's k-th sample) belongs to process j mod the number of processes; what a file says is
done is not done again, whoever did it. So a benchmark resumes on another number of processes, and
whoever ends last writes the result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

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
from secondlook.evals.records import EvalSettings, Job, JobKey, Record, job_key
from secondlook.io import append_rows, read_image, write_image
from secondlook.llm.missing import missing_of, tell_missing
from secondlook.types import Prompt, WorkerShard

if TYPE_CHECKING:
    from secondlook.types import Episode, Round

MAX_MISSING = 0.05
"""Share of pictures that may be without a score."""
SCORED_TOGETHER = 16
"""Pictures between two writings of scores."""
Progress = Callable[[int, int], None]
"""Told how many are done, and of how many."""


def run_image_benchmark(benchmark: ImageBenchmark, session: EvalSession) -> dict[str, Any] | None:
    """Draw what is not drawn, score what has no score, and write the result once all processes'
    shares are there; else None. Says what must be done again."""
    sampling = sampling_of(benchmark)
    settings = settings_of(benchmark, session.name, sampling)
    rows, metrics, out = benchmark.checked_rows, benchmark.metrics, session.out
    shard = WorkerShard.of_environment()

    damaged = damaged_jobs(out, rows, settings, shard, metrics)
    for reason in damaged.values():
        session.say(f"drawn again: {reason}")
    for score in records.stored(out, "scores"):
        if fault := records.score_fault(score, metrics):
            session.say(f"scored again: {score.get('picture')}: {fault}")

    if damaged or not records.all_drawn(out, rows, settings):
        benchmark.try_out_judge()  # a judge that cannot answer is known before hours of drawing
        engine = session.load_engine(benchmark.model)
        drawing = partial(session.progress, "drawing")
        draw(engine, rows, settings, sampling, out, shard, drawing, damaged)

    own_records = records.own_episodes(out, rows, settings, shard)
    if records.unscored(own_records, records.read_scores(out, metrics)):  # else no model is loaded
        scorer = benchmark.scorer(session.device)
        scoring = partial(session.progress, "scoring")
        score_pictures(scorer, rows, settings, out, shard, scoring, metrics)

    # other processes may still draw or score: whoever finds all of it there writes the result
    if not complete(out, rows, settings, metrics):
        return None
    return report.write(out, benchmark, settings, records.read_episodes(out, rows, settings))


def sampling_of(benchmark: ImageBenchmark) -> SamplingConfig:
    """How episodes are sampled: as the checkpoint says, or with the guidance that is asked for."""
    sampling = checkpoint_sampling(benchmark.model)
    if benchmark.guidance is None:
        return sampling
    return replace(sampling, guidance=benchmark.guidance, edit_guidance=benchmark.guidance)


def checkpoint_sampling(model: str) -> SamplingConfig:
    """How the checkpoint says that it is sampled; its weights are not loaded."""
    from transformers import GenerationConfig

    from secondlook.models.shipped import locate

    try:
        generation_config = GenerationConfig.from_pretrained(locate(model))
    except OSError:
        generation_config = GenerationConfig()
    return SamplingConfig.of(generation_config)


def settings_of(benchmark: ImageBenchmark, name: str, sampling: SamplingConfig) -> EvalSettings:
    """What the scores of a benchmark with these options depend on."""
    own_options = {}  # without those that every image benchmark has
    for option_name, option_value in benchmark.settings().items():
        if option_name not in ImageBenchmark.model_fields:
            own_options[option_name] = option_value
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
        options=own_options,
    )


def complete(out: Path, rows: Sequence[Row], settings: EvalSettings, metrics: Metrics) -> bool:
    """Whether every picture is drawn and all but a few have their scores."""
    if not records.all_drawn(out, rows, settings):
        return False
    all_records = records.read_episodes(out, rows, settings)
    num_pictures = sum(len(records.pictures_of(record)) for record in all_records)
    num_unscored = len(records.unscored(all_records, records.read_scores(out, metrics)))
    return num_unscored <= MAX_MISSING * num_pictures


# ----------------------------------------------------------------------------------------- drawing


def draw(
    engine: Engine,
    rows: Sequence[Row],
    settings: EvalSettings,
    sampling: SamplingConfig,
    out: Path,
    shard: WorkerShard = WorkerShard(),
    progress: Progress = lambda *_: None,
    redo: Collection[JobKey] = (),
) -> None:
    """Draw (or edit), judge and redraw this process's jobs: pictures/*.png and a row of
    episodes-RANK.jsonl each. Jobs to ``redo`` get pictures of other names, so that no older score
    counts for them."""
    attempt_of_job: dict[JobKey, int] = {}  # of the jobs that are drawn
    for record in records.read_episodes(out, rows, settings):
        attempt_of_job[job_key(record)] = record.get("attempt", 0)
    scored_stems = set()
    for score in records.stored(out, "scores"):
        if isinstance(score.get("picture"), str):
            scored_stems.add(_stem(score["picture"]))
    own_jobs = records.jobs_of(len(rows), settings)[shard.rank :: shard.size]
    jobs_left = [job for job in own_jobs if job.key not in attempt_of_job or job.key in redo]
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    for start in range(0, len(jobs_left), engine.batch):
        progress(len(own_jobs) - len(jobs_left) + start, len(own_jobs))
        batch_jobs = jobs_left[start : start + engine.batch]
        drawn_records = []
        for drawn in _episodes(engine, rows, batch_jobs, settings, sampling):
            job = drawn.job
            attempt = attempt_of_job.get(job.key, -1) + 1
            # also names of records that are lost, but whose scores are there
            while _attempt_stem(job, attempt) in scored_stems:
                attempt += 1
            drawn_records.append(_write_episode(out, rows[job.row], drawn, attempt))
        # after the pictures: a record says that they are there
        append_rows(out / f"episodes-{shard.rank:03d}.jsonl", drawn_records)
    progress(len(own_jobs), len(own_jobs))


class _Drawn(NamedTuple):
    """A job's episode, and the independent first images beside it."""

    job: Job
    episode: Episode
    fresh: list[Round]


def _episodes(
    engine: Engine,
    rows: Sequence[Row],
    jobs: Sequence[Job],
    settings: EvalSettings,
    sampling: SamplingConfig,
) -> list[_Drawn]:
    """Draw a batch of jobs."""
    prompts = []
    for job in jobs:
        row = rows[job.row]
        prompts.append(Prompt(row.prompt, read_image(row.source) if row.source else None))
    seeds = [job.seed for job in jobs]
    episodes = run_episodes(engine, prompts, seeds, settings.rounds, sampling)

    num_fresh = settings.fresh
    fresh_prompts: list[Prompt] = []
    fresh_seeds: list[int] = []
    for prompt, seed in zip(prompts, seeds, strict=True):
        first_seed = 10**12 + seed * 100  # seeds that no episode has
        fresh_prompts += [prompt] * num_fresh
        fresh_seeds += range(first_seed, first_seed + num_fresh)
    fresh_episodes: list[Episode] = []
    if fresh_prompts:
        # one token is the verdict; best-of-N needs no reason
        verdict_only = replace(sampling, reason_tokens=1)
        fresh_episodes = run_episodes(engine, fresh_prompts, fresh_seeds, 1, verdict_only)

    drawn_jobs = []
    for index, job in enumerate(jobs):
        of_job = fresh_episodes[index * num_fresh : (index + 1) * num_fresh]
        fresh_rounds = [episode.rounds[0] for episode in of_job]
        drawn_jobs.append(_Drawn(job, episodes[index], fresh_rounds))
    return drawn_jobs


def _write_episode(out: Path, row: Row, drawn: _Drawn, attempt: int) -> Record:
    """Write an episode's pictures; returns its record."""
    job = drawn.job
    stem = _attempt_stem(job, attempt)
    record: Record = {
        "row": job.row,
        "k": job.sample,
        "id": row.id,
        "prompt": row.prompt,
        "task": row.task,
        "seed": job.seed,
    }
    if attempt:
        record["attempt"] = attempt
    record["final"] = drawn.episode.final
    record["rounds"] = _write_rounds(out, stem, drawn.episode.rounds)
    record["fresh"] = _write_rounds(out, f"{stem}-fresh", drawn.fresh)
    return record


def _write_rounds(out: Path, stem: str, rounds: Sequence[Round]) -> list[dict[str, Any]]:
    """Write the rounds' pictures; returns what the record says of each."""
    round_rows = []
    for round_number, shown in enumerate(rounds, 1):
        picture_name = f"{stem}-{round_number}.png"
        write_image(out / "pictures" / picture_name, shown.image)
        p_yes = round(shown.p_yes, 5)
        round_rows.append(
            {"picture": picture_name, "yes": shown.yes, "p_yes": p_yes, "reason": shown.reason}
        )
    return round_rows


def _attempt_stem(job: Job, attempt: int) -> str:
    """How the names of a job's pictures begin: "00003-1", and ".2" where it is drawn anew."""
    first_stem = f"{job.row:05d}-{job.sample}"
    return f"{first_stem}.{attempt}" if attempt else first_stem


def _stem(picture_name: str) -> str:
    """The job's (and attempt's) part of a picture's name: "00003-1" of "00003-1-fresh-2.png"."""
    return "-".join(picture_name.split("-")[:2])


def damaged_jobs(
    out: Path,
    rows: Sequence[Row],
    settings: EvalSettings,
    shard: WorkerShard = WorkerShard(),
    metrics: Metrics = VALUE_IN_UNIT,
) -> dict[JobKey, str]:
    """This process's jobs of which a picture is missing or, without a score yet, cannot be read;
    and why."""
    scores = records.read_scores(out, metrics)
    reason_of_job = {}
    for record in records.own_episodes(out, rows, settings, shard):
        for picture_name in records.pictures_of(record):
            picture_path = out / "pictures" / picture_name
            # a scored picture was read once; opening thousands again would only take time
            if picture_name in scores and picture_path.is_file():
                continue
            try:
                read_image(picture_path)
            except InputError as error:
                reason_of_job[job_key(record)] = str(error)
                break
    return reason_of_job


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
    own_records = records.own_episodes(out, rows, settings, shard)
    unscored = records.unscored(own_records, records.read_scores(out, metrics))
    count_of_reason: Counter[str] = Counter()
    for start in range(0, len(unscored), SCORED_TOGETHER):
        progress(start, len(unscored))
        for missing_answers in missing_of(scorer):
            missing_answers.begin()  # reasons are those of this batch
        batch = unscored[start : start + SCORED_TOGETHER]
        score_rows, missing_rows = _score_batch(scorer, rows, out, batch, metrics)
        count_of_reason.update(row["why"] for row in missing_rows)
        append_rows(out / f"scores-{shard.rank:03d}.jsonl", score_rows)
        if missing_rows:
            append_rows(out / f"missing-{shard.rank:03d}.jsonl", missing_rows)
    progress(len(unscored), len(unscored))
    _check_missing(count_of_reason, own_records)
    tell_missing(scorer)


def _score_batch(
    scorer: Scorer,
    rows: Sequence[Row],
    out: Path,
    batch: Sequence[tuple[int, str]],
    metrics: Metrics,
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Rows for the pictures that have a score, and for those that have none. ``batch`` has each
    picture's row and name."""
    scored_items = []
    for row_index, picture_name in batch:
        scored_items.append((rows[row_index], read_image(out / "pictures" / picture_name)))
    scores_or_reasons = scorer(scored_items)
    if len(scores_or_reasons) != len(scored_items):
        raise InputError(
            f"scorer: it gave {len(scores_or_reasons)} scores for {len(scored_items)} pictures; "
            "give one each, a sentence where a picture has none"
        )
    score_rows: list[dict[str, Any]] = []
    missing_rows: list[dict[str, str]] = []
    for (_, picture_name), score_or_reason in zip(batch, scores_or_reasons, strict=True):
        if isinstance(score_or_reason, Mapping):
            fault = records.score_fault(score_or_reason, metrics)
            if not fault:
                score_rows.append({"picture": picture_name, **score_or_reason})
                continue
        elif isinstance(score_or_reason, str):
            fault = score_or_reason
        else:
            fault = f"the scorer gave {score_or_reason!r}, neither metrics nor a sentence"
        missing_rows.append({"picture": picture_name, "why": fault})
    return score_rows, missing_rows


def _check_missing(count_of_reason: Counter[str], own_records: Sequence[Record]) -> None:
    """Raises Stopped where too many pictures got no score."""
    # of all of its pictures, so that the few that a resumed run asks again do not stop it
    num_pictures = sum(len(records.pictures_of(record)) for record in own_records)
    num_missing = count_of_reason.total()
    if num_missing > MAX_MISSING * num_pictures:
        commonest_reason, count = count_of_reason.most_common(1)[0]
        raise Stopped(
            f"scores: {num_missing} of {num_pictures} pictures got none ({count}: "
            f"{commonest_reason}); at most {MAX_MISSING:.0%} may be missing"
        )
