"""Whether a redraw learns from its mistake: what is claimed of it, and what was measured with each
seed of training.

Every folder is a run as scripts/mini.sh leaves it, with `sft`, `control` and `rl`, and in each of
these `plus` and `repairs` (results of eval mini-geneval-plus and mini-repairs); in `rl` also
`rounds` (mini-geneval-plus with more rounds) and `judging-plus` (mini-judging on the base's
images). What is not there is not claimed.

python paper/looking_back.py out/mini_seeds/seed-0 out/mini_seeds/seed-1 --out out/looking_back
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from script import page, run_script
from secondlook.errors import InputError
from secondlook.evals.best_of_n import JudgedImage, final_image
from secondlook.evals.intervals import (
    Interval,
    Sample,
    interval_text,
    mean_by_prompt,
    mean_of_tasks,
    written_by,
)
from secondlook.io import read_json, versions, writable_folder, write_json, write_text
from secondlook.mini.world.language import NUMBERS, phrase
from secondlook.mini.world.scene import COLORS, OBJECTS

Episode = dict[str, Any]
"""As episodes.json of mini-geneval-plus has it."""
PLUS = "eval mini-geneval-plus"


def result_of(run: Path, name: str) -> dict[str, Any] | None:
    """The result of a folder of a run; None where it was not measured."""
    path = run / name / "result.json"
    return read_json(path, dict) if path.is_file() else None


def episodes_of(run: Path, name: str) -> dict[tuple[str, str, int], Episode] | None:
    """The episodes of a folder by task, prompt and seed; None where it was not measured."""
    path = run / name / "episodes.json"
    if not path.is_file():
        return None
    episodes = {}
    with written_by(PLUS, path):
        for episode in read_json(path, list):
            for each in episode["rounds"]:
                each["right"], each["yes"], each["p_yes"], each["reason"]
            episodes[episode["task"], episode["prompt"], episode["seed"]] = episode
    return episodes


# -------------------------------------------------------------------------------------- measures


def headline(name: str, key: str) -> Callable[[Path], Interval | None]:
    """A value of a benchmark's headline."""

    def measure(run: Path) -> Interval | None:
        result = result_of(run, name)
        if result is None:
            return None
        with written_by("secondlook eval", run / name / "result.json"):
            return result["headline"][key]

    return measure


def judge(of_judging: str, kind: str) -> Callable[[Path], Interval | None]:
    """A measure of the judge on the base's images."""

    def measure(run: Path) -> Interval | None:
        result = result_of(run, "rl/judging-plus")
        if result is None:
            return None
        with written_by("eval mini-judging", run / "rl/judging-plus/result.json"):
            return result[kind][of_judging]

    return measure


def first_over(other: str, task: str | None = None) -> Callable[[Path], Interval | None]:
    """By how much RL's first image is better than another model's, on the same prompts."""

    def measure(run: Path) -> Interval | None:
        of_rl, of_other = episodes_of(run, "rl/plus"), episodes_of(run, f"{other}/plus")
        if of_rl is None or of_other is None:
            return None
        if of_rl.keys() != of_other.keys():
            raise InputError(
                f"runs: {run}/rl/plus and {run}/{other}/plus have different prompts or seeds; run "
                f"{PLUS} with one setting"
            )
        samples = []
        for key, episode in of_rl.items():
            if task in (None, key[0]):
                better = _first(episode) - _first(of_other[key])
                samples.append(Sample(key[0], key[1], better))
        return mean_of_tasks(samples)

    return measure


def _first(episode: Episode) -> float:
    return float(episode["rounds"][0]["right"])


def more_rounds(fewer: int, more: int) -> Callable[[Path], Interval | None]:
    """By how much the final image of ``more`` rounds is better than that of ``fewer``."""

    def measure(run: Path) -> Interval | None:
        episodes = episodes_of(run, "rl/rounds")
        if episodes is None:
            return None
        samples = []
        for (task, prompt, _), episode in episodes.items():
            better = _final(episode, more) - _final(episode, fewer)
            samples.append(Sample(task, prompt, better))
        return mean_of_tasks(samples)

    return measure


def _final(episode: Episode, rounds: int) -> float:
    images = [JudgedImage(r["yes"], r["p_yes"], r["right"]) for r in episode["rounds"]]
    return float(images[final_image(images, rounds)[0]].value)


def words_known(run: Path) -> Interval | None:
    """Of the words of reasons the share that are the world's."""
    episodes = episodes_of(run, "rl/plus")
    if episodes is None:
        return None
    known = _words_of_reasons()
    samples = []
    for (task, prompt, _), episode in episodes.items():
        for each in episode["rounds"]:
            for word in re.findall(r"\w+", each["reason"].lower()):
                samples.append(Sample(task, prompt, float(word in known)))
    return mean_by_prompt(samples)


_REASON_WORDS = """a an and at be belongs below above bottom center else is it left missing more no
not of only or right should something than the there to top what where with yes"""


