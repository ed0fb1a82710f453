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
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 4, 16)) if data else 0):
        found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
    return bytes(found)


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.choice((0, 1, len(data) - 1, _place(data, rng), _place(data, rng)))]


def _insert(data: bytes, rng: random.Random) -> bytes:
    at = rng.choice((0, len(data), _place(data, rng), _place(data, rng)))
    return data[:at] + rng.choice(PIECES) + data[at:]


def _slice(data: bytes, rng: random.Random) -> bytes:
    """Some of it twice, or not at all."""
    a, b = sorted((_place(data, rng), _place(data, rng)))
    return data[:b] + data[a:] if rng.random() < 0.5 else data[:a] + data[b:]


def _number(data: bytes, rng: random.Random) -> bytes:
    found = list(re.finditer(rb"(?<![\w.])-?\d+(\.\d+)?(?![\w.])", data))
    if not found:
        return _flip(data, rng)
    one = rng.choice(found)
    other = rng.choice((*NUMBERS, rng.choice(found).group()))
    return data[: one.start()] + other + data[one.end() :]


def _encoding(data: bytes, rng: random.Random) -> bytes:
    text = data.decode("utf-8", "replace")
    kind = rng.choice(
        ("utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252", "cr", "crlf")
    )
    if kind in ("cr", "crlf"):
        return text.replace("\n", "\r" if kind == "cr" else "\r\n").encode()
    return text.encode(kind, "replace")


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
    parts = data.split(b"\n") if lines else [data]
    at = rng.choice([i for i, part in enumerate(parts) if part.strip()] or [0])
    try:
        value = json.loads(parts[at])
    except (ValueError, RecursionError):
        return _flip(data, rng)
    places: list[tuple[Any, Any]] = []

    def collect(part: Any) -> None:
        keys = (
            part if isinstance(part, dict) else range(len(part)) if isinstance(part, list) else ()
        )
        for key in list(keys)[:200]:
            places.append((part, key))
            collect(part[key])

    collect(value)
    if not places:
        return _flip(data, rng)
    part, key = rng.choice(places)
    kind = rng.random()
    if kind < 0.15:
        del part[key]
    elif kind < 0.25 and isinstance(part, dict):
        part[f"{key}x"] = part.pop(key)
    elif kind < 0.35:
        other, theirs = rng.choice(places)
        part[key] = json.loads(json.dumps(other[theirs]))
    else:
        part[key] = json.loads(json.dumps(rng.choice(VALUES)))
    parts[at] = json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    return b"\n".join(parts)
