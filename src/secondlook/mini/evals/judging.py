"""The judge alone, on images that another model drew: how often it agrees with the truth, how sure
it may be believed, and whether it names what is wrong.

A model's verdicts on its own images say how it will redraw, but those images differ between models:
the better it draws, the harder are the few wrong ones. Here every image of a folder that ``bench
geneval`` wrote, or of a file of labelled pairs (``data.pairs``), is judged for itself. Source: the
consistency test of arXiv 2506.01480, table 3; beyond it: balanced accuracy, kappa, AUROC and
calibration, for always saying Yes agrees with a good generator already.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image
from sklearn.metrics import balanced_accuracy_score, precision_score, recall_score, roc_auc_score

from secondlook.data.labelled_images import lines_of, read_pairs
from secondlook.data.prompts import check_prompts
from secondlook.engine.engine import Engine
from secondlook.episode import SamplingConfig
from secondlook.errors import InputError
from secondlook.evals.intervals import Interval, agreement, bootstrap, written_by
from secondlook.io import finite, read_json, versions, whole_file, write_json
from secondlook.mini.evals.audit import painted, read_codes
from secondlook.mini.world.language import parse
from secondlook.mini.world.reader import judge, names_a_failure
from secondlook.models.janus.template import ChatTemplate
from secondlook.types import Request

BINS = 10


@dataclass(frozen=True)
class Settings:
    """Everything that the verdicts depend on."""

    model: str
    images: str
    """The folder or the file whose images are judged."""
    seed: int = 0


@dataclass(frozen=True)
class Labelled:
    """An image of a prompt, and whether it is right."""

    prompt: str
    image: Image
    right: bool
    known: bool
    """The prompt is of the miniature's world, so that reasons can be checked."""
    source: Image | None = None
    """What was edited, where ``prompt`` is an instruction."""


@dataclass(frozen=True)
class Said:
    """One image's prompt, whether it is right, the model's sampled verdict on it, its P(Yes), its
    reason, and, where a reason for a true No can be checked, whether it names what failed."""

    prompt: str
    right: bool
    yes: bool
    p_yes: float
    reason: str = ""
    reason_holds: bool | None = None


def drawn(folder: Path, painter: Engine) -> list[Labelled]:
    """Every image of a folder that ``bench geneval`` wrote; ``painter`` decodes the codes, as the
    model that drew them does."""
    _, codes = read_codes(folder)
    images = painted(painter, codes)
    return [
        Labelled(p, i, judge(parse(p), i).correct, True)
        for (p, _), i in zip(codes, images, strict=True)
    ]


def labelled(path: Path, template: ChatTemplate) -> tuple[list[Labelled], list[str]]:
    """The pairs of a file or folder that have a label, and the others' names. Raises InputError
    where none has one, and for a prompt that the model cannot read."""
    pairs = read_pairs(path)
    check_prompts(template, lines_of(pairs))
    found = []
    for p in pairs:
        if p.good is not None:
            asked = p.asked()
            found.append(Labelled(p.prompt, p.open(), p.good, False, asked.source))
    if not found:
        raise InputError(
            f"images: no pair of {str(path)!r} says whether it is good; give each a field good = "
            "true or false"
        )
    return found, [p.name for p in pairs if p.good is None]


def run(engine: Engine, items: Sequence[Labelled], settings: Settings) -> tuple[list[Said], float]:
    """Judge every image once, with a sampled verdict and a reason; returns what was said and the
    seconds it took."""
    template = engine.template
    sampling = SamplingConfig.of(engine.janus.net.generation_config)
    sampling_params = sampling.judge_params(template.yes, template.no)
    requests = [
        Request(
            "judge", template.judge(x.prompt, [x.image], [], x.source), settings.seed * 10**6 + i
        )
        for i, x in enumerate(items)
    ]
    began = time.perf_counter()
    turns = engine.write(requests, sampling_params, sampling.reason_tokens)
    seconds = time.perf_counter() - began
    said = []
    for x, t in zip(items, turns, strict=True):
        yes, reason = t.tokens[0] == template.yes, template.words(t.tokens[1:]).lstrip(", ")
        checked = x.known and not x.right and not yes
        holds = names_a_failure(parse(x.prompt), x.image, reason) if checked else None
        said.append(Said(x.prompt, x.right, yes, float(t.p_yes or 0), reason, holds))
    return said, seconds


