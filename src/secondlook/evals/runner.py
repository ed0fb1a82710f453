"""The public benchmarks: their rows, samples, scorers and how their numbers are put together;
results as JSON and HTML.

GenEval (arXiv 2310.11513), T2I-CompBench (2307.06350), DPG-Bench (2403.05135), DSG (2310.18235),
PIE-Bench (2310.01506), GEdit-Bench (2504.17761).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from secondlook.data.prompts import check_prompts
from secondlook.engine.engine import Engine
from secondlook.episode import SamplingConfig
from secondlook.errors import InputError
from secondlook.evals import fetch, rows
from secondlook.evals import records as gather
from secondlook.evals.intervals import Interval, Sample, agreement, mean_of_tasks
from secondlook.evals.question_metrics import dpg_categories
from secondlook.evals.records import Metrics, RowRange, Scorer, Settings, fault_of, pictures_of
from secondlook.evals.rows import Row
from secondlook.evals.scorers import benchmarks, phrases
from secondlook.evals.scorers.benchmarks import Judges
from secondlook.evals.scorers.detector import loading
from secondlook.io import read_image, versions, write_json, write_text
from secondlook.llm.client import Asker, Endpoint
from secondlook.mini.evals.best_of_n import Tried, plot, points
from secondlook.models.janus.template import ChatTemplate
from secondlook.report import embed, page
from secondlook.types import WorkerShard


@dataclass(frozen=True)
class Benchmark:
    """What one of them is made of."""

    title: str
    samples: int
    rows: Callable[[Path | None, Path | None], list[Row]]
    """Of a folder of data and one of pictures."""
    scorer: Callable[[Judges], Scorer]
    needs: tuple[str, ...]
    """Judges' models that score it; "chunks": spaCy's noun phrases."""
    files: tuple[str, ...]
    """That are fetched."""
    metrics: Metrics = field(default_factory=lambda: gather.SHARE)
    """With their ranges; the first is the benchmark's number."""
    counted: tuple[str, ...] = ()
    """Tasks of the overall number; (): all."""
    over: Literal["tasks", "images"] = "tasks"
    """The overall number is the unweighted mean of the tasks', or the mean over images."""
    note: str = ""
    """What differs from the published protocol, or must be known to compare."""

    @property
    def main(self) -> str:
        """The metric that is the benchmark's number."""
        return next(iter(self.metrics))

    def counts(self, task: str) -> bool:
        """Whether a task is in the overall number."""
        return not self.counted or task in self.counted


BENCHMARKS = {
    "geneval": Benchmark(
        "GenEval",
        4,
        lambda d, _: rows.geneval(d),
        benchmarks.GenEval,
        ("detector", "clip"),
        ("geneval/evaluation_metadata.jsonl",),
    ),
    "geneval-long": Benchmark(
        "GenEval, prompts rewritten",
        4,
        lambda d, _: rows.geneval(d, long=True),
        benchmarks.GenEval,
        ("detector", "clip"),
        ("geneval/evaluation_metadata_long.jsonl",),
        note="Not comparable with GenEval's own prompts.",
    ),
    "compbench": Benchmark(
        "T2I-CompBench",
        10,
        lambda d, _: rows.compbench(d),
        benchmarks.CompBench,
        ("vqa", "chunks", "clip_score"),
        tuple(f"t2i_compbench/{c}_val.txt" for c in rows.COMPBENCH),
        {"value": RowRange(-1)},
        rows.BLIP_VQA,
        note="Color, shape and texture are BLIP-VQA (a product of P(yes)), non_spatial "
        "is the cosine of CLIP ViT-B/32, as "
        "released. No number over categories is published: overall is the mean of color, shape "
        "and texture, and the cosine is "
        "not in it. The BLIP that was converted for transformers has its positions interpolated "
        "from 480 x 480 pictures to "
        "384 x 384; they are interpolated back, so that P(yes) is close to the released code's "
        "and not equal to it. Published "
        "numbers are BLIP's, not another model's. Spatial relations and numeracy need UniDet, "
        "which transformers lacks; they "
        "are left out.",
    ),
    "dsg": Benchmark(
        "DSG-1k",
        1,
        lambda d, _: rows.dsg(d),
        benchmarks.dsg,
        ("vqa",),
        ("dsg/dsg-1k-anns.csv",),
        over="images",
    ),
    "dpg": Benchmark(
        "DPG-Bench",
        4,
        lambda d, _: rows.dpg(d),
        benchmarks.dpg,
        ("vqa",),
        (),
        over="images",
        note="Published scores are these times 100, with mPLUG-large as the answering "
        "model. Categories differ from the "
        "released code's, which counts the last of a prompt's four pictures only and skips the "
        "table's first question: here "
        "all pictures and all questions count.",
    ),
    "pie": Benchmark(
        "PIE-Bench",
        1,
        lambda d, _: rows.pie(d),
        benchmarks.Pie,
        ("clip", "dino"),
        (),
        {
            "psnr": RowRange(0, 60, True),
            "mse": RowRange(0, 1, True),
            "ssim": RowRange(-1, 1, True),
            "structure": RowRange(0, 4),
        }
        | dict.fromkeys(("clip_whole", "clip_edited"), RowRange(0, 100)),
        over="images",
        note=(
            "Tables print structure x 1000, MSE x 10000, SSIM x 100. LPIPS is left "
            "out: its network comes with torchvision."
        ),
    ),
    "gedit": Benchmark(
        "GEdit-Bench, English",
        1,
        rows.gedit,
        benchmarks.GEdit,
        ("vqa",),
        ("gedit/gedit_edit.json",),
        dict.fromkeys(("overall", "semantic_consistency", "quality"), RowRange(0, 10)),
        note="VIEScore's form with questions of our own: scores compare among themselves only.",
    ),
}


