"""Pairs of a prompt and a picture: a folder, JSON lines or Parquet, with or without a label."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from secondlook.data.prompts import Line
from secondlook.errors import InputError
from secondlook.io import (
    EXTENSIONS,
    beside,
    check_unicode,
    decode_image,
    is_file,
    parquet_rows,
    read_image,
    read_json,
    read_rows,
    text_field,
)
from secondlook.report import episode_files
from secondlook.types import Prompt

LISTS = (".jsonl", ".parquet")


@dataclass(frozen=True)
class Pair:
    """One picture of a prompt; ``good`` says whether it matches, None where nobody said. With a
    ``source`` the prompt is an instruction and the picture an edit of it."""

    name: str
    prompt: str
    open: Callable[[], Image.Image]
    good: bool | None = None
    source: Callable[[], Image.Image] | None = None
    source_name: str = ""
    """What the source is called, by which verdicts of another one are known."""
    where: str = ""
    """ "line 3 of pairs.jsonl"; empty outside of a list."""

    def asked(self) -> Prompt:
        """The prompt with its source read."""
        return Prompt(self.prompt, self.source() if self.source else None)


def is_list(path: Path) -> bool:
    """Whether a path names several pictures, not one."""
    return path.is_dir() or path.suffix.lower() in LISTS


def read_pairs(
    path: Path,
    prompt: str = "",
    source: Path | None = None,
    left_out: Callable[[str], None] = lambda _: None,
) -> list[Pair]:
    """Pairs of a picture (``prompt`` is then needed), a folder (with metadata.jsonl of file_name
    and prompt, else of episodes, whose final images they are, else its pictures, all of
    ``prompt``), a JSONL file (image, prompt, perhaps good and
    source; paths beside the file) or a Parquet file (columns image, prompt, perhaps good or
    correct, and source_image). Pictures without a source of their own are edits of ``source``, if
    any. ``left_out`` is told the name of each of a folder's files that is no picture.

    Files that a list names are looked for, not opened. Raises InputError that names the file, the
    line or row, the field and the value.
    """
    pairs = _stored_pairs(path, prompt, left_out)
    if source is None:
        return pairs
    with_source = []
    for pair in pairs:
        if pair.source is None:
            pair = replace(pair, source=partial(read_image, source), source_name=str(source))
        with_source.append(pair)
    return with_source


def _stored_pairs(path: Path, prompt: str, left_out: Callable[[str], None]) -> list[Pair]:
    """The pairs of a path by what it is, with their own sources only."""
    if path.is_dir():
        if (path / "metadata.jsonl").is_file():
            return _pairs_of_described_folder(path, prompt, left_out)
        episode_paths = episode_files(path)
        if episode_paths:
            return [_pair_of_episode(path, episode_path) for episode_path in episode_paths]
        return _pairs_of_plain_folder(path, prompt, left_out)
    if path.suffix.lower() == ".jsonl":
        return _pairs_of_lines(path, "image", prompt)
    if path.suffix.lower() == ".parquet":
        return _pairs_of_parquet(path, prompt)
    if is_file(path) and path.suffix.lower() not in EXTENSIONS:
        # a picture under a strange name, or a list that this function does not know: try to read it
        try:
            read_image(path)
        except InputError as error:
            if "cannot identify" not in str(error):
                raise
            raise InputError(
                f"images: {str(path)!r} is neither a picture nor a list of pictures; lists end "
                f"in {' or '.join(LISTS)}"
            ) from error
    _check_prompt_given(prompt, path.name)
    return [Pair(path.name, prompt, partial(read_image, path))]


def _pairs_of_described_folder(
    folder: Path, prompt: str, left_out: Callable[[str], None]
) -> list[Pair]:
    """The pairs of a folder's metadata.jsonl; pictures that it does not name are left out."""
    list_path = folder / "metadata.jsonl"
    pairs = _pairs_of_lines(list_path, "file_name", prompt)
    named_files = {pair.name for pair in pairs}  # as the list writes them
    for path in sorted(folder.iterdir()):
        is_picture = path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")
        if is_picture and path.name not in named_files:
            left_out(path.name)
    return pairs


def _pair_of_episode(folder: Path, episode_path: Path) -> Pair:
    """The final image of an episode in ``folder`` that ``draw`` or ``edit`` wrote."""
    episode_folder = episode_path.parent
    image_path, source_path = episode_folder / "final.png", episode_folder / "source.png"
    where = str(episode_path)
    prompt = text_field(read_json(episode_path, dict), "prompt", where)
    return Pair(
        name=str(image_path.relative_to(folder)),
        prompt=prompt,
        open=partial(read_image, _existing(image_path, where)),
        source=partial(read_image, source_path) if source_path.exists() else None,
        source_name=str(source_path) if source_path.exists() else "",
        where=where,
    )


