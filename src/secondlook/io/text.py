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
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16: it begins with that one's mark
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Byte-order marks at the beginning of a text file, and the encodings that they stand for; the
first that fits counts."""
INVISIBLE_CATEGORIES = ("Zs", "Zl", "Zp", "Cf", "Cc")
"""Of Unicode: separators of words, lines and paragraphs, format and control characters."""


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
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return path  # opening it says what is wrong
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
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
    if pointer_words := pointer(data):
        raise InputError(f"file: {str(path)!r} is {pointer_words}")
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
    encoding = "utf-8"
    for mark, marked_encoding in MARKS.items():
        if data.startswith(mark):
            encoding = marked_encoding
            break
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line_number = data[: error.start].count(b"\n") + 1
        # a file that was cut off may end amid a character
        what = f"byte 0x{data[error.start]:02x}" if error.start < len(data) else "its end"
        raise InputError(
            f"file: line {line_number} of {name!r} is not {encoding.upper()} text ({what}); save "
            "it as UTF-8"
        ) from error
    if "\0" in text:
        line_number = text[: text.index("\0")].count("\n") + 1
        raise InputError(
            f"file: line {line_number} of {name!r} holds a NUL (U+0000), as binary files do, and "
            "UTF-16 without its mark; remove it, or save the file as UTF-8"
        )
    return text


def read_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a text file that are not empty, with their numbers from 1 on, without blanks
    around them.

    A line ends at a newline (of Unix or Windows) and nowhere else. Raises InputError.
    """
    lines = []
    # not splitlines(): U+2028 and U+0085 may stand within a prompt, and within JSON
    for line_number, raw_line in enumerate(read_text(path).split("\n"), 1):
        line = raw_line.strip(" \t\r\f\v\ufeff")  # a mark may stand where files were joined
        if "\r" in line:
            raise InputError(
                f"file: line {line_number} of {str(path)!r} holds a bare carriage return; end "
                "lines with a newline"
            )
        if line:
            lines.append((line_number, line))
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
            # DictReader puts surplus cells under None, and None in place of those that lack
            if None in row or None in row.values():
                column_names = ", ".join(reader.fieldnames or ())
                raise InputError(
                    f"file: line {reader.line_num} of {str(path)!r} does not have the cells "
                    f"{column_names}"
                )
            rows.append(row)
    except csv.Error as error:
        raise InputError(
            f"file: line {reader.line_num} of {str(path)!r} is not CSV ({error})"
        ) from error
    return rows


def parse_json(text: str | bytes) -> Any:
    """JSON's value. Raises ValueError, also for what JSON does not have (NaN, infinities and
    numbers that become one) and for an object with two fields of one name."""
    try:
        return json.loads(
            text,
            parse_constant=_finite_number,
            parse_float=_finite_number,
            object_pairs_hook=_object_of,
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _finite_number(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits} is not a finite number")
    return value


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{name!r} stands twice in one object")
    return fields


def read_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """The objects of a file of JSON lines, with their lines' numbers. Raises InputError that names
    the file and the line."""
    rows = []
    for line_number, line in read_lines(path):
        where = f"line {line_number} of {str(path)!r}"
        try:
            row = parse_json(line)
        except ValueError as error:
            raise InputError(f"file: {where} is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise InputError(f'file: {where} is not an object; write {{"name": value, …}}')
        rows.append((line_number, row))
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
    file_path = path.parent / name
    if not is_file(file_path):
        # Unicode has "é" as one character (NFC) and as "e" with an accent (NFD)
        for unicode_form in ("NFC", "NFD"):
            other_name = unicodedata.normalize(unicode_form, name.replace("\\", "/"))
            if is_file(path.parent / other_name):
                return path.parent / other_name
    return file_path


def check_unicode(text: str, name: str, where: str = "") -> str:
    """``text`` itself, without byte-order marks around it. Raises InputError where a byte or half
    of a surrogate pair in it stands for no character, or where it holds a NUL or none but invisible
    characters. Text that is empty is not refused here."""
    place = f" in {where}" if where else ""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{name}: {text!r}{place} is not Unicode text ({text[error.start]!r}); give it in UTF-8"
        ) from error
    is_visible = any(character.isprintable() and not character.isspace() for character in text)
    if "\0" in text or (text.strip() and not is_visible):
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
        if character != " " and unicodedata.category(character) in INVISIBLE_CATEGORIES:
            character_name = unicodedata.name(character, "control character").lower()
            article = "an" if character_name[0] in "aeiou" else "a"
            return f"{article} {character_name} (U+{ord(character):04X})"
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


def read_json(path: Path, json_type: type | tuple[type, ...] = (dict, list)) -> Any:
    """A JSON file's value, which is of a type (dict or list). Raises InputError for one that is
    missing, broken or of another type."""
    text = read_text(path)
    try:
        # not parse_json: own files may hold NaN where a number is missing
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"file: {str(path)!r} is not JSON ({error}); it may have been cut off"
        ) from error
    if not isinstance(value, json_type):
        wanted_types = json_type if isinstance(json_type, tuple) else (json_type,)
        wanted = " or ".join("an object" if each is dict else "a list" for each in wanted_types)
        raise InputError(f"file: {str(path)!r} holds {type(value).__name__}, not {wanted}")
    return value


def stored_rows(path: Path) -> list[dict[str, Any]]:
    """The rows that ``append_rows`` wrote. A line that a killed process left torn is left out; a
    missing file has none."""
    if not Path(path).exists():
        return []
    rows = []
    for line in Path(path).read_bytes().split(b"\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def append_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Add JSON lines at the end of a file; a torn line there is ended first."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    # half of a surrogate pair (a byte of a file's name) becomes \udcXX, which JSON reads back
    data = text.encode("utf-8", "backslashreplace")
    with open(path, "ab+") as file:
        if file.tell():  # the file is not empty
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                data = b"\n" + data
        file.write(data)  # mode "a": at the end, wherever it was read


def read_parquet(
    path: Path, columns: Sequence[str] | None = None, optional: Sequence[str] = ()
) -> pyarrow.Table:
    """A Parquet file's table, or these columns of it and what it has of the ``optional`` ones.
    Raises InputError that names the file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with open(regular(path), "rb") as opened, pq.ParquetFile(opened) as parquet_file:
            column_names = parquet_file.schema_arrow.names
            for name in columns or ():
                if name not in column_names:
                    raise InputError(
                        f"file: {str(path)!r} has no column {name}; it has "
                        f"{', '.join(column_names)}"
                    )
            for name in column_names:
                if column_names.count(name) > 1:
                    raise InputError(f"file: {str(path)!r} has two columns {name}; give one")
            if columns is None:
                return parquet_file.read()
            there_too = [name for name in optional if name in column_names]
            return parquet_file.read([*columns, *there_too])
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
    cells_of_columns: list[list[Any]] = []
    for name in table.column_names:
        try:
            cells_of_columns.append(table[name].to_pylist())
        except (ValueError, OverflowError) as error:  # as a date of the year 20000
            raise InputError(
                f"file: column {name} of {str(path)!r} has a value that cannot be read ({error})"
            ) from error
    names = table.column_names
    return [dict(zip(names, cells, strict=True)) for cells in zip(*cells_of_columns, strict=True)]


def counted(number: int, noun: str) -> str:
    """ "1 sample", "2 samples": a noun whose plural has an s, after its number."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
