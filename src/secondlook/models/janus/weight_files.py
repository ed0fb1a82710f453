"""The files of a checkpoint folder: each is read whole and as what it stands for, or refused by an
InputError with its name.

Weights are safetensors or pickles (`pytorch_model*.bin`, read with ``weights_only``), in one file
or in shards with an index.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import stat
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from secondlook.errors import InputError
from secondlook.io import parse_json, pointer, read_text

Named = Iterable[tuple[str, Tensor]]
Stored = dict[str, tuple[Path, Tensor]]
"""Where every tensor is stored, with an empty one of its shape and type."""

AT_ONCE = 8
"""Tensors read before a file is opened anew: mapped pages count as memory until their file is
closed."""
WHOLE = ("model.safetensors", "pytorch_model.bin")
PLAIN = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types, as safetensors calls them, whose numbers are the weights. Of others a scale or a table
makes weights."""
HEADER = 100_000_000
"""Bytes that the header of a safetensors file may have, by the format."""


def there(path: Path) -> bool:
    """Whether the folder has such an entry, be it a file or not."""
    return os.path.lexists(path)


def whole(path: Path) -> Path:
    """``path``, a file that can be read. Raises InputError where it is missing, no file, empty, or
    only a pointer to one."""
    name = f"model: {str(path)!r}"
    if path.is_symlink() and not os.path.exists(path):
        target = os.readlink(path)
        annex = "; run git annex get" if "annex" in target else "; give the file itself"
        raise InputError(f"{name} is a link to {target!r}, which is not there{annex}")
    try:
        kind = path.stat()
        if not stat.S_ISREG(kind.st_mode):
            raise InputError(
                f"{name} is {'a folder' if path.is_dir() else 'no file'}; a checkpoint has a "
                "file there"
            )
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise InputError(f"{name} cannot be read ({error.strerror})") from error
    if not head:
        raise InputError(f"{name} is empty; fetch it anew")
    if stands_for := pointer(head):
        raise InputError(f"{name} is {stands_for}")
    return path


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file's object. Raises InputError for anything else, also for numbers that are none."""
    text = read_text(whole(path))
    try:
        said = parse_json(text)
    except ValueError as error:
        raise InputError(
            f"model: {str(path)!r} cannot be read as JSON ({one_line(error)}); it may have been "
            "cut off"
        ) from error
    if not isinstance(said, dict):
        raise InputError(
            f"model: {str(path)!r} holds a {type(said).__name__}; it must be a JSON object, {{…}}"
        )
    return said


def inventory(folder: Path, unused: re.Pattern[str]) -> Stored:
    """The folder's tensors but those whose names fit ``unused``. No weight is read.

    Raises InputError for a weight of a type that does not stand for itself, and where index and
    shards contradict each other.
    """
    files, index = _files(folder)
    found: Stored = {}
    for path in files:
        with told(path):
            for name, kind, shape in _listed(path):
                if name in found:
                    raise InputError(
                        f"model: {str(path)!r} holds {name!r}, and {found[name][0].name} too; "
                        "one is too many"
                    )
                if not unused.fullmatch(name) and not isinstance(kind, torch.dtype):
                    raise InputError(
                        f"model: {str(path)!r}: {name} is stored as {kind}, which is a weight "
                        "only together with a "
                        "scale or a table; give the checkpoint in float32, bfloat16 or float16"
                    )
                dtype = kind if isinstance(kind, torch.dtype) else torch.uint8
                found[name] = (path, torch.empty(shape, dtype=dtype, device="meta"))
    if index is not None:
        _as_indexed(found, *index)
    return {name: entry for name, entry in found.items() if not unused.fullmatch(name)}


def _listed(path: Path) -> Iterator[tuple[str, torch.dtype | str, Sequence[int]]]:
    """Names, types and shapes of a file's tensors. A type is a word where its numbers are not
    weights."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118 (not a dict)
                part = stored.get_slice(name)
                kind = part.get_dtype()
                yield name, PLAIN.get(kind) or _in_torch(stored, name, kind), part.get_shape()
        return
    for name, tensor in _unpickled(path).items():
        plain = (
            tensor.dtype in PLAIN.values()
            and tensor.layout == torch.strided
            and tensor.device.type == "cpu"
        )
        strange = " ".join(
            str(v)
            for v in (tensor.dtype, tensor.layout, tensor.device)
            if str(v) not in ("torch.strided", "cpu")
        )
        yield name, tensor.dtype if plain else strange, tensor.shape


def _in_torch(stored: Any, name: str, kind: str) -> str:
    """A type as torch calls it, where torch has it."""
    try:
        return str(stored.get_tensor(name).dtype)
    except Exception:
        return kind


def tensors(stored: Stored) -> Iterator[tuple[str, Tensor]]:
    """The tensors themselves, a few mapped from the disk at a time."""
    names = list(stored)
    for start in range(0, len(names), AT_ONCE):
        part = names[start : start + AT_ONCE]
        for path in dict.fromkeys(stored[n][0] for n in part):
            here = [n for n in part if stored[n][0] == path]
            with told(path):
                if path.suffix == ".safetensors":
                    with safe_open(path, framework="pt") as file:
                        for name in here:
                            yield name, file.get_tensor(name)
                else:
                    file = _unpickled(path)
                    for name in here:
                        yield name, file[name]


def finite(tensor: Tensor) -> Tensor:
    """Whether all its numbers are: a boolean on its device. (Fifty times faster than ``isfinite``
    of all, on a CPU.)"""
    return torch.stack(tensor.aminmax()).isfinite().all()


Index = tuple[Path, dict[str, str]]
"""An index's file, and which file it says that each tensor is in."""


