"""A build's pictures in Parquet files."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

from PIL import Image

from secondlook.data.generators import GeneratorConfig, Picture
from secondlook.io import decode_image, png, read_parquet, whole_file
from secondlook.types import digest

ROW_GROUP = 8 * 2**20
"""Bytes of pictures in a row group of Parquet: a picture is read with all of its group."""
COLUMNS = {
    "id": "string",
    "prompt": "string",
    "source_id": "string",
    "source": "string",
    "seed": "string",
    "licence": "string",
    # the judge's, null until the shard is scored
    "score": "float32",
    "correct": "bool",
    "reason": "string",
    "following": "float32",
    "preserving": "float32",
    # id of the picture that a redraw of this wrong one is taught to become (data.redraw_targets)
    "redraw_target": "string",
}
"""Types of a shard's columns, by their names in ``datasets``; ``image`` comes last."""


def write_sources(path: Path, sources: dict[str, Image.Image]) -> None:
    """The pictures that a shard's edits are edits of, each once, named by the digest of its
    pixels."""
    image_of_digest = {digest(image): image for image in sources.values()}
    rows = []
    for source_id, image in image_of_digest.items():
        rows.append({"id": source_id, "image": {"bytes": png(image)}})
    write_pictures(path, rows, {"id": "string"})


def write_pictures(
    path: Path, rows: list[dict[str, Any]], column_types: dict[str, str] = COLUMNS
) -> None:
    """Write rows as Parquet that ``datasets`` and its viewer read as pictures."""
    from datasets import Dataset, Features, Value, disable_progress_bars
    from datasets import Image as ImageFeature

    disable_progress_bars()  # one bar, ours
    column_features = {name: Value(type_name) for name, type_name in column_types.items()}
    features = Features(column_features | {"image": ImageFeature()})
    path.parent.mkdir(exist_ok=True)
    with whole_file(path) as temporary_path:
        total_bytes = sum(len(row["image"]["bytes"]) for row in rows)
        bytes_per_row = total_bytes // max(1, len(rows)) + 1
        if rows:
            dataset = Dataset.from_list(rows, features=features)
        else:  # from_list takes the columns' names of the first row
            dataset = Dataset.from_dict({name: [] for name in features}, features)
        with open(temporary_path, "wb") as file:  # a name of its own may look like an address
            dataset.to_parquet(file, batch_size=max(1, ROW_GROUP // bytes_per_row))


def read_pictures(path: Path) -> list[dict[str, Any]]:
    """Rows of ``write_pictures``, pictures as their files' bytes."""
    return read_parquet(path).to_pylist()


def picture_of(row: dict[str, Any]) -> Image.Image:
    """A row's picture. Raises InputError that names it."""
    where = f"picture {row['id'] or ''} of {row.get('prompt', 'a source')}"
    return decode_image(row["image"]["bytes"], where)


def picture_key(row: dict[str, Any]) -> tuple[str, str, bytes]:
    """By which two rows with one picture of one prompt are known: of pixels, for files of one image
    differ."""
    pixel_digest = sha256(picture_of(row).tobytes()).digest()
    return row["prompt"], row["source_id"] or "", pixel_digest


def row_of(picture: Picture, generator: GeneratorConfig) -> dict[str, Any]:
    """A picture as a row, without a name and a score."""
    return {
        "id": "",
        "prompt": picture.prompt.text,
        "source_id": digest(picture.prompt.source) if picture.prompt.source else None,
        "image": {"bytes": png(picture.image)},
        "source": picture.source,
        # a text: seeds have 56 bits, and viewers that read numbers as doubles keep 53
        "seed": None if picture.seed is None else str(picture.seed),
        "licence": generator.licence,
        "score": None,
        "correct": None,
        "reason": None,
        "following": None,
        "preserving": None,
        "redraw_target": None,
    }
