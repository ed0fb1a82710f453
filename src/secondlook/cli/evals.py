"""The public benchmarks, and all benchmarks of a model at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secondlook.cli.common import (
    Attention,
    Device,
    Dtype,
    Model,
    Out,
    Seed,
    at_least,
    interval,
    load_engine,
    name_left_out,
    own_device,
    progress_bar,
    say,
)
from secondlook.errors import InputError, Stopped
from secondlook.models.shipped import SHIPPED, locate

if TYPE_CHECKING:
    from secondlook.evals.rows import Row
    from secondlook.evals.scorers.benchmarks import Judges

public_app = typer.Typer()

Data = Annotated[
    Path | None,
    typer.Option(help="A folder with the benchmarks' files; default: fetched, revisions pinned."),
]
Images = Annotated[
    Path | None, typer.Option(help="The folder of pictures that gedit's and pope's rows name.")
]
Detector = Annotated[str, typer.Option(help="GenEval: a Mask2Former of COCO's classes.")]
Clip = Annotated[
    str,
    typer.Option(help="GenEval's colours and PIE-Bench's similarities: a CLIP; default: ViT-L/14."),
]
ClipScore = Annotated[
    str,
    typer.Option(help="compbench's non-spatial prompts: a CLIP; default: ViT-B/32, as published."),
]
Vqa = Annotated[
    str,
    typer.Option(
        help=(
            "compbench, dsg, dpg, gedit: a BLIP or a vision-language model; with "
            "--url its name there."
        )
    ),
]
Url = Annotated[str, typer.Option(help="An OpenAI-compatible endpoint that serves it.")]
Dino = Annotated[str, typer.Option(help="PIE-Bench's structure distance: a DINO.")]
Only = Annotated[int, typer.Option(help="The first rows alone; 0: all.")]


def _judges(device: str, **given: Any) -> Judges:
    """Judges as ``given``; the default's, where a name is empty."""
    from secondlook.evals.scorers.benchmarks import Judges

    return Judges(
        **{name: value for name, value in given.items() if value}, device=own_device(device)
    )


@public_app.command("public")
def bench_public(
    name: Annotated[
        str, typer.Argument(help="geneval, geneval-long, compbench, dsg, dpg, pie, gedit or pope.")
    ],
    model: Model,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results; default: out/NAME.")
    ] = None,
    data: Data = None,
    images: Images = None,
    samples: Annotated[
        int, typer.Option(help="Images a prompt; 0: the benchmark's own number.")
    ] = 0,
    rounds: Annotated[int, typer.Option(help="At most this many images an episode.")] = 3,
    fresh: Annotated[
        int,
        typer.Option(
            help="Independent images beside each episode, for best-of-N (rounds - 1 for a curve)."
        ),
    ] = 0,
    only: Only = 0,
    detector: Detector = "",
    clip: Clip = "",
    clip_score: ClipScore = "",
    vqa: Vqa = "",
    url: Url = "",
    dino: Dino = "",
    seed: Seed = 0,
    guidance: Annotated[
        float | None, typer.Option(help="Of drawing and editing; default: the checkpoint's own.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Episodes decoded together.")] = 32,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    attention: Attention = "sdpa",
) -> None:
    """A public benchmark: pictures are drawn, then scored; resumes, and under torchrun every GPU
    takes its share."""
    at_least("batch", batch)
    how: dict[str, Any] = {
        "device": own_device(device),
        "batch": batch,
        "dtype": dtype,
        "attention": attention,
    }
    judges = _judges(
        device, detector=detector, clip=clip, clip_score=clip_score, vqa=vqa, url=url, dino=dino
    )
    place = out or Path("out") / name
    if name == "pope":
        _pope(locate(model), place, *_pope_ready(data, images, only, model), how)
        return
    rows = _ready(name, model, data, images, only, judges)
    _public(name, model, place, rows, samples, rounds, fresh, only, judges, seed, guidance, how)


def _ready(
    name: str, model: str, data: Path | None, images: Path | None, only: int, judges: Judges
) -> list[Row]:
    """A benchmark's rows. Raises InputError for whatever can be known to fail before anything is
    drawn."""
    from secondlook.evals import runner
    from secondlook.models.janus.checkpoint import load_tokenizer
    from secondlook.models.janus.template import ChatTemplate

    benchmark = runner.get(name)
    rows = runner.ready(benchmark, ChatTemplate(load_tokenizer(model)), data, images, only)
    runner.judge_of(benchmark, judges)
    return rows


