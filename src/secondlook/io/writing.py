"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from secondlook.errors import InputError
from secondlook.io.images import png


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name to write under, which takes the place of ``path`` when all is written, and
    is gone otherwise."""
    # in the same folder, so on the same disk: os.replace is then one step
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path, new: bool = False) -> Iterator[Path]:
    """A new folder to fill, which takes the place of ``path`` once it is full, and is gone
    otherwise. Raises InputError where it must be ``new`` and somebody has made one meanwhile."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if new and path.exists():
            raise InputError(
                f"out: {str(path)!r} exists now, made by somebody else; name another folder"
            )
        shutil.rmtree(path, ignore_errors=True)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all. Bytes of a name that stand for no character
    are written as \\udcXX, which JSON reads back as they were."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_image(path: Path, image: Image.Image) -> None:
    """Write a PNG whole or not at all."""
    write_bytes(path, png(image))


def interrupted(error: BaseException | None) -> bool:
    """Whether an interruption (Ctrl-C) is what ``error`` comes from."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        for rank_error in _rank_errors(error):
            if interrupted(rank_error):
                return True
        error = error.__cause__ or error.__context__
    return False


def disk_failure(error: BaseException | None) -> str | None:
    """What the system said when a file could not be written or read, where that is the reason of
    ``error``; else None."""
    while error is not None:
        message = str(error)
        if isinstance(error, OSError) and error.errno is not None:
            file_name = f": {os.fsdecode(error.filename)!r}" if error.filename is not None else ""
            return f"{os.strerror(error.errno)}{file_name}"
        # libraries that write themselves pass on the system's words alone
        for error_number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
            if os.strerror(error_number) in message:
                return os.strerror(error_number)
        # torch's words for a write that came out short
        if "inline_container" in message and "unexpected pos" in message:
            return os.strerror(errno.ENOSPC)
        rank_errors = _rank_errors(error)
        if rank_errors:
            return disk_failure(rank_errors[0])
        error = error.__cause__ or error.__context__
    return None


def _rank_errors(error: BaseException) -> list[BaseException]:
    """The ranks' errors that torch's CheckpointException is made of; none of other errors."""
    failures = getattr(error, "failures", None) or {}  # {rank: (error, traceback)}
    return [failure[0] for failure in failures.values()]
