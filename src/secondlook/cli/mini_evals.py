"""Measuring models."""

from __future__ import annotations

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
    console,
    load_engine,
    name_left_out,
)
from secondlook.cli.show import show
from secondlook.errors import InputError
from secondlook.models.shipped import locate

if TYPE_CHECKING:
    from secondlook.engine.engine import Engine
    from secondlook.episode import SamplingConfig

Rounds = Annotated[int, typer.Option(help="At most this many images an episode.")]
Split = Annotated[str, typer.Option(help="held-out or seen compositions.")]
RowsPerTask = Annotated[int, typer.Option(help="Prompts a task.")]
Guidance = Annotated[float | None, typer.Option(help="Default: the checkpoint's own.")]
Batch = Annotated[int, typer.Option(help="Episodes decoded together.")]

bench_app = typer.Typer(no_args_is_help=True, help="Measure a model.")


@bench_app.command("geneval")
def bench_geneval(
    model: Model = "mini",
    out: Out = Path("out/geneval"),
    samples: Annotated[int, typer.Option(help="Images a prompt.")] = 4,
    rounds: Rounds = 3,
    seed: Seed = 0,
    split: Split = "held-out",
    rows_per_task: RowsPerTask = 80,
    guidance: Guidance = None,
    batch: Batch = 96,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    attention: Attention = "sdpa",
) -> None:
    """Mini-GenEval: first and final image, per task and overall, with the model as its own
    judge."""
    from secondlook.mini.evals import geneval

    settings = geneval.Settings(model, samples, rounds, seed, split, rows_per_task)
    how = {"device": device, "dtype": dtype, "attention": attention}
    scored, settings, *_ = _scored(geneval, settings, "guidance", guidance, out, batch, **how)
    geneval.write(out, scored, settings)
    show(out)
    console.print(f"written to {out}: result.json, episodes.json, geneval.html")


@bench_app.command("editing")
def bench_editing(
    model: Model = "mini-edit",
    out: Out = Path("out/editing"),
    samples: Annotated[int, typer.Option(help="Edits of each row.")] = 2,
    rounds: Rounds = 3,
    seed: Seed = 0,
    split: Split = "held-out",
    rows_per_kind: Annotated[int, typer.Option(help="Rows of each kind of edit.")] = 80,
    guidance: Guidance = None,
    batch: Batch = 96,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    attention: Attention = "sdpa",
) -> None:
    """Mini-PIE: edits that are judged and made again: success, what was left alone, beside the
    identity and drawing afresh."""
    from secondlook.mini.evals import pie

    settings = pie.Settings(model, samples, rounds, seed, split, rows_per_kind)
    how = {"device": device, "dtype": dtype, "attention": attention}
    scored, settings, engine, sampling = _scored(
        pie, settings, "edit_guidance", guidance, out, batch, **how
    )
    result = pie.write(out, scored, settings, pie.baselines(engine, settings, sampling))
    o, text = result["overall"], "{mean:.3f} [{low:.3f}, {high:.3f}]"
    for name in ("first", "final", "gain"):
        console.print(
            f"{name:6} success {text.format(**o[name]['success'])}, exact "
            f"{text.format(**o[name]['exact'])}, "
            f"background PSNR {o[name]['psnr']['mean']:.1f} dB"
        )
    console.print(
        "judge, every round: balanced accuracy "
        f"{text.format(**result['judge']['every round']['balanced_accuracy'])}"
    )
    console.print(f"written to {out}: result.json, episodes.json, editing.html")


def _scored(
    bench: Any, settings: Any, name: str, guidance: float | None, out: Path, batch: int, **how: str
) -> tuple[Any, Any, Engine, SamplingConfig]:
    """Run a benchmark of the miniature's world: its scored episodes, the settings with the guidance
    that was used, and engine and sampling, whose guidance has this ``name``."""
    from dataclasses import replace

    from rich.progress import Progress

    from secondlook.episode import SamplingConfig
    from secondlook.io import writable_folder

    at_least("batch", batch)
    where = locate(settings.model)
    writable_folder(out)
    engine = load_engine(where, batch=batch, **how)
    sampling = SamplingConfig.of(engine.janus.net.generation_config)
    given: dict[str, Any] = {} if guidance is None else {name: guidance}
    sampling = replace(sampling, **given)
    settings = replace(settings, guidance=getattr(sampling, name))
    with Progress(console=console) as progress:
        bar = progress.add_task(out.name, total=None)
        scored = bench.run(
            engine, settings, sampling, lambda n, of: progress.update(bar, completed=n, total=of)
        )
    return scored, settings, engine, sampling


