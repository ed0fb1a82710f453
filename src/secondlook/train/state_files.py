"""Reading a run's states as data only: torch's checkpoint unpickles its table of contents and every
plain value without a limit, so that a run folder from a stranger could run code."""

from __future__ import annotations

import io
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem
from torch.serialization import safe_globals

CONTENTS = {
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
"""What a table of contents is made of, beside torch's types of numbers."""
FLOAT, INT, BOOL = (type(np.dtype(name)) for name in ("float64", "int64", "bool"))
NUMBERS: list[Any] = [np.dtype, FLOAT, INT, BOOL, np.float64(0).__reduce__()[0]]
"""What numpy's numbers among the plain values are made of."""


class _Contents(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if name not in CONTENTS.get(module, ()):
            raise pickle.UnpicklingError(f"it would run {module}.{name}, which no state does")
        return super().find_class(module, name)


class _Reader(dcp.FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with open(Path(self.path) / ".metadata", "rb") as file:
            metadata = _Contents(file).load()
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _Planner(DefaultLoadPlanner):
    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        with safe_globals(NUMBERS):
            plain = torch.load(value, weights_only=True)
        again = (
            io.BytesIO()
        )  # torch puts it in its place, which it does not offer for a value that is read already
        torch.save(plain, again)
        again.seek(0)
        super().load_bytes(read_item, again)


def load_state(parts: dict[str, Any], folder: Path, no_dist: bool) -> None:
    """``torch.distributed.checkpoint.load`` of ``parts`` from ``folder``, which runs no code that
    is in it."""

    def told_by_us(record: logging.LogRecord) -> bool:
        return record.module != "state_dict_loader"  # tracebacks of errors that it raises as well

    logging.getLogger().addFilter(told_by_us)
    try:
        dcp.load(parts, storage_reader=_Reader(folder), planner=_Planner(), no_dist=no_dist)
    finally:
        logging.getLogger().removeFilter(told_by_us)