def _units(said: Sequence[Said], columns: Sequence[np.ndarray]) -> dict[str, list[np.ndarray]]:
    """Rows of columns by prompt, the unit of resampling."""
    grouped: dict[str, list[int]] = {}
    for i, s in enumerate(said):
        grouped.setdefault(s.prompt, []).append(i)
    return {"all": [np.stack([c[i] for c in columns], 1) for i in grouped.values()]}


def auroc(said: Sequence[Said]) -> Interval:
    """Area under the ROC curve of P(Yes): the chance that a right image has more of it than a wrong
    one."""
    columns = [np.array([s.right for s in said], float), np.array([s.p_yes for s in said])]

    def area(rows: dict[str, np.ndarray]) -> float:
        truth, p = rows["all"].T
        return float(roc_auc_score(truth, p)) if 0 < truth.sum() < len(truth) else float("nan")

    return bootstrap(_units(said, columns), area)


def reliability(said: Sequence[Said]) -> list[dict[str, float]]:
    """Bins of P(Yes) of equal width: mean P(Yes), share that is right, images."""
    p, right = np.array([s.p_yes for s in said]), np.array([s.right for s in said])
    place = np.minimum((p * BINS).astype(int), BINS - 1)
    return [
        {
            "p_yes": float(p[place == b].mean()),
            "right": float(right[place == b].mean()),
            "images": int((place == b).sum()),
        }
        for b in range(BINS)
        if (place == b).any()
    ]


def ece(bins: list[dict[str, float]]) -> float:
    """Expected calibration error: the bins' distance of P(Yes) from the share that is right,
    weighted by their images."""
    total = sum(b["images"] for b in bins)
    return float(sum(b["images"] * abs(b["p_yes"] - b["right"]) for b in bins) / total)


def threshold(said: Sequence[Said]) -> float:
    """The P(Yes) from which on saying Yes has the best balanced accuracy: midway between two
    neighbours."""
    p = np.unique([s.p_yes for s in said])
    cuts = np.concatenate([[0.0], (p[1:] + p[:-1]) / 2, [1.0]])
    cuts = cuts[np.linspace(0, len(cuts) - 1, min(len(cuts), 400)).astype(int)]
    right, own = np.array([s.right for s in said]), np.array([s.p_yes for s in said])
    scores = [_balanced(right, own > c) for c in cuts]
    return float(cuts[int(np.nanargmax(scores))])


def _balanced(right: np.ndarray, yes: np.ndarray) -> float:
    return (
        float(balanced_accuracy_score(right, yes)) if 0 < right.sum() < len(right) else float("nan")
    )


def calibrated(said: Sequence[Said]) -> dict[str, Any]:
    """A threshold found on one half of the prompts, and what it gives on the other."""
    halves: list[list[Said]] = [[], []]
    for s in said:
        halves[sha256(s.prompt.encode()).digest()[0] % 2].append(s)
    one, other = halves
    if any(len({s.right for s in half}) < 2 for half in halves):
        return {}
    cut = threshold(one)
    right, prompts = [s.right for s in other], [s.prompt for s in other]
    return {
        "threshold": cut,
        "balanced_accuracy": agreement(right, [s.p_yes > cut for s in other], prompts)[
            "balanced_accuracy"
        ],
        "at_half": agreement(right, [s.p_yes > 0.5 for s in other], prompts)["balanced_accuracy"],
    }


def overall(said: Sequence[Said]) -> dict[str, Any]:
    """Of greedy verdicts (P(Yes) above a half)."""
    right, yes = [s.right for s in said], [s.p_yes > 0.5 for s in said]
    wrong, no = [not r for r in right], [not y for y in yes]
    checked = [s for s in said if s.reason_holds is not None]
    bins = reliability(said)
    found = agreement(right, yes, [s.prompt for s in said]) | {
        "auroc": auroc(said),
        "ece": ece(bins),
        "precision_of_no": float(precision_score(wrong, no, zero_division=0.0)),
        "recall_of_no": float(recall_score(wrong, no, zero_division=0.0)),
        "always_yes_would_agree": float(np.mean(right)),
        "calibrated": calibrated(said),
        "reliability": bins,
    }
    if checked:
        columns = [np.array([float(bool(s.reason_holds)) for s in checked])]
        found["reason_names_a_failure"] = bootstrap(
            _units(checked, columns), lambda rows: float(rows["all"].mean())
        )
        found["reasons"] = len(checked)
    return found


