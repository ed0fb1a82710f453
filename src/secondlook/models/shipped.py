"""Names of models that come with the package. Imports nothing heavy."""

from __future__ import annotations

import re
from pathlib import Path
from stat import S_ISDIR

from secondlook.errors import InputError

SHIPPED = ("mini", "mini-base", "mini-edit")
HUB_ID = re.compile(r"[^./][^/]*/[^/]+")
"""What may be an id of the hub, owner/name; the hub says whether it is one."""


def locate(model: str) -> str:
    """Where a model's files are: shipped names first, then folders; a hub id (owner/name) is left
    to transformers.

    Raises InputError for anything else.
    """
    if not model:
        raise InputError(
            f"model: it is empty; give one of {', '.join(SHIPPED)}, a checkpoint's folder or a hub "
            "id (owner/name)"
        )
    if model in SHIPPED:
        folder = Path(__file__).parents[1] / "checkpoints" / model
        if not folder.is_dir():
            raise InputError(
                f"model: {model!r} does not come with this version; make it with "
                "scripts/mini_base.sh, mini.sh or edit.sh"
            )
        return str(folder)
    file_mode = 0  # there is no such file
    try:
        file_mode = Path(model).stat().st_mode
    except PermissionError as error:
        raise InputError(f"model: {model!r} cannot be read ({error.strerror})") from error
    except (OSError, ValueError):  # also a name that no file can have
        pass
    if S_ISDIR(file_mode):
        return model
    if file_mode:
        raise InputError(
            f"model: {model!r} is a file; give the folder that holds the whole checkpoint"
        )
    if HUB_ID.fullmatch(model):
        return model
    raise InputError(
        f"model: {model!r}: no such folder; it is neither shipped ({', '.join(SHIPPED)}) nor a hub "
        "id (owner/name)"
    )
