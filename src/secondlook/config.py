"""A job's settings: a TOML file with sections and ``--set section.key=value``, checked against the
job's dataclass.

A section is a dataclass of its own, so ``[rollout] group_size = 8`` in a file, ``--set
rollout.group_size=8`` and ``{"rollout": {"group_size": 8}}`` in Python say the same.
"""

from __future__ import annotations

import dataclasses
import tomllib
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from pydantic.dataclasses import is_pydantic_dataclass

from secondlook.complaints import what_is_wrong
from secondlook.errors import InputError
from secondlook.io import read_text
from secondlook.recipes import find_config
from secondlook.registry import load_config_plugins

T = TypeVar("T")

NUMBERS = (int, float, int | None, float | None)
CHECKS = ("value_error", "assertion_error")
"""Of pydantic's kinds of error: what a dataclass's own ``__post_init__`` raises, which names the
fields that it is about."""


def load(job: type[T], path: Path, settings: list[str]) -> T:
    """Read ``path`` and apply ``settings`` ("key=value" or "section.key=value"; values as TOML,
    bare words as strings).

    Raises InputError that names the file or field, the value and what would be right.
    """
    values = read(path)
    for assignment in settings:
        _apply(values, assignment)
    return parse(job, values, repr(str(path)))


def read(path: Path) -> dict[str, Any]:
    """The values of a TOML file or of a recipe (``7b/grpo``). Raises InputError that names it."""
    path = find_config(path)
    try:
        return tomllib.loads(read_text(path))
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits
        raise InputError(f"config: {str(path)!r} is not valid TOML ({error})") from error


def parse(
    job: type[T], values: dict[str, Any], where: str = "the settings", section: str = ""
) -> T:
    """A job's dataclass from nested dictionaries, as TOML has them. ``where`` is what a message
    calls their source; ``section``: the dotted name of the table that they are, of a part of a job.

    Raises InputError that names the field, the value and what would be right.
    """
    values = dict(values)
    load_config_plugins(values)  # before what they register is asked for
    _refuse_renamed(job, values)
    prefix = f"{section}." if section else ""
    _check_numbers(job, values, prefix)
    checked_class: Any = job
    if not is_pydantic_dataclass(job):
        checked_class = with_config(ConfigDict(extra="forbid", allow_inf_nan=False))(job)
    try:
        return TypeAdapter(checked_class).validate_python(values)
    except ValidationError as error:
        raise InputError(_sentence(job, error, values, where, prefix)) from error


def changed(config: T, settings: dict[str, Any]) -> T:
    """A copy of a job's dataclass with other values, named "key" or "section.key"."""
    new_config = config
    for name, value in settings.items():
        field_name, dot, inner_name = name.partition(".")
        if dot:  # the field is a section, which is replaced as a whole
            value = changed(getattr(new_config, field_name), {inner_name: value})
        new_config = dataclasses.replace(new_config, **{field_name: value})  # type: ignore[type-var]
    return new_config


def known_settings(job: type, prefix: str = "") -> list[str]:
    """Dotted names of all settings of a job, in order."""
    names: list[str] = []
    for name, hint in _hints(job).items():
        section_class = _section(hint)
        if section_class is None:
            names.append(prefix + name)
        else:
            names += known_settings(section_class, f"{prefix}{name}.")
    return names


def _apply(values: dict[str, Any], assignment: str) -> None:
    """Put one "section.key=value" into nested dictionaries. Raises InputError."""
    dotted_name, equals, value_text = assignment.partition("=")
    *sections, key = dotted_name.split(".")
    if not equals or not key or not all(sections):
        raise InputError(f"set: {assignment!r} is not key=value; write for example --set steps=100")
    table = values
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise InputError(f"set: {assignment!r} cannot be set; {section} is no section")
    try:
        table[key] = tomllib.loads(f"value = {value_text}")["value"]
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits
        if value_text.lstrip().startswith(("[", "{")):
            raise InputError(
                f"set: {assignment!r} is not TOML ({error}); write lists as [1, 2], tables as "
                f"{{a = 1}}"
            ) from error
        table[key] = value_text  # a bare word: --set model=mini needs no quotes


def _hints(job: type) -> dict[str, Any]:
    """Types of a dataclass's fields, without bounds."""
    hints = get_type_hints(job)
    return {field.name: hints[field.name] for field in dataclasses.fields(job)}


