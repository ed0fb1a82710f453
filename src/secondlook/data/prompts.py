"""Where a job's prompts come from: a file, or the miniature's world."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from secondlook.errors import InputError
from secondlook.io import (
    beside,
    check_unicode,
    is_file,
    read_image,
    read_lines,
    read_rows,
    text_field,
)
from secondlook.mini import datasets
from secondlook.models.janus.template import ChatTemplate
from secondlook.types import Prompt


@dataclass(frozen=True)
class Line:
    """One prompt of a file, not opened yet."""

    text: str
    source: Path | None
    """The picture that is to be edited."""
    where: str
    """ "line 3 of prompts.txt" """

    def prompt(self) -> Prompt:
        """With its source read. Raises InputError that names the line."""
        if self.source is None:
            return Prompt(self.text)
        try:
            return Prompt(self.text, read_image(self.source))
        except InputError as error:
            raise InputError(f"source: {self.where}: {error}") from error


class Prompts:
    """Prompts of a text file with one a line; of a JSONL file whose lines are {"prompt": …} or, for
    edits, {"prompt": the instruction, "source": a picture's path beside the file}; or (``path``
    empty) of the miniature's world, held-out compositions excluded, their kinds in the shares
    ``kinds``. Raises InputError that names the line."""

    def __init__(self, path: str = "", kinds: dict[str, float] = datasets.KINDS):
        self.kinds = kinds
        self.lines = read_prompts(Path(path)) if path else []

    def get(self, index: int) -> Prompt:
        """A file's prompt."""
        return self.lines[index].prompt()

    def draw(
        self, rng: np.random.Generator, n: int, mine: Sequence[int] | None = None
    ) -> list[Prompt]:
        """``n`` prompts, or those of them that stand at the places ``mine``: the others' sources
        are not opened."""
        places = range(n) if mine is None else mine
        if self.lines:
            drawn = rng.integers(len(self.lines), size=n).tolist()
            return [self.get(drawn[i]) for i in places]
        wishes = datasets.prompts(rng, n, self.kinds)
        return [wishes[i].prompt for i in places]


def read_prompts(path: Path) -> list[Line]:
    """A file's prompts; sources are only looked for. Raises InputError that names the line."""
    if not is_file(path):
        raise InputError(
            f"config: prompts is {str(path)!r}, which is not a file; give a text file, one "
            "prompt a line, or a .jsonl"
        )
    if path.suffix.lower() not in ("", ".txt", ".jsonl"):
        raise InputError(
            f"config: prompts is {str(path)!r}; give a .txt with one prompt a line, or a .jsonl"
        )
    lines: list[Line] = []
    if path.suffix.lower() == ".jsonl":
        for number, row in read_rows(path):
            where = f"line {number} of {path}"
            text = text_field(row, "prompt", where)
            source = (
                beside(path, text_field(row, "source", where))
                if row.get("source") is not None
                else None
            )
            if source and not is_file(source):
                raise InputError(
                    f"source: {where}: {str(source)!r} is not a file; give a path beside the list"
                )
            lines.append(Line(text, source, where))
    else:
        for number, text in read_lines(path):
            where = f"line {number} of {path}"
            lines.append(Line(check_unicode(text, "prompt", where), None, where))
    if not lines:
        raise InputError(
            f"config: prompts is {str(path)!r}, which holds no prompt; write one a line"
        )
    return lines


def check_prompts(template: ChatTemplate, lines: Iterable[Line]) -> None:
    """Refuse prompts that the model cannot read, before a job begins.

    Raises InputError that names the first such line, and how many others there are.
    """
    faults: list[str] = []
    known: set[tuple[str, bool]] = set()
    for line in lines:
        kind = line.text, line.source is not None
        if kind in known:
            continue
        known.add(kind)
        try:
            if line.source is None:
                template.draw(line.text)
            else:
                template.edit((), line.text)
        except InputError as error:
            faults.append(f"{error}, in {line.where}")
    if faults:
        others = f" (and {len(faults) - 1} more such prompts)" if len(faults) > 1 else ""
        raise InputError(f"{faults[0]}{others}")
