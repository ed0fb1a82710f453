"""The paper's ablations in miniature: what leaving something out changes, beside the direction that
the paper gives.

Every variant is a folder of results (geneval/, and judging/, curve/ where there are), as
scripts/ablations.sh leaves them.

python paper/ablations.py out/ablations --out out/ablations/report
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from compare import (
    ModelResults,
    difference,
    final,
    first,
    judge_difference,
    read,
    same_verdicts,
)
from script import page, run_script
from secondlook.errors import InputError
from secondlook.evals.intervals import Interval, above_zero, signed_text
from secondlook.io import versions, writable_folder, write_json, write_text

Measure = Callable[[ModelResults, ModelResults], Interval]
"""By how much the first model is better than the second."""


def first_image(a: ModelResults, b: ModelResults) -> Interval:
    return difference(a, b, first)


def final_image(a: ModelResults, b: ModelResults) -> Interval:
    return difference(a, b, final)


def judging(a: ModelResults, b: ModelResults) -> Interval:
    """Balanced accuracy on the same images."""
    return judge_difference(same_verdicts(a), same_verdicts(b))


@dataclass(frozen=True)
class Claim:
    """``a`` is better than ``b`` in what is measured, says (or implies) the paper."""

    text: str
    published: str
    a: str
    b: str
    measure: Measure


CLAIMS = (
    Claim(
        "tasks I, II and III together draw better than I alone (SFT, first image)",
        ".81 over .79",
        "sft",
        "task-1",
        first_image,
    ),
    Claim(
        "… and look again better than II and III (SFT, final image)",
        ".81 over .76",
        "sft",
        "task-2-3",
        final_image,
    ),
    Claim(
        "positives from .7/.8 are better than from .5 (SFT, final image)",
        "better",
        "strict",
        "loose",
        final_image,
    ),
    Claim("… and after RL", "better", "rl-strict", "rl-loose", final_image),
    Claim("… also for the judge (SFT, same images)", "not given", "strict", "loose", judging),
    Claim(
        "the comprehension reward gives a better final image",
        "implied",
        "rl",
        "rl-drawing",
        final_image,
    ),
    Claim("… and a better judge (same images)", "implied", "rl", "rl-drawing", judging),
    Claim(
        "RL on whole episodes gives a better final image than on first images",
        "implied",
        "rl",
        "rl-first",
        final_image,
    ),
    Claim("… and a better judge (same images)", "implied", "rl", "rl-first", judging),
    Claim("RL lifts the first image over SFT", ".83 over .81", "rl", "sft", first_image),
    Claim("RL lifts the final image over SFT", ".86 over .81", "rl", "sft", final_image),
)


def claim_rows(models: Mapping[str, ModelResults]) -> list[dict[str, Any]]:
    """A row for each claim whose two variants are there."""
    rows = []
    for claim in CLAIMS:
        if claim.a not in models or claim.b not in models:
            continue
        a, b = models[claim.a], models[claim.b]
        if claim.measure is judging and not (a.judge and b.judge):
            continue
        measured = claim.measure(a, b)
        rows.append(
            {
                "claim": claim.text,
                "published": claim.published,
                "a": claim.a,
                "b": claim.b,
                "measured": measured,
                "agrees": above_zero(measured),
            }
        )
    return rows


def write(out: Path, folder: Path) -> dict[str, Any]:
    """ablations.md, ablations.html and, last, result.json. Raises InputError where no two variants
    are there."""
    models = {}
    for path in sorted(folder.glob("*/geneval/result.json")):
        variant = path.parent.parent
        models[variant.name] = read(variant.name, variant)
    rows = claim_rows(models)
    if not rows:
        raise InputError(
            f"folder: {str(folder)!r} holds no two variants of a claim; run scripts/ablations.sh "
            "first"
        )
    rounds, variants = {}, {}
    for name, model in models.items():
        if model.curve:
            rounds[name] = []
            for point in model.curve["curve"]:
                shown_keys = ("rounds", "images", "final")
                rounds[name].append({key: point[key] for key in shown_keys})
        variants[name] = {key: model.result["overall"][key] for key in ("first", "final", "gain")}
        variants[name]["judge"] = None
        if model.judge:
            variants[name]["judge"] = model.judge["sampled"]["balanced_accuracy"]
    result = {"claims": rows, "variants": variants, "rounds": rounds, "versions": versions()}
    write_text(out / "ablations.md", page("ablations.md", result=result))
    write_text(out / "ablations.html", page("ablations.html", result=result))
    write_json(out / "result.json", result)
    return result


def main(
    folder: Annotated[
        Path, typer.Argument(help="A folder of variants, as scripts/ablations.sh leaves it.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path(
        "out/ablations/report"
    ),
) -> None:
    """What leaving something out changes, beside the paper's direction for each claim."""
    writable_folder(out)
    table = Table("claim", "the paper", "measured", "agrees?")
    for row in write(out, folder)["claims"]:
        measured = signed_text(row["measured"])
        table.add_row(row["claim"], row["published"], measured, row["agrees"])
    Console(markup=False, highlight=False).print(table)
    print(f"written to {out}: ablations.md, ablations.html, result.json")


if __name__ == "__main__":
    run_script(main)