def _section(hint: Any) -> type | None:
    """The dataclass of a field that is a section, also of one that may be missing (``X | None``);
    None for any other field."""
    alternatives = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    types_beside_none = [each for each in alternatives if each is not type(None)]
    if len(types_beside_none) != 1 or not isinstance(types_beside_none[0], type):
        return None
    return types_beside_none[0] if dataclasses.is_dataclass(types_beside_none[0]) else None


def _refuse_renamed(job: type, values: dict[str, Any]) -> None:
    """Name the new setting for each one that has moved (``job.RENAMED``). Raises InputError."""
    renamed: dict[str, str] = getattr(job, "RENAMED", {})
    moved = [f"{name} is now {renamed[name]}" for name in values if name in renamed]
    if moved:
        raise InputError(
            f"config: {', '.join(moved)}; write [section] and then key = value, or --set "
            "section.key=value"
        )


def _check_numbers(job: type, values: dict[str, Any], prefix: str) -> None:
    """Refuse truth values and texts where a number is meant, which would become one. Raises
    InputError."""
    for name, hint in _hints(job).items():
        value = values.get(name)
        if hint in NUMBERS and isinstance(value, bool | str):
            raise InputError(f"config: {prefix}{name} = {value!r} is wrong: it must be a number")
        section_class = _section(hint)
        if section_class is not None and isinstance(value, dict):
            _check_numbers(section_class, value, f"{prefix}{name}.")


def _sentence(
    job: type, error: ValidationError, values: dict[str, Any], where: str, prefix: str
) -> str:
    """The first of pydantic's complaints of ``values``, said in one sentence. ``prefix`` stands
    before the names of settings."""
    first_error = error.errors()[0]
    # without an end where the settings as a whole are meant: "algorithm_options", or ""
    name = (prefix + ".".join(map(str, first_error["loc"]))).rstrip(".")
    error_type = first_error["type"]
    if error_type == "missing":
        return f"config: {name} is missing from {where}; this job needs it"
    if error_type in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"config: {name} is not a setting of this job; {_suggestion(job, name, prefix)}"
    message = what_is_wrong(first_error)
    if message.startswith("config: "):  # a section has said it itself
        return message
    name = (prefix + _name_of_value(first_error["loc"], values)).rstrip(".")
    if error_type in CHECKS and isinstance(first_error["input"], dict):
        return f"config: {name}: {message}" if name else f"config: {message}"
    return f"config: {name or where} = {first_error['input']!r} is wrong: {message}"


def _name_of_value(location: tuple[int | str, ...], values: Any) -> str:
    """The dotted name of a value at pydantic's location, without the names of types that it adds
    where several are possible; "" for the settings as a whole."""
    keys: list[str] = []
    for key in location:
        is_key = isinstance(values, dict) and key in values
        is_place = isinstance(values, list | tuple) and isinstance(key, int) and key < len(values)
        if is_key or is_place:
            keys.append(str(key))
            values = values[key]
    return ".".join(keys)


def _suggestion(job: type, name: str, prefix: str) -> str:
    """What was probably meant by a name that no setting or section has: the same word in another
    section, or the nearest name."""
    known_names = known_settings(job, prefix)
    section, _, last_word = name.rpartition(".")
    name_of_word = {known_name.rpartition(".")[2]: known_name for known_name in known_names}
    words_of_section: list[str] = []  # its settings and the sections in it
    for known_name in known_names:
        if not section:
            words_of_section.append(known_name.partition(".")[0])
        elif known_name.startswith(f"{section}."):
            words_of_section.append(known_name.removeprefix(f"{section}.").partition(".")[0])
    near_words = get_close_matches(last_word, name_of_word, n=1, cutoff=0.75)
    # by the last word alone: names of one section are alike in the section's name
    near_in_section = get_close_matches(last_word, words_of_section, n=1, cutoff=0.75)
    # a word that another section has is likelier misplaced than misspelt
    if last_word not in name_of_word and near_in_section:
        return f"did you mean {name.removesuffix(last_word)}{near_in_section[0]}?"
    if near_words:
        return f"did you mean {name_of_word[near_words[0]]}?"
    listed_names: list[str] = []
    if section:
        listed_names = [each for each in known_names if each.startswith(f"{section}.")]
    if not listed_names:  # the sections and the settings outside of them, each once
        listed_names = list(dict.fromkeys(each.partition(".")[0] for each in known_names))
    return f"known are {', '.join(listed_names) or 'none'}"
