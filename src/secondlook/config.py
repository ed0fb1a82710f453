"""A job's configuration: a TOML file and ``--set key=value``, checked against the job's
dataclass."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from secondlook.errors import InputError
from secondlook.io import finite, read_text
from secondlook.recipes import find_config
from secondlook.registry import load_config_plugins

T = TypeVar("T")


def load(kind: type[T], path: Path, settings: list[str]) -> T:
    """Read ``path`` and apply ``settings`` ("key=value", values as TOML, bare words as strings).

    Raises InputError that names the file or field, the value and what would be right.
    """
    values = read(path)
    for setting in settings:
        key, found, text = setting.partition("=")
        if not found or not key:
            raise InputError(
                f"set: {setting!r} is not key=value; write for example --set steps=100"
            )
        try:
            values[key] = tomllib.loads(f"value = {text}")["value"]
        except (ValueError, RecursionError) as error:  # also numbers of thousands of digits
            if text.lstrip().startswith(("[", "{")):
                raise InputError(
                    f"set: {setting!r} is not TOML ({error}); write lists as [1, 2], tables as "
                    f"{{a = 1}}"
                ) from error
            values[key] = text
    return parse(kind, values, repr(str(path)))


def read(path: Path) -> dict[str, Any]:
    """The values of a TOML file or of a recipe (``7b/grpo``). Raises InputError that names it."""
    path = find_config(path)
    try:
        return tomllib.loads(read_text(path))
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits
        raise InputError(f"config: {str(path)!r} is not valid TOML ({error})") from error


def parse(kind: type[T], values: dict[str, Any], where: str = "the settings") -> T:
    """A job's dataclass from its settings, which ``where`` names. Raises InputError that names the
    field, the value and what would be right."""
    load_config_plugins(values)  # before what they register is asked for
    _check_kinds(kind, values)
    checked = with_config(ConfigDict(extra="forbid", allow_inf_nan=False))(kind)
    try:
        return TypeAdapter(checked).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "?"
        if first["type"] == "missing":
            raise InputError(f"config: {key} is missing from {where}; this job needs it") from error
        if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            known = ", ".join(kind.__dataclass_fields__)  # type: ignore[attr-defined]
            others = f"; known are {known}" if len(first["loc"]) == 1 else ""
            raise InputError(f"config: {key} is not a setting of this job{others}") from error
        said = first["msg"].removeprefix("Value error, ")
        if said.startswith("config: "):  # a part of the config has said it itself
            raise InputError(said) from error
        raise InputError(f"config: {key} = {first['input']!r} is wrong: {said}") from error


def _check_kinds(kind: type, values: dict[str, Any]) -> None:
    """Refuse truth values and texts where a number is meant, which would become one. Raises
    InputError."""
    for name, field in kind.__dataclass_fields__.items():  # type: ignore[attr-defined]
        value, meant = values.get(name), str(field.type)
        number = re.fullmatch(r"(int|float)( \| None)?", meant)
        if number and isinstance(value, bool | str):
            raise InputError(f"config: {name} = {value!r} is wrong: it must be a number")
        least = {"seed": 0, "threads": 1}.get(name)
        if least is not None and value is not None and not finite(value, least):
            raise InputError(f"config: {name} = {value!r} is wrong: it must be at least {least}")
