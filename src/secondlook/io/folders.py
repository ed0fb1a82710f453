"""A job's folder: one process, one config."""

from __future__ import annotations

import os
import socket
import warnings
from contextlib import suppress
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from secondlook.errors import InputError
from secondlook.io.text import read_json
from secondlook.types import WorkerShard

LOCK = ".lock"
_claimed: dict[Path, FileLock] = {}
"""Locks of the folders that belong to this process until it ends."""


def writable_folder(path: Path, claimed: bool = True) -> Path:
    """Make sure that files can be written under ``path`` (made if missing), and keep it for this
    process until it ends, so that two never mix their work (``claim``). Raises InputError when they
    cannot, when another process has it, or when the name is not UTF-8."""
    check_name(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"out: {str(path)!r} cannot be written ({reason}); give a folder that can"
        ) from error
    if claimed:
        claim(path)
    return path


def check_name(path: Path) -> None:
    """Refuse a name for results that is not UTF-8: the libraries that write weights and logs open
    no such file. Raises InputError."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"out: {str(path)!r} is not UTF-8 ({str(path)[error.start]!r}); give another name"
        ) from error


def claim(folder: Path) -> None:
    """Keep a folder for this process until it ends (however it ends: the system lets go of it). Of
    processes that torchrun started together the first one does. Raises InputError that says who has
    it."""
    path = folder.resolve() / LOCK
    if path in _claimed or WorkerShard.of_environment().rank:
        return
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        owner = path.read_text(errors="replace").strip() or "another process"
        raise InputError(
            f"out: {str(folder)!r} is in use by {owner}; wait until it has ended, or use another "
            "folder"
        ) from error
    except (OSError, NotImplementedError) as error:  # some network file systems have no locks
        warnings.warn(
            f"{folder} cannot be kept for one process ({error}): take care that no other one "
            "uses it",
            stacklevel=3,
        )
        return
    with suppress(OSError):  # who has it is only told
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
    _claimed[path] = lock


def same_config(folder: Path, now: dict[str, Any], may_change: tuple[str, ...] = ()) -> None:
    """A folder goes on with the settings (as JSON has them) that its config.json says it was begun
    with.

    Raises InputError that names the first other one.
    """
    path = folder / "config.json"
    before = read_json(path, dict) if path.exists() else now
    for key, value in now.items():
        if before.get(key) != value and key not in may_change:
            raise InputError(
                f"config: {key} is {value!r} but {folder} was begun with {before.get(key)!r}; "
                "use the same value to go on with it, or another folder"
            )


def fingerprint(folder: Path, blocks: int = 64, size: int = 2**16) -> str:
    """A hash by which other weights in a folder are noticed: of their files' names and sizes and of
    some of their bytes."""
    found = sha256()
    for path in sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin")):
        length = path.stat().st_size
        found.update(f"{path.name} {length}".encode())
        with open(path, "rb") as file:
            for i in range(blocks):
                file.seek(i * max(0, length - size) // max(1, blocks - 1))
                found.update(file.read(size))
    return found.hexdigest()


def versions() -> dict[str, str]:
    """Versions of what results depend on."""
    found = {}
    for name in ("secondlook", "torch", "transformers", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found
