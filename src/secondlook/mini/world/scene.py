"""Scenes: what is in a picture of the miniature's world, before any pixel is drawn.

The canvas is 48x48 px. An object is one of sixteen pictograms in one of GenEval's ten colours, in a
16-px cell whose corner lies on an 8-px lattice: the tokenizer's patches are 8 px, so objects sit on
the code grid (measured: it decides whether reconstructions stay readable, docs/LOG.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import combinations

import numpy as np

SIZE, CELL, STEP = 48, 16, 8
CORNERS = tuple(
    (y, x) for y in range(0, SIZE - CELL + 1, STEP) for x in range(0, SIZE - CELL + 1, STEP)
)
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 30),
    "orange": (255, 140, 0),
    "yellow": (250, 230, 40),
    "green": (30, 150, 50),
    "blue": (40, 70, 220),
    "purple": (130, 40, 170),
    "pink": (255, 150, 200),
    "brown": (120, 70, 30),
    "black": (0, 0, 0),
    "white": (255, 255, 255),
}
BACKGROUND = (153, 153, 153)
RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


@cache
def pictograms() -> dict[str, np.ndarray]:
    """Name -> (16, 16) bool mask; one pixel of margin on every side, so neighbours are at least two
    pixels apart."""
    text = files("secondlook.mini.world").joinpath("pictograms.txt").read_text()
    masks = {}
    for block in text.strip().split("\n\n"):
        head, *rows = block.splitlines()
        masks[head.split()[0]] = np.pad(np.array([[c == "#" for c in row] for row in rows]), 1)
    return masks


@cache
def plurals() -> dict[str, str]:
    """Name -> its plural."""
    text = files("secondlook.mini.world").joinpath("pictograms.txt").read_text()
    return dict(block.splitlines()[0].split() for block in text.strip().split("\n\n"))


OBJECTS = tuple(pictograms())


@dataclass(frozen=True, order=True)
class Thing:
    """One object: the top-left corner of its cell in pixels (y, x), its class and its colour."""

    y: int
    x: int
    name: str
    color: str


@dataclass(frozen=True)
class Scene:
    """The objects of a picture in reading order (rows first)."""

    things: tuple[Thing, ...]

    @staticmethod
    def of(things) -> Scene:
        return Scene(tuple(sorted(things)))

    def valid(self) -> bool:
        """No two cells overlap and all are on the canvas."""
        inside = all(0 <= t.y <= SIZE - CELL and 0 <= t.x <= SIZE - CELL for t in self.things)
        return inside and not any(
            abs(a.y - b.y) < CELL and abs(a.x - b.x) < CELL for a, b in combinations(self.things, 2)
        )


def box(thing: Thing) -> tuple[int, int, int, int]:
    """The object's bounding box (x1, y1, x2, y2), upper bounds exclusive."""
    rows, cols = np.nonzero(pictograms()[thing.name])
    return (
        thing.x + int(cols.min()),
        thing.y + int(rows.min()),
        thing.x + int(cols.max()) + 1,
        thing.y + int(rows.max()) + 1,
    )


def relations(a: tuple[float, ...], b: tuple[float, ...]) -> set[str]:
    """Where box ``a`` lies relative to box ``b`` by GenEval's rule (centre offset reduced by a
    tenth of both sizes, then its direction against 0.5 of the unreduced norm); several may hold,
    also none. Boxes are (x1, y1, x2, y2)."""
    box_a, box_b = np.asarray(a, float), np.asarray(b, float)
    offset = (box_a[:2] + box_a[2:] - box_b[:2] - box_b[2:]) / 2
    sizes = (box_a[2:] - box_a[:2]) + (box_b[2:] - box_b[:2])
    reduced = np.sign(offset) * np.maximum(np.abs(offset) - 0.1 * sizes, 0)
    if np.all(np.abs(reduced) < 1e-3):
        return set()
    dx, dy = reduced / np.linalg.norm(offset)
    held = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {name for name, holds in held.items() if holds}


def place(rng: np.random.Generator, n: int, tries: int = 200) -> list[tuple[int, int]]:
    """``n`` corners of cells that do not overlap, in reading order, uniform over the lattice by
    rejection."""
    for _ in range(tries):
        picks = sorted(CORNERS[i] for i in rng.choice(len(CORNERS), n, replace=False))
        if all(
            abs(a[0] - b[0]) >= CELL or abs(a[1] - b[1]) >= CELL for a, b in combinations(picks, 2)
        ):
            return picks
    raise ValueError(f"n: {n} objects do not fit on the canvas; at most 4 are used")