def _public(
    name: str,
    model: str,
    out: Path,
    rows: list[Row],
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

    from transformers import GenerationConfig

    from secondlook.episode import SamplingConfig
    from secondlook.evals import runner
    from secondlook.io import writable_folder

    benchmark, where = runner.get(name), locate(model)
    try:
        own = GenerationConfig.from_pretrained(where)
    except OSError:
        own = GenerationConfig()
    sampling = SamplingConfig.of(own)
    if guidance is not None:
        sampling = replace(sampling, guidance=guidance, edit_guidance=guidance)
    settings = runner.Settings(
        name,
        model,
        samples or benchmark.samples,
        rounds,
        fresh,
        seed,
        sampling.guidance,
        sampling.edit_guidance,
        only,
        runner.judge_of(benchmark, judges),
    )
    writable_folder(out)
    with progress_bar() as progress:
        bars = {what: progress.add_task(what, total=None) for what in ("drawing", "scoring")}

        def told(what: str, n: int, of: int) -> None:
            progress.update(bars[what], completed=n, total=of)

        result = runner.run(
            settings, lambda: load_engine(where, **how), sampling, judges, out, rows, told, say
        )
    if result is None:
        say(f"{name}: this process's share is done; the others' are not")
        return None
    for task, row in {"overall": result["overall"], **result["tasks"]}.items():
        say(
            f"  {task:16} first {interval(row['first'])}  final {interval(row['final'])}  of "
            f"{row['images']} samples"
        )
    name_left_out(
        "samples are left out, for a picture of theirs has no score", _named(result["left_out"])
    )
    say(f"written to {out}: result.json, benchmark.html, pictures")
    return result


def _named(left_out: list[dict]) -> list[str]:
    """One name a sample, and why its first picture without a score has none."""
    return list(
        {
            (m["id"], m["sample"]): f"{m['picture']} ({m['why']})" for m in reversed(left_out)
        }.values()
    )[::-1]


def _pope_ready(
    data: Path | None, images: Path | None, only: int, model: str
) -> tuple[Any, list[Row], list[str]]:
    """POPE's settings, its questions, and why others are left out. Raises InputError."""
    from secondlook.evals import pope

    if images is None:
        raise InputError("images: POPE's pictures are needed; give the folder of COCO's val2014")
    settings = pope.Settings(model, str(images), only)
    return settings, *pope.chosen(settings, data)


def _pope(
    model: str, out: Path, settings: Any, asked: list[Row], left_out: list[str], how: dict[str, Any]
) -> dict | None:
    from secondlook.evals import pope
    from secondlook.io import writable_folder

    writable_folder(out)
    with progress_bar() as progress:
        bar = progress.add_task("asking", total=None)

        def told(n: int, of: int) -> None:
            progress.update(bar, completed=n, total=of)

        texts = pope.run(lambda: load_engine(model, **how), settings, asked, out, told)
    if texts is None:
        say("pope: this process's share is done; the others' are not")
        return None
    result = pope.write(out, asked, texts, settings, left_out)
    for split, row in result["splits"].items():
        say(
            f"  {split:12} F1 {interval(row['f1'])}  accuracy {row['accuracy']:.3f}  yes "
            f"{row['yes_rate']:.3f}"
        )
    name_left_out("pictures cannot be read, their questions are left out", left_out)
    say(f"written to {out}: result.json, answers.json, pope.html")
    return result


MINI = ("geneval", "curve", "questions", "editing")


@public_app.command("all")
def bench_all(
    model: Model,
    out: Out = Path("out/all"),
    on: Annotated[
        str, typer.Option(help="mini, public, or auto: mini for shipped models, else public.")
    ] = "auto",
    data: Data = None,
    images: Images = None,
    rounds: Annotated[int, typer.Option(help="At most this many images an episode.")] = 3,
    only: Annotated[
        int, typer.Option(help="The first rows (mini: rows of each task) alone; 0: all.")
    ] = 0,
    detector: Detector = "",
    clip: Clip = "",
    clip_score: ClipScore = "",
    vqa: Vqa = "",
    url: Url = "",
    dino: Dino = "",
    seed: Seed = 0,
    batch: Annotated[int, typer.Option(help="Episodes decoded together.")] = 32,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    attention: Attention = "sdpa",
) -> None:
    """Every benchmark that the model and the data allow, each in a folder of its own, and one page
    over them all."""
    from secondlook.evals.overview import check, write
    from secondlook.io import same_config, writable_folder, write_json

    if on not in ("auto", "mini", "public"):
        raise InputError(f"on: {on!r} is unknown; use auto, mini or public")
    at_least("batch", batch)
    locate(model)
    writable_folder(out)
    settings = {"model": model, "rounds": rounds, "only": only, "seed": seed, "dtype": dtype}
    same_config(out, settings)
    write_json(out / "config.json", settings)
    check(out)
    skipped: dict[str, str] = {}
    failed: dict[str, str] = {}
    if on == "mini" or (on == "auto" and model in SHIPPED):
        _all_mini(
            out,
            rounds,
            only or 80,
            seed,
            batch,
            {"model": model, "device": device, "dtype": dtype, "attention": attention},
        )
    else:
        judges = _judges(
            device, detector=detector, clip=clip, clip_score=clip_score, vqa=vqa, url=url, dino=dino
        )
        how: dict[str, Any] = {
            "device": own_device(device),
            "batch": batch,
            "dtype": dtype,
            "attention": attention,
        }
        skipped, failed = _all_public(model, out, data, images, rounds, only, seed, judges, how)
    result = write(out, settings, skipped | failed)
    say(
        f"written to {out}: all.html, result.json ({len(result['benchmarks'])} benchmarks, "
        f"{len(skipped)} skipped)"
    )
    if failed:
        raise Stopped(
            f"benchmarks: {', '.join(failed)} began and did not end: {next(iter(failed.values()))}"
        )


def _all_mini(
    out: Path, rounds: int, rows: int, seed: int, batch: int, given: dict[str, Any]
) -> None:
    """The benchmarks of the miniature's world that have no result in ``out`` yet."""
    from secondlook.cli import mini_evals

    sampled = given | {"seed": seed, "batch": batch}
    for name in MINI:
        if (out / name / "result.json").exists():
            continue
        match name:
            case "geneval":
                mini_evals.bench_geneval(
                    out=out / name, rounds=rounds, rows_per_task=rows, **sampled
                )
            case "curve":
                mini_evals.bench_curve(out=out / name, rows_per_task=rows, **sampled)
            case "questions":
                mini_evals.bench_questions(out=out / name, questions=rows * 10, **given)
            case "editing":
                mini_evals.bench_editing(
                    out=out / name, rounds=rounds, rows_per_kind=rows, **sampled
                )


def _all_public(
    model: str,
    out: Path,
    data: Path | None,
    images: Path | None,
    rounds: int,
    only: int,
    seed: int,
    judges: Judges,
    how: dict[str, Any],
) -> tuple[dict[str, str], dict[str, str]]:
    """The public benchmarks; returns which were skipped, which is known (and said) before the first
    one begins, and which began and did not end, with the reasons."""
    from secondlook.evals.runner import BENCHMARKS

    jobs: dict[str, Callable[[], Any]] = {}
    skipped: dict[str, str] = {}
    failed: dict[str, str] = {}
    for name in (*BENCHMARKS, "pope"):
        fresh = rounds - 1 if name not in ("pie", "gedit") else 0
        try:
            if name == "pope":
                jobs[name] = partial(
                    _pope, locate(model), out / name, *_pope_ready(data, images, only, model), how
                )
            else:
                rows = _ready(name, model, data, images, only, judges)
                jobs[name] = partial(
                    _public,
                    name,
                    model,
                    out / name,
                    rows,
                    0,
                    rounds,
                    fresh,
                    only,
                    judges,
                    seed,
                    None,
                    how,
                )
        except InputError as error:
            skipped[name] = str(error)
            say(f"{name}: skipped: {error}")
    for name, job in jobs.items():
        try:
            job()
        except (InputError, Stopped) as error:
            failed[name] = str(error)
            say(f"{name}: not ended: {error}")
    return skipped, failed