def _files(folder: Path) -> tuple[list[Path], Index | None]:
    """The weight files of a folder, those of an index or a single one, safetensors before pickles;
    and the index."""
    for name in WHOLE:
        path, index = folder / name, folder / f"{name}.index.json"
        if there(index) and there(path):
            raise InputError(
                f"model: {str(folder)!r} holds both {name} and {index.name}; take away what is "
                "not meant"
            )
        if there(index):
            said = _weight_map(index)
            return [whole(folder / n) for n in sorted(set(said.values()))], (index, said)
        if there(path):
            return [whole(path)], None
    raise InputError(
        f"model: {str(folder)!r} holds neither {' nor '.join(WHOLE)}, whole or in shards"
    )


def _weight_map(index: Path) -> dict[str, str]:
    said = read_object(index).get("weight_map")
    if not isinstance(said, dict) or not said:
        raise InputError(
            f"model: {str(index)!r} names no file; its weight_map must map tensors' names to "
            "files' names"
        )
    for name, file in said.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise InputError(
                f"model: {str(index)!r}: weight_map has {file!r} for {name}; it must be the name "
                "of a file beside it"
            )
        if not there(index.parent / file):
            raise InputError(f"model: {str(index)!r} names {file}, which is not there")
    return said


def _as_indexed(found: Stored, index: Path, said: dict[str, str]) -> None:
    """Every tensor is in the shard that the index says."""
    for name, file in said.items():
        if name not in found or found[name][0].name != file:
            raise InputError(
                f"model: {str(index)!r} says that {file} holds {name!r}, which it does not; "
                "fetch both anew"
            )
    for name, (path, _) in found.items():
        if name not in said:
            raise InputError(
                f"model: {str(path)!r} holds {name!r}, which {index.name} does not name; fetch "
                "both anew"
            )


def _unpickled(path: Path) -> dict[str, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # about pickles of other protocols; they are read, or refused with a sentence
        named = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    if not isinstance(named, dict) or not all(
        isinstance(n, str) and isinstance(t, Tensor) for n, t in named.items()
    ):
        raise InputError(f"model: {str(path)!r} does not hold named tensors")
    return named


@contextmanager
def told(path: Path) -> Iterator[None]:
    """What goes wrong while a weight file is read, as one sentence."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # of a damaged pickle it may be any
        raise InputError(
            f"model: {str(path)!r} is not a whole weight file: {_reason(path, error)}"
        ) from error


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError):
        return (
            "it is damaged, or holds more than tensors, which is not read since it could run code"
        )
    if isinstance(error, SafetensorError):
        try:
            return _cut_off(path) or one_line(error)
        except Exception:  # the header is none
            return one_line(error)
    return one_line(error)


def _cut_off(path: Path) -> str | None:
    """What a safetensors file is too short for (the format: the header's length, the header, in
    JSON, and the data)."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > HEADER:
            return "it does not begin as safetensors do"
        if 8 + length > path.stat().st_size:
            return "its header is cut off"
        header = json.loads(file.read(length))
    ends = {
        name: 8 + length + said["data_offsets"][1]
        for name, said in header.items()
        if name != "__metadata__"
    }
    lost = [name for name in ends if ends[name] > path.stat().st_size]
    return f"{min(lost, key=ends.__getitem__)} is cut off" if lost else None


def write_shards(folder: Path, empty: dict[str, Tensor], named: Named, shard_size: str) -> None:
    """safetensors files of at most ``shard_size`` with their index, each written as soon as its
    tensors have come."""
    try:
        split = split_torch_state_dict_into_shards(empty, max_shard_size=shard_size)
    except ValueError as error:
        raise InputError(
            f"shard_size: {shard_size!r} is no size; give one like 5GB or 500MB"
        ) from error
    waiting: dict[str, dict[str, Tensor]] = {name: {} for name in split.filename_to_tensors}
    for name, tensor in named:
        file = split.tensor_to_filename[name]
        waiting[file][name] = tensor.clone(memory_format=torch.contiguous_format)
        if len(waiting[file]) == len(split.filename_to_tensors[file]):
            save_file(waiting.pop(file), folder / file, metadata={"format": "pt"})
    if split.is_sharded:
        write_object(
            folder / f"{WHOLE[0]}.index.json",
            {"metadata": split.metadata, "weight_map": split.tensor_to_filename},
        )


def write_object(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def one_line(error: BaseException, most: int = 240) -> str:
    """An error's own words in one line."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= most else f"{words[:most]} …"
