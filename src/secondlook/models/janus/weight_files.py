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
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from secondlook.errors import InputError
from secondlook.io import parse_json, pointer, read_text

NamedTensors = Iterable[tuple[str, Tensor]]

TENSORS_PER_OPENING = 8
"""Tensors read before a file is opened anew: mapped pages count as memory until their file is
closed."""
SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
"""Names of a file that holds all weights; with ".index.json" behind it, of the index of several."""
PLAIN_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""Types, as safetensors calls them, whose numbers are the weights. Of others a scale or a table
makes weights."""
MAX_HEADER = 100_000_000
"""Bytes that the header of a safetensors file may have, by the format."""


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is stored, and what it is."""

    path: Path
    meta: Tensor
    """Of its shape and type, on the device "meta": without values."""


def exists(path: Path) -> bool:
    """Whether the folder has such an entry, be it a file or not (also a link to nothing)."""
    return os.path.lexists(path)


def readable_file(path: Path) -> Path:
    """``path``, a file that can be read. Raises InputError where it is missing, no file, empty, or
    only a pointer to one."""
    subject = f"model: {str(path)!r}"
    if path.is_symlink() and not os.path.exists(path):
        link_target = os.readlink(path)
        advice = "; run git annex get" if "annex" in link_target else "; give the file itself"
        raise InputError(f"{subject} is a link to {link_target!r}, which is not there{advice}")
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            what_it_is = "a folder" if path.is_dir() else "no file"
            raise InputError(f"{subject} is {what_it_is}; a checkpoint has a file there")
        with path.open("rb") as file:
            first_bytes = file.read(64)
    except OSError as error:
        raise InputError(f"{subject} cannot be read ({error.strerror})") from error
    if not first_bytes:
        raise InputError(f"{subject} is empty; fetch it anew")
    if pointer_kind := pointer(first_bytes):
        raise InputError(f"{subject} is {pointer_kind}")
    return path


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file's object. Raises InputError for anything else, also for numbers that are none."""
    text = read_text(readable_file(path))
    try:
        value = parse_json(text)
    except ValueError as error:
        raise InputError(
            f"model: {str(path)!r} cannot be read as JSON ({one_line(error)}); it may have been "
            "cut off"
        ) from error
    if not isinstance(value, dict):
        raise InputError(
            f"model: {str(path)!r} holds a {type(value).__name__}; it must be a JSON object, {{…}}"
        )
    return value


def inventory(folder: Path, unused: re.Pattern[str]) -> dict[str, StoredTensor]:
    """The folder's tensors by name, but those whose names fit ``unused``. No weight is read.

    Raises InputError for a weight of a type that does not stand for itself, and where index and
    shards contradict each other.
    """
    file_paths, index = _weight_files(folder)
    stored_tensors: dict[str, StoredTensor] = {}
    for path in file_paths:
        with file_errors(path):
            for name, dtype, shape in _list_tensors(path):
                if name in stored_tensors:
                    other_name = stored_tensors[name].path.name
                    raise InputError(
                        f"model: {str(path)!r} holds {name!r}, and {other_name} too; "
                        "one is too many"
                    )
                is_weight = isinstance(dtype, torch.dtype)
                if not is_weight and not unused.fullmatch(name):
                    raise InputError(
                        f"model: {str(path)!r}: {name} is stored as {dtype}, which is a weight "
                        "only together with a scale or a table; give the checkpoint in float32, "
                        "bfloat16 or float16"
                    )
                meta_dtype = dtype if isinstance(dtype, torch.dtype) else torch.uint8
                meta_tensor = torch.empty(shape, dtype=meta_dtype, device="meta")
                stored_tensors[name] = StoredTensor(path, meta_tensor)
    # the index lists unused tensors as well, so it is compared before they are left out
    if index is not None:
        _compare_with_index(stored_tensors, *index)
    return {name: stored for name, stored in stored_tensors.items() if not unused.fullmatch(name)}