def _pairs_of_plain_folder(
    folder: Path, prompt: str, left_out: Callable[[str], None]
) -> list[Pair]:
    """A pair of each picture and ``prompt``; other files, but for hidden ones, are left out."""
    picture_paths, other_names = [], []
    for path in sorted(folder.iterdir()):
        if is_file(path) and path.suffix.lower() in EXTENSIONS:
            picture_paths.append(path)
        elif not path.name.startswith("."):
            other_names.append(path.name)
    if not picture_paths:
        is_heic = any(name.lower().endswith((".heic", ".heif")) for name in other_names)
        hint = "; HEIC is not read: convert it to PNG or JPEG" if is_heic else ""
        raise InputError(
            f"images: {str(folder)!r} holds no picture ({', '.join(EXTENSIONS)}) and no "
            f"metadata.jsonl{hint}"
        )
    for name in other_names:
        left_out(name)
    _check_prompt_given(prompt, folder.name)
    return [Pair(path.name, prompt, partial(read_image, path)) for path in picture_paths]


def _check_prompt_given(prompt: str, picture_name: str) -> None:
    if not prompt.strip():
        raise InputError(
            f"prompt: it is missing for {picture_name!r}; say what the picture should show"
        )


def _label(value: Any, where: str) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    raise InputError(f"images: {where}: good is {value!r}; it must be true or false")


def _pairs_of_lines(path: Path, image_field: str, prompt: str) -> list[Pair]:
    """Pairs of a JSONL file; ``image_field`` names a picture's path beside the file, and ``prompt``
    is that of lines without one. Raises InputError that names the line."""
    if not is_file(path):
        raise InputError(
            f"images: {str(path)!r} is not a file; give a picture, a folder, a .jsonl or a .parquet"
        )
    pairs = []
    for number, row in read_rows(path):
        where = f"line {number} of {path}"
        # ``text_field`` wants Unicode, or says what is wrong with a value that is no path
        if _is_path(row.get(image_field)):
            image_name = row[image_field]
        else:
            image_name = text_field(row, image_field, where)
        line_prompt = text_field(row, "prompt", where, prompt)
        image_path = _existing(beside(path, image_name), where)
        source_path = None
        if _is_path(row.get("source")):
            source_path = _existing(beside(path, row["source"]), where)
        elif row.get("source") is not None:
            text_field(row, "source", where)  # raises an InputError that says what is wrong
        pairs.append(
            Pair(
                name=image_name,
                prompt=line_prompt,
                open=partial(read_image, image_path),
                good=_label(row.get("good"), where),
                source=partial(read_image, source_path) if source_path else None,
                source_name=str(source_path or ""),
                where=where,
            )
        )
    if not pairs:
        raise InputError(f"images: {str(path)!r} is empty; give at least one line")
    return pairs


def _is_path(value: Any) -> bool:
    """A name may have bytes that are no Unicode, as file systems allow."""
    return isinstance(value, str) and bool(value.strip())


def _existing(path: Path, where: str) -> Path:
    if not is_file(path):
        raise InputError(
            f"image: {where}: {str(path)!r} is not a file; give a path beside the list"
        )
    return path


def _pairs_of_parquet(path: Path, prompt: str) -> list[Pair]:
    """Pairs of a Parquet file; ``prompt`` is that of rows without one. Raises InputError that names
    the row."""
    pairs = []
    rows = parquet_rows(path, ["image"], ["prompt", "good", "correct", "source_image", "id"])
    for number, row in enumerate(rows, 1):
        where = f"row {number} of {path}"
        image_bytes = _stored_bytes(row["image"])
        source_bytes = _stored_bytes(row.get("source_image"))
        row_prompt = row.get("prompt")
        if row_prompt is None:
            row_prompt = prompt
        if not isinstance(row_prompt, str) or not row_prompt.strip():
            raise InputError(
                f"prompt: it is {row_prompt!r} in {where}; column prompt must hold texts that are "
                "not empty"
            )
        if not isinstance(image_bytes, bytes):
            raise InputError(
                f"image: it is {type(image_bytes).__name__} in {where}; column image must hold a "
                "picture's bytes"
            )
        if source_bytes is not None and not isinstance(source_bytes, bytes):
            raise InputError(
                f"source_image: it is {type(source_bytes).__name__} in {where}; it must hold a "
                "picture's bytes"
            )
        # people label "good", data build writes "correct"; the latter is null without a score
        label = _label(row.get("good", row.get("correct")), where)
        # without an id the row's place from 0 on, as in datasets
        name = str(number - 1 if row.get("id") is None else row["id"])
        pairs.append(
            Pair(
                name=name,
                prompt=check_unicode(row_prompt.strip(), "prompt", where),
                open=partial(decode_image, image_bytes, where),
                good=label,
                source=partial(decode_image, source_bytes, where) if source_bytes else None,
                source_name=name if source_bytes else "",
                where=where,
            )
        )
    if not pairs:
        raise InputError(f"images: {str(path)!r} is empty; give at least one row")
    return pairs


def _stored_bytes(value: Any) -> Any:
    """A cell's picture: of datasets' layout {"bytes": …, "path": …}, or the bytes themselves."""
    return value.get("bytes") if isinstance(value, dict) else value


def lines_of(pairs: Iterable[Pair]) -> list[Line]:
    """Prompts with where they stand, as ``prompts.check_prompts`` wants them."""
    lines = []
    for pair in pairs:
        source = Path() if pair.source else None  # whether there is one is all that is asked
        lines.append(Line(pair.prompt, source, pair.where or f"the prompt of {pair.name!r}"))
    return lines
