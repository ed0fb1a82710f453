"""One command, one verb per job. Bad input ends with one sentence on stderr and exit code 2."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from secondlook.model.shipped import locate
from secondlook.types import Episode, InputError, Prompt, Stopped

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Models that draw an image, take a second look, and draw again.",
)
train_app = typer.Typer(no_args_is_help=True, help="Train a part or a model.")
bench_app = typer.Typer(no_args_is_help=True, help="Measure a model.")
app.add_typer(train_app, name="train")
app.add_typer(bench_app, name="bench")
data_app = typer.Typer(no_args_is_help=True, help="Make training data.")
app.add_typer(data_app, name="data")
console = Console(highlight=False)

Model = Annotated[str, typer.Option(help="A shipped model's name, a checkpoint folder, or a hub id.")]
Out = Annotated[Path, typer.Option(help="Folder for the results.")]
Seed = Annotated[int, typer.Option(help="Seed; equal seeds give equal results.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, …")]
Config = Annotated[Path, typer.Option("--config", help="TOML file of the job.")]
Set = Annotated[list[str], typer.Option("--set", help="key=value, overrides the file.")]


def load_engine(model: str, device: str = "cpu", batch: int = 64):
    """The engine of a shipped model, a folder or a hub id."""
    from secondlook.engine.decode import Engine
    from secondlook.model.janus import Janus

    return Engine(Janus.load(model, device), batch)


def at_least(name: str, value: int, least: int = 1) -> None:
    if value < least:
        raise InputError(f"{name}: {value} is too few; it must be at least {least}")


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
    engine = load_engine(where, device)
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
) -> None:
    """Ask the model whether a picture matches a prompt: verdict, p(yes) and reason (greedy)."""
    from secondlook.files import read_image
    from secondlook.types import Request, Rule

    picture = read_image(image)
    engine = load_engine(model, device)
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
) -> None:
    """Ask the model a question about a picture (greedy)."""
    from secondlook.files import read_image
    from secondlook.types import Request, Rule

    at_least("max_tokens", max_tokens)
    picture = read_image(image)
    engine = load_engine(model, device)
    request = Request("ask", engine.protocol.ask(picture, question), 0)
    [turn] = engine.write([request], Rule("text", temperature=0.0), max_tokens)
    console.print(engine.protocol.words(turn.tokens))


@train_app.command("tokenizer")
def train_tokenizer(config: Config, out: Out = Path("out/tokenizer"), set_: Set = []) -> None:  # noqa: B006
    """Train the image tokenizer (VQ)."""
    from secondlook.train import tokenizer

    _train(tokenizer.train_tokenizer, tokenizer.TokenizerConfig, config, out, set_)


@train_app.command("vision")
def train_vision(config: Config, out: Out = Path("out/vision"), set_: Set = []) -> None:  # noqa: B006
    """Pretrain the seeing encoder."""
    from secondlook.train import vision

    _train(vision.train_vision, vision.VisionConfig, config, out, set_)


@train_app.command("base")
def train_base(config: Config, out: Out = Path("out/base"), set_: Set = []) -> None:  # noqa: B006
    """Pretrain a base model."""
    from secondlook.train import base

    _train(base.train_base, base.BaseConfig, config, out, set_)


@train_app.command("sft")
def train_sft(config: Config, out: Out = Path("out/sft"), set_: Set = []) -> None:  # noqa: B006
    """Stage 1: supervised fine-tuning on draw, judge and redraw."""
    from secondlook.train import sft

    _train(sft.train_sft, sft.SFTConfig, config, out, set_)


@train_app.command("grpo")
def train_grpo(config: Config, out: Out = Path("out/grpo"), set_: Set = []) -> None:  # noqa: B006
    """Stage 2: GRPO on whole episodes."""
    from secondlook.train import grpo

    _train(grpo.train_grpo, grpo.GRPOConfig, config, out, set_)


@data_app.command("sample")
def data_sample(config: Config, out: Out = Path("out/data"), set_: Set = []) -> None:  # noqa: B006
    """Draw pictures of prompts and score them: what supervised fine-tuning is taught from."""
    from secondlook import config as configs
    from secondlook.data import sample
    from secondlook.files import writable_folder
    from secondlook.rewards.verifier import Verifier

    loaded = configs.load(sample.SampleConfig, config, set_)
    where = locate(loaded.model)
    writable_folder(out)
    sample.sample(loaded, load_engine(where, loaded.device, loaded.batch), Verifier(), out)
    console.print(f"written to {out}: images-*.parquet, manifest.json")


def _train(job: Any, kind: Any, config: Path, out: Path, settings: list[str]) -> None:
    from secondlook import config as configs
    from secondlook.files import writable_folder

    loaded = configs.load(kind, config, settings)
    writable_folder(out)
    job(loaded, out)
    console.print(f"written to {out}")


@bench_app.command("geneval")
def bench_geneval(
    model: Model = "mini",
    out: Out = Path("out/geneval"),
    samples: Annotated[int, typer.Option(help="Images a prompt.")] = 4,
    rounds: Annotated[int, typer.Option(help="At most this many images an episode.")] = 3,
    seed: Seed = 0,
    split: Annotated[str, typer.Option(help="held-out or seen compositions.")] = "held-out",
    rows_per_task: Annotated[int, typer.Option(help="Prompts a task.")] = 80,
    guidance: Annotated[float | None, typer.Option(help="Default: the checkpoint's own.")] = None,
    batch: Annotated[int, typer.Option(help="Episodes decoded together.")] = 96,
    device: Device = "cpu",
) -> None:
    """Mini-GenEval: first and final image, per task and overall, with the model as its own judge."""
    from secondlook.bench import geneval

    settings = geneval.Settings(model, samples, rounds, seed, split, rows_per_task)
    _bench(geneval, settings, guidance, out, batch, device)
    show(out)
    console.print(f"written to {out}: result.json, episodes.json, geneval.html")


def _bench(bench: Any, settings: Any, guidance: float | None, out: Path, batch: int, device: str) -> None:
    """Run and write a benchmark that samples mini-GenEval's prompts."""
    from dataclasses import replace

    from rich.progress import Progress

    from secondlook.files import writable_folder
    from secondlook.introspect import Sampling
    from secondlook.world.language import benchmark

    benchmark(settings.split)
    at_least("batch", batch)
    where = locate(settings.model)
    writable_folder(out)
    engine = load_engine(where, device, batch)
    sampling = Sampling.of(engine.janus.net.generation_config)
    if guidance is not None:
        sampling = replace(sampling, guidance=guidance)
    settings = replace(settings, guidance=sampling.guidance)
    with Progress() as progress:
        bar = progress.add_task(out.name, total=None)
        scored = bench.run(engine, settings, sampling, lambda n, of: progress.update(bar, completed=n, total=of))
    bench.write(out, scored, settings)


