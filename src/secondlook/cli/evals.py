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

    for name in benchmarks.names():
        benchmark = get_benchmark(name)
        say((f"{name:16}", "bold"), f"{benchmark.suite:8}{_one_line(benchmark)}")


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
        chosen = benchmark(**options)
        chosen.check()
        run_benchmark(name, chosen, out, computing)

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
    with _session(name, out, computing) as session:
        result = benchmark.run(session)
    if result is None:
        say(f"{name}: this process's share is done; the others' are not")
        return None
    lines = benchmark.lines(result)
    for line in lines:
        say(line)
    if not lines:
        show(out)
    name_left_out(
        "samples are left out, for a picture of theirs has no score", _without_score(result)
    )
    say(f"written to {out}: {benchmark.files_written}")
    return result


def _without_score(result: dict[str, Any]) -> list[str]:
    """One name a sample, and why its first picture without a score has none."""
    named: dict[tuple[str, int], str] = {}
    for missing in result.get("left_out", []):
        if isinstance(missing, dict):
            sample = missing["id"], missing["sample"]
            named.setdefault(sample, f"{missing['picture']} ({missing['why']})")
    return list(named.values())


@contextmanager
def _session(name: str, out: Path, computing: Computing) -> Iterator[EvalSession]:
    """Where a benchmark runs, with a progress bar for each of the things that it does."""
    from secondlook.evals.benchmark import EvalSession
    from secondlook.models.shipped import locate

    device = own_device(computing["device"])

    def load(model: str) -> Any:
        return load_engine(locate(model), **(computing | {"device": device}))

    bars, tasks = progress_bar(), dict[str, Any]()

    def progress(what: str, done: int, total: int) -> None:
        bars.start()
        if what not in tasks:
            tasks[what] = bars.add_task(what, total=None)
        bars.update(tasks[what], completed=done, total=total)

    try:
        yield EvalSession(name, out, load, device, progress, say)
    finally:
        if tasks:
            bars.stop()


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
    known = {parameter.name for parameter in parameters}
    for name in benchmarks.names():
        benchmark = get_benchmark(name)
        if benchmark.argument:
            continue
        for field in benchmark.model_fields:
            if field not in known:
                known.add(field)
                parameters.append(_optional(benchmark, field))
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
    **more: Any,
) -> None:
    from secondlook.evals import overview
    from secondlook.io import same_config, writable_folder, write_json
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

    options = {name: value for name, value in more.items() if value is not None}
    options |= {"model": model, "seed": seed}
    chosen, skipped = _prepare(names, options, rounds, only)
    computing = {"batch": batch, "device": device, "dtype": dtype, "attention": attention}
    failed = {}
    for name, benchmark in chosen.items():
        if not benchmark.resumes and (out / name / "result.json").exists():
            continue  # it would be computed again
        try:
            run_benchmark(name, benchmark, out / name, computing)
        except (InputError, Stopped) as error:
            failed[name] = str(error)
            say(f"{name}: not ended: {error}")
    page = overview.write(out, settings, skipped | failed)
    say(
        f"written to {out}: all.html, result.json ({len(page['benchmarks'])} benchmarks, "
        f"{len(skipped)} skipped)"
    )
    if failed:
        raise Stopped(
            f"benchmarks: {', '.join(failed)} began and did not end: {next(iter(failed.values()))}"
        )


def _names_of_suite(suite: str) -> list[str]:
    """The suite's benchmarks that need nothing but a model. Raises InputError for an unknown
    suite."""
    from secondlook.evals.benchmark import get_benchmark

    suites: dict[str, list[str]] = {}
    for name in benchmarks.names():
        benchmark = get_benchmark(name)
        of_suite = suites.setdefault(benchmark.suite, [])
        if not benchmark.argument:
            of_suite.append(name)
    if suite not in suites:
        raise InputError(f"suite: {suite!r} is unknown; use auto or one of {', '.join(suites)}")
    return suites[suite]


def _prepare(
    names: list[str], options: dict[str, Any], rounds: int, only: int
) -> tuple[dict[str, Benchmark], dict[str, str]]:
    """The benchmarks with their options, checked; and which are skipped, with the reason, which is
    said before the first one begins."""
    from secondlook.evals.benchmark import get_benchmark

    chosen, skipped = {}, {}
    for name in names:
        kind = get_benchmark(name)
        own = {field: value for field, value in options.items() if field in kind.model_fields}
        try:
            benchmark = kind(**kind.options_for_all(rounds, only), **own)
            benchmark.check()
            chosen[name] = benchmark
        except InputError as error:
            skipped[name] = str(error)
            say(f"{name}: skipped: {error}")
    return chosen, skipped


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
    str, typer.Option(help="mini, public, or auto: mini for shipped models, else public.")
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
        kind: Any = typer.Argument(help=field.description)
    else:
        kind = typer.Option(help=field.description)
    return _keyword(name, Annotated[_plain_type(field), kind], default)


def _optional(benchmark: type[Benchmark], name: str) -> inspect.Parameter:
    """A field as an option of `eval all`, where None leaves it as each benchmark has it."""
    field = benchmark.model_fields[name]
    help_text = f"{benchmark.title}: {field.description}"
    kind = typer.Option(help=help_text)
    return _keyword(name, Annotated[_plain_type(field) | None, kind], None)


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

    required_first = sorted(parameters, key=lambda p: p.default is not inspect.Parameter.empty)
    command.__signature__ = inspect.Signature(required_first)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def _command(name: str, function: Callable[..., None], help_text: str | None) -> Any:
    """typer's command of a function, under a name."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(name, help=help_text)(function)
    return typer.main.get_command(app)
