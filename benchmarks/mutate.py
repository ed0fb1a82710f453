"""Files as they become on their way: cut off, with flipped bits, in another encoding, with values
of another kind. Seeded."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from typing import Any

PIECES = (
    b"\0",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\xe9",
    b"\xed\xa0\x80",
    b"\xf0\x9f",
    "\u2028".encode(),
    "\u0085".encode(),
    b"\r",
    b"\n\n",
    b'"',
    b"{",
    b"]",
    b"NaN",
    b"\\ud800",
    b"\x1b[31m",
)
NUMBERS = (
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"-1",
    b"0",
    b"1.5",
    b"1e30",
    b"9" * 30,
    b"9" * 5000,
    b"true",
    b"0x10",
    b"1_0",
)
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    0.5,
    1e300,
    10**40,
    "",
    " ",
    "x",
    "\0",
    "\ud800",
    "nan",
    [],
    {},
    [None],
    {"x": 1},
    [[1]],
)


def mutate(data: bytes, rng: random.Random, json_lines: bool | None = None) -> bytes:
    """One to three mishaps of a file. ``json_lines``: its values change too, of the whole (False)
    or of a line."""
    kinds: list[Callable[[bytes, random.Random], bytes]] = [*BYTES]
    if json_lines is not None:
        kinds += 6 * [lambda d, r: _other_value(d, r, json_lines)]
    for _ in range(rng.choice((1, 1, 2, 3))):
        data = rng.choice(kinds)(data, rng)
    return data


def _place(data: bytes, rng: random.Random) -> int:
    return rng.randrange(len(data) + 1)


def _flip(data: bytes, rng: random.Random) -> bytes:
    flipped = bytearray(data)
    for _ in range(rng.choice((1, 1, 4, 16)) if data else 0):
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.choice((0, 1, len(data) - 1, _place(data, rng), _place(data, rng)))]


def _insert(data: bytes, rng: random.Random) -> bytes:
    place = rng.choice((0, len(data), _place(data, rng), _place(data, rng)))
    return data[:place] + rng.choice(PIECES) + data[place:]


def _slice(data: bytes, rng: random.Random) -> bytes:
    """Some of it twice, or not at all."""
    start, end = sorted((_place(data, rng), _place(data, rng)))
    if rng.random() < 0.5:
        return data[:end] + data[start:]
    return data[:start] + data[end:]


def _number(data: bytes, rng: random.Random) -> bytes:
    """Another number in the place of one."""
    matches = list(re.finditer(rb"(?<![\w.])-?\d+(\.\d+)?(?![\w.])", data))
    if not matches:
        return _flip(data, rng)
    replaced = rng.choice(matches)
    other_number = rng.choice((*NUMBERS, rng.choice(matches).group()))
    return data[: replaced.start()] + other_number + data[replaced.end() :]


def _encoding(data: bytes, rng: random.Random) -> bytes:
    """The same text with other line ends or in another encoding."""
    text = data.decode("utf-8", "replace")
    encoding = rng.choice(
        ("utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252", "cr", "crlf")
    )
    if encoding == "cr":
        return text.replace("\n", "\r").encode()
    if encoding == "crlf":
        return text.replace("\n", "\r\n").encode()
    return text.encode(encoding, "replace")


def _instead(data: bytes, rng: random.Random) -> bytes:
    """Another file altogether."""
    return rng.choice(
        (
            b"",
            b"{",
            b"[]",
            b"null",
            b"<!DOCTYPE html><html><body>404</body></html>",
            (
                f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize "
                f"{len(data)}\n"
            ).encode(),
            b"/annex/objects/SHA256E-s4180--0f2d\n",
            b"[" * 20_000,
            bytes(rng.randrange(256) for _ in range(64)),
            b"\x89PNG\r\n\x1a\n",
            b"PAR1PAR1",
            b"\0" * len(data),
        )
    )


BYTES = (_flip, _flip, _cut, _cut, _insert, _insert, _slice, _number, _number, _encoding, _instead)


def _other_value(data: bytes, rng: random.Random, lines: bool) -> bytes:
    """JSON with a value of another kind, a field less, one more or twice."""
    texts = data.split(b"\n") if lines else [data]
    written_lines = [i for i, text in enumerate(texts) if text.strip()]
    line_index = rng.choice(written_lines or [0])
    try:
        value = json.loads(texts[line_index])
    except (ValueError, RecursionError):
        return _flip(data, rng)
    places = _places_in(value)
    if not places:
        return _flip(data, rng)
    container, key = rng.choice(places)
    chance = rng.random()
    if chance < 0.15:
        del container[key]
    elif chance < 0.25 and isinstance(container, dict):
        container[f"{key}x"] = container.pop(key)
    elif chance < 0.35:
        other_container, other_key = rng.choice(places)
        # a copy: a value inside itself could not be written
        container[key] = json.loads(json.dumps(other_container[other_key]))
    else:
        container[key] = json.loads(json.dumps(rng.choice(VALUES)))
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
    texts[line_index] = text.encode("utf-8", "surrogatepass")
    return b"\n".join(texts)


def _places_in(value: Any) -> list[tuple[Any, Any]]:
    """(dictionary or list, key or index) of all that is nested in a value, at most 200 of each
    container."""
    keys: list[Any] = []
    if isinstance(value, dict):
        keys = list(value)
    elif isinstance(value, list):
        keys = list(range(len(value)))
    places = []
    for key in keys[:200]:
        places.append((value, key))
        places += _places_in(value[key])
    return places