@bench_app.command("curve")
def bench_curve(
    model: Model = "mini",
    out: Out = Path("out/curve"),
    most: Annotated[int, typer.Option(help="Most rounds, and largest N.")] = 5,
    samples: Annotated[int, typer.Option(help="Episodes a prompt.")] = 4,
    seed: Seed = 0,
    split: Annotated[str, typer.Option(help="held-out or seen compositions.")] = "held-out",
    rows_per_task: Annotated[int, typer.Option(help="Prompts a task.")] = 80,
    batch: Annotated[int, typer.Option(help="Images decoded together.")] = 96,
    device: Device = "cpu",
) -> None:
    """Introspection over rounds beside best-of-N by the model's own judge, at equal numbers of drawn codes."""
    from secondlook.bench import curve

    settings = curve.Settings(model, most, samples, seed, split, rows_per_task)
    _bench(curve, settings, None, out, batch, device)
    console.print(f"written to {out}: result.json, curve.png")


@bench_app.command("compare")
def bench_compare(
    results: Annotated[list[str], typer.Argument(help="NAME=FOLDER, each folder with geneval/ and perhaps curve/ in it.")],
    out: Out = Path("out/report"),
    notes: Annotated[str, typer.Option(help="A sentence for the head of the report.")] = "",
) -> None:
    """A report of several models' results side by side, with paired differences."""
    from secondlook.bench import compare
    from secondlook.files import writable_folder

    pairs = [r.partition("=") for r in results]
    for name, found, folder in pairs:
        if not (name and found and folder):
            raise InputError(f"results: {name!r} is not NAME=FOLDER; write for example base=out/mini/base")
    measured = [compare.read(name, Path(folder)) for name, _, folder in pairs]
    writable_folder(out)
    compare.write(out, measured, notes)
    console.print(f"written to {out}: report.html, report.md, result.json")


