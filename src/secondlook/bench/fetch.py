"""Others' benchmark files: fetched once by a pinned revision, or taken from a given folder, and checked by their hash."""

from __future__ import annotations

import os
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import httpx

from secondlook.types import InputError

SERVER = "https://raw.githubusercontent.com"


@dataclass(frozen=True)
class Source:
    """A file of a public repository at one commit."""

    repository: str
    commit: str
    path: str
    sha256: str
    licence: str


FILES = {
    "dsg/tifa160-likert-anns.csv": Source(
        "j-min/DSG",
        "2fdce11f8028433fae16e497eac7277d05208cac",
        "dsg/data/tifa160-likert-anns.csv",
        "61c9ff41b9f9fc26a44bbaf5540caeb67c09a9e3039536567f3e45d40ad0e9f8",
        "Apache-2.0",
    ),
    "dsg/vqa_answers/mplug_dsg.csv": Source(
        "j-min/DSG",
        "94fc47e00c023f0294ab85d720ba36c0c5bd493f",
        "vqa_answers_release/mplug_dsg.csv",
        "80feb7ea352dadaca6de97149b9a43c122a5feaec985c32f2fffbf38a39a795c",
        "Apache-2.0",
    ),
    "tifa/human_annotations_with_scores.json": Source(
        "Yushi-Hu/tifa",
        "d20b20066a593183f3436ce5cbff33982bb8d02f",
        "human_annotations/human_annotations_with_scores.json",
        "1720bb802c3c0821dd56df0d8c20a1214ff5085d7e5d9236a75736b1d39b7b3c",
        "Apache-2.0",
    ),
}


def cache() -> Path:
    """Where fetched files are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "secondlook" / "benchmarks"


def file(name: str, data: Path | None = None, server: str = SERVER) -> Path:
    """The path of a benchmark's file: of ``data``/name where a folder is given, else of the cache, fetched if it is not there.

    Raises InputError for a file that is missing, cannot be fetched or has another hash than the pinned revision's.
    """
    source, path = FILES[name], (data or cache()) / name
    if not path.is_file():
        if data is not None:
            raise InputError(f"data: {str(path)!r} is missing; give a folder with {name}, or none to fetch it")
        _fetch(source, path, server)
    if sha256(path.read_bytes()).hexdigest() != source.sha256:
        raise InputError(f"data: {str(path)!r} is not {source.repository}'s at {source.commit[:9]} (its hash differs)")
    return path


def _fetch(source: Source, path: Path, server: str) -> None:
    address = f"{server}/{source.repository}/{source.commit}/{source.path}"
    try:
        answer = httpx.get(address, timeout=60.0, follow_redirects=True).raise_for_status()
    except httpx.HTTPError as error:
        raise InputError(f"data: {address} cannot be fetched ({error}); give a folder that has {path.name}") from error
    if sha256(answer.content).hexdigest() != source.sha256:
        raise InputError(f"data: {address} has another hash than it is known to have; nothing was kept")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(answer.content)
    os.replace(temporary, path)
