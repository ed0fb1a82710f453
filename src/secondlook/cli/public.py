"""The public benchmarks, and all benchmarks of a model at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secondlook.cli.common import Attention, Device, Dtype, Model, Out, Seed, at_least, console, load_engine, own_device
from secondlook.model.shipped import SHIPPED, locate
from secondlook.types import InputError

if TYPE_CHECKING:
    from secondlook.bench.scorers import Judges

public_app = typer.Typer()

Data = Annotated[Path | None, typer.Option(help="A folder with the benchmarks' files; default: fetched, revisions pinned.")]
Images = Annotated[Path | None, typer.Option(help="The folder of pictures that gedit's and pope's rows name.")]
Detector = Annotated[str, typer.Option(help="GenEval: a Mask2Former of COCO's classes.")]
Clip = Annotated[str, typer.Option(help="GenEval's colours, non-spatial and PIE-Bench's similarities: a CLIP.")]
Vqa = Annotated[
    str, typer.Option(help="compbench, dsg, dpg, gedit: a BLIP or a vision-language model; with --url its name there.")
]
Url = Annotated[str, typer.Option(help="An OpenAI-compatible endpoint that serves it.")]
Dino = Annotated[str, typer.Option(help="PIE-Bench's structure distance: a DINO.")]
Only = Annotated[int, typer.Option(help="The first rows alone; 0: all.")]


def _judges(detector: str, clip: str, vqa: str, url: str, dino: str, device: str) -> Judges:
    from secondlook.bench.scorers import Judges

    default = Judges()
    return Judges(
        detector or default.detector, clip or default.clip, vqa or default.vqa, url, dino or default.dino, own_device(device)
    )


@public_app.command("public")
def bench_public(
    name: Annotated[str, typer.Argument(help="geneval, geneval-long, compbench, dsg, dpg, pie, gedit or pope.")],
    model: Model,
    out: Annotated[Path | None, typer.Option(help="Folder for the results; default: out/NAME.")] = None,
    data: Data = None,
    images: Images = None,
    samples: Annotated[int, typer.Option(help="Images a prompt; 0: the benchmark's own number.")] = 0,
    rounds: Annotated[int, typer.Option(help="At most this many images an episode.")] = 3,
    fresh: Annotated[
        int, typer.Option(help="Independent images beside each episode, for best-of-N (rounds - 1 for a curve).")
    ] = 0,
    only: Only = 0,
    detector: Detector = "",
    clip: Clip = "",
    vqa: Vqa = "",
    url: Url = "",
    dino: Dino = "",
    seed: Seed = 0,
    guidance: Annotated[float | None, typer.Option(help="Of drawing and editing; default: the checkpoint's own.")] = None,
    batch: Annotated[int, typer.Option(help="Episodes decoded together.")] = 32,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    attention: Attention = "sdpa",
) -> None:
    """A public benchmark: pictures are drawn, then scored; resumes, and under torchrun every GPU takes its share."""
    at_least("batch", batch)
    how: dict[str, Any] = {"device": own_device(device), "batch": batch, "dtype": dtype, "attention": attention}
    judges = _judges(detector, clip, vqa, url, dino, device)
    place = out or Path("out") / name
    if name == "pope":
        _pope(locate(model), place, data, images, only, how)
        return
    _public(name, model, place, data, images, samples, rounds, fresh, only, judges, seed, guidance, how)


def _public(
    name: str,
    model: str,
    out: Path,
    data: Path | None,
    images: Path | None,
    samples: int,
    rounds: int,
    fresh: int,
    only: int,
    judges: Judges,
    seed: int,
    guidance: float | None,
    how: dict[str, Any],
) -> dict | None:
    from dataclasses import replace

    from rich.progress import Progress
    from transformers import GenerationConfig

    from secondlook.bench import public
    from secondlook.files import writable_folder
    from secondlook.introspect import Sampling

    benchmark, where = public.get(name), locate(model)
    try:
        own = GenerationConfig.from_pretrained(where)
    except OSError:
        own = GenerationConfig()
    sampling = Sampling.of(own)
    if guidance is not None:
        sampling = replace(sampling, guidance=guidance, edit_guidance=guidance)
    benchmark.rows(data, images)
    settings = public.Settings(
        name,
        model,
        samples or benchmark.samples,
        rounds,
        fresh,
        seed,
        sampling.guidance,
        sampling.edit_guidance,
        only,
        public.judge_of(benchmark, judges),
    )
    writable_folder(out)
    with Progress(console=console) as progress:
        bars = {what: progress.add_task(what, total=None) for what in ("drawing", "scoring")}

        def told(what: str, n: int, of: int) -> None:
            progress.update(bars[what], completed=n, total=of)

        result = public.run(settings, lambda: load_engine(where, **how), sampling, judges, out, data, images, told)
    if result is None:
        console.print(f"{name}: this process's share is done; the others' are not")
        return None
    text = "{mean:.3f} [{low:.3f}, {high:.3f}]"
    for task, row in {"overall": result["overall"], **result["tasks"]}.items():
        console.print(f"  {task:16} first {text.format(**row['first'])}  final {text.format(**row['final'])}")
    console.print(f"written to {out}: result.json, benchmark.html, pictures")
    return result


def _pope(model: str, out: Path, data: Path | None, images: Path | None, only: int, how: dict[str, Any]) -> dict:
    from rich.progress import Progress

    from secondlook.bench import pope
    from secondlook.files import writable_folder

    if images is None:
        raise InputError("images: POPE's pictures are needed; give the folder of COCO's val2014")
    settings = pope.Settings(model, str(images), only)
    asked = pope.chosen(settings, data)
    writable_folder(out)
    engine = load_engine(model, **how)
    with Progress(console=console) as progress:
        bar = progress.add_task("asking", total=None)
        texts = pope.run(engine, settings, asked, lambda n, of: progress.update(bar, completed=n, total=of))
    result = pope.write(out, asked, texts, settings)
    for split, row in result["splits"].items():
        f1 = "{mean:.3f} [{low:.3f}, {high:.3f}]".format(**row["f1"])
        console.print(f"  {split:12} F1 {f1}  accuracy {row['accuracy']:.3f}  yes {row['yes_rate']:.3f}")
    console.print(f"written to {out}: result.json, answers.json, pope.html")
    return result


MINI = ("geneval", "curve", "questions", "editing")


@public_app.command("all")
def bench_all(
    model: Model,
    out: Out = Path("out/all"),
    on: Annotated[str, typer.Option(help="mini, public, or auto: mini for shipped models, else public.")] = "auto",
    data: Data = None,
    images: Images = None,
    rounds: Annotated[int, typer.Option(help="At most this many images an episode.")] = 3,
    only: Annotated[int, typer.Option(help="The first rows (mini: rows of each task) alone; 0: all.")] = 0,
    detector: Detector = "",
    clip: Clip = "",
    vqa: Vqa = "",
    url: Url = "",
    dino: Dino = "",
    seed: Seed = 0,
    batch: Annotated[int, typer.Option(help="Episodes decoded together.")] = 32,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    attention: Attention = "sdpa",
) -> None:
    """Every benchmark that the model and the data allow, each in a folder of its own, and one page over them all."""
    from secondlook.bench.overview import write
    from secondlook.bench.public import BENCHMARKS
    from secondlook.cli import bench
    from secondlook.files import same_config, writable_folder, write_json

    if on not in ("auto", "mini", "public"):
        raise InputError(f"on: {on!r} is unknown; use auto, mini or public")
    at_least("batch", batch)
    where = locate(model)
    writable_folder(out)
    settings = {"model": model, "rounds": rounds, "only": only, "seed": seed, "dtype": dtype}
    same_config(out, settings)
    write_json(out / "config.json", settings)
    how: dict[str, Any] = {"device": own_device(device), "batch": batch, "dtype": dtype, "attention": attention}
    skipped: dict[str, str] = {}
    if on == "mini" or (on == "auto" and model in SHIPPED):
        rows = only or 80
        given: dict[str, Any] = {"model": model, "device": device, "dtype": dtype, "attention": attention}
        sampled = given | {"seed": seed, "batch": batch}
        for name in MINI:
            if (out / name / "result.json").exists():
                continue
            match name:
                case "geneval":
                    bench.bench_geneval(out=out / name, rounds=rounds, rows_per_task=rows, **sampled)
                case "curve":
                    bench.bench_curve(out=out / name, rows_per_task=rows, **sampled)
                case "questions":
                    bench.bench_questions(out=out / name, questions=rows * 10, **given)
                case "editing":
                    bench.bench_editing(out=out / name, rounds=rounds, rows_per_kind=rows, **sampled)
    else:
        judges = _judges(detector, clip, vqa, url, dino, device)
        for name in (*BENCHMARKS, "pope"):
            try:
                if name == "pope":
                    _pope(where, out / name, data, images, only, how)
                else:
                    fresh = rounds - 1 if name not in ("pie", "gedit") else 0
                    _public(name, model, out / name, data, images, 0, rounds, fresh, only, judges, seed, None, how)
            except InputError as error:
                skipped[name] = str(error)
                console.print(f"[dim]{name}: skipped: {error}[/dim]")
    result = write(out, settings, skipped)
    console.print(f"written to {out}: all.html, result.json ({len(result['benchmarks'])} benchmarks, {len(skipped)} skipped)")
