"""What a benchmark is: a class whose fields are its options and whose ``run`` writes a result.

``secondlook eval NAME`` offers every field of the class registered as NAME as an option, with the
field's description as its help. There are two kinds:

- `ImageBenchmark`: prompts (or edits) that a model draws, and a scorer of the pictures. A benchmark
  of this kind says what its rows are and who scores them; drawing, resuming, several processes
  (`evals.runner`), intervals and pages (`evals.report`) are the same for all.
- `Benchmark`: anything else that is measured of a model. It has to say how it runs.

Importing this module imports neither torch nor transformers.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from secondlook.errors import InputError
from secondlook.evals.scorers import BLIP
from secondlook.registry import benchmarks

if TYPE_CHECKING:
    from PIL.Image import Image

    from secondlook.data.prompts import Line
    from secondlook.engine.engine import Engine

MODEL_HELP = "A shipped model's name, a checkpoint folder, or a hub id."
ROUNDS_HELP = "At most this many images an episode."
SEED_HELP = "Seed; equal seeds give equal results."


@dataclass(frozen=True)
class Row:
    """One row of a benchmark: what the model is asked to draw, or how it is to edit ``source``."""

    id: str
    """The benchmark's own where it has one. Intervals resample by it."""
    prompt: str
    task: str
    """Scores are also given by task."""
    facts: dict[str, Any] = field(default_factory=dict, compare=False)
    """What the scorer needs to know: GenEval's metadata, questions with their parents, masks …"""
    source: Path | None = None
    """The picture that is to be edited."""
    where: str = field(default="", compare=False)
    """ "line 3 of evaluation_metadata.jsonl", for messages."""

    def line(self) -> Line:
        """The row as a prompt of a list, which `data.prompts.check_prompts` checks."""
        from secondlook.data.prompts import Line

        return Line(self.prompt, self.source, self.where or f"row {self.id}")


class ValueRange(NamedTuple):
    """The values that a metric can have. ``optional``: it may be undefined (None), which is no
    fault."""

    low: float = 0.0
    high: float = 1.0
    optional: bool = False


Metrics = Mapping[str, ValueRange]
"""A benchmark's metrics with their ranges; the first is the benchmark's number."""
VALUE_IN_UNIT: Metrics = {"value": ValueRange()}
"""One metric, ``value``, from 0 to 1."""

MeanOver = Literal["tasks", "images"]

ScoreOrReason = dict[str, Any] | str
"""A picture's score: its metrics' names with their values, and whatever else is worth keeping. Or,
where the picture has no score, why not."""


class Scorer(Protocol):
    """Scores pictures of rows. One that asks a model for answers lists in ``missing`` why some are
    missing (`llm.missing.missing_of`)."""

    def __call__(self, items: Sequence[tuple[Row, Image]]) -> Sequence[ScoreOrReason]: ...


def _no_progress(what: str, num_done: int, num_total: int) -> None:
    pass


def _silent(line: str) -> None:
    pass


@dataclass(frozen=True)
class EvalSession:
    """Where and on what a benchmark runs: nothing here is part of what is measured."""

    name: str
    """What the benchmark is registered as."""
    out: Path
    """Folder of the result. It is there, may be written to, and was begun (`Benchmark.begin`)."""
    load_engine: Callable[[str], Engine]
    """The engine of a model's name."""
    device: str = "cpu"
    """Of the scorers' models."""
    progress: Callable[[str, int, int], None] = _no_progress
    """Told what is being done, how many are done, and of how many."""
    say: Callable[[str], None] = _silent
    """Told one line that a person should read."""


