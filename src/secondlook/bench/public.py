"""The public benchmarks: their rows, samples, scorers and how their numbers are put together; results as JSON and HTML.

GenEval (arXiv 2310.11513), T2I-CompBench (2307.06350), DPG-Bench (2403.05135), DSG (2310.18235), PIE-Bench (2310.01506),
GEdit-Bench (2504.17761).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from secondlook.bench import fetch, gather, rows, scorers
from secondlook.bench.answers import dpg_categories
from secondlook.bench.base import Interval, Sample, agreement, mean_of_tasks
from secondlook.bench.curve import Tried, plot, points
from secondlook.bench.detect import first_line
from secondlook.bench.gather import Scorer, Settings
from secondlook.bench.rows import Row
from secondlook.bench.scorers import Judges
from secondlook.engine.decode import Engine
from secondlook.files import read_image, versions, write_json, write_text
from secondlook.introspect import Sampling
from secondlook.report import embed, page
from secondlook.rewards.ask import Asker, Endpoint
from secondlook.types import InputError, Share


@dataclass(frozen=True)
class Benchmark:
    """What one of them is made of."""

    title: str
    samples: int
    rows: Callable[[Path | None, Path | None], list[Row]]
    """Of a folder of data and one of pictures."""
    scorer: Callable[[Judges], Scorer]
    needs: tuple[str, ...]
    """Judges' models that score it."""
    files: tuple[str, ...]
    """That are fetched."""
    metrics: tuple[str, ...] = ("value",)
    """The first is the benchmark's number."""
    over: Literal["tasks", "images"] = "tasks"
    """The overall number is the unweighted mean of the tasks', or the mean over images."""
    note: str = ""


BENCHMARKS = {
    "geneval": Benchmark(
        "GenEval",
        4,
        lambda d, _: rows.geneval(d),
        scorers.GenEval,
        ("detector", "clip"),
        ("geneval/evaluation_metadata.jsonl",),
    ),
    "geneval-long": Benchmark(
        "GenEval, prompts rewritten",
        4,
        lambda d, _: rows.geneval(d, long=True),
        scorers.GenEval,
        ("detector", "clip"),
        ("geneval/evaluation_metadata_long.jsonl",),
        note="Not comparable with GenEval's own prompts.",
    ),
    "compbench": Benchmark(
        "T2I-CompBench",
        10,
        lambda d, _: rows.compbench(d),
        scorers.CompBench,
        ("vqa", "clip"),
        tuple(f"t2i_compbench/{c}_val.txt" for c in rows.COMPBENCH),
        note="Spatial relations and numeracy need UniDet, which transformers lacks; they are left out.",
    ),
    "dsg": Benchmark("DSG-1k", 1, lambda d, _: rows.dsg(d), scorers.dsg, ("vqa",), ("dsg/dsg-1k-anns.csv",), over="images"),
    "dpg": Benchmark(
        "DPG-Bench",
        4,
        lambda d, _: rows.dpg(d),
        scorers.dpg,
        ("vqa",),
        (),
        over="images",
        note="Published scores are these times 100, with mPLUG-large as the answering model.",
    ),
    "pie": Benchmark(
        "PIE-Bench",
        1,
        lambda d, _: rows.pie(d),
        scorers.Pie,
        ("clip", "dino"),
        (),
        ("psnr", "mse", "ssim", "structure", "clip_whole", "clip_edited"),
        "images",
        "Tables print structure x 1000, MSE x 10000, SSIM x 100. LPIPS is left out: its network comes with torchvision only.",
    ),
    "gedit": Benchmark(
        "GEdit-Bench, English",
        1,
        rows.gedit,
        scorers.GEdit,
        ("vqa",),
        ("gedit/gedit_edit.json",),
        ("overall", "semantic_consistency", "quality"),
        note="VIEScore's form with questions of our own: scores compare among themselves only.",
    ),
}


