"""Reading text, JSON lines and tables, whoever made them. What cannot be read as it was meant is
refused (InputError) with the file and, in lists, the line."""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
import os
import re
import stat
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secondlook.errors import InputError

if TYPE_CHECKING:
    import pyarrow

POINTERS = {
    rb"version https?://(git-lfs|hawser|git-media)\.": ("git-lfs", "git lfs pull"),
    rb"[/\\]annex[/\\]objects[/\\]": ("git-annex", "git annex get"),
    rb"# xet version": ("git-xet", "git xet checkout"),
}
"""How files begin that only name the file that they stand for: whose they are, and what brings the
file itself."""
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def is_file(path: Path) -> bool:
    """Whether a file is there; no, for a name that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def regular(path: Path) -> Path:
    """``path``, which is no pipe or device that reading would wait for. Raises InputError."""
    path = Path(path)
    try:
        kind = path.stat().st_mode
    except (OSError, ValueError):
        return path  # opening it says what is wrong
    if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
        raise InputError(f"file: {str(path)!r} is a pipe or a device; give a file")
    return path


def read_bytes(path: Path) -> bytes:
    """A file's bytes. Raises InputError for one that is missing, cannot be opened, or stands for
    another (git-lfs)."""
    try:
        data = regular(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"file: {str(path)!r} cannot be read ({reason})") from error
    if stands_for := pointer(data):
        raise InputError(f"file: {str(path)!r} is {stands_for}")
    return data


def pointer(data: bytes) -> str | None:
    """What a file that begins so is, and what to do, where it only stands for another one."""
    for beginning, (tool, command) in POINTERS.items():
        if re.match(beginning, data):
            return f"a {tool} pointer, not the file itself; run {command}"
    return None


def read_text(path: Path) -> str:
    """A text file's text without its byte-order mark: UTF-8, or UTF-16 or UTF-32 that say so by
    their mark.

    Raises InputError that names the file, the line and the encoding that it should have.
    """
    return decode_text(read_bytes(path), str(path))


def decode_text(data: bytes, name: str) -> str:
    """``read_text`` of bytes that are there already."""
    encoding = next((e for mark, e in MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        what = f"byte 0x{data[error.start]:02x}" if error.start < len(data) else "its end"
        raise InputError(
            f"file: line {line} of {name!r} is not {encoding.upper()} text ({what}); save it as "
            "UTF-8"
        ) from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise InputError(
            f"file: line {line} of {name!r} holds a NUL (U+0000), as binary files do, and UTF-16 "
            "without its mark; remove it, or save the file as UTF-8"
        )
    return text


def read_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a text file that are not empty, with their numbers from 1 on, without blanks
    around them.

    A line ends at a newline (of Unix or Windows) and nowhere else. Raises InputError.
    """
    lines = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        line = line.strip(" \t\r\f\v\ufeff")  # a mark may stand where files were joined
        if "\r" in line:
            raise InputError(
                f"file: line {number} of {str(path)!r} holds a bare carriage return; end lines "
                "with a newline"
            )
        if line:
            lines.append((number, line))
    return lines


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file (of tabs: .tsv) by the names in its first line. Raises InputError that
    names the line of a row with more or fewer cells."""
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.DictReader(
        io.StringIO(read_text(path), newline=""), delimiter=delimiter, strict=True
    )
    rows = []
    try:
        for row in reader:
            if None in row or None in row.values():
                names = ", ".join(reader.fieldnames or ())
                raise InputError(
                    f"file: line {reader.line_num} of {str(path)!r} does not have the cells {names}"
                )
            rows.append(row)
    except csv.Error as error:
        raise InputError(
            f"file: line {reader.line_num} of {str(path)!r} is not CSV ({error})"
        ) from error
    return rows


def parse_json(text: str | bytes) -> Any:
    """JSON's value. Raises ValueError, also for what JSON does not have: NaN, infinities and
    numbers that become one."""

    def number(digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            raise ValueError(f"{digits} is not a finite number")
        return value

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(
                f"{next(n for n in names if names.count(n) > 1)!r} stands twice in one object"
            )
        return found

    try:
        return json.loads(text, parse_constant=number, parse_float=number, object_pairs_hook=once)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """The objects of a file of JSON lines, with their lines' numbers. Raises InputError that names
    the file and the line."""
    rows = []
    for number, line in read_lines(path):
        try:
            row = parse_json(line)
        except ValueError as error:
            raise InputError(
                f"file: line {number} of {str(path)!r} is not JSON ({error})"
            ) from error
        if not isinstance(row, dict):
            raise InputError(
                f'file: line {number} of {str(path)!r} is not an object; write {{"name": value, …}}'
            )
        rows.append((number, row))
    return rows


def text_field(row: dict[str, Any], name: str, where: str, default: str | None = None) -> str:
    """A row's text without blanks around it; ``default`` where it is missing. Raises InputError
    that names the field, ``where`` it stands ("line 3 of pairs.jsonl"), and the value."""
    value = row.get(name, default)
    if name not in row and not default:
        raise InputError(
            f"{name}: it is missing in {where}; it has {', '.join(map(str, row)) or 'nothing'}"
        )
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{name}: it is {value!r} in {where}; it must be a text that is not empty")
    return check_unicode(value.strip(" \t\r\n"), name, where)


def beside(path: Path, name: str) -> Path:
    """The file that a list at ``path`` calls ``name``. Lists are made on other systems too: where
    there is no such file, one whose name has other separators (Windows) or another form of the same
    letters (macOS) is meant."""
    found = path.parent / name
    if not is_file(found):
        for form in ("NFC", "NFD"):
            other = path.parent / unicodedata.normalize(form, name.replace("\\", "/"))
            if is_file(other):
                return other
    return found


def check_unicode(text: str, name: str, where: str = "") -> str:
    """``text`` itself. Raises InputError where a byte or half of a pair in it stands for no
    character."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        place = f" in {where}" if where else ""
        raise InputError(
            f"{name}: {text!r}{place} is not Unicode text ({text[error.start]!r}); give it in UTF-8"
        ) from error
    if "\0" in text or (
        text.strip() and not any(c.isprintable() and not c.isspace() for c in text)
    ):
        place = f" in {where}" if where else ""
        raise InputError(
            f"{name}: {text!r}{place} has no visible character, or one that is none; write words"
        )
    return text.strip("\ufeff")