@bench_app.command("curve")
def bench_curve(
    model: Model = "mini",
    out: Out = Path("out/curve"),
    most: Annotated[int, typer.Option(help="Most rounds, and largest N.")] = 5,
    samples: Annotated[int, typer.Option(help="Episodes a prompt.")] = 4,
    seed: Seed = 0,
    split: Split = "held-out",
    rows_per_task: RowsPerTask = 80,
    batch: Annotated[int, typer.Option(help="Images decoded together.")] = 96,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    attention: Attention = "sdpa",
) -> None:
    """Introspection over rounds beside best-of-N by the model's own judge, at equal numbers of
    drawn codes."""
    from secondlook.mini.evals import best_of_n

    settings = best_of_n.Settings(model, most, samples, seed, split, rows_per_task)
    how = {"device": device, "dtype": dtype, "attention": attention}
    scored, settings, *_ = _scored(best_of_n, settings, "guidance", None, out, batch, **how)
    best_of_n.write(out, scored, settings)
    console.print(f"written to {out}: result.json, curve.png")


@bench_app.command("judging")
def bench_judging(
    images: Annotated[
        Path,
        typer.Argument(
            help="A folder that bench geneval wrote, or labelled pairs (.jsonl, .parquet)."
        ),
    ],
    model: Model = "mini",
    out: Out = Path("out/judging"),
    over: Annotated[
        list[Path], typer.Option(help="Folders of other models' bench judging on the same images.")
    ] = [],  # noqa: B006
    seed: Seed = 0,
    batch: Annotated[int, typer.Option(help="Images judged together.")] = 64,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    attention: Attention = "sdpa",
) -> None:
    """The judge alone, on images that another model drew: agreement, AUROC, calibration,
    reasons."""
    from secondlook.io import writable_folder
    from secondlook.mini.evals import audit, judging
    from secondlook.models.janus.checkpoint import load_tokenizer
    from secondlook.models.janus.template import ChatTemplate

    at_least("batch", batch)
    settings = judging.Settings(model, str(images), seed)
    drew = images.is_dir() and (images / "episodes.json").exists()
    painter = locate(audit.read_codes(images)[0]) if drew else None
    pairs, unlabelled = (
        ([], []) if painter else judging.labelled(images, ChatTemplate(load_tokenizer(model)))
    )
    name_left_out("pairs say not whether they are good and are left out", unlabelled)
    others = {str(folder): judging.read(folder) for folder in over}
    where = locate(model)
    writable_folder(out)
    with console.status("judging …"):
        items = judging.drawn(images, load_engine(painter, device)) if painter else pairs
        engine = load_engine(where, device, batch, dtype, attention)
        said, seconds = judging.run(engine, items, settings)
        beside = [judging.over(said, other, name) for name, other in others.items()]
        result = judging.write(out, said, settings, seconds, beside)
    o, text = result["overall"], "{mean:.3f} [{low:.3f}, {high:.3f}]"
    console.print(
        f"balanced accuracy {text.format(**o['balanced_accuracy'])}, {o['verdicts']} images"
    )
    console.print(f"AUROC {text.format(**o['auroc'])}, ECE {o['ece']:.3f}, kappa {o['kappa']:.3f}")
    if "reason_names_a_failure" in o:
        console.print(
            f"reasons name what failed: {text.format(**o['reason_names_a_failure'])} of "
            f"{o['reasons']} true No"
        )
    if o["calibrated"]:
        c = o["calibrated"]
        half = text.format(**c["balanced_accuracy"])
        console.print(
            f"threshold {c['threshold']:.3f} of one half of the prompts: {half} on the other"
        )
    signed = text.replace(":.3f", ":+.3f")
    for row in beside:
        told = ", ".join(
            f"{k.replace('_', ' ')} {signed.format(**v)}" for k, v in row.items() if k != "other"
        )
        console.print(f"over {row['other']}: {told}")
    console.print(f"{result['images_per_second']:.1f} images/s")
    console.print(f"written to {out}: result.json, verdicts.json, reliability.png")


@bench_app.command("compare")
def bench_compare(
    results: Annotated[
        list[str],
        typer.Argument(help="NAME=FOLDER, each with geneval/, perhaps curve/ and judging/ in it."),
    ],
    out: Out = Path("out/report"),
    notes: Annotated[str, typer.Option(help="A sentence for the head of the report.")] = "",
) -> None:
    """A report of several models' results side by side, with paired differences."""
    from secondlook.io import writable_folder
    from secondlook.mini.evals import compare

    pairs = [r.partition("=") for r in results]
    for name, found, folder in pairs:
        if not (name and found and folder):
            raise InputError(
                f"results: {name!r} is not NAME=FOLDER; write for example base=out/mini/base"
            )
    measured = [compare.read(name, Path(folder)) for name, _, folder in pairs]
    writable_folder(out)
    compare.write(out, measured, notes)
    console.print(f"written to {out}: report.html, report.md, result.json")