class Benchmark(BaseModel, ABC):
    """A benchmark with its options. Raises InputError for an option that cannot be used.

    A field is an option of the command line; ``Field(exclude=True)`` marks one on which no number
    depends (a path), which is not written to the result.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    title: ClassVar[str]
    suite: ClassVar[str] = "own"
    """``secondlook eval all --suite`` runs the benchmarks of one suite: mini, public, own (what
    others have registered), or any other word."""
    argument: ClassVar[str] = ""
    """The field that the command line takes without an option's name. A benchmark that has one is
    about another one's result and is not run by ``eval all``."""
    resumes: ClassVar[bool] = False
    """Whether the same call goes on with what an interrupted one has written."""
    default_batch: ClassVar[int] = 32
    """Sequences decoded together. No number depends on it."""
    files_written: ClassVar[str] = "result.json"
    page: ClassVar[str] = ""
    """The file in the result's folder that a person opens first."""

    def __init__(self, **options: Any) -> None:
        try:
            super().__init__(**options)
        except ValidationError as error:
            first_fault = error.errors()[0]  # one sentence: the others wait
            option_name = ".".join(str(part) for part in first_fault["loc"])
            if first_fault["type"] == "missing":
                title = type(self).title
                raise InputError(f"{option_name}: it is missing; {title} needs it") from error
            # pydantic's prefix of what a validator of ours raises
            reason = first_fault["msg"].removeprefix("Value error, ")
            value = first_fault["input"]
            raise InputError(f"{option_name}: {value!r} is wrong: {reason}") from error

    def settings(self) -> dict[str, Any]:
        """Everything that the numbers depend on, for the result."""
        return self.model_dump(mode="json")

    def check(self) -> None:
        """Raises InputError for whatever can be known to fail before anything is computed."""
        from secondlook.models.shipped import locate

        model_name = getattr(self, "model", None)
        if model_name is not None:  # else it measures no model, as a comparison of results
            locate(model_name)

    def folder_settings(self, name: str) -> dict[str, Any]:
        """What a folder of results is of, for its config.json. ``name``: what the benchmark is
        registered as."""
        return {"benchmark": name} | self.settings()

    def begin(self, name: str, out: Path) -> None:
        """Write down in ``out``, before anything is measured, what its result will be of. Raises
        InputError where the folder was begun with other settings; the same may run again."""
        from secondlook.io import same_config, write_json

        # through JSON, so that they compare equal to what is read from the file (tuples become
        # lists)
        config = json.loads(json.dumps(self.folder_settings(name)))
        same_config(out, config)
        write_json(out / "config.json", config)

    @abstractmethod
    def run(self, session: EvalSession) -> dict[str, Any] | None:
        """Measure, write the files (result.json last) and return the result; None where other
        processes have not ended their shares yet."""

    @classmethod
    def lines(cls, result: dict[str, Any]) -> list[str]:
        """What the command line prints of a result; nothing: what ``secondlook show`` prints."""
        return []

    @classmethod
    def headline(cls, result: dict[str, Any]) -> dict[str, Any]:
        """A result's numbers for one row of the page over all benchmarks: intervals named first,
        final, gain, over_best_of_n, or any one ``number``."""
        numbers = {}
        for name in ("first", "final", "gain"):
            if name in result["overall"]:
                numbers[name] = result["overall"][name]
        # one round is best-of-1 itself
        several_rounds = [point for point in result.get("curve", []) if point["rounds"] > 1]
        if several_rounds:
            longest = max(several_rounds, key=lambda point: point["rounds"])
            numbers["over_best_of_n"] = longest["over_best_of_n"]
        return numbers

    @classmethod
    def options_for_all(cls, rounds: int, only: int) -> dict[str, Any]:
        """The options under which ``eval all`` runs it, given its own --rounds and --only (0: all
        rows)."""
        return {}