@bench_app.command("questions")
def bench_questions(
    model: Model = "mini",
    out: Out = Path("out/questions"),
    questions: Annotated[int, typer.Option(help="How many.")] = 1000,
    device: Device = "cpu",
) -> None:
    """Questions about pictures of unseen scenes."""
    from secondlook.bench import questions as bench
    from secondlook.files import writable_folder

    settings = bench.Settings(model, questions)
    where = locate(model)
    writable_folder(out)
    with console.status("asking …"):
        result = bench.run(load_engine(where, device), settings)
    bench.write(out, result)
    for kind, row in result["kinds"].items():
        console.print(f"  {kind:12} {row['accuracy']:.3f}  ({row['questions']})")
    there = result["is_there"]["balanced_accuracy"]
    console.print(f"  is there …?  balanced accuracy {there['mean']:.3f} [{there['low']:.3f}, {there['high']:.3f}]")


@app.command()
def show(folder: Annotated[Path, typer.Argument(help="A folder that draw, bench or train wrote.")]) -> None:
    """Print what a folder holds: an episode, a benchmark's result, or a training run (plotted to curves.png)."""
    if not folder.is_dir():
        raise InputError(f"folder: {str(folder)!r} is not a folder; give one that draw, bench or train wrote")
    episodes = [folder / "episode.json"] if (folder / "episode.json").exists() else sorted(folder.glob("*/episode.json"))
    if episodes:
        for path in episodes:
            _show_episode(path)
    elif (folder / "result.json").exists():
        _show_result(json.loads((folder / "result.json").read_text()))
    elif (folder / "metrics.jsonl").exists():
        from secondlook.report import curves

        lines = (folder / "metrics.jsonl").read_text().splitlines()
        if not lines:
            raise InputError(f"folder: {str(folder)!r} has no metrics yet; wait for the first row")
        for name, value in json.loads(lines[-1]).items():
            console.print(f"  {name:14} {value:.4g}")
        console.print(f"curves: {curves(folder)}")
    else:
        raise InputError(f"folder: {str(folder)!r} holds no episode.json, result.json or metrics.jsonl")


def _show_episode(path: Path) -> None:
    e = json.loads(path.read_text())
    console.print(f"[bold]{e['prompt']}[/bold]  [dim]seed {e['seed']}, {path.parent}[/dim]")
    for i, r in enumerate(e["rounds"], 1):
        final = "  <- final" if i == e["final"] else ""
        console.print(f"  {r['image']}: {'Yes' if r['yes'] else 'No '} p(yes) {r['p_yes']:.2f}  {r['reason']}{final}")


def _show_result(result: dict) -> None:
    if "tasks" not in result:
        console.print_json(data=result)
        return

    def cell(x: dict) -> str:
        return f"{x['mean']:.3f} [{x['low']:.3f}, {x['high']:.3f}]"

    table = Table("task", "first image", "final image", "gain")
    for name, row in {"overall": result["overall"], **result["tasks"]}.items():
        table.add_row(name, cell(row["first"]), cell(row["final"]), cell(row["gain"]))
    console.print(table)
    b, p, j, r = result["binding"], result["position"], result["judge"], result["redraws"]
    console.print(f"bound, given both objects and colours: {cell(b['bound'])} (chance 0.5, {b['images']} images)")
    console.print(f"relation, given both objects: {cell(p['given_both'])} (chance {p['chance']:.2f}, {p['images']} images)")
    for name, row in j.items():
        console.print(
            f"judge, {name}: accuracy {row['accuracy']:.3f}, balanced {cell(row['balanced_accuracy'])}, "
            f"kappa {row['kappa']:.3f}, says yes {row['always_yes_rate']:.3f}"
        )
    console.print(f"redraws: fixed {r['fixed']:.3f} of {r['wrong']} wrong, broke {r['broken']:.3f} of {r['right']} right")


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


if __name__ == "__main__":
    main()
