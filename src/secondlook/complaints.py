"""Pydantic's complaints of a setting, in the package's words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

BOUNDS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "above"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "below"),
}
"""Of pydantic's kinds of error: where the bound stands, and how it is said."""
A_NUMBER = "it must be a number"
A_TABLE = "it must be a table, as {key = 1}"
A_TEXT = "it must be a text in quotes"
TRUE_OR_FALSE = "it must be true or false"
WHOLE_NUMBER = "it must be a whole number"
WORDS = {
    "bool_parsing": TRUE_OR_FALSE,
    "bool_type": TRUE_OR_FALSE,
    "dataclass_type": "it must be a section or a table, with settings by name",
    "dict_type": A_TABLE,
    "finite_number": "it must be a finite number",
    "float_parsing": A_NUMBER,
    "float_type": A_NUMBER,
    "int_from_float": WHOLE_NUMBER,
    "int_parsing": WHOLE_NUMBER,
    "int_parsing_size": WHOLE_NUMBER,
    "int_type": WHOLE_NUMBER,
    "mapping_type": A_TABLE,
    "path_type": "it must be a path in quotes",
    "string_type": A_TEXT,
}
"""Of pydantic's kinds of error: what would be right."""


def what_is_wrong(error: ErrorDetails) -> str:
    """What a value must be instead, without a full stop; pydantic's own words for a kind of error
    that has none here, and those of a check that raised ValueError."""
    error_type = error["type"]
    if error_type in BOUNDS:
        bound_key, bound_words = BOUNDS[error_type]
        return f"it must be {bound_words} {error['ctx'][bound_key]}"
    if error_type == "literal_error":
        return f"it must be {error['ctx']['expected']}"
    if error_type in ("list_type", "tuple_type"):
        is_one_item = isinstance(error["input"], str | dict)
        return f"it must be a list{'; put it in [ ]' if is_one_item else ' in [ ]'}"
    return WORDS.get(error_type, error["msg"].removeprefix("Value error, "))
