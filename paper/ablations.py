"""The paper's ablations in miniature: what leaving something out changes, beside the direction that
the paper gives.

Every variant is a folder of results (geneval/, and judging/, curve/ where there are), as
runs/ablations.sh leaves them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secondlook.errors import InputError
from secondlook.evals.intervals import Interval
from secondlook.io import versions, write_json, write_text
from secondlook.mini.evals import compare
from secondlook.mini.evals.claims import holds
from secondlook.mini.evals.compare import (
    Measured,
    difference,
    final,
    first,
    judge_difference,
    same_verdicts,
)
from secondlook.report import page


def judging(a: Measured, b: Measured) -> Interval:
    """Balanced accuracy on the same images, a's minus b's."""
    return judge_difference(same_verdicts(a), same_verdicts(b))


@dataclass(frozen=True)
class Claim:
    """``a`` is better than ``b`` in what ``value`` measures, says (or implies) the paper."""

    text: str
    published: str
    a: str
    b: str
    value: Callable[[Measured, Measured], Interval]


def _first(a: Measured, b: Measured) -> Interval:
    return difference(a, b, first)


def _final(a: Measured, b: Measured) -> Interval:
    return difference(a, b, final)


CLAIMS = (
    Claim(
        "tasks I, II and III together draw better than I alone (SFT, first image)",
        ".81 over .79",
        "sft",
        "task-1",
        _first,
    ),
    Claim(
        "… and look again better than II and III (SFT, final image)",
        ".81 over .76",
        "sft",
        "task-2-3",
        _final,
    ),
    Claim(
        "positives from .7/.8 are better than from .5 (SFT, final image)",
        "better",
        "strict",
        "loose",
        _final,
    ),
    Claim("… and after RL", "better", "rl-strict", "rl-loose", _final),
    Claim("… also for the judge (SFT, same images)", "not given", "strict", "loose", judging),
    Claim(
        "the comprehension reward gives a better final image", "implied", "rl", "rl-drawing", _final
    ),
    Claim("… and a better judge (same images)", "implied", "rl", "rl-drawing", judging),
    Claim(
        "RL on whole episodes gives a better final image than on first images",
        "implied",
        "rl",
        "rl-first",
        _final,
    ),
    Claim("… and a better judge (same images)", "implied", "rl", "rl-first", judging),
    Claim("RL lifts the first image over SFT", ".83 over .81", "rl", "sft", _first),
    Claim("RL lifts the final image over SFT", ".86 over .81", "rl", "sft", _final),
)


def rows(models: dict[str, Measured]) -> list[dict[str, Any]]:
    """A row for each claim whose two variants are there."""
    found = []
    for c in CLAIMS:
        if (
            c.a in models
            and c.b in models
            and (c.value is not judging or (models[c.a].judge and models[c.b].judge))
        ):
            measured = c.value(models[c.a], models[c.b])
            about = {"claim": c.text, "published": c.published, "a": c.a, "b": c.b}
            found.append(about | {"measured": measured, "agrees": holds(measured)})
    return found


def write(out: Path, folder: Path) -> dict[str, Any]:
    """ablations.md, ablations.html and, last, result.json. Raises InputError where no two variants
    are there."""
    models = {
        p.parent.parent.name: p.parent.parent for p in sorted(folder.glob("*/geneval/result.json"))
    }
    measured = {name: compare.read(name, place) for name, place in models.items()}
    table = rows(measured)
    if not table:
        raise InputError(
            f"folder: {str(folder)!r} holds no two variants of a claim; run runs/ablations.sh first"
        )
    rounds = {
        name: [
            {"rounds": c["rounds"], "images": c["images"], "final": c["final"]}
            for c in m.curve["curve"]
        ]
        for name, m in measured.items()
        if m.curve
    }
    variants = {
        name: {k: m.result["overall"][k] for k in ("first", "final", "gain")}
        | {"judge": m.judge[0]["sampled"]["balanced_accuracy"] if m.judge else None}
        for name, m in measured.items()
    }
    result = {"claims": table, "variants": variants, "rounds": rounds, "versions": versions()}
    write_text(out / "ablations.md", page("ablations.md", result=result))
    write_text(out / "ablations.html", page("ablations.html", result=result))
    write_json(out / "result.json", result)
    return result
