"""``secondlook eval``: a command for every registered benchmark, made of the fields of its class;
all benchmarks at once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer
from typer.core import TyperGroup

from secondlook.cli.common import (
    Attention,
    Device,
    Dtype,
    Model,
    Out,
    Seed,
    at_least,
    load_engine,
    name_left_out,
    own_device,
    progress_bar,
    say,
)
from secondlook.cli.show import show
from secondlook.cli.table import eval_table
from secondlook.errors import InputError, Stopped
from secondlook.registry import benchmarks

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from secondlook.evals.benchmark import Benchmark, EvalSession

Batch = Annotated[int, typer.Option(help="Sequences decoded together.")]
Computing = dict[str, Any]
"""device, dtype, attention and batch: how a model computes."""


class EvalGroup(TyperGroup):
    """Has a command for every registered benchmark, made when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *benchmarks.names()]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = super().get_command(ctx, cmd_name)
        if command is None:
            command = benchmark_command(cmd_name)
        elif cmd_name == "all":
            command = _command("all", _all_function(), eval_all.__doc__)
        return command


eval_app = typer.Typer(
    cls=EvalGroup,
    no_args_is_help=True,
    help="Measure a model. `eval list` says what each benchmark is.",
)
eval_app.command("table")(eval_table)


@eval_app.command("list")
def eval_list() -> None:
    """The registered benchmarks."""
    from secondlook.evals.benchmark import get_benchmark

    rows = [("name", "suite", "what it measures")]
    for name in benchmarks.names():
        benchmark = get_benchmark(name)
        rows.append((name, benchmark.suite, _one_line(benchmark)))
    name_width, suite_width = (max(len(row[column]) for row in rows) + 2 for column in (0, 1))
    for name, suite, about in rows:
        say((f"{name:{name_width}}", "bold"), f"{suite:{suite_width}}{about}")


def _one_line(benchmark: type[Benchmark]) -> str:
    return " ".join((inspect.getdoc(benchmark) or benchmark.title).split())


# ------------------------------------------------------------------------------------ one benchmark


def benchmark_command(name: str) -> Any:
    """The command of a benchmark: an option for each of its fields, and those on how to compute.
    Raises InputError for an unknown name."""
    from secondlook.evals.benchmark import get_benchmark

    benchmark = get_benchmark(name)

    def run(out: Path, batch: int, device: str, dtype: str, attention: str, **options: Any) -> None:
        at_least("batch", batch)
        computing = {"batch": batch, "device": device, "dtype": dtype, "attention": attention}
        chosen_benchmark = benchmark(**options)
        chosen_benchmark.check()
        run_benchmark(name, chosen_benchmark, out, computing)

    parameters = [_parameter(benchmark, field) for field in benchmark.model_fields]
    parameters += [
        _keyword("out", Out, Path("out") / name),
        _keyword("batch", Batch, benchmark.default_batch),
        *COMPUTING_PARAMETERS,
    ]
    return _command(name, _with_parameters(run, parameters), _one_line(benchmark))


def run_benchmark(
    name: str, benchmark: Benchmark, out: Path, computing: Computing
) -> dict[str, Any] | None:
    """Run a benchmark that was checked, and print what it found. Returns the result."""
    from secondlook.io import writable_folder

    writable_folder(out)
    benchmark.begin(name, out)
    with _session(name, out, computing) as session:
        result = benchmark.run(session)
    if result is None:
        say(f"{name}: this process's share is done; the others' are not")
        return None
    result_lines = benchmark.lines(result)
    for line in result_lines:
        say(line)
    if not result_lines:
        show(out)
    name_left_out("samples left out, for want of a score", _without_score(result))
    say(f"written to {out}: {benchmark.files_written}")
    return result


def _without_score(result: dict[str, Any]) -> list[str]:
    """One name a sample, and why its first picture without a score has none."""
    name_of_sample: dict[tuple[str, int], str] = {}
    for missing in result.get("left_out", []):
        if isinstance(missing, dict):
            sample = missing["id"], missing["sample"]
            name_of_sample.setdefault(sample, f"{missing['picture']} ({missing['why']})")
    return list(name_of_sample.values())