class ImageBenchmark(Benchmark):
    """Rows that a model draws or edits, and a scorer of the pictures."""

    default_samples: ClassVar[int] = 1
    """Images a row, as published."""
    files: ClassVar[tuple[str, ...]] = ()
    """Names in `evals.fetch.FILES` of the files that are fetched."""
    metrics: ClassVar[Metrics] = VALUE_IN_UNIT
    counted_tasks: ClassVar[tuple[str, ...]] = ()
    """Tasks of the overall number; (): all."""
    mean_over: ClassVar[MeanOver] = "tasks"
    """Whether the overall number is the unweighted mean of the tasks' or the mean over images."""
    edits: ClassVar[bool] = False
    """Whether the rows are edits."""
    number: ClassVar[str] = ""
    """What the tables' number is and which way is better, where it is no share."""
    note: ClassVar[str] = ""
    """What differs from the published protocol, or must be known to compare."""
    resumes: ClassVar[bool] = True
    files_written: ClassVar[str] = "result.json, benchmark.html, pictures"
    page: ClassVar[str] = "benchmark.html"

    model: str = Field(description=MODEL_HELP)
    samples: int = Field(
        0, ge=0, le=1000, description="Images a prompt; 0: the benchmark's own number."
    )
    rounds: int = Field(3, ge=1, description=ROUNDS_HELP)
    fresh: int = Field(
        0,
        ge=0,
        le=100,
        description="Independent images beside each episode, for best-of-N (rounds - 1 for a "
        "curve).",
    )
    only: int = Field(0, ge=0, description="The first rows alone; 0: all.")
    seed: int = Field(0, ge=0, le=10**5 - 1, description=SEED_HELP)
    guidance: float | None = Field(
        None, description="Of drawing and editing; default: the checkpoint's own."
    )
    data: Path | None = Field(
        None,
        exclude=True,
        description="A folder with the benchmarks' files; default: fetched, revisions pinned.",
    )

    @abstractmethod
    def rows(self) -> list[Row]:
        """All rows. Raises InputError that names the file and the line where there are faults."""

    @abstractmethod
    def scorer(self, device: str) -> Scorer:
        """The scorer, with its models loaded on ``device``."""

    def judge(self) -> str:
        """Who scores, in words. Raises InputError for a model that is not there."""
        return "the benchmark's own scorer"

    def more_results(self, final_scores: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Further entries of the result, from the scores of all final images."""
        return {}

    @classmethod
    def main_metric(cls) -> str:
        """The metric that is the benchmark's number."""
        return next(iter(cls.metrics))

    @classmethod
    def counts(cls, task: str) -> bool:
        """Whether a task is in the overall number."""
        return not cls.counted_tasks or task in cls.counted_tasks

    @cached_property
    def checked_rows(self) -> list[Row]:
        """The rows, the first ``only`` of them where it is not 0. Raises InputError that names the
        file and the line of whatever cannot be drawn."""
        from secondlook.data.prompts import check_prompts
        from secondlook.evals.benchmark_class import check_rows
        from secondlook.models.janus.checkpoint import load_tokenizer
        from secondlook.models.janus.template import ChatTemplate

        rows = check_rows(self, self.rows())
        if self.only:
            rows = rows[: self.only]
        lines = [row.line() for row in rows]
        check_prompts(ChatTemplate(load_tokenizer(self.model)), lines)
        for line in lines:
            if line.source:
                line.prompt()  # opens the picture
        return rows

    def check(self) -> None:
        super().check()
        if not self.checked_rows:
            raise InputError(f"data: {self.title} has no row; give files that have some")
        self.judge()

    def try_out_judge(self) -> None:
        """Ask an endpoint that will answer questions about the pictures a trial question, before
        any is drawn. Raises InputError where it can answer none."""

    def folder_settings(self, name: str) -> dict[str, Any]:
        from secondlook.evals.runner import sampling_of, settings_of

        sampling = sampling_of(self)
        settings = settings_of(self, name, sampling)
        return asdict(settings) | {"sampling": asdict(sampling)}

    def run(self, session: EvalSession) -> dict[str, Any] | None:
        from secondlook.evals.runner import run_image_benchmark

        return run_image_benchmark(self, session)

    @classmethod
    def options_for_all(cls, rounds: int, only: int) -> dict[str, Any]:
        # a curve beside best-of-N wants rounds - 1 independent images; edits have none
        fresh = 0 if cls.edits else rounds - 1
        return {"rounds": rounds, "only": only, "fresh": fresh}


class AnsweredBenchmark(ImageBenchmark):
    """An image benchmark whose scorer asks a model questions about the pictures."""

    vqa: str = Field(
        BLIP, description="A BLIP or a vision-language model; with --url its name there."
    )
    url: str = Field("", description="An OpenAI-compatible endpoint that serves it.")

    def try_out_judge(self) -> None:
        from secondlook.evals.scorers.vqa import try_answerer

        try_answerer(self.vqa, self.url)

    def judge(self) -> str:
        from secondlook.evals.scorers.vqa import check_answerer

        return check_answerer(self.vqa, self.url)


def get_benchmark(name: str) -> type[Benchmark]:
    """The class that is registered under ``name``. Raises InputError for an unknown name, and for
    a class that says not all that a benchmark must, or something wrong."""
    from secondlook.evals.benchmark_class import check_class

    return check_class(name, benchmarks.get(name))