def get(name: str) -> Benchmark:
    """A benchmark. Raises InputError for an unknown one."""
    if name not in BENCHMARKS:
        raise InputError(f"benchmark: {name!r} is unknown; choose one of {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


def judge_of(benchmark: Benchmark, judges: Judges) -> str:
    """Who scores, in words; looked up before anything is drawn. Raises InputError for a model that is not there."""
    from transformers import AutoConfig

    said = []
    for name in benchmark.needs:
        path = getattr(judges, name)
        if name == "vqa" and judges.url:
            Asker(Endpoint(judges.url, path))  # refuses an address, key or proxy that cannot be used
            said.append(f"{path} at {judges.url}")
            continue
        try:
            AutoConfig.from_pretrained(path)
        except (OSError, ValueError) as error:
            raise InputError(f"{name}: {path!r} is no model that transformers knows ({first_line(error)})") from error
        said.append(path)
    return " and ".join(said)


def run(
    settings: Settings,
    load: Callable[[], Engine],
    sampling: Sampling,
    judges: Judges,
    out: Path,
    data: Path | None = None,
    images: Path | None = None,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> dict | None:
    """Draw what is not drawn, score what has no score, and write the result once all processes' shares are there, else
    None."""
    benchmark, share = get(settings.benchmark), Share.of_environment()
    every = benchmark.rows(data, images)
    every = every[: settings.only] if settings.only else every
    gather.begin(out, settings, {"sampling": asdict(sampling)})
    if not gather.complete(every, settings, out):
        gather.draw(load(), every, settings, sampling, out, share, partial(progress, "drawing"))
    if any(gather.unscored(out, settings, share)):  # else its models need not be loaded
        gather.score(benchmark.scorer(judges), every, settings, out, share, partial(progress, "scoring"))
    scores = {s["picture"]: s for s in gather.read_lines(out, "scores")}
    records = gather.read_lines(out, "episodes")
    drawn = [r["picture"] for record in records for r in (*record["rounds"], *record["fresh"])]
    if not gather.complete(every, settings, out) or sum(p not in scores for p in drawn) > gather.MOST_MISSING * len(drawn):
        return None
    return write(out, benchmark, settings, records, scores, len(every))


def write(
    out: Path, benchmark: Benchmark, settings: Settings, records: list[dict], scores: dict[str, dict], n_rows: int
) -> dict:
    """curve.png where there are fresh images, benchmark.html and, last, result.json; returns the result."""
    records = sorted(records, key=lambda r: (r["row"], r["k"]))
    result = summarize(benchmark, settings, records, scores) | {
        "rows": n_rows,
        "title": benchmark.title,
        "note": benchmark.note,
        "settings": asdict(settings),
        "sources": fetch.stated(benchmark.files),
        "versions": versions(),
    }
    picture = ""
    if "curve" in result:
        plot({Path(settings.model).name: result}, out / "curve.png")
        picture = embed(read_image(out / "curve.png"))
    shown = gallery(out, benchmark, records, scores)
    write_text(out / "benchmark.html", page("benchmark.html", result=result, curve=picture, gallery=shown))
    write_json(out / "result.json", result)
    return result


def summarize(benchmark: Benchmark, settings: Settings, records: Sequence[dict], scores: dict[str, dict]) -> dict[str, Any]:
    """First image, final image and gain: overall, by task, and of every metric; verdicts where the score is right or wrong;
    the curve over rounds beside best-of-N where there are fresh images. Records with a missing score are counted and left
    out."""
    main = benchmark.metrics[0]
    whole = [r for r in records if all(x["picture"] in scores for x in (*r["rounds"], *r["fresh"]))]

    def of(those: Sequence[dict], metric: str) -> dict[str, Interval]:
        pairs = [(r, *(scores[r["rounds"][i]["picture"]][metric] for i in (0, r["final"]))) for r in those]
        pairs = [p for p in pairs if None not in p[1:]]
        values = {"first": [a for _, a, _ in pairs], "final": [b for *_, b in pairs], "gain": [b - a for _, a, b in pairs]}
        task = (lambda r: r["task"]) if benchmark.over == "tasks" else (lambda r: "all")
        return {
            name: mean_of_tasks([Sample(task(r), r["id"], v) for (r, *_), v in zip(pairs, each, strict=True)])
            for name, each in values.items()
        }

    found: dict[str, Any] = {
        "overall": of(whole, main),
        "tasks": {
            t: of([r for r in whole if r["task"] == t], main) | {"images": sum(r["task"] == t for r in whole)}
            for t in dict.fromkeys(r["task"] for r in records)
        },
        "metrics": {metric: of(whole, metric) for metric in benchmark.metrics},
        "images": len(whole),
        "missing": len(records) - len(whole),
        "mean_rounds": float(np.mean([len(r["rounds"]) for r in records])),
    }
    every = [(r["id"], x, scores[x["picture"]][main]) for r in whole for x in r["rounds"]]
    if {v for *_, v in every} <= {0.0, 1.0}:
        found["judge"] = agreement([v == 1.0 for *_, v in every], [x["yes"] for _, x, _ in every], [i for i, *_ in every])
        firsts = [scores[r["rounds"][0]["picture"]][main] for r in whole]
        by_id: dict[str, list[float]] = {}
        for r, value in zip(whole, firsts, strict=True):
            by_id.setdefault(r["id"], []).append(value)
        found["images_right"] = float(np.mean(firsts))
        found["prompts_with_any_right"] = float(np.mean([max(v) for v in by_id.values()]))
    if settings.fresh and settings.fresh >= settings.rounds - 1:
        found |= points([_tried(r, scores, main) for r in whole], settings.rounds, settings.fresh + 1)
    if settings.benchmark == "dpg":
        final = [scores[r["rounds"][r["final"]]["picture"]]["answers"] for r in whole]
        found["categories"] = dpg_categories([(t, a) for answers in final for t, a in answers])
    return found


def _tried(record: dict, scores: dict[str, dict], metric: str) -> Tried:
    def columns(those: Sequence[dict]) -> tuple[tuple, tuple, tuple]:
        values = (scores[x["picture"]][metric] for x in those)
        return tuple(x["yes"] for x in those), tuple(x["p_yes"] for x in those), tuple(values)

    return Tried(record["task"], record["id"], *columns(record["rounds"]), *columns([record["rounds"][0], *record["fresh"]]))


def gallery(out: Path, benchmark: Benchmark, records: Sequence[dict], scores: dict[str, dict], n: int = 8) -> list[dict]:
    """Some episodes to look at, spread over the rows."""
    main = benchmark.metrics[0]
    strips, firsts = [], [r for r in records if r["k"] == 0]
    for r in firsts[:: max(1, len(firsts) // n)][:n]:
        rounds = [
            x | {"src": embed(read_image(out / "pictures" / x["picture"])), "score": scores.get(x["picture"], {}).get(main)}
            for x in r["rounds"]
        ]
        strips.append({"prompt": r["prompt"], "task": r["task"], "final": r["final"], "rounds": rounds})
    return strips
