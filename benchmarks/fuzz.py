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
    def ring(*_: Any) -> None:
        raise Hang(f"{HANG} {seconds:.0f} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
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
        said, wrong = str(error), ""
        if "\n" in said or not said or len(said) > LONGEST:
            wrong = f"not one sentence: {said[:200]!r}"
        elif not any(name in said for name in names):
            wrong = f"{names[0]} is not named in: {said[:300]}"
        elif HANG in said:
            wrong = f"caught by the reader: {said[:300]}"
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        wrong = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    if wrong:
        report.faults.append((case, wrong))


def try_file(
    target: Target, report: Report, case: int, seed: int, folder: Path, keep: Path | None = None
) -> None:
    rng = random.Random(f"{seed}/{target.name}/{case}")
    data = mutate(target.data, rng, target.json_lines)
    if target.rebuilt and rng.random() < 0.5:
        data = target.rebuilt(rng)
    place = folder / f"{case}"
    shutil.copytree(target.template, place)
    (place / target.file).write_bytes(data)
    if keep:
        shutil.copytree(place, keep, dirs_exist_ok=True)
    names = (Path(target.file).name, str(place), *target.names)
    try:
        tried(
            report, case, lambda: target.read(place), lambda found: target.check(data, found), names
        )
    finally:
        shutil.rmtree(place)


def try_answer(answer: Answer, report: Report, case: int, seed: int) -> None:
    rng = random.Random(f"{seed}/{answer.name}/{case}")
    given: list[bytes] = []
    tried(
        report, case, lambda: answer.ask(rng, given), lambda found: answer.check(found, given), [""]
    )


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
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        with quietly():
            chosen = [t for t in targets(home / "templates") if t.name.startswith(only)]
        asked = [a for a in ANSWERS if a.name.startswith(only)]
        for k, target in enumerate(chosen):
            reports.append(Report(target.name))
            for i in (
                [case]
                if case is not None
                else range(files // len(chosen) + (k < files % len(chosen)))
            ):
                try_file(target, reports[-1], i, seed, home, keep)
        for k, answer in enumerate(asked):
            reports.append(Report(answer.name))
            for i in (
                [case]
                if case is not None
                else range(answers // len(asked) + (k < answers % len(asked)))
            ):
                try_answer(answer, reports[-1], i, seed)
    return reports


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
    for r in reports:
        print(
            f"{r.name:34}{r.counts['cases']:7}{r.counts['accepted']:10}{r.counts['refused']:9}{len(r.faults):8}"
        )
    for r in reports:
        for number, why in r.faults:
            print(f"fault: --only {r.name} --case {number} --seed {args.seed}: {why}")
    sys.stdout.flush()
    sys.exit(any(r.faults for r in reports))


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