@bench_app.command("seeds")
def bench_seeds(
    reports: Annotated[
        list[Path],
        typer.Argument(help="Folders that bench compare wrote, of runs that differ in the seed."),
    ],
    out: Out = Path("out/seeds"),
) -> None:
    """The headline rows of several seeds side by side."""
    from secondlook.io import writable_folder
    from secondlook.mini.evals import seeds

    writable_folder(out)
    seeds.write(out, reports)
    console.print(f"written to {out}: seeds.md, result.json")


@bench_app.command("ablations")
def bench_ablations(
    folder: Annotated[
        Path, typer.Argument(help="A folder of variants, as runs/ablations.sh leaves it.")
    ],
    out: Out = Path("out/ablations/report"),
) -> None:
    """What leaving something out changes, beside the paper's direction for each claim."""
    from rich.table import Table

    from secondlook.io import writable_folder
    from secondlook.mini.evals import ablations

    writable_folder(out)
    table = Table("claim", "the paper", "measured", "agrees?")
    for r in ablations.write(out, folder)["claims"]:
        table.add_row(
            r["claim"],
            r["published"],
            "{mean:+.3f} [{low:+.3f}, {high:+.3f}]".format(**r["measured"]),
            r["agrees"],
        )
    console.print(table)
    console.print(f"written to {out}: ablations.md, ablations.html, result.json")


@bench_app.command("questions")
def bench_questions(
    model: Model = "mini",
    out: Out = Path("out/questions"),
    questions: Annotated[int, typer.Option(help="How many.")] = 1000,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    attention: Attention = "sdpa",
) -> None:
    """Questions about pictures of unseen scenes."""
    from secondlook.io import writable_folder
    from secondlook.mini.evals import questions as bench

    settings = bench.Settings(model, questions)
    where = locate(model)
    writable_folder(out)
    with console.status("asking …"):
        result = bench.run(load_engine(where, device, dtype=dtype, attention=attention), settings)
    bench.write(out, result)
    for kind, row in result["kinds"].items():
        console.print(f"  {kind:12} {row['accuracy']:.3f}  ({row['questions']})")
    there = result["is_there"]["balanced_accuracy"]
    console.print(
        f"  is there …?  balanced accuracy {there['mean']:.3f} [{there['low']:.3f}, "
        f"{there['high']:.3f}]"
    )


@bench_app.command("audit")
def bench_audit(
    folder: Annotated[Path, typer.Argument(help="A folder that bench geneval wrote.")],
    out: Out = Path("out/audit"),
    device: Device = "cpu",
) -> None:
    """Contact sheets of a benchmark's images, and whether a second, independent detector agrees
    with the reader."""
    from secondlook.io import writable_folder
    from secondlook.mini.evals import audit

    model, drawn = audit.read_codes(folder)
    where = locate(model)
    writable_folder(out)
    with console.status("looking …"):
        result = audit.write(out, audit.run(load_engine(where, device), drawn))
    a = result["agreement"]
    console.print(
        f"the detectors agree on {a['mean']:.4f} [{a['low']:.4f}, {a['high']:.4f}] of "
        f"{result['images']} images"
    )
    console.print(f"written to {out}: highest.png, random.png, disagreements.png, result.json")


@bench_app.command("correlations")
def bench_correlations(
    data: Annotated[
        Path | None,
        typer.Option(help="A folder with dsg/ and tifa/; default: fetched, revisions pinned."),
    ] = None,
    out: Out = Path("out/correlations"),
) -> None:
    """DSG's and TIFA's stored answers against people's ratings: whether our arithmetic gives the
    published correlations."""
    from rich.table import Table

    from secondlook.evals import fetch, question_metrics
    from secondlook.io import versions, writable_folder, write_json

    rated, stored, tifa = (fetch.file(name, data) for name in question_metrics.STORED)
    writable_folder(out)
    found = {
        "dsg": question_metrics.stored_dsg(rated, stored),
        "tifa": question_metrics.stored_tifa(tifa),
    }
    table = Table("", "Spearman", "Kendall")
    for benchmark, rows in found.items():
        for name, row in rows.items():
            if "spearman" in row:
                table.add_row(
                    f"{benchmark}: {name}", f"{row['spearman']:.3f}", f"{row['kendall']:.3f}"
                )
    console.print(table)
    write_json(
        out / "result.json",
        found | {"sources": fetch.stated(question_metrics.STORED), "versions": versions()},
    )
    console.print(f"written to {out}: result.json")
