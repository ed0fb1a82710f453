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
from typing import Any, get_type_hints

from secondlook.errors import InputError


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
            default = partial(_same, parameter.default)
            fields.append((name, annotation, field(kw_only=True, default_factory=default)))
    return make_dataclass(f"{getattr(thing, '__name__', 'Thing')}Settings", fields, frozen=True)


def gather_settings(table: Any, own_keys: Sequence[str]) -> Any:
    """A TOML table with its keys beyond ``own_keys`` moved into ``settings``; anything else than a
    table as it is."""
    if not isinstance(table, dict):
        return table
    own: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    for key, value in table.items():
        (own if key in own_keys else settings)[key] = value
    return own | {"settings": settings}


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

    kind = settings_class(thing, provided)
    if isinstance(values, kind):
        return values
    if not isinstance(values, Mapping):
        raise InputError(f"config: {where}: {values!r} is wrong; give a table of settings")
    rule = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)
    adapter: TypeAdapter[Any] = TypeAdapter(with_config(rule)(kind))
    try:
        # strict JSON lets a list be a tuple and a text be a path, but no text be a number
        return adapter.validate_json(_as_json(values))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "?"
        if first["type"] in ("missing", "missing_keyword_only_argument", "missing_argument"):
            raise InputError(f"config: {where}: {key} is missing; {name!r} needs it") from error
        if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            known = [*kind.__dataclass_fields__, *beside]  # type: ignore[attr-defined]
            nearest = get_close_matches(key, known, n=1, cutoff=0.75)
            raise InputError(
                f"config: {where}: {key} is not a setting of {name!r}; known are "
                f"{', '.join(known) or 'none'}{f'; did you mean {nearest[0]}?' if nearest else ''}"
            ) from error
        message = first["msg"].removeprefix("Value error, ")
        if message.startswith("config: "):  # the settings' own check has said it
            raise InputError(message) from error
        raise InputError(f"config: {where}: {key} = {first['input']!r} is wrong: {message}") from (
            error
        )


def build(thing: Callable[..., Any], settings: Any, **provided: Any) -> Any:
    """Call ``thing`` with its settings and with those of the ``provided`` values that it names."""
    parameters = _parameters(thing)
    named = {name: value for name, value in provided.items() if name in parameters}
    if hasattr(thing, "Config"):
        return thing(settings, **named)
    return thing(**vars(settings), **named)


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
