"""Settings of registered things: a config's extra keys, checked against what the thing itself asks.

A registered class may have an attribute ``Config``, a dataclass: the extra keys fill it and it is
the constructor's first argument. Of any other class or function the extra keys are its keyword
arguments, checked by name and by annotation.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, make_dataclass
from difflib import get_close_matches
from functools import cache, partial
from typing import TYPE_CHECKING, Any, get_type_hints

from secondlook.complaints import what_is_wrong
from secondlook.errors import InputError

if TYPE_CHECKING:
    from pydantic import ValidationError


@cache
def settings_class(thing: Callable[..., Any], provided: frozenset[str]) -> type:
    """The dataclass of a registered thing's settings: its ``Config``, or one made of its keyword
    arguments without those that the package provides."""
    if hasattr(thing, "Config"):
        return thing.Config
    try:
        hints = get_type_hints(
            thing.__init__ if isinstance(thing, type) else thing,  # type: ignore[misc]
            include_extras=True,  # bounds, as in Annotated[int, Field(ge=1)]
        )
    except (NameError, TypeError):  # names that only a type checker imports
        hints = {}
    fields: list[tuple[str, Any, Any]] = []
    for name, parameter in _parameters(thing).items():
        if name in provided or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        annotation = hints.get(name, Any)
        if parameter.default is parameter.empty:
            fields.append((name, annotation, field(kw_only=True)))
        else:
            # a factory, as a dataclass refuses a list as default
            default_factory = partial(_same, parameter.default)
            fields.append((name, annotation, field(kw_only=True, default_factory=default_factory)))
    return make_dataclass(f"{getattr(thing, '__name__', 'Thing')}Settings", fields, frozen=True)


def gather_settings(table: Any, own_keys: Sequence[str]) -> Any:
    """A TOML table with its keys beyond ``own_keys`` moved into ``settings``; anything else than a
    table as it is."""
    if not isinstance(table, dict):
        return table
    own_values: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    for key, value in table.items():
        if key in own_keys:
            own_values[key] = value
        else:
            settings[key] = value
    return own_values | {"settings": settings}


def check_settings(
    where: str,
    name: str,
    thing: Callable[..., Any],
    values: Any,
    provided: frozenset[str],
    beside: Sequence[str] = (),
) -> Any:
    """The settings ``values``, a dictionary or settings already made, as the dataclass of
    ``thing``, which is registered as ``name``. ``beside``: keys of the same table that are no
    settings of it.

    Raises InputError that begins with "config: " and ``where`` and names the key.
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

    expected_class = settings_class(thing, provided)
    if isinstance(values, expected_class):
        return values
    if not isinstance(values, Mapping):
        raise InputError(f"config: {where}: {values!r} is wrong; give a table of settings")
    strict_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)
    adapter: TypeAdapter[Any] = TypeAdapter(with_config(strict_config)(expected_class))
    try:
        # strict JSON lets a list be a tuple and a text be a path, but no text be a number
        return adapter.validate_json(_as_json(values))
    except ValidationError as error:
        known_keys = [*expected_class.__dataclass_fields__, *beside]  # type: ignore[attr-defined]
        raise InputError(_sentence(error, where, name, known_keys)) from error


def _sentence(error: ValidationError, where: str, name: str, known_keys: Sequence[str]) -> str:
    """The first of pydantic's complaints, said in one sentence. ``known_keys`` are those that may
    stand in the table of the thing ``name``."""
    first_error = error.errors()[0]
    key = ".".join(map(str, first_error["loc"]))  # "": all settings together
    error_type = first_error["type"]
    if error_type in ("missing", "missing_keyword_only_argument", "missing_argument"):
        return f"config: {where}: {key} is missing; {name!r} needs it"
    if error_type in ("unexpected_keyword_argument", "extra_forbidden"):
        nearest_keys = get_close_matches(key, known_keys, n=1, cutoff=0.75)
        guess = f"; did you mean {nearest_keys[0]}?" if nearest_keys else ""
        return (
            f"config: {where}: {key} is not a setting of {name!r}; known are "
            f"{', '.join(known_keys) or 'none'}{guess}"
        )
    message = what_is_wrong(first_error)
    if message.startswith("config: "):  # the settings' own check has said it
        return message
    if not key:  # the settings' own check, which names the fields that it is about
        return f"config: {where}: {name!r}: {message}"
    return f"config: {where}: {key} = {first_error['input']!r} is wrong: {message}"


def build(thing: Callable[..., Any], settings: Any, **provided: Any) -> Any:
    """Call ``thing`` with its settings and with those of the ``provided`` values that it names."""
    parameters = _parameters(thing)
    wanted_values = {name: value for name, value in provided.items() if name in parameters}
    if hasattr(thing, "Config"):
        return thing(settings, **wanted_values)
    return thing(**vars(settings), **wanted_values)


def takes(function: Callable[..., Any], name: str) -> bool:
    """Whether a function or a constructor has a parameter of this name."""
    return name in _parameters(function)


def _parameters(thing: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(thing).parameters


def _same(value: Any) -> Any:
    return value


def _as_json(values: Mapping[str, Any]) -> str:
    try:
        return json.dumps(values)
    except TypeError as error:
        raise InputError(
            f"config: {dict(values)!r} is wrong ({error}); settings are numbers, texts, lists and "
            "tables"
        ) from error
