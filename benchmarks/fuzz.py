"""Files and answers with mishaps (``mutate``), read as the package reads them: each is read as it
says, or refused in one sentence that names it. No traceback, no hang, and nothing read that an
independent reading does not find.

    python benchmarks/fuzz.py                # 2,000 files, 500 answers of a judge
    python benchmarks/fuzz.py --only checkpoint/config.json --case 17 --keep out/fuzz

Exits 1 on a fault.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import shutil
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuzz_answers import ANSWERS, Answer
from fuzz_target import Target
from fuzz_targets import targets
from mutate import mutate
from secondlook.errors import InputError, Stopped

LIMIT = 20.0
"""Seconds that a case may take."""
LONGEST = 1200
"""Characters that a sentence may have: it may name a long value."""


HANG = "this case took more than"


class Hang(BaseException):
    """Raised in a case that takes too long; no reader may catch it."""


@dataclass
class Report:
    """What came of one target's cases."""

    name: str
    counts: Counter = field(default_factory=Counter)
    """cases, accepted, refused."""
    faults: list[tuple[int, str]] = field(default_factory=list)
    """Numbers of cases, and what was wrong."""


@contextlib.contextmanager
def in_time(seconds: float) -> Iterator[None]:
    """Inside, Hang is raised after so many seconds."""

    def ring(*_: Any) -> None:
        raise Hang(f"{HANG} {seconds:.0f} seconds")

    handler_before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler_before)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Inside, nothing is printed and no warning shown."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def tried(
    report: Report,
    case: int,
    read: Callable[[], Any],
    check: Callable[[Any], str],
    names: Sequence[str],
) -> None:
    """One case: read, and check what was read or said. A refusal must name one of ``names``."""
    report.counts["cases"] += 1
    try:
        with in_time(LIMIT), quietly():
            wrong = check(read())
        report.counts["accepted"] += not wrong
    except (InputError, Stopped) as error:
        report.counts["refused"] += 1
        wrong = wrong_refusal(str(error), names)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # also a hang, and what is no Exception
        wrong = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    if wrong:
        report.faults.append((case, wrong))


def wrong_refusal(sentence: str, names: Sequence[str]) -> str:
    """What is wrong with a refusal, or ""."""
    if "\n" in sentence or not sentence or len(sentence) > LONGEST:
        return f"not one sentence: {sentence[:200]!r}"
    if not any(name in sentence for name in names):
        return f"{names[0]} is not named in: {sentence[:300]}"
    if HANG in sentence:
        return f"caught by the reader: {sentence[:300]}"
    return ""


def try_file(
    target: Target, report: Report, case: int, seed: int, folder: Path, keep: Path | None = None
) -> None:
    """Read a copy of the target's folder with the file spoiled, or one of its kind made anew."""
    rng = random.Random(f"{seed}/{target.name}/{case}")
    data = mutate(target.data, rng, target.json_lines)
    if target.rebuilt and rng.random() < 0.5:
        data = target.rebuilt(rng)
    case_folder = folder / f"{case}"
    shutil.copytree(target.template, case_folder)
    (case_folder / target.file).write_bytes(data)
    if keep:
        shutil.copytree(case_folder, keep, dirs_exist_ok=True)

    def read() -> Any:
        return target.read(case_folder)

    def check(contents: Any) -> str:
        return target.check(data, contents)

    names = (Path(target.file).name, str(case_folder), *target.names)
    try:
        tried(report, case, read, check, names)
    finally:
        shutil.rmtree(case_folder)


def try_answer(answer: Answer, report: Report, case: int, seed: int) -> None:
    """Ask a judge whose answers have mishaps. A refusal need not name anything."""
    rng = random.Random(f"{seed}/{answer.name}/{case}")
    given_answers: list[bytes] = []

    def ask() -> Any:
        return answer.ask(rng, given_answers)

    def check(results: Any) -> str:
        return answer.check(results, given_answers)

    tried(report, case, ask, check, [""])


def run(
    files: int,
    answers: int,
    seed: int,
    only: str = "",
    case: int | None = None,
    keep: Path | None = None,
) -> list[Report]:
    """So many cases, spread over all targets (or those whose names begin with ``only``)."""
    reports = []
    with tempfile.TemporaryDirectory() as temporary_folder:
        home = Path(temporary_folder)
        with quietly():
            all_targets = targets(home / "templates")
        chosen_targets = [target for target in all_targets if target.name.startswith(only)]
        chosen_answers = [answer for answer in ANSWERS if answer.name.startswith(only)]
        for place, target in enumerate(chosen_targets):
            report = Report(target.name)
            for number in case_numbers(files, len(chosen_targets), place, case):
                try_file(target, report, number, seed, home, keep)
            reports.append(report)
        for place, answer in enumerate(chosen_answers):
            report = Report(answer.name)
            for number in case_numbers(answers, len(chosen_answers), place, case):
                try_answer(answer, report, number, seed)
            reports.append(report)
    return reports


def case_numbers(total: int, num_targets: int, place: int, case: int | None) -> Sequence[int]:
    """Of ``total`` cases those of the target at ``place``: as many for each, the first ones get the
    rest. ``case``: that one alone."""
    if case is not None:
        return [case]
    each, rest = divmod(total, num_targets)
    return range(each + (place < rest))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--answers", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="targets whose names begin so")
    parser.add_argument("--case", type=int, help="this case alone")
    parser.add_argument("--keep", type=Path, help="where the last case's folder is kept")
    args = parser.parse_args()
    reports = run(args.files, args.answers, args.seed, args.only, args.case, args.keep)
    print(f"{'target':34}{'cases':>7}{'accepted':>10}{'refused':>9}{'faults':>8}")
    num_faults = 0
    for report in reports:
        num_faults += len(report.faults)
        counts = report.counts
        print(
            f"{report.name:34}{counts['cases']:7}{counts['accepted']:10}{counts['refused']:9}"
            f"{len(report.faults):8}"
        )
    for report in reports:
        for number, why in report.faults:
            print(f"fault: --only {report.name} --case {number} --seed {args.seed}: {why}")
    sys.stdout.flush()
    sys.exit(num_faults > 0)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