def _list_tensors(path: Path) -> Iterator[tuple[str, torch.dtype | str, Sequence[int]]]:
    """Names, types and shapes of a file's tensors. A type is a word where its numbers are not
    weights."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                tensor_slice = file.get_slice(name)
                dtype_word = tensor_slice.get_dtype()
                dtype = PLAIN_DTYPES.get(dtype_word) or _torch_dtype(file, name, dtype_word)
                yield name, dtype, tensor_slice.get_shape()
        return
    for name, tensor in _unpickle(path).items():
        is_plain = (
            tensor.dtype in PLAIN_DTYPES.values()
            and tensor.layout == torch.strided
            and tensor.device.type == "cpu"
        )
        if is_plain:
            yield name, tensor.dtype, tensor.shape
            continue
        dtype_words = [str(tensor.dtype)]  # then what else is unusual: sparse, or without values
        if tensor.layout != torch.strided:
            dtype_words.append(str(tensor.layout))
        if str(tensor.device) != "cpu":
            dtype_words.append(str(tensor.device))
        yield name, " ".join(dtype_words), tensor.shape


def _torch_dtype(file: Any, name: str, dtype_word: str) -> str:
    """A type as torch calls it, where torch has it; else safetensors' word."""
    try:
        return str(file.get_tensor(name).dtype)
    except Exception:
        return dtype_word


def tensors(stored_tensors: dict[str, StoredTensor]) -> Iterator[tuple[str, Tensor]]:
    """The tensors themselves, a few mapped from the disk at a time."""
    names = list(stored_tensors)
    for first_index in range(0, len(names), TENSORS_PER_OPENING):
        names_of_path: dict[Path, list[str]] = defaultdict(list)
        for name in names[first_index : first_index + TENSORS_PER_OPENING]:
            names_of_path[stored_tensors[name].path].append(name)
        for path, path_names in names_of_path.items():
            with file_errors(path):
                yield from _read_tensors(path, path_names)


def _read_tensors(path: Path, names: list[str]) -> Iterator[tuple[str, Tensor]]:
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            for name in names:
                yield name, file.get_tensor(name)
    else:
        unpickled = _unpickle(path)
        for name in names:
            yield name, unpickled[name]


def is_finite(tensor: Tensor) -> Tensor:
    """Whether all its numbers are: a boolean () on its device. (Fifty times faster than
    ``isfinite`` of all, on a CPU.)"""
    return torch.stack(tensor.aminmax()).isfinite().all()  # a NaN is the minimum and the maximum


Index = tuple[Path, dict[str, str]]
"""An index's file, and which file it says that each tensor is in."""


def _weight_files(folder: Path) -> tuple[list[Path], Index | None]:
    """The weight files of a folder, those of an index or a single one, safetensors before pickles;
    and the index."""
    for file_name in SINGLE_FILES:
        single_path, index_path = folder / file_name, folder / f"{file_name}.index.json"
        if exists(index_path) and exists(single_path):
            raise InputError(
                f"model: {str(folder)!r} holds both {file_name} and {index_path.name}; take away "
                "what is not meant"
            )
        if exists(index_path):
            weight_map = _weight_map(index_path)
            shard_names = sorted(set(weight_map.values()))
            return [readable_file(folder / name) for name in shard_names], (index_path, weight_map)
        if exists(single_path):
            return [readable_file(single_path)], None
    raise InputError(
        f"model: {str(folder)!r} holds neither {' nor '.join(SINGLE_FILES)}, whole or in shards"
    )


