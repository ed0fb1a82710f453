"""A run's states: folders that torch.distributed's checkpoint writes, each rank its parts, under a
temporary name that is renamed when all is there.

They are read as data only: torch unpickles a checkpoint's table of contents and every plain value
without a limit, so that a run folder from a stranger could run code.
"""

from __future__ import annotations

import io
import logging
import os
import pickle
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem
from torch.serialization import safe_globals

from secondlook.train.distributed import ProcessGroup

STATES = "states"
"""The folder of states in a run's folder."""
ALLOWED_CLASSES = {
    "torch.distributed.checkpoint.metadata": (
        "Metadata",
        "MetadataIndex",
        "TensorStorageMetadata",
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "TensorProperties",
        "StorageMeta",
        "_MEM_FORMAT_ENCODING",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.serialization": ("_get_layout",),
    "torch": ("Size",),
    "pathlib": ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"),
    "pathlib._local": ("PosixPath", "WindowsPath"),
}
"""What a table of contents is made of, by module, beside torch's types of numbers."""
NUMPY_NUMBERS: list[Any] = [
    np.dtype,
    type(np.dtype("float64")),
    type(np.dtype("int64")),
    type(np.dtype("bool")),
    np.float64(0).__reduce__()[0],  # the function that makes any of numpy's numbers anew
]
"""What numpy's numbers among the plain values are made of."""


def state_folder(out: Path, step: int) -> Path:
    """Where the state after ``step`` finished steps is, in a run's folder ``out``."""
    return out / STATES / f"step-{step:08d}"


def saved_steps(out: Path) -> list[int]:
    """Steps of which a folder holds a whole state, in order."""
    steps = []
    for path in (out / STATES).glob("step-*"):
        match = re.fullmatch(r"step-(\d{8,})", path.name)  # not "….tmp", which is torn
        if match:
            steps.append(int(match[1]))
    return sorted(steps)


def save_state(parts: dict[str, Any], folder: Path, ranks: ProcessGroup) -> None:
    """Write ``parts`` (names to state dicts) whole or not at all. Collective."""
    temporary_folder = folder.with_name(folder.name + ".tmp")
    if ranks.is_main:
        shutil.rmtree(temporary_folder, ignore_errors=True)
    ranks.barrier()  # nobody writes before it is empty
    try:
        with _one_process_is_fine():
            dcp.save(parts, checkpoint_id=temporary_folder, no_dist=ranks.world_size == 1)
    except BaseException:
        shutil.rmtree(temporary_folder, ignore_errors=True)
        raise
    if ranks.is_main:
        shutil.rmtree(folder, ignore_errors=True)  # a folder is renamed onto an empty place only
        os.replace(temporary_folder, folder)
    ranks.barrier()  # nobody goes on before it has its name


def load_state(parts: dict[str, Any], folder: Path, ranks: ProcessGroup) -> None:
    """Fill ``parts`` from ``folder``, running no code that is in it. Collective; a state may be
    read by another number of ranks than wrote it."""
    reader, planner = _DataOnlyReader(folder), _DataOnlyPlanner()
    with _one_process_is_fine(), _no_tracebacks():
        dcp.load(parts, storage_reader=reader, planner=planner, no_dist=ranks.world_size == 1)


def remove_torn_states(out: Path) -> None:
    """Remove what a process that was killed while it wrote has left."""
    for torn in (out / STATES).glob("*.tmp"):
        shutil.rmtree(torn, ignore_errors=True)


class _ContentsUnpickler(pickle.Unpickler):
    """Reads a table of contents. Raises UnpicklingError where it names anything else than
    ``ALLOWED_CLASSES``."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if name not in ALLOWED_CLASSES.get(module, ()):
            raise pickle.UnpicklingError(f"it would run {module}.{name}, which no state does")
        return super().find_class(module, name)


class _DataOnlyReader(dcp.FileSystemReader):
    """torch's reader, but for how it unpickles the table of contents."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with open(Path(self.path) / ".metadata", "rb") as file:
            metadata = _ContentsUnpickler(file).load()
        # as torch's own method goes on
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _DataOnlyPlanner(DefaultLoadPlanner):
    """torch's planner, but for how it unpickles values that are no tensors."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        with safe_globals(NUMPY_NUMBERS):
            plain_value = torch.load(value, weights_only=True)
        # torch puts the value in its place, which it does not offer for one that is read already:
        # it gets what was found harmless, written again
        written_again = io.BytesIO()
        torch.save(plain_value, written_again)
        written_again.seek(0)
        super().load_bytes(read_item, written_again)


@contextmanager
def _no_tracebacks() -> Iterator[None]:
    """Inside, torch does not log the tracebacks of errors that it raises as well."""

    def is_ours(record: logging.LogRecord) -> bool:
        return record.module != "state_dict_loader"

    logging.getLogger().addFilter(is_ours)
    try:
        yield
    finally:
        logging.getLogger().removeFilter(is_ours)


@contextmanager
def _one_process_is_fine() -> Iterator[None]:
    """Inside, torch does not warn that a run of one process has no process group."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is")
        yield
