"""Upload a checkpoint to the Hugging Face hub, with a model card."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from secondlook.card import extended_card, model_card
from secondlook.errors import InputError
from secondlook.io import is_file, read_json, read_text, whole_folder, writable_folder, write_text
from secondlook.models.shipped import locate

WEIGHTS = ("*.safetensors", "*.bin")
UPLOADED = (*WEIGHTS, "*.json", "*.jinja", "*.model", "*.txt")
"""Files of a checkpoint; nothing else of its folder is uploaded."""
CARD = "README.md"
REPO_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


class Saved(Protocol):
    """What writes itself as a checkpoint: ``secondlook.Model``."""

    name: str
    """What it was loaded from."""

    def save(self, folder: str | Path) -> Path: ...


def push(
    model: str | Path | Saved,
    repo_id: str,
    results: Sequence[str | Path] = (),
    license_id: str = "",
    private: bool = False,
    dry_run: str | Path | None = None,
    message: str = "Upload by secondlook",
) -> str:
    """Upload a checkpoint with a model card to the hub.

    A checkpoint's own README.md is its card, to which results are added; without one, the card is
    made of the settings of its run (``config.json`` beside the folder ``final``) and of the
    results.

    Args:
        model: A checkpoint's folder, a run's folder (its ``final`` is taken), a shipped model's
            name, or a ``secondlook.Model``, which is saved for this.
        repo_id: Where to, as owner/name. It is made if it is not there.
        results: Files ``result.json`` of ``secondlook eval``, or their folders, for the card.
        license_id: The weights' licence as the hub writes it (``mit``); "": the base model's,
            where it is known.
        private: Whether a repository that is made now is private.
        dry_run: A new folder: what would be uploaded is written there, and nothing is uploaded.
        message: Of the commit.

    Returns:
        The address of the repository, or the folder of a dry run.

    Raises:
        InputError: There is no checkpoint, a name or a file is wrong, or the hub refused.
    """
    is_name = isinstance(repo_id, str) and len(repo_id) <= 96 and REPO_ID.fullmatch(repo_id)
    if not is_name:
        raise InputError(
            f"repo: {repo_id!r} is not a name on the hub; write owner/name, as me/my-model"
        )
    with _checkpoint_of(model) as (folder, trained_in):
        files = checkpoint_files(folder)
        own_card = folder / CARD
        result_paths = [Path(path) for path in results]
        if is_file(own_card):
            card = extended_card(read_text(own_card), result_paths, license_id)
        else:
            card = model_card(trained_in, repo_id, result_paths, license_id)
        if dry_run is not None:
            return str(_write_locally(files, card, Path(dry_run)))
        return _upload(files, card, repo_id, private, message)


@contextmanager
def _checkpoint_of(model: str | Path | Saved) -> Iterator[tuple[Path, Path]]:
    """The folder of the checkpoint that ``model`` means, and the one beside which its run's
    settings are. A model is saved to a temporary folder."""
    if not isinstance(model, str | Path):
        with tempfile.TemporaryDirectory() as temporary_folder:
            # its weights are new files, but its run's settings are where it was loaded from
            yield model.save(Path(temporary_folder) / "model"), Path(model.name)
        return
    folder = Path(locate(str(model)))
    if is_file(folder / "final" / "config.json"):
        folder = folder / "final"
    yield folder, folder


def checkpoint_files(folder: Path) -> list[Path]:
    """The files of a checkpoint, sorted by name. Raises InputError where it is none."""
    if not folder.is_dir():
        raise InputError(f"folder: {str(folder)!r}: no such folder; give a checkpoint's folder")
    config_path = folder / "config.json"
    if not is_file(config_path) or "model_type" not in read_json(config_path, dict):
        raise InputError(
            f"folder: {str(folder)!r} is not a checkpoint: it lacks a config.json with model_type"
        )
    weight_files: list[Path] = []
    for pattern in WEIGHTS:
        weight_files += folder.glob(pattern)
    if not weight_files:
        raise InputError(f"folder: {str(folder)!r} holds no weights (*.safetensors)")
    uploaded_files: list[Path] = []
    for pattern in UPLOADED:
        uploaded_files += folder.glob(pattern)
    return sorted(uploaded_files)


def _write_locally(files: Sequence[Path], card: str, out: Path) -> Path:
    """What would be uploaded, in a new folder. Raises InputError where it is not empty."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"dry-run: {str(out)!r} is not an empty folder; name a new one")
    writable_folder(out.parent, claimed=False)
    with whole_folder(out) as temporary_folder:
        for path in files:
            shutil.copyfile(path, temporary_folder / path.name)
        write_text(temporary_folder / CARD, card)
    return out


def _upload(files: Sequence[Path], card: str, repo_id: str, private: bool, message: str) -> str:
    """One commit of all files. Raises InputError with the hub's own words where it refuses."""
    import huggingface_hub

    operations: list[Any] = []
    for path in files:
        operations.append(huggingface_hub.CommitOperationAdd(path.name, str(path)))
    operations.append(huggingface_hub.CommitOperationAdd(CARD, card.encode()))
    hub_api = huggingface_hub.HfApi()
    try:
        address = hub_api.create_repo(repo_id, private=private, exist_ok=True)
        hub_api.create_commit(repo_id, operations, commit_message=message)
    except Exception as error:  # the hub's, httpx's and the system's
        reason = " ".join(str(error).split())[:240] or type(error).__name__
        raise InputError(f"repo: {repo_id!r} could not be written on the hub: {reason}") from error
    return str(address)
