"""Names of models that come with the package. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

from secondlook.types import InputError

SHIPPED = ("mini", "mini-base", "mini-edit")


def locate(model: str) -> str:
    """Where a model's files are: shipped names first, then folders; a hub id (owner/name) is left to transformers.

    Raises InputError for anything else.
    """
    if model in SHIPPED:
        folder = Path(__file__).parents[1] / "checkpoints" / model
        if not folder.is_dir():
            raise InputError(
                f"model: {model!r} does not come with this version; make it with runs/mini_base.sh, mini.sh or edit.sh"
            )
        return str(folder)
    if Path(model).is_dir():
        return model
    if model.count("/") == 1 and not model.startswith((".", "/")):
        return model
    raise InputError(f"model: {model!r} is neither shipped ({', '.join(SHIPPED)}) nor a folder nor a hub id (owner/name)")