def _weight_map(index_path: Path) -> dict[str, str]:
    """Which file, of those beside the index, each tensor is in."""
    weight_map = read_object(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(
            f"model: {str(index_path)!r} names no file; its weight_map must map tensors' names to "
            "files' names"
        )
    for name, file_name in weight_map.items():
        if not isinstance(file_name, str) or Path(file_name).name != file_name:
            raise InputError(
                f"model: {str(index_path)!r}: weight_map has {file_name!r} for {name}; it must be "
                "the name of a file beside it"
            )
        if not exists(index_path.parent / file_name):
            raise InputError(f"model: {str(index_path)!r} names {file_name}, which is not there")
    return weight_map


def _compare_with_index(
    stored_tensors: dict[str, StoredTensor], index_path: Path, weight_map: dict[str, str]
) -> None:
    """Raises InputError unless every tensor is in the shard that the index says."""
    for name, file_name in weight_map.items():
        if name not in stored_tensors or stored_tensors[name].path.name != file_name:
            raise InputError(
                f"model: {str(index_path)!r} says that {file_name} holds {name!r}, which it does "
                "not; fetch both anew"
            )
    for name, stored in stored_tensors.items():
        if name not in weight_map:
            raise InputError(
                f"model: {str(stored.path)!r} holds {name!r}, which {index_path.name} does not "
                "name; fetch both anew"
            )


def _unpickle(path: Path) -> dict[str, Tensor]:
    """A pickle's tensors, mapped from the disk where its format allows. No code in it is run."""
    with warnings.catch_warnings():
        # about pickles of other protocols; they are read, or refused with a sentence
        warnings.simplefilter("ignore")
        is_mappable = zipfile.is_zipfile(path)  # the format since torch 1.6
        named_tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=is_mappable)
    if not isinstance(named_tensors, dict):
        raise InputError(f"model: {str(path)!r} does not hold named tensors")
    for name, tensor in named_tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise InputError(f"model: {str(path)!r} does not hold named tensors")
    return named_tensors


@contextmanager
def file_errors(path: Path) -> Iterator[None]:
    """Whatever goes wrong while a weight file is read inside becomes one InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # of a damaged pickle it may be any
        raise InputError(
            f"model: {str(path)!r} is not a whole weight file: {_reason(path, error)}"
        ) from error


def _reason(path: Path, error: Exception) -> str:
    """What is wrong with a weight file that could not be read."""
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
    """What a safetensors file is too short for; None where it is long enough.

    The format: 8 bytes with the header's length, the header in JSON, and the data.
    """
    file_size = path.stat().st_size
    with path.open("rb") as file:
        header_length = int.from_bytes(file.read(8), "little")
        if header_length > MAX_HEADER:
            return "it does not begin as safetensors do"
        data_start = 8 + header_length
        if data_start > file_size:
            return "its header is cut off"
        header = json.loads(file.read(header_length))
    first_lost: tuple[int, str] | None = None  # where a tensor ends, and its name
    for name, tensor_entry in header.items():
        if name == "__metadata__":
            continue
        tensor_end = data_start + tensor_entry["data_offsets"][1]
        if tensor_end > file_size and (first_lost is None or tensor_end < first_lost[0]):
            first_lost = tensor_end, name
    return None if first_lost is None else f"{first_lost[1]} is cut off"


def write_shards(
    folder: Path, meta_tensors: dict[str, Tensor], tensors: NamedTensors, shard_size: str
) -> None:
    """safetensors files of at most ``shard_size`` with their index, each written as soon as its
    tensors have come. ``meta_tensors`` are the same tensors without values. Raises InputError where
    ``shard_size`` is no size."""
    try:
        shard_plan = split_torch_state_dict_into_shards(meta_tensors, max_shard_size=shard_size)
    except ValueError as error:
        raise InputError(
            f"shard_size: {shard_size!r} is no size; give one like 5GB or 500MB"
        ) from error
    incomplete_shards: dict[str, dict[str, Tensor]] = {}  # by the shard's file name
    for name, tensor in tensors:
        file_name = shard_plan.tensor_to_filename[name]
        shard_tensors = incomplete_shards.setdefault(file_name, {})
        # a copy: it may be a view of a larger tensor, or mapped from a file that is closed soon
        shard_tensors[name] = tensor.clone(memory_format=torch.contiguous_format)
        if len(shard_tensors) == len(shard_plan.filename_to_tensors[file_name]):
            save_file(
                incomplete_shards.pop(file_name), folder / file_name, metadata={"format": "pt"}
            )
    if shard_plan.is_sharded:
        write_object(
            folder / f"{SINGLE_FILES[0]}.index.json",
            {"metadata": shard_plan.metadata, "weight_map": shard_plan.tensor_to_filename},
        )


def write_object(path: Path, value: Any) -> None:
    """A JSON file, indented, in UTF-8."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def one_line(error: BaseException, max_length: int = 240) -> str:
    """An error's own words in one line, of at most ``max_length`` characters."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= max_length else f"{words[:max_length]} …"
