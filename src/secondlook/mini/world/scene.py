"""Scenes: what is in a picture of the miniature's world, before any pixel is drawn.

The canvas is 48x48 px. An object is one of sixteen pictograms in one of GenEval's ten colours, in a
16-px cell whose corner lies on an 8-px lattice: the tokenizer's patches are 8 px, so objects sit on
the code grid (measured: it decides whether reconstructions stay readable, docs/LOG.md). Up to eight
objects fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import combinations, product

import numpy as np

from secondlook.evals.geneval import relations as relations  # GenEval's own rule

SIZE, CELL, STEP = 48, 16, 8  # px: the canvas's side, a cell's side, the lattice's step
_LATTICE = range(0, SIZE - CELL + 1, STEP)
CORNERS = tuple(product(_LATTICE, _LATTICE))  # (y, x), rows first
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


def _pictogram_blocks() -> list[str]:
    """One block of text an object: a line "name plural", then its 14 rows of pixels."""
    text = files("secondlook.mini.world").joinpath("pictograms.txt").read_text()
    return text.strip().split("\n\n")


@cache
def pictograms() -> dict[str, np.ndarray]:
    """Name -> (16, 16) bool mask; one pixel of margin on every side, so neighbours are at least two
    pixels apart."""
    mask_of_name = {}
    for block in _pictogram_blocks():
        name_line, *rows = block.splitlines()
        characters = np.array([list(row) for row in rows])  # (14, 14), "#" where the object is
        mask_of_name[name_line.split()[0]] = np.pad(characters == "#", 1)
    return mask_of_name


@cache
def plurals() -> dict[str, str]:
    """Name -> its plural."""
    plural_of_name = {}
    for block in _pictogram_blocks():
        name, plural = block.splitlines()[0].split()
        plural_of_name[name] = plural
    return plural_of_name


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
        for thing in self.things:
            if not (0 <= thing.y <= SIZE - CELL and 0 <= thing.x <= SIZE - CELL):
                return False
        return not _any_overlap([(thing.y, thing.x) for thing in self.things])


def _any_overlap(corners: Sequence[tuple[int, int]]) -> bool:
    """Whether two of the cells with these (y, x) corners share a pixel."""
    for (y_a, x_a), (y_b, x_b) in combinations(corners, 2):
        if abs(y_a - y_b) < CELL and abs(x_a - x_b) < CELL:
            return True
    return False


def box(thing: Thing) -> tuple[int, int, int, int]:
    """The object's bounding box (x1, y1, x2, y2), upper bounds exclusive."""
    left, top, right, bottom = _extent(thing.name)
    return thing.x + left, thing.y + top, thing.x + right, thing.y + bottom


@cache
def _extent(name: str) -> tuple[int, int, int, int]:
    """A class's bounding box in its own cell."""
    rows, cols = np.nonzero(pictograms()[name])  # of the mask's pixels
    return int(cols.min()), int(rows.min()), int(cols.max()) + 1, int(rows.max()) + 1


@cache
def layouts(n: int) -> np.ndarray:
    """(layouts, n) int, read-only: every way to put ``n`` cells on the lattice so that none
    overlap, each as ascending indices into CORNERS. The cells are kings on a 5x5 board that do not
    attack each other: 1,974 ways for five, 978 for six, 242 for seven, 27 for eight."""
    overlap = np.zeros((len(CORNERS), len(CORNERS)), bool)
    for i, j in product(range(len(CORNERS)), repeat=2):
        overlap[i, j] = _any_overlap([CORNERS[i], CORNERS[j]])
    partial_layouts: list[tuple[int, ...]] = [()]
    for _ in range(n):
        longer_layouts = []
        for layout in partial_layouts:
            for corner in range(layout[-1] + 1 if layout else 0, len(CORNERS)):
                if not overlap[list(layout), corner].any():
                    longer_layouts.append((*layout, corner))
        partial_layouts = longer_layouts
    all_layouts = np.array(partial_layouts, dtype=int).reshape(-1, n)
    all_layouts.flags.writeable = False  # it is kept and shared
    return all_layouts


def place(rng: np.random.Generator, n: int, tries: int = 200) -> list[tuple[int, int]]:
    """``n`` corners of cells that do not overlap, in reading order, uniform over the lattice by
    rejection."""
    for _ in range(tries):
        chosen_corners = sorted(CORNERS[i] for i in rng.choice(len(CORNERS), n, replace=False))
        if not _any_overlap(chosen_corners):
            return chosen_corners
    raise ValueError(f"n: {n} objects do not fit on the canvas; at most 4 are used")
