"""One command, one verb per job. Bad input ends with one sentence on stderr and exit code 2."""

from __future__ import annotations

import io
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from secondlook import registry
from secondlook.cli.common import say, visible
from secondlook.cli.data import data_app
from secondlook.cli.drawing import draw, edit
from secondlook.cli.evals import eval_app, eval_resumes
from secondlook.cli.judging import ask, judge
from secondlook.cli.plan import plan
from secondlook.cli.push import push
from secondlook.cli.recipes import recipes_app
from secondlook.cli.show import show
from secondlook.cli.train import train_app
from secondlook.cli.usage import PROGRAM, UsageError, usage_sentence
from secondlook.end_request import TermInterrupts
from secondlook.errors import InputError, Stopped
from secondlook.io import disk_failure, interrupted, versions
from secondlook.models.shipped import locate
from secondlook.train.termination import restarts, tell, told

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Models that draw an image, take a second look, and draw again.",
)
app.add_typer(train_app, name="train")
app.add_typer(eval_app, name="eval")
app.add_typer(data_app, name="data")
app.add_typer(recipes_app, name="recipes")


def say_versions(asked: bool) -> None:
    """Print the version of this package and of those that results depend on, and end."""
    if asked:
        version_of_package = versions()
        own_version = version_of_package.pop(PROGRAM)
        others = ", ".join(f"{name} {version}" for name, version in version_of_package.items())
        say(f"{PROGRAM} {own_version} ({others})")
        raise typer.Exit


@app.callback()
def load_plugins(
    plugin: Annotated[
        list[str],
        typer.Option(
            help=(
                "A .py file or a module that registers rewards, benchmarks, prompts, …; may be "
                "given several times. Also: SECONDLOOK_PLUGINS."
            )
        ),
    ] = [],  # noqa: B006
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=say_versions, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Options before the command's name."""
    for name in plugin:
        registry.load_plugin(name)


for command in (draw, edit, judge, ask):
    app.command()(command)


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="A checkpoint folder or hub id, in either layout.")],
    target: Annotated[Path, typer.Argument(help="New folder for it in the other layout.")],
    shard_size: Annotated[str, typer.Option(help="Largest weight file.")] = "5GB",
) -> None:
    """Convert a checkpoint between the original "multi_modality" layout and transformers'."""
    from secondlook.models.janus import checkpoint

    layout = checkpoint.convert_checkpoint(checkpoint.fetch(locate(source)), target, shard_size)
    say(f"written to {target}, in the {layout} layout")


app.command()(show)
app.command()(plan)
app.command()(push)


RESUMED = ("train ", "data build ", "judge ")
"""Commands that go on with what an interrupted call of the same command has written."""


def main() -> None:
    """Entry point of the ``secondlook`` command: 0; 2 for input that cannot be used; 1 for a run
    that stopped itself or a disk that failed; 130 when interrupted, 143 by TERM."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # characters that the terminal's encoding lacks are escaped
            stream.reconfigure(errors="backslashreplace")
    # torchrun starts all ranks again when one ends; one that has ended for good told its exit code
    if restarts() and (exit_code := told()) is not None:
        sys.exit(exit_code)  # it has said why
    term = TermInterrupts()
    try:
        with term:
            exit_code = app(prog_name=PROGRAM, standalone_mode=False)
    except InputError as error:
        _end(2, str(error))
    except UsageError as error:
        _end(2, usage_sentence(error))
    except Stopped as stopped:
        _end(1, f"stopped: {stopped}")
    except (KeyboardInterrupt, typer.Abort):
        _end_interrupted(term)
    except SystemExit as ended:  # an end that was asked for, or a pipe that nobody reads
        if place := _foreign_exit(ended):
            _end(1, f"plugin: {place} ended the program with {ended.code!r}; let it raise an error")
        raise
    except BaseException as error:  # torch's CheckpointException is no Exception
        if interrupted(error):
            _end_interrupted(term)
        disk_reason = disk_failure(error)
        if disk_reason is None:
            raise
        _end(1, f"disk: {disk_reason}; the same command goes on when that is mended")
    if exit_code == 130:  # typer's, for an interruption
        _end_interrupted(term)
    sys.exit(exit_code or 0)


def _foreign_exit(ended: SystemExit) -> str:
    """The file and line of a plugin that called exit; "" where typer or the package did."""
    place = ""
    for frame, line in traceback.walk_tb(ended.__traceback__):
        module = str(frame.f_globals.get("__name__"))
        package = module.partition(".")[0]
        if package in ("secondlook", "typer", "click", "__main__"):
            place = ""
        elif package != "_sitebuiltins":  # Python's own exit()
            place = f"{Path(frame.f_code.co_filename).name}, line {line},"
    return place


def _end_interrupted(term: TermInterrupts) -> NoReturn:
    """End with 130, or 143 where it was TERM, and say whether the same command goes on with what is
    written."""
    words = sys.argv[1:]
    while words[:1] == ["--plugin"]:  # an option before the command's name
        words = words[2:]
    command_line = " ".join(words)
    draws_file = command_line.startswith("draw ") and " --prompts" in command_line
    is_resumed = command_line.startswith(RESUMED) or draws_file or eval_resumes(words)
    exit_code = 143 if term.came else 130
    _end(exit_code, "interrupted; the same command resumes it" if is_resumed else "interrupted")


def _end(exit_code: int, sentence: str) -> NoReturn:
    """Print one sentence, where there is one, to stderr and end."""
    if exit_code in (1, 2):  # a restart would end in the same way
        tell(exit_code)
    one_line = " ".join(sentence.strip().split("\n"))
    if one_line:
        print(f"{PROGRAM}: {visible(one_line)}", file=sys.stderr)
    sys.exit(exit_code)
