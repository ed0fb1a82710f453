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
        # all n are drawn whatever ``only`` is: several processes draw the same, each reads its own
        line_numbers = rng.integers(len(self.lines), size=n).tolist()
        wanted_places = range(n) if only is None else only
        return [self.lines[line_numbers[place]].prompt() for place in wanted_places]


class DrawnPrompts:
    """Prompts that a registered source makes up."""

    lines: Sequence[Line] = ()
    """What can be checked before a job: no prompt is known beforehand."""

    def __init__(self, source: PromptSource, name: str):
        self.source, self.name = source, name

    def draw(
        self, rng: np.random.Generator, n: int, only: Sequence[int] | None = None
    ) -> list[Prompt]:
        """``n`` prompts, or those of them at the places ``only``. Raises InputError where the
        source gives another number."""
        drawn_prompts = self.source.draw(rng, n)
        if len(drawn_prompts) != n:
            raise InputError(
                f"prompts: {self.name!r} was asked for {n} prompts and gave {len(drawn_prompts)}"
            )
        wanted_places = range(n) if only is None else only
        return [_as_prompt(drawn_prompts[place]) for place in wanted_places]


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
    registered = registry.prompts.get(prompts)
    return plugin_settings.check_settings(
        "prompt_options", prompts, registered, options, frozenset()
    )


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
    # a class gives a source that makes prompts up, a function gives a list of them
    source_or_list = plugin_settings.build(registry.prompts.get(prompts), settings)
    if hasattr(source_or_list, "draw"):
        return DrawnPrompts(source_or_list, prompts)
    lines = []
    for number, listed_prompt in enumerate(source_or_list, 1):  # as people count
        prompt = _as_prompt(listed_prompt)
        where = f"prompt {number} of {prompts!r}"
        check_unicode(prompt.text, "prompt", where)
        lines.append(Line(prompt.text, prompt.source, where))
    if not lines:
        raise InputError(f"config: prompts: {prompts!r} holds no prompt; give at least one")
    return ListedPrompts(lines)


def _as_prompt(text_or_prompt: str | Prompt) -> Prompt:
    return text_or_prompt if isinstance(text_or_prompt, Prompt) else Prompt(text_or_prompt)


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
        lines = _prompts_of_jsonl(path)
    else:
        for number, text in read_lines(path):
            where = f"line {number} of {path}"
            lines.append(Line(check_unicode(text, "prompt", where), None, where))
    if not lines:
        raise InputError(
            f"config: prompts is {str(path)!r}, which holds no prompt; write one a line"
        )
    return lines


def _prompts_of_jsonl(path: Path) -> list[Line]:
    lines = []
    for number, row in read_rows(path):
        where = f"line {number} of {path}"
        text = text_field(row, "prompt", where)
        source_path = None
        if row.get("source") is not None:
            source_path = beside(path, text_field(row, "source", where))
            if not is_file(source_path):
                raise InputError(
                    f"source: {where}: {str(source_path)!r} is not a file; give a path beside the "
                    "list"
                )
        lines.append(Line(text, source_path, where))
    return lines


def check_prompts(template: ChatTemplate, lines: Iterable[Line]) -> None:
    """Refuse prompts that the model cannot read, before a job begins.

    Raises InputError that names the first such line, and how many others there are.
    """
    fault_texts: list[str] = []
    checked: set[tuple[str, bool]] = set()  # lists repeat prompts, and each is tokenized
    for line in lines:
        is_edit = line.source is not None
        if (line.text, is_edit) in checked:
            continue
        checked.add((line.text, is_edit))
        try:
            if is_edit:
                template.edit((), line.text)  # the source's codes do not matter here
            else:
                template.draw(line.text)
        except InputError as error:
            fault_texts.append(f"{error}, in {line.where}")
    if not fault_texts:
        return
    num_others = len(fault_texts) - 1
    others = f" (and {num_others} more such prompts)" if num_others else ""
    raise InputError(f"{fault_texts[0]}{others}")
