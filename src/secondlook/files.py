"""Files the user sees: written under a temporary name, then renamed, so that none is ever half there."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from PIL import Image

from secondlook.types import InputError


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all, whoever else writes it."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """A JSON file's value. Raises InputError for one that is missing or broken."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"file: {str(path)!r} cannot be read ({error})") from error


def png(image: Image.Image) -> bytes:
    """A picture as a PNG file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_image(path: Path, image: Image.Image) -> None:
    """Write a PNG whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    image.save(temporary, "PNG")
    os.replace(temporary, path)


def read_image(path: Path) -> Image.Image:
    """Read a picture completely. Raises InputError for a missing, foreign or truncated file."""
    if not path.is_file():
        raise InputError(f"image: {str(path)!r} is not a file; give a path to a picture")
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except Exception as error:
        raise InputError(f"image: {str(path)!r} could not be read ({error}); give a whole PNG or JPEG") from error


def writable_folder(path: Path) -> Path:
    """Make sure that files can be written under ``path`` (made if missing). Raises InputError when they cannot."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"out: {str(path)!r} cannot be written ({error.strerror}); give a folder that can") from error
    return path


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the place of ``path`` once it is full."""
    temporary = path.with_name(path.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    shutil.rmtree(path, ignore_errors=True)
    os.replace(temporary, path)


def same_config(folder: Path, now: dict[str, Any], may_change: tuple[str, ...] = ()) -> None:
    """A folder goes on with the settings (as JSON has them) that its config.json says it was begun with.

    Raises InputError that names the first other one.
    """
    path = folder / "config.json"
    before = json.loads(path.read_text()) if path.exists() else now
    for key, value in now.items():
        if before.get(key) != value and key not in may_change:
            raise InputError(
                f"config: {key} is {value!r} but {folder} was begun with {before.get(key)!r}; "
                "use the same value to go on with it, or another folder"
            )


def fingerprint(folder: Path, blocks: int = 64, size: int = 2**16) -> str:
    """A hash by which other weights in a folder are noticed: of their files' names and sizes and of some of their bytes."""
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
