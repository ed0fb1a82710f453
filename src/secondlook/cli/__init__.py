"""One command, one verb per job. Bad input ends with one sentence on stderr and exit code 2."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from secondlook import registry
from secondlook.cli.common import (
    Attention,
    Device,
    Dtype,
    Model,
    Out,
    Seed,
    at_least,
    console,
    load_engine,
    name_left_out,
    progress_bar,
    say,
    visible,
)
from secondlook.cli.data import data_app
from secondlook.cli.evals import eval_app, eval_resumes
from secondlook.cli.plan import plan
from secondlook.cli.show import show
from secondlook.cli.train import train_app
from secondlook.errors import InputError, Stopped
from secondlook.io import check_unicode, disk_failure, finite, interrupted
from secondlook.models.shipped import locate
from secondlook.train.termination import restarts, tell, told
from secondlook.types import Episode, Prompt

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Models that draw an image, take a second look, and draw again.",
)
app.add_typer(train_app, name="train")
app.add_typer(eval_app, name="eval")
app.add_typer(data_app, name="data")


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
) -> None:
    """Options before the command's name."""
    for name in plugin:
        registry.load_plugin(name)


@app.command()
def draw(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    model: Model = "mini",
    rounds: Annotated[int, typer.Option(help="At most this many images.")] = 3,
    n: Annotated[int, typer.Option("--n", help="Episodes to draw.")] = 4,
    seed: Seed = 0,
    guidance: Annotated[
        float | None, typer.Option(help="Classifier-free guidance; default: the checkpoint's own.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 1.0,
    out: Out = Path("out/draw"),
    device: Device = "cpu",
    dtype: Dtype = "auto",
    attention: Attention = "sdpa",
) -> None:
    """Draw a prompt, look at the image, judge it, and redraw while the verdict is No."""
    from dataclasses import asdict, replace

    from secondlook.episode import SamplingConfig, run_episodes
    from secondlook.io import writable_folder
    from secondlook.report import forget_episodes, write_episode

    at_least("n", n)
    at_least("rounds", rounds)
    check_temperature(temperature)
    check_guidance(guidance)
    prompt = check_unicode(prompt, "prompt")
    if not prompt.strip():
        raise InputError("prompt: it is empty; say what to draw")
    where = locate(model)
    writable_folder(out)
    engine = load_engine(where, device, dtype=dtype, attention=attention)
    sampling = replace(
        SamplingConfig.of(engine.janus.net.generation_config), temperature=temperature
    )
    if guidance is not None:
        sampling = replace(sampling, guidance=guidance)
    with console.status("drawing, looking, redrawing …"):
        episodes = run_episodes(
            engine, [Prompt(prompt)] * n, list(range(seed, seed + n)), rounds, sampling
        )
    settings = {"model": model, "max_rounds": rounds} | asdict(sampling)
    forget_episodes(out)
    for i, episode in enumerate(episodes, 1):
        write_episode(out if n == 1 else out / str(i), episode, settings)
    for i, episode in enumerate(episodes, 1):
        _print_episode(episode, f"{i}/{n}" if n > 1 else "")
    folders = " (one folder each)" if n > 1 else ""
    say(f"written to {out}: round-1.png …, final.png, episode.json, episode.html{folders}")


@app.command()
def edit(
    image: Annotated[Path, typer.Argument(help="The picture to edit.")],
    instructions: Annotated[
        list[str], typer.Argument(help="What to change; several are carried out one after another.")
    ],
    model: Model = "mini-edit",
    rounds: Annotated[int, typer.Option(help="At most this many images an instruction.")] = 3,
    seed: Seed = 0,
    guidance: Annotated[
        float | None, typer.Option(help="Classifier-free guidance; default: the checkpoint's own.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 1.0,
    out: Out = Path("out/edit"),
    device: Device = "cpu",
    dtype: Dtype = "auto",
    attention: Attention = "sdpa",
) -> None:
    """Edit a picture, look at the edit, judge it, and edit again while the verdict is No."""
    from dataclasses import asdict, replace

    from secondlook.episode import SamplingConfig, run_episodes
    from secondlook.io import read_image, writable_folder, write_image
    from secondlook.report import forget_episodes, write_episode

    at_least("rounds", rounds)
    check_temperature(temperature)
    check_guidance(guidance)
    for instruction in instructions:
        if not check_unicode(instruction, "instruction").strip():
            raise InputError("instruction: it is empty; say what to change")
    source, codes = read_image(image), tuple[int, ...]()
    where = locate(model)
    writable_folder(out)
    engine = load_engine(where, device, dtype=dtype, attention=attention)
    sampling = replace(
        SamplingConfig.of(engine.janus.net.generation_config), temperature=temperature
    )
    if guidance is not None:
        sampling = replace(sampling, edit_guidance=guidance)
    settings = {"model": model, "image": str(image), "max_rounds": rounds} | asdict(sampling)
    forget_episodes(out)
    episodes = []
    for i, instruction in enumerate(instructions, 1):
        with console.status("editing, looking, editing again …"):
            [episode] = run_episodes(
                engine, [Prompt(instruction, source, codes)], [seed + i - 1], rounds, sampling
            )
        episodes.append(episode)
        write_episode(out if len(instructions) == 1 else out / str(i), episode, settings)
        source, codes = episode.rounds[episode.final].image, episode.rounds[episode.final].codes
    if len(instructions) > 1:
        write_image(out / "final.png", source)
    for i, episode in enumerate(episodes, 1):
        _print_episode(episode, f"{i}/{len(episodes)}" if len(episodes) > 1 else "")
    several = (
        " (one folder an instruction, final.png of the last beside them)"
        if len(instructions) > 1
        else ""
    )
    console.print(
        f"written to {out}: source.png, round-1.png …, final.png, episode.json, "
        f"episode.html{several}"
    )


def check_temperature(temperature: float) -> None:
    if temperature != 0 and not finite(temperature, 0.001, 1000):
        raise InputError(
            f"temperature: {temperature} is no temperature; use 0 for greedy, or a number from "
            "0.001 to 1000"
        )


def check_guidance(guidance: float | None) -> None:
    if guidance is not None and not finite(guidance, 0, 1000):
        raise InputError(
            f"guidance: {guidance} is no scale of guidance; give a number from 0 to 1000, 1 for "
            "none"
        )


def _print_episode(episode: Episode, which: str) -> None:
    say((episode.prompt.text, "bold"), (f"  seed {episode.seed} {which}", "dim"))
    for i, r in enumerate(episode.rounds, 1):
        verdict = ("Yes", "green") if r.yes else ("No ", "red")
        final = ("  <- final", "blue") if i - 1 == episode.final else ""
        say(f"  round {i}: ", verdict, f" p(yes) {r.p_yes:.2f}  {r.reason}", final)


@app.command()
def judge(
    images: Annotated[
        Path, typer.Argument(help="A picture, a folder, or a .jsonl or .parquet of pairs.")
    ],
    prompt: Annotated[
        str,
        typer.Argument(help="What it should show; of several pictures, those without a prompt."),
    ] = "",
    source: Annotated[
        Path | None,
        typer.Option(help="The picture that was edited; the prompt is then the instruction."),
    ] = None,
    model: Annotated[
        str, typer.Option(help="As elsewhere; default: mini, or mini-edit if there is a source.")
    ] = "",
    threshold: Annotated[float, typer.Option(help="P(Yes) above which the verdict is Yes.")] = 0.5,
    calibration: Annotated[
        Path | None, typer.Option(help="A folder of eval mini-judging, whose threshold is used.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the verdicts on several pictures.")] = Path(
        "out/judge"
    ),
    batch: Annotated[int, typer.Option(help="Pictures judged together.")] = 64,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    attention: Attention = "sdpa",
) -> None:
    """Ask the model whether pictures match their prompts: verdict, p(yes) and reason (greedy)."""
    from secondlook.data.labelled_images import is_list, lines_of, read_pairs
    from secondlook.data.prompts import check_prompts
    from secondlook.evals import evaluator
    from secondlook.io import read_json, writable_folder

    at_least("batch", batch)
    if calibration is not None:
        overall = read_json(calibration / "result.json", dict).get("overall")
        found = overall.get("calibrated") if isinstance(overall, dict) else None
        if not isinstance(found, dict) or not finite(found.get("threshold"), 0, 1):
            raise InputError(
                f"calibration: {str(calibration)!r} has no threshold; give a folder that eval "
                "mini-judging wrote"
            )
        threshold = found["threshold"]
    if not finite(threshold, 0, 1):
        raise InputError(f"threshold: {threshold} is no probability; it must lie between 0 and 1")
    left_out: list[str] = []
    pairs = read_pairs(images, prompt, source, left_out.append)
    model = model or ("mini-edit" if any(pair.source for pair in pairs) else "mini")
    where = locate(model)
    if not is_list(images):
        pairs[0].open()
    else:
        writable_folder(out)
    engine = load_engine(where, device, batch, dtype, attention)
    check_prompts(engine.template, lines_of(pairs))
    if not is_list(images):
        [row] = evaluator.evaluate(engine, pairs, threshold)
        say(f"{'Yes' if row['yes'] else 'No'}  p(yes) {row['p_yes']:.3f}  {row['reason']}")
        return
    settings = evaluator.Settings(model, str(images), threshold, str(source) if source else "")
    with progress_bar() as progress:
        bar = progress.add_task("judging", total=len(pairs))
        for n in evaluator.write(engine, pairs, settings, out):
            progress.update(bar, completed=n)
    result = read_json(out / "result.json", dict)
    speed = f", {result['images_per_second']:.1f} images/s" if result["images_per_second"] else ""
    say(f"{result['yes']} of {result['pairs']} match (p(yes) above {threshold:.3f}){speed}")
    name_left_out("no picture, left out", left_out)
    name_left_out("not judged", result["unreadable"])
    say(f"written to {out}: verdicts.jsonl, result.json")


@app.command()
def ask(
    image: Annotated[Path, typer.Argument(help="The picture to ask about.")],
    question: Annotated[str, typer.Argument(help="The question.")],
    model: Model = "mini",
    max_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 64,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    attention: Attention = "sdpa",
) -> None:
    """Ask the model a question about a picture (greedy)."""
    from secondlook.io import read_image
    from secondlook.types import Request, SamplingParams

    at_least("max_tokens", max_tokens)
    picture = read_image(image)
    engine = load_engine(model, device, dtype=dtype, attention=attention)
    request = Request("ask", engine.template.ask(picture, question), 0)
    [turn] = engine.write([request], SamplingParams("text", temperature=0.0), max_tokens)
    say(engine.template.words(turn.tokens))


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


RESUMED = ("train ", "data build ", "judge ")
"""Commands that go on with what an interrupted call of the same command has written."""


def main() -> None:
    """Entry point of the ``secondlook`` command: 0; 2 for input that cannot be used; 1 for a run
    that stopped itself or a disk that failed; 130 when interrupted."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(
            stream, io.TextIOWrapper
        ):  # characters that the terminal's encoding lacks are escaped
            stream.reconfigure(errors="backslashreplace")
    if restarts() and (code := told()) is not None:
        sys.exit(code)  # it has said why
    try:
        app()
    except InputError as error:
        _end(2, str(error))
    except Stopped as stopped:
        _end(1, f"stopped: {stopped}")
    except KeyboardInterrupt:
        _end_interrupted()
    except SystemExit as ended:
        if ended.code == 130:  # typer's, for an interruption
            _end_interrupted()
        raise
    except BaseException as error:  # torch's CheckpointException is no Exception
        if interrupted(error):
            _end_interrupted()
        reason = disk_failure(error)
        if reason is None:
            raise
        _end(1, f"disk: {reason}; the same command goes on when that is mended")


def _end_interrupted() -> NoReturn:
    words = sys.argv[1:]
    while words[:1] == ["--plugin"]:
        words = words[2:]
    resumed = " ".join(words).startswith(RESUMED) or eval_resumes(words)
    _end(130, "interrupted; the same command resumes it" if resumed else "interrupted")


def _end(code: int, sentence: str) -> NoReturn:
    if code in (1, 2):
        tell(code)
    line = " ".join(sentence.strip().split("\n"))
    print(f"secondlook: {visible(line)}", file=sys.stderr)
    sys.exit(code)
