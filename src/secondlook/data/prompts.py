"""Where a job's prompts come from: a file, or a registered prompt source."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from secondlook import plugin_settings, registry
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
from secondlook.models.janus.template import ChatTemplate
from secondlook.types import Prompt


@dataclass(frozen=True)
class Line:
    """One prompt of a list, its source not opened yet."""

    text: str
    source: Path | Image.Image | None
    """The picture that is to be edited."""
    where: str
    """ "line 3 of prompts.txt" """

    def prompt(self) -> Prompt:
        """With its source read. Raises InputError that names the line."""
        if not isinstance(self.source, Path):
            return Prompt(self.text, self.source)
        try:
            return Prompt(self.text, read_image(self.source))
        except InputError as error:
            raise InputError(f"source: {self.where}: {error}") from error


class PromptSource(Protocol):
    """What a class registered by ``@register_prompts`` is: prompts made up as they are asked for.

    A function may be registered instead, which returns a list of prompts. Both get the config's
    ``prompt_options`` as settings (``secondlook.plugin_settings``).
    """

    def draw(self, rng: np.random.Generator, n: int) -> Sequence[str | Prompt]:
        """``n`` prompts that depend on the state of ``rng`` only."""
        ...


class ListedPrompts:
    """Prompts of a list, drawn with replacement."""

    def __init__(self, lines: Sequence[Line]):
        self.lines = lines

    def draw(
        self, rng: np.random.Generator, n: int, only: Sequence[int] | None = None
    ) -> list[Prompt]:
        """``n`` prompts, or those of them at the places ``only``: the others' sources are not
        opened. Raises InputError that names the line whose source cannot be read."""
        drawn = rng.integers(len(self.lines), size=n).tolist()
        places = range(n) if only is None else only
        return [self.lines[drawn[i]].prompt() for i in places]


class DrawnPrompts:
    """Prompts that a registered source makes up."""

    lines: Sequence[Line] = ()
    """None is known beforehand."""

    def __init__(self, source: PromptSource, name: str):
        self.source, self.name = source, name

    def draw(
        self, rng: np.random.Generator, n: int, only: Sequence[int] | None = None
    ) -> list[Prompt]:
        """``n`` prompts, or those of them at the places ``only``. Raises InputError where the
        source gives another number."""
        drawn = self.source.draw(rng, n)
        if len(drawn) != n:
            raise InputError(
                f"prompts: {self.name!r} was asked for {n} prompts and gave {len(drawn)}"
            )
        places = range(n) if only is None else only
        return [_as_prompt(drawn[i]) for i in places]


def check_prompt_options(prompts: str, options: Any) -> Any:
    """The settings ``options`` of the prompt source named ``prompts``, checked. Raises InputError;
    a file has none."""
    if prompts not in registry.prompts.names():
        if options:
            raise InputError(
                f"config: prompt_options is {options!r}, but prompts = {prompts!r} is a file, "
                "which has none; leave them out"
            )
        return options
    thing = registry.prompts.get(prompts)
    return plugin_settings.check_settings("prompt_options", prompts, thing, options, frozenset())


def open_prompts(
    prompts: str, options: Mapping[str, Any] | None = None
) -> ListedPrompts | DrawnPrompts:
    """The prompts of a registered name, else of a file (``read_prompts``).

    ``options`` are settings of the registered source. Raises InputError.
    """
    settings = check_prompt_options(prompts, options or {})
    if not prompts:
        raise InputError(
            "config: prompts is empty; give a file or a registered name of "
            f"{', '.join(registry.prompts.names())}"
        )
    if prompts not in registry.prompts.names():
        return ListedPrompts(read_prompts(Path(prompts)))
    made = plugin_settings.build(registry.prompts.get(prompts), settings)
    if hasattr(made, "draw"):
        return DrawnPrompts(made, prompts)
    lines = []
    for number, listed in enumerate(made, 1):
        prompt = _as_prompt(listed)
        where = f"prompt {number} of {prompts!r}"
        check_unicode(prompt.text, "prompt", where)
        lines.append(Line(prompt.text, prompt.source, where))
    if not lines:
        raise InputError(f"config: prompts: {prompts!r} holds no prompt; give at least one")
    return ListedPrompts(lines)


def _as_prompt(listed: str | Prompt) -> Prompt:
    return listed if isinstance(listed, Prompt) else Prompt(listed)


def read_prompts(path: Path) -> list[Line]:
    """Prompts of a text file with one a line (also one that begins with "#": there are no
    comments), or of a JSONL file whose lines are {"prompt": …} or,
    for edits, {"prompt": the instruction, "source": a picture's path beside the file}.

    Sources are only looked for. Raises InputError that names the line.
    """
    if not is_file(path):
        raise InputError(
            f"config: prompts is {str(path)!r}, which is not a file; give a text file, one "
            "prompt a line, a .jsonl, or a registered name of "
            f"{', '.join(registry.prompts.names())}"
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