def read(folder: Path) -> list[Said]:
    """What a folder of ``bench judging`` says. Raises InputError."""
    path = folder / "verdicts.json"
    with written_by("bench judging", path):
        said = [Said(**row) for row in read_json(path, list)]
        for s in said:
            if not (
                finite(s.p_yes, 0, 1)
                and isinstance(s.prompt, str)
                and type(s.right) is type(s.yes) is bool
            ):
                raise ValueError(
                    f"a verdict on {s.prompt!r} has p_yes {s.p_yes!r}, yes {s.yes!r}, right "
                    f"{s.right!r}"
                )
    return said


def over(said: Sequence[Said], other: Sequence[Said], name: str) -> dict[str, Any]:
    """This judge minus another on the same images: balanced accuracy of greedy and of sampled
    verdicts, AUROC, and the share of true No whose reasons name what failed. Raises InputError for
    other images."""
    if [(s.prompt, s.right) for s in said] != [(s.prompt, s.right) for s in other]:
        raise InputError(f"over: {name!r} judged other images; run bench judging on the same ones")

    def difference(statistic: Callable[[Sequence[Said]], float]) -> Interval:
        grouped: dict[str, list[int]] = {}
        for i, s in enumerate(said):
            grouped.setdefault(s.prompt, []).append(i)

        def both(rows: dict[str, np.ndarray]) -> float:
            picks = rows["all"].astype(int)
            return statistic([said[i] for i in picks]) - statistic([other[i] for i in picks])

        return bootstrap({"all": [np.array(v) for v in grouped.values()]}, both)

    def balanced(yes: Callable[[Said], bool]) -> Callable[[Sequence[Said]], float]:
        return lambda those: _balanced(
            np.array([s.right for s in those]), np.array([yes(s) for s in those])
        )

    def area(those: Sequence[Said]) -> float:
        right = [s.right for s in those]
        return (
            float(roc_auc_score(right, [s.p_yes for s in those]))
            if len(set(right)) > 1
            else float("nan")
        )

    def reasons(those: Sequence[Said]) -> float:
        known = [bool(s.reason_holds) for s in those if s.reason_holds is not None]
        return float(np.mean(known)) if known else float("nan")

    found = {
        "balanced_accuracy": difference(balanced(lambda s: s.p_yes > 0.5)),
        "sampled_balanced_accuracy": difference(balanced(lambda s: s.yes)),
        "auroc": difference(area),
    }
    return (
        {"other": name}
        | found
        | ({"reasons": difference(reasons)} if not np.isnan(reasons(said)) else {})
    )


def write(
    out: Path,
    said: list[Said],
    settings: Settings,
    seconds: float = 0.0,
    beside: Sequence[dict[str, Any]] = (),
) -> dict:
    """verdicts.json, reliability.png and, last, result.json (with ``beside``, differences to
    others); returns the result."""
    right, prompts = [s.right for s in said], [s.prompt for s in said]
    result: dict[str, Any] = {
        "overall": overall(said),
        "sampled": agreement(right, [s.yes for s in said], prompts),
        "greedy": agreement(right, [s.p_yes > 0.5 for s in said], prompts),
        "images_per_second": len(said) / seconds if seconds else None,
        "over": list(beside),
        "settings": asdict(settings),
        "versions": versions(),
    }
    write_json(out / "verdicts.json", [asdict(s) for s in said])
    plot(out / "reliability.png", result["overall"])
    write_json(out / "result.json", result)
    return result


def plot(path: Path, result: dict[str, Any]) -> None:
    """Share of right images over P(Yes), and how many images there are."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    bins = result["reliability"]
    figure, (top, low) = plt.subplots(2, 1, figsize=(4.4, 5.2), height_ratios=(3, 1), sharex=True)
    top.plot([0, 1], [0, 1], color="0.7", lw=1)
    top.plot([b["p_yes"] for b in bins], [b["right"] for b in bins], marker="o", ms=4)
    top.set_ylabel("share that is right")
    top.set_title(f"ECE {result['ece']:.3f}, AUROC {result['auroc']['mean']:.3f}", fontsize=10)
    low.bar([b["p_yes"] for b in bins], [b["images"] for b in bins], width=0.06)
    low.set_yscale("log")
    low.set_ylabel("images")
    low.set_xlabel("P(Yes)")
    for axis in (top, low):
        axis.grid(alpha=0.3)
    figure.tight_layout()
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)
