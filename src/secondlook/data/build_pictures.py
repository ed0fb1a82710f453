"""A build's pictures in Parquet files."""

from __future__ import annotations

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
}
COLUMNS |= {
    "score": "float32",
    "correct": "bool",
    "reason": "string",
    "following": "float32",
    "preserving": "float32",
}


def write_sources(path: Path, sources: dict[str, Image.Image]) -> None:
    alone = {digest(image): image for image in sources.values()}
    write_pictures(
        path,
        [{"id": name, "image": {"bytes": png(image)}} for name, image in alone.items()],
        {"id": "string"},
    )


def write_pictures(path: Path, rows: list[dict[str, Any]], kinds: dict[str, str] = COLUMNS) -> None:
    from datasets import Dataset, Features, Value, disable_progress_bars
    from datasets import Image as ImageFeature

    disable_progress_bars()  # one bar, ours
    features = Features(
        {name: Value(kind) for name, kind in kinds.items()} | {"image": ImageFeature()}
    )
    path.parent.mkdir(exist_ok=True)
    with whole_file(path) as temporary:
        size = sum(len(row["image"]["bytes"]) for row in rows) // max(1, len(rows)) + 1
        table = (
            Dataset.from_list(rows, features=features)
            if rows
            else Dataset.from_dict({n: [] for n in features}, features)
        )
        with open(temporary, "wb") as file:  # a name of its own may look like an address
            table.to_parquet(file, batch_size=max(1, ROW_GROUP // size))


def read_pictures(path: Path) -> list[dict[str, Any]]:
    return read_parquet(path).to_pylist()


def picture_of(row: dict[str, Any]) -> Image.Image:
    return decode_image(
        row["image"]["bytes"], f"picture {row['id'] or ''} of {row.get('prompt', 'a source')}"
    )


def row_of(picture: Picture, generator: GeneratorConfig) -> dict[str, Any]:
    return {
        "id": "",
        "prompt": picture.prompt.text,
        "source_id": digest(picture.prompt.source) if picture.prompt.source else None,
        "image": {"bytes": png(picture.image)},
        "source": picture.source,
        "seed": None if picture.seed is None else str(picture.seed),
        "licence": generator.licence,
        "score": None,
        "correct": None,
        "reason": None,
        "following": None,
        "preserving": None,
    }
