"""A job's folder: one process, one config."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from secondlook.errors import InputError, tell_user
from secondlook.io.text import read_json
from secondlook.types import WorkerShard

LOCK = ".lock"
_claimed: dict[Path, FileLock] = {}
"""Locks, by their files, of the folders that belong to this process until it ends."""
WEIGHT_SUFFIXES = (".safetensors", ".bin")
SETTING_SUFFIXES = (".json", ".jinja")


def writable_folder(path: Path, claimed: bool = True) -> Path:
    """Make sure that files can be written under ``path`` (made if missing), and keep it for this
    process until it ends, so that two never mix their work (``claim``). Raises InputError when they
    cannot, when another process has it, or when the name is not UTF-8."""
    check_name(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        # a folder may be there and not writable: only a file shows it
        probe_file = path / f".probe-{os.getpid()}"
        probe_file.touch()
        probe_file.unlink()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"out: {str(path)!r} cannot be written ({reason}); give a folder that can"
        ) from error
    if claimed:
        claim(path)
    return path


@contextmanager
def claimed_folder(path: Path) -> Iterator[Path]:
    """``writable_folder`` for a job inside. Where its input is refused (InputError) before it has
    written anything, the lock, and the folder where it was made for this, are removed."""
    was_there, claimed_before = path.exists(), set(_claimed)
    writable_folder(path)
    new_locks = _claimed.keys() - claimed_before
    try:
        yield path
    except InputError:
        holds_more = any(entry.name != LOCK for entry in path.iterdir())
        lock_path = path.resolve() / LOCK
        if not holds_more and lock_path in new_locks:
            lock_path.unlink(missing_ok=True)  # while it is held, so that nobody else has it
            _claimed.pop(lock_path).release()
            if not was_there:
                with suppress(OSError):  # somebody has put a file into it
                    path.rmdir()
        raise


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
    lock_path = folder.resolve() / LOCK
    if lock_path in _claimed or WorkerShard.of_environment().rank:
        return
    lock = FileLock(lock_path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        owner = lock_path.read_text(errors="replace").strip() or "another process"
        raise InputError(
            f"out: {str(folder)!r} is in use by {owner}; wait until it has ended, or use another "
            "folder"
        ) from error
    except (OSError, NotImplementedError) as error:  # some network file systems have no locks
        tell_user(
            f"{folder} cannot be kept for one process ({error}): take care that no other one "
            "uses it"
        )
        return
    with suppress(OSError):  # who has it is only told; the lock holds without
        lock_path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
    _claimed[lock_path] = lock  # a lock that nobody refers to is let go


def same_config(folder: Path, now: dict[str, Any], may_change: tuple[str, ...] = ()) -> None:
    """A folder goes on with the settings (as JSON has them) that its config.json says it was begun
    with.

    Raises InputError that names the first other one.
    """
    config_path = folder / "config.json"
    before = read_json(config_path, dict) if config_path.exists() else now
    for name, value in now.items():
        if before.get(name) != value and name not in may_change:
            raise InputError(
                f"config: {name} is {value!r} but {folder} was begun with {before.get(name)!r}; "
                "use the same value to go on with it, or another folder"
            )


def fingerprint(folder: Path, num_blocks: int = 64, block_size: int = 2**16) -> str:
    """A hash by which another checkpoint in a folder is noticed: of the names and sizes of its
    weights and settings (what a judge or a redraw sees, the tokenizer, the chat template), the
    settings' contents, and ``num_blocks`` blocks of ``block_size`` bytes of each file of weights,
    evenly spaced from its first byte to its last."""
    checkpoint_hash = sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix not in (*WEIGHT_SUFFIXES, *SETTING_SUFFIXES):
            continue
        file_size = path.stat().st_size
        checkpoint_hash.update(f"{path.name} {file_size}".encode())
        if path.suffix in SETTING_SUFFIXES:
            checkpoint_hash.update(path.read_bytes())
            continue
        with open(path, "rb") as file:
            for block in range(num_blocks):
                file.seek(block * max(0, file_size - block_size) // max(1, num_blocks - 1))
                checkpoint_hash.update(file.read(block_size))
    return checkpoint_hash.hexdigest()


def versions() -> dict[str, str]:
    """Versions of what results depend on."""
    version_of_package = {}
    for name in ("secondlook", "torch", "transformers", "numpy"):
        try:
            version_of_package[name] = version(name)
        except PackageNotFoundError:
            version_of_package[name] = "unknown"
    return version_of_package