@contextmanager
def _session(name: str, out: Path, computing: Computing) -> Iterator[EvalSession]:
    """Where a benchmark runs, with a progress bar for each of the things that it does."""
    from secondlook.evals.benchmark import EvalSession
    from secondlook.models.shipped import locate

    device = own_device(computing["device"])

    def load(model: str) -> Any:
        return load_engine(locate(model), **(computing | {"device": device}))

    progress_bars = progress_bar()
    bar_ids: dict[str, Any] = {}

    def progress(what: str, done: int, total: int) -> None:
        progress_bars.start()  # not before: a benchmark that only prints has no bar
        if what not in bar_ids:
            bar_ids[what] = progress_bars.add_task(what, total=None)
        progress_bars.update(bar_ids[what], completed=done, total=total)

    try:
        yield EvalSession(name, out, load, device, progress, say)
    finally:
        if bar_ids:
            progress_bars.stop()


# ----------------------------------------------------------------------------------- all benchmarks


@eval_app.command("all")
def eval_all() -> None:
    """Every benchmark that the model and the data allow, each in a folder of its own, and one page
    over them all. An option is given to the benchmarks that have one of its name."""


def _all_function() -> Callable[..., None]:
    """`eval all` with its own options and every option that a registered benchmark has."""
    from secondlook.evals.benchmark import get_benchmark

    parameters = [
        _keyword("model", Model),
        _keyword("out", Out, Path("out/all")),
        _keyword("suite", SUITE_OPTION, "auto"),
        _keyword("rounds", ROUNDS_OPTION, 3),
        _keyword("only", ONLY_OPTION, 0),
        _keyword("seed", Seed, 0),
        _keyword("batch", Batch, 32),
        *COMPUTING_PARAMETERS,
    ]
    known_names = {parameter.name for parameter in parameters}
    for name in benchmarks.names():
        benchmark = get_benchmark(name)
        if benchmark.argument:  # it needs more than a model
            continue
        for field_name in benchmark.model_fields:
            if field_name not in known_names:
                known_names.add(field_name)
                parameters.append(_optional(benchmark, field_name))
    return _with_parameters(_run_all, parameters)


def _run_all(
    model: str,
    out: Path,
    suite: str,
    rounds: int,
    only: int,
    seed: int,
    batch: int,
    device: str,
    dtype: str,
    attention: str,
    **benchmark_options: Any,
) -> None:
    """``benchmark_options``: those of the benchmarks' fields, None where one was not given."""
    from secondlook.evals import overview
    from secondlook.io import counted, same_config, writable_folder, write_json
    from secondlook.models.shipped import SHIPPED, locate

    at_least("batch", batch)
    at_least("rounds", rounds)
    at_least("only", only, 0)
    if suite == "auto":
        suite = "mini" if model in SHIPPED else "public"
    names = _names_of_suite(suite)
    locate(model)
    writable_folder(out)
    settings = {"model": model, "rounds": rounds, "only": only, "seed": seed, "dtype": dtype}
    same_config(out, settings)
    write_json(out / "config.json", settings)
    overview.read_results(out)  # refuses what cannot be read before anything is computed

    given_options = {name: value for name, value in benchmark_options.items() if value is not None}
    given_options |= {"model": model, "seed": seed}
    chosen_benchmarks, skipped = _prepare(names, given_options, rounds, only)
    computing = {"batch": batch, "device": device, "dtype": dtype, "attention": attention}
    failures: dict[str, str] = {}
    for name, benchmark in chosen_benchmarks.items():
        try:
            if not benchmark.resumes and (out / name / "result.json").exists():
                benchmark.begin(name, out / name)  # refuses a result of other options
                continue  # it would be computed again
            run_benchmark(name, benchmark, out / name, computing)
        except (InputError, Stopped) as error:  # the others do not depend on it
            failures[name] = str(error)
            say(f"{name}: not ended: {error}")
    result = overview.write(out, settings, skipped | failures)
    num_measured = counted(len(result["benchmarks"]), "benchmark")
    say(f"written to {out}: all.html, result.json ({num_measured}, {len(skipped)} skipped)")
    if failures:
        first_reason = next(iter(failures.values()))
        raise Stopped(f"benchmarks: {', '.join(failures)} began and did not end: {first_reason}")