def odd_character(text: str) -> str:
    """The first character that a reader takes for a space or does not see, in words: "a no-break
    space (U+00A0)"; "" where there is none."""
    for character in text:
        if character == "\t":
            return "a tab (U+0009)"
        if character != " " and unicodedata.category(character) in ("Zs", "Zl", "Zp", "Cf", "Cc"):
            name = unicodedata.name(character, "control character").lower()
            return f"{'an' if name[0] in 'aeiou' else 'a'} {name} (U+{ord(character):04X})"
    return ""


def finite(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    """Whether a value is a number, and one within these bounds: no truth value, no text, not
    NaN."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value) and low <= value <= high
    except OverflowError:  # an integer that no float holds
        return False


def read_json(path: Path, kind: type | tuple[type, ...] = (dict, list)) -> Any:
    """A JSON file's value, of this ``kind``. Raises InputError for one that is missing, broken or
    of another kind."""
    text = read_text(path)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"file: {str(path)!r} is not JSON ({error}); it may have been cut off"
        ) from error
    if not isinstance(value, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        names = " or ".join("an object" if k is dict else "a list" for k in kinds)
        raise InputError(f"file: {str(path)!r} holds {type(value).__name__}, not {names}")
    return value


def stored_rows(path: Path) -> list[dict[str, Any]]:
    """The rows that ``append_rows`` wrote. A line that a killed process left torn is left out; a
    missing file has none."""
    rows = []
    for line in Path(path).read_bytes().split(b"\n") if Path(path).exists() else []:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def append_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Add JSON lines at the end of a file; a torn line there is ended first."""
    data = b"".join(
        json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        for row in rows
    )
    with open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                data = b"\n" + data
        file.write(data)


def read_parquet(
    path: Path, columns: Sequence[str] | None = None, optional: Sequence[str] = ()
) -> pyarrow.Table:
    """A Parquet file's table, or these columns of it and what it has of the ``optional`` ones.
    Raises InputError that names the file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with open(regular(path), "rb") as opened, pq.ParquetFile(opened) as file:
            there = file.schema_arrow.names
            lacking = [name for name in columns or () if name not in there]
            if lacking:
                raise InputError(
                    f"file: {str(path)!r} has no column {lacking[0]}; it has {', '.join(there)}"
                )
            twice = [name for name in there if there.count(name) > 1]
            if twice:
                raise InputError(f"file: {str(path)!r} has two columns {twice[0]}; give one")
            wanted = (
                None
                if columns is None
                else [*columns, *(name for name in optional if name in there)]
            )
            return file.read(wanted)
    except (OSError, ValueError, pa.ArrowException) as error:
        if isinstance(error, InputError):
            raise
        if Path(path).is_file():
            read_bytes(path)  # has better words for a pointer or a file that may not be opened
        reason = str(error).split("\n")[0]
        raise InputError(
            f"file: {str(path)!r} cannot be read as Parquet ({reason}); give a whole file"
        ) from error


def parquet_rows(
    path: Path, columns: Sequence[str] | None = None, optional: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """``read_parquet`` as rows. Raises InputError, also for values that Python has no form of."""
    table = read_parquet(path, columns, optional)
    for name in table.column_names:
        try:
            table[name].to_pylist()
        except (ValueError, OverflowError) as error:
            raise InputError(
                f"file: column {name} of {str(path)!r} has a value that cannot be read ({error})"
            ) from error
    return table.to_pylist()
