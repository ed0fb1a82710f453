"""A benchmark's pictures and scores as files, which any number of processes write.

Each process appends to files of its own: episodes-RANK.jsonl (what was drawn), scores-RANK.jsonl,
and missing-RANK.jsonl (why a picture has no score); all read all. A row that is torn or damaged,
and a score that is no number of its metric's range, are as if not there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from secondlook.errors import InputError
from secondlook.evals.benchmark import Metrics, Row
from secondlook.io import finite, stored_rows
from secondlook.types import WorkerShard

ROUNDING = 1e-3
"""A cosine of equal vectors may be a little more than 1."""

Record = dict[str, Any]
"""An episode as it is stored: row, k (which sample), id, prompt, task, seed, final, rounds, fresh,
and attempt where it was drawn anew."""
JobKey = tuple[int, int]
"""A row's number and a sample's: the record's ``row`` and ``k``."""


class Job(NamedTuple):
    """One sample of a row, to be drawn with this seed."""

    row: int
    sample: int
    seed: int

    @property
    def key(self) -> JobKey:
        return self.row, self.sample


@dataclass(frozen=True)
class EvalSettings:
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
    """Who scored, in words."""
    options: dict[str, Any] = field(default_factory=dict)
    """The benchmark's own options."""


def stored(out: Path, kind: str) -> list[dict[str, Any]]:
    """All processes' rows of a kind (episodes, scores, missing); torn ones are left out."""
    all_rows = []
    for rank_path in sorted(out.glob(f"{kind}-*.jsonl")):
        all_rows += stored_rows(rank_path)
    return all_rows


# ---------------------------------------------------------------------------------------- episodes


def jobs_of(n_rows: int, settings: EvalSettings) -> list[Job]:
    """Every job, by row, then sample. No two have one seed up to 1,000 samples and 10,000 rows."""
    jobs = []
    for row_index in range(n_rows):
        for sample in range(settings.samples):
            seed = settings.seed * 10**7 + row_index * 1000 + sample
            jobs.append(Job(row_index, sample, seed))
    return jobs


def job_key(record: Record) -> JobKey:
    """The job that a record is of."""
    return record["row"], record["k"]


def read_records(out: Path) -> list[Record]:
    """What was drawn, one record a job (its latest attempt), in the jobs' order."""
    latest: dict[JobKey, Record] = {}
    for record in stored(out, "episodes"):
        if not _is_record(record):
            continue
        key = job_key(record)
        # of equal attempts (two processes drew the same) the first one is kept
        if key not in latest or record.get("attempt", 0) > latest[key].get("attempt", 0):
            latest[key] = record
    return [latest[key] for key in sorted(latest)]


def read_episodes(out: Path, rows: Sequence[Row], settings: EvalSettings) -> list[Record]:
    """`read_records` of a benchmark with these rows. Raises InputError for records of other rows:
    the folder is another benchmark's, or the data have changed."""
    all_records = read_records(out)
    for record in all_records:
        row_index, sample = job_key(record)
        known = row_index < len(rows) and sample < settings.samples
        if not known or rows[row_index].prompt != record["prompt"]:
            raise InputError(
                f"out: {str(out)!r} holds a picture of {record['prompt']!r} as row {row_index}, "
                f"sample {sample}, which is no row of these data; use another folder"
            )
    return all_records


def own_episodes(
    out: Path, rows: Sequence[Row], settings: EvalSettings, shard: WorkerShard
) -> list[Record]:
    """The records of this process's jobs, whoever drew them."""
    own_records = []
    for record in read_episodes(out, rows, settings):
        row_index, sample = job_key(record)
        job_index = row_index * settings.samples + sample  # its place in `jobs_of`
        if job_index % shard.size == shard.rank:
            own_records.append(record)
    return own_records


def all_drawn(out: Path, rows: Sequence[Row], settings: EvalSettings) -> bool:
    """Whether every job of every process is drawn."""
    return len(read_episodes(out, rows, settings)) == len(rows) * settings.samples


def pictures_of(record: Record) -> list[str]:
    """Names of an episode's pictures: of its rounds, then the independent ones beside it."""
    return [shown["picture"] for shown in (*record["rounds"], *record["fresh"])]


def _is_record(record: dict[str, Any]) -> bool:
    """Whether a row is one that `runner.draw` writes."""
    rounds, fresh = record.get("rounds"), record.get("fresh")
    if not isinstance(rounds, list) or not isinstance(fresh, list):
        return False
    numbers = [record.get("row"), record.get("k"), record.get("final"), record.get("attempt", 0)]
    for number in numbers:
        if type(number) is not int or number < 0:  # True is an int, but no number of a row
            return False
    for text_key in ("prompt", "task", "id"):
        if not isinstance(record.get(text_key), str):
            return False
    # ``final`` is an index of ``rounds``, which are one or more then
    return record["final"] < len(rounds) and all(map(_is_round, (*rounds, *fresh)))


def _is_round(shown: Any) -> bool:
    return (
        isinstance(shown, dict)
        and isinstance(shown.get("picture"), str)
        and isinstance(shown.get("reason"), str)
        and type(shown.get("yes")) is bool
        and finite(shown.get("p_yes"), 0, 1)
    )


# ------------------------------------------------------------------------------------------ scores


def score_fault(score: Mapping[str, Any], metrics: Metrics) -> str:
    """Which metric is missing, is no number or lies outside its range; "" where none does."""
    for metric_name, valid in metrics.items():
        value = score.get(metric_name)
        if value is None and valid.optional and metric_name in score:
            continue  # it says that it is undefined, which is not the same as not saying it
        if not finite(value, valid.low - ROUNDING, valid.high + ROUNDING):
            return f"{metric_name} is {value}, not a number from {valid.low:g} to {valid.high:g}"
    return ""


def read_scores(out: Path, metrics: Metrics) -> dict[str, dict[str, Any]]:
    """The picture's name -> its score, of all pictures that have one."""
    score_of_picture = {}
    for score in stored(out, "scores"):
        if isinstance(score.get("picture"), str) and not score_fault(score, metrics):
            score_of_picture[score["picture"]] = score
    return score_of_picture


def unscored(records: Sequence[Record], scores: Mapping[str, Any]) -> list[tuple[int, str]]:
    """Row and name of every picture without a score."""
    without_score = []
    for record in records:
        for picture_name in pictures_of(record):
            if picture_name not in scores:
                without_score.append((record["row"], picture_name))
    return without_score


def missing_reasons(out: Path) -> dict[str, str]:
    """The picture's name -> why it has no score, as it was said last."""
    return {str(row.get("picture")): str(row.get("why")) for row in stored(out, "missing")}