def get(name: str) -> Benchmark:
    """A benchmark. Raises InputError for an unknown one."""
    if name not in BENCHMARKS:
        raise InputError(f"benchmark: {name!r} is unknown; choose one of {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


def judge_of(benchmark: Benchmark, judges: Judges) -> str:
    """Who scores, in words; looked up before anything is drawn. Raises InputError for a model that
    is not there."""
    from transformers import AutoConfig

    said = []
    for name in benchmark.needs:
        if name == "chunks":
            judges.chunks or phrases.chunker()
            continue
        path = getattr(judges, name)
        if name == "vqa" and judges.url:
            Asker(
                Endpoint(judges.url, path)
            )  # refuses an address, key or proxy that cannot be used
            said.append(f"{path} at {judges.url}")
            continue
        with loading(name, path, "model"):
            AutoConfig.from_pretrained(path)
        said.append(path)
    return " and ".join(said)


def ready(
    benchmark: Benchmark,
    template: ChatTemplate,
    data: Path | None = None,
    images: Path | None = None,
    only: int = 0,
) -> list[Row]:
    """The benchmark's rows, the first ``only`` of them where it is not 0. Raises InputError that
    names the file and the row for whatever of them cannot be drawn, before anything is."""
    every = benchmark.rows(data, images)
    every = every[:only] if only else every
    lines = [row.line() for row in every]
    check_prompts(template, lines)
    for line in lines:
        if line.source:
            line.prompt()
    return every


def run(
    settings: Settings,
    load: Callable[[], Engine],
    sampling: SamplingConfig,
    judges: Judges,
    out: Path,
    every: Sequence[Row],
    progress: Callable[[str, int, int], None] = lambda *_: None,
    say: Callable[[str], None] = lambda _: None,
) -> dict | None:
    """Draw what is not drawn, score what has no score, and write the result once all processes'
    shares are there, else None. ``every`` are the rows, as `ready` gives them; ``say`` is told what
    must be done again."""
    benchmark, share = get(settings.benchmark), WorkerShard.of_environment()
    metrics = benchmark.metrics
    gather.begin(out, settings, {"sampling": asdict(sampling)})
    again = gather.damaged(out, every, settings, share, metrics)
    for why in again.values():
        say(f"drawn again: {why}")
    for row in gather.stored(out, "scores"):
        if why := fault_of(row, metrics):
            say(f"scored again: {row.get('picture')}: {why}")
    if again or not gather.complete(every, settings, out):
        gather.draw(
            load(), every, settings, sampling, out, share, partial(progress, "drawing"), again
        )
    if any(
        gather.unscored(out, every, settings, share, metrics)
    ):  # else its models need not be loaded
        gather.score(
            benchmark.scorer(judges),
            every,
            settings,
            out,
            share,
            partial(progress, "scoring"),
            metrics,
        )
    scores = gather.scores_of(out, metrics)
    records = gather.episodes_of(out, every, settings)
    drawn = [name for record in records for name in pictures_of(record)]
    if not gather.complete(every, settings, out) or sum(
        p not in scores for p in drawn
    ) > gather.MOST_MISSING * len(drawn):
        return None
    return write(out, benchmark, settings, records, scores, len(every))


def write(
    out: Path,
    benchmark: Benchmark,
    settings: Settings,
    records: list[dict],
    scores: dict[str, dict],
    n_rows: int,
) -> dict:
    """curve.png where there are fresh images, benchmark.html and, last, result.json; returns the
    result."""
    result = summarize(benchmark, settings, records, scores, gather.reasons_of(out)) | {
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
    write_text(
        out / "benchmark.html", page("benchmark.html", result=result, curve=picture, gallery=shown)
    )
    write_json(out / "result.json", result)
    return result


def summarize(
    benchmark: Benchmark,
    settings: Settings,
    records: Sequence[dict],
    scores: dict[str, dict],
    reasons: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """First image, final image and gain: overall, by task, and of every metric, with the number of
    samples that each is of; verdicts where the score is right or wrong; the curve over rounds
    beside best-of-N where there are fresh images. Records with a missing score are left out,
    counted and named, with the ``reasons`` of their pictures."""
    main = benchmark.main
    whole = [r for r in records if all(name in scores for name in pictures_of(r))]

    def of(those: Sequence[dict], metric: str) -> dict[str, Any]:
        pairs = [
            (r, *(scores[r["rounds"][i]["picture"]][metric] for i in (0, r["final"])))
            for r in those
        ]
        pairs = [p for p in pairs if None not in p[1:]]
        values = {
            "first": [a for _, a, _ in pairs],
            "final": [b for *_, b in pairs],
            "gain": [b - a for _, a, b in pairs],
        }
        task = (lambda r: r["task"]) if benchmark.over == "tasks" else (lambda r: "all")
        means: dict[str, Interval] = {
            name: mean_of_tasks(
                [Sample(task(r), r["id"], v) for (r, *_), v in zip(pairs, each, strict=True)]
            )
            for name, each in values.items()
        }
        return means | {"images": len(pairs)}

    counted = [r for r in whole if benchmark.counts(r["task"])]
    found: dict[str, Any] = {
        "overall": of(counted, main),
        "tasks": {
            t: of([r for r in whole if r["task"] == t], main)
            for t in dict.fromkeys(r["task"] for r in records)
        },
        "metrics": {metric: of(counted, metric) for metric in benchmark.metrics},
        "images": len(whole),
        "missing": len(records) - len(whole),
        "left_out": [
            {
                "id": r["id"],
                "sample": r["k"],
                "picture": name,
                "why": reasons.get(name, "it was not scored"),
            }
            for r in records
            for name in pictures_of(r)
            if name not in scores
        ],
        "mean_rounds": float(np.mean([len(r["rounds"]) for r in records])),
    }
    every = [(r["id"], x, scores[x["picture"]][main]) for r in counted for x in r["rounds"]]
    if every and {v for *_, v in every} <= {0.0, 1.0}:
        found["judge"] = agreement(
            [v == 1.0 for *_, v in every], [x["yes"] for _, x, _ in every], [i for i, *_ in every]
        )
        firsts = [scores[r["rounds"][0]["picture"]][main] for r in counted]
        by_id: dict[str, list[float]] = {}
        for r, value in zip(counted, firsts, strict=True):
            by_id.setdefault(r["id"], []).append(value)
        found["images_right"] = float(np.mean(firsts))
        found["prompts_with_any_right"] = float(np.mean([max(v) for v in by_id.values()]))
    if settings.fresh and settings.fresh >= settings.rounds - 1 and counted:
        found |= points(
            [_tried(r, scores, main) for r in counted], settings.rounds, settings.fresh + 1
        )
    if settings.benchmark == "dpg":
        final = [scores[r["rounds"][r["final"]]["picture"]] for r in whole]
        try:
            found["categories"] = dpg_categories(
                [(text, answer) for score in final for text, answer in score["answers"]]
            )
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"scores: some hold no answers ({error!r}); remove scores-*.jsonl to score again"
            ) from error
    return found


def _tried(record: dict, scores: dict[str, dict], metric: str) -> Tried:
    def columns(those: Sequence[dict]) -> tuple[tuple, tuple, tuple]:
        values = (scores[x["picture"]][metric] for x in those)
        return tuple(x["yes"] for x in those), tuple(x["p_yes"] for x in those), tuple(values)

    return Tried(
        record["task"],
        record["id"],
        *columns(record["rounds"]),
        *columns([record["rounds"][0], *record["fresh"]]),
    )


def gallery(
    out: Path, benchmark: Benchmark, records: Sequence[dict], scores: dict[str, dict], n: int = 8
) -> list[dict]:
    """Some episodes to look at, spread over the rows."""
    main = benchmark.main
    strips, firsts = [], [r for r in records if r["k"] == 0]
    for r in firsts[:: max(1, len(firsts) // n)][:n]:
        rounds = [
            x
            | {
                "src": embed(read_image(out / "pictures" / x["picture"])),
                "score": scores.get(x["picture"], {}).get(main),
            }
            for x in r["rounds"]
        ]
        strips.append(
            {"prompt": r["prompt"], "task": r["task"], "final": r["final"], "rounds": rounds}
        )
    return strips