def _words_of_reasons() -> set[str]:
    """All words that a true verdict may have."""
    words = set(_REASON_WORDS.split())
    words |= {str(number) for number in range(10)} | set(COLORS)
    for name in OBJECTS:
        for count in NUMBERS:
            words |= set(phrase(name, count, None).split())
    return words


# ---------------------------------------------------------------------------------------- claims


@dataclass(frozen=True)
class Claim:
    """What is claimed, and when it holds: the mean is at least ``least`` (at most ``most``), and,
    where it is a ``difference``, its interval is above zero."""

    text: str
    measure: Callable[[Path], Interval | None]
    least: float | None = None
    most: float | None = None
    difference: bool = False

    def holds(self, measured: Interval) -> bool:
        mean = measured["mean"]
        if np.isnan(mean):
            return False
        if self.least is not None and mean < self.least:
            return False
        if self.most is not None and mean > self.most:
            return False
        return not self.difference or measured["low"] > 0

    @property
    def goal(self) -> str:
        """In a cell of the table."""
        if self.most is not None:
            return f"at most {self.most:g}"
        above = "interval above 0" if self.difference else ""
        least = f"at least {self.least:g}" if self.least is not None else ""
        return ", ".join(part for part in (least, above) if part)


CLAIMS = (
    Claim("final over first", headline("rl/plus", "gain"), difference=True),
    Claim(
        "final over drawing afresh until Yes, at equal drawn codes",
        headline("rl/plus", "over_until_yes"),
        least=0.05,
        difference=True,
    ),
    Claim(
        "final over best-of-N, at equal drawn codes",
        headline("rl/plus", "over_best_of_n"),
        difference=True,
    ),
    Claim("wrong first images that end right", headline("rl/plus", "repaired"), least=0.75),
    Claim("right first images that end wrong", headline("rl/plus", "broken"), most=0.01),
    Claim("clauses that a redraw keeps", headline("rl/plus", "kept"), least=0.95),
    Claim("more rounds: four over three", more_rounds(3, 4), difference=True),
    Claim("more rounds: five over four", more_rounds(4, 5), difference=True),
    Claim(
        "one redraw: the true reason over none",
        headline("rl/repairs", "over_none"),
        least=0.1,
        difference=True,
    ),
    Claim("… over another prompt's reason", headline("rl/repairs", "over_other"), difference=True),
    Claim("… over a blank picture", headline("rl/repairs", "over_blank"), difference=True),
    Claim("… over a fresh image", headline("rl/repairs", "over_afresh"), difference=True),
    Claim(
        "told to change something else, it does",
        headline("rl/repairs", "counterfactual"),
        least=0.5,
    ),
    Claim("RL's first image over SFT's", first_over("sft"), difference=True),
    Claim("… over as much further SFT", first_over("control"), difference=True),
    Claim("… in counting, over SFT's", first_over("sft", "counts"), difference=True),
    Claim(
        "the judge's balanced accuracy on the base's images, sampled",
        judge("balanced_accuracy", "sampled"),
        least=0.92,
    ),
    Claim("… its AUROC", judge("auroc", "overall"), least=0.96),
    Claim("what its true Nos name is true", headline("rl/plus", "reason_true"), least=0.9),
    Claim("words of reasons that are words", words_known, least=1.0),
)


def rows_of(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """Of each claim that was measured in any run its goal, its values, and whether it holds in
    all."""
    rows = []
    for claim in CLAIMS:
        values = [claim.measure(run) for run in runs]
        if not any(values):
            continue
        holds = [value is not None and claim.holds(value) for value in values]
        rows.append(
            {
                "claim": claim.text,
                "goal": claim.goal,
                "values": values,
                "holds_in": sum(holds),
                "holds": all(holds),
            }
        )
    return rows


def write(out: Path, runs: Sequence[Path]) -> list[dict[str, Any]]:
    """looking_back.md and, last, result.json. Raises InputError where nothing was measured."""
    rows = rows_of(runs)
    if not rows:
        raise InputError(
            f"runs: {', '.join(map(str, runs))} hold no rl/plus/result.json; run {PLUS} first"
        )
    names = [run.name for run in runs]
    write_text(out / "looking_back.md", page("looking_back.md", rows=rows, names=names))
    result = {"rows": rows, "runs": [str(run) for run in runs], "versions": versions()}
    write_json(out / "result.json", result)
    return rows


def main(
    runs: Annotated[
        list[Path], typer.Argument(help="Runs of scripts/mini.sh that differ in the seed.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the table.")] = Path("out/looking_back"),
) -> None:
    """What is claimed of looking back, and what was measured with each seed."""
    writable_folder(out)
    table = Table("claim", "goal", *[run.name for run in runs], "holds")
    for row in write(out, runs):
        cells = [interval_text(value) if value else "" for value in row["values"]]
        table.add_row(row["claim"], row["goal"], *cells, "yes" if row["holds"] else "no")
    Console(markup=False, highlight=False, width=160).print(table)
    print(f"written to {out}: looking_back.md, result.json")


if __name__ == "__main__":
    run_script(main)