def _names_of_suite(suite: str) -> list[str]:
    """The suite's benchmarks that need nothing but a model. Raises InputError for an unknown
    suite."""
    from secondlook.evals.benchmark import get_benchmark

    names_of_suite: dict[str, list[str]] = {}
    for name in benchmarks.names():
        benchmark = get_benchmark(name)
        names_in_suite = names_of_suite.setdefault(benchmark.suite, [])  # a suite may end up empty
        if not benchmark.argument:
            names_in_suite.append(name)
    if suite not in names_of_suite:
        known_suites = ", ".join(names_of_suite)
        raise InputError(f"suite: {suite!r} is unknown; use auto or one of {known_suites}")
    return names_of_suite[suite]


def _prepare(
    names: list[str], options: dict[str, Any], rounds: int, only: int
) -> tuple[dict[str, Benchmark], dict[str, str]]:
    """The benchmarks with their options, checked; and which are skipped, with the reason, which is
    said before the first one begins."""
    from secondlook.evals.benchmark import get_benchmark

    chosen_benchmarks: dict[str, Benchmark] = {}
    skipped: dict[str, str] = {}
    for name in names:
        benchmark_class = get_benchmark(name)
        own_options = benchmark_class.options_for_all(rounds, only)
        for field_name, option_value in options.items():
            if field_name in benchmark_class.model_fields:
                own_options[field_name] = option_value
        try:
            benchmark = benchmark_class(**own_options)
            benchmark.check()
            chosen_benchmarks[name] = benchmark
        except InputError as error:
            skipped[name] = str(error)
            say(f"{name}: skipped: {error}")
    return chosen_benchmarks, skipped


def eval_resumes(words: list[str]) -> bool:
    """Whether the command line ``secondlook eval …`` goes on with what an interrupted call of it
    has written."""
    from secondlook.evals.benchmark import get_benchmark

    if words[:1] != ["eval"] or len(words) < 2:
        return False
    name = words[1]
    return name == "all" or (name in benchmarks.names() and get_benchmark(name).resumes)


# ------------------------------------------------------------------ options of a benchmark's fields


SUITE_OPTION = Annotated[
    str,
    typer.Option(
        help="mini, public, own (registered by others), another suite's name, or auto: mini for "
        "shipped models, else public."
    ),
]
ROUNDS_OPTION = Annotated[int, typer.Option(help="At most this many images an episode.")]
ONLY_OPTION = Annotated[
    int, typer.Option(help="The first rows (mini: rows of each task) alone; 0: all.")
]


def _keyword(
    name: str, annotation: Any, default: Any = inspect.Parameter.empty
) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


COMPUTING_PARAMETERS = (
    _keyword("device", Device, "auto"),
    _keyword("dtype", Dtype, "auto"),
    _keyword("attention", Attention, "sdpa"),
)


def _parameter(benchmark: type[Benchmark], name: str) -> inspect.Parameter:
    """A field as the command line's option, or as its argument."""
    field = benchmark.model_fields[name]
    default = inspect.Parameter.empty if field.is_required() else field.default
    if name == benchmark.argument:
        typer_info: Any = typer.Argument(help=field.description)
    else:
        typer_info = typer.Option(help=field.description)
    return _keyword(name, Annotated[_plain_type(field), typer_info], default)


def _optional(benchmark: type[Benchmark], name: str) -> inspect.Parameter:
    """A field as an option of `eval all`, where None leaves it as each benchmark has it."""
    field = benchmark.model_fields[name]
    typer_option = typer.Option(help=f"{benchmark.title}: {field.description}")
    return _keyword(name, Annotated[_plain_type(field) | None, typer_option], None)


def _plain_type(field: FieldInfo) -> Any:
    """The field's type as typer parses it. Which of several words are allowed is pydantic's to
    say."""
    if get_origin(field.annotation) is Literal:
        return type(get_args(field.annotation)[0])
    return field.annotation


def _with_parameters(
    function: Callable[..., None], parameters: list[inspect.Parameter]
) -> Callable[..., None]:
    """``function``, which typer then takes to have these parameters."""

    def command(**options: Any) -> None:
        function(**options)

    def has_default(parameter: inspect.Parameter) -> bool:
        return parameter.default is not inspect.Parameter.empty

    # typer reads names and defaults from the signature, and types from the annotations
    required_first = sorted(parameters, key=has_default)
    command.__signature__ = inspect.Signature(required_first)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    return command


def _command(name: str, function: Callable[..., None], help_text: str | None) -> Any:
    """typer's command of a function, under a name."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(name, help=help_text)(function)
    return typer.main.get_command(app)
