"""One command, one verb per job. Bad input ends with one sentence on stderr and exit code 2."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from secondlook.cli.bench import bench_app
from secondlook.cli.common import Attention, Device, Dtype, Model, Out, Seed, at_least, console, load_engine
from secondlook.cli.plan import plan
from secondlook.cli.show import show
from secondlook.cli.train import data_app, train_app
from secondlook.model.shipped import locate
from secondlook.types import Episode, InputError, Prompt, Stopped

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Models that draw an image, take a second look, and draw again.",
)
app.add_typer(train_app, name="train")
app.add_typer(bench_app, name="bench")
app.add_typer(data_app, name="data")


@app.command()
def draw(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    model: Model = "mini",
    rounds: Annotated[int, typer.Option(help="At most this many images.")] = 3,
    n: Annotated[int, typer.Option("--n", help="Episodes to draw.")] = 4,
    seed: Seed = 0,
    guidance: Annotated[float | None, typer.Option(help="Classifier-free guidance; default: the checkpoint's own.")] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 1.0,
    out: Out = Path("out/draw"),
    device: Device = "cpu",
    dtype: Dtype = "auto",
    attention: Attention = "sdpa",
) -> None:
    """Draw a prompt, look at the image, judge it, and redraw while the verdict is No."""
    from dataclasses import asdict, replace

    from secondlook.files import writable_folder
    from secondlook.introspect import Sampling, introspect
    from secondlook.report import write_episode

    at_least("n", n)
    at_least("rounds", rounds)
    if temperature < 0:
        raise InputError(f"temperature: {temperature} is negative; use 0 for greedy or a positive number")
    if not prompt.strip():
        raise InputError("prompt: it is empty; say what to draw")
    where = locate(model)
    writable_folder(out)
    engine = load_engine(where, device, dtype=dtype, attention=attention)
    sampling = replace(Sampling.of(engine.janus.net.generation_config), temperature=temperature)
    if guidance is not None:
        sampling = replace(sampling, guidance=guidance)
    with console.status("drawing, looking, redrawing …"):
        episodes = introspect(engine, [Prompt(prompt)] * n, list(range(seed, seed + n)), rounds, sampling)
    settings = {"model": model, "max_rounds": rounds} | asdict(sampling)
    for i, episode in enumerate(episodes, 1):
        folder = out if n == 1 else out / str(i)
        write_episode(folder, episode, settings)
        _print_episode(episode, f"{i}/{n}" if n > 1 else "")
    console.print(
        f"written to {out}: round-1.png …, final.png, episode.json, episode.html" + (" (one folder each)" if n > 1 else "")
    )


def _print_episode(episode: Episode, which: str) -> None:
    console.print(f"[bold]{episode.prompt.text}[/bold]  [dim]seed {episode.seed} {which}[/dim]")
    for i, r in enumerate(episode.rounds, 1):
        verdict = "[green]Yes[/green]" if r.yes else "[red]No [/red]"
        final = "  [blue]<- final[/blue]" if i - 1 == episode.final else ""
        console.print(f"  round {i}: {verdict} p(yes) {r.p_yes:.2f}  {r.reason}{final}")


@app.command()
def judge(
    image: Annotated[Path, typer.Argument(help="The picture to judge.")],
    prompt: Annotated[str, typer.Argument(help="What it should show.")],
    model: Model = "mini",
    device: Device = "cpu",
    dtype: Dtype = "auto",
    attention: Attention = "sdpa",
) -> None:
    """Ask the model whether a picture matches a prompt: verdict, p(yes) and reason (greedy)."""
    from secondlook.files import read_image
    from secondlook.types import Request, Rule

    picture = read_image(image)
    engine = load_engine(model, device, dtype=dtype, attention=attention)
    protocol = engine.protocol
    rule = Rule("text", temperature=0.0, first=(protocol.yes, protocol.no))
    [turn] = engine.write([Request("judge", protocol.judge(prompt, [picture], []), 0)], rule)
    verdict = "Yes" if turn.tokens[0] == protocol.yes else "No"
    console.print(f"{verdict}  p(yes) {turn.p_yes:.3f}  {protocol.words(turn.tokens[1:]).lstrip(', ')}")


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
    from secondlook.files import read_image
    from secondlook.types import Request, Rule

    at_least("max_tokens", max_tokens)
    picture = read_image(image)
    engine = load_engine(model, device, dtype=dtype, attention=attention)
    request = Request("ask", engine.protocol.ask(picture, question), 0)
    [turn] = engine.write([request], Rule("text", temperature=0.0), max_tokens)
    console.print(engine.protocol.words(turn.tokens))


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="A checkpoint folder or hub id, in either layout.")],
    target: Annotated[Path, typer.Argument(help="New folder for it in the other layout.")],
    shard_size: Annotated[str, typer.Option(help="Largest weight file.")] = "5GB",
) -> None:
    """Convert a checkpoint between the original "multi_modality" layout and transformers'."""
    from secondlook.model import checkpoint

    layout = checkpoint.convert_checkpoint(checkpoint.fetch(locate(source)), target, shard_size)
    console.print(f"written to {target}, in the {layout} layout")


app.command()(show)
app.command()(plan)


def main() -> None:
    """Entry point of the ``secondlook`` command."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        app()
    except InputError as error:
        print(f"secondlook: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stopped:
        print(f"secondlook: stopped: {stopped}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("secondlook: interrupted; a training run resumes with the same command", file=sys.stderr)
        sys.exit(130)
