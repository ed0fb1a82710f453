"""A second detector, written apart from `world.read`, that rewards nobody: to check that the first
was not fooled.

Template matching on raw pixels: every object in every colour, as a 16-px RGB patch with its
background, is laid on every position; a place is an object where the root mean square difference is
small. No palette, no masks, no IoU, no confidences; nothing of `world.read` is used.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from secondlook.mini.world.language import Spec
from secondlook.mini.world.scene import BACKGROUND, CELL, COLORS, SIZE, pictograms

NEAR = 30.0
"""Largest root mean square difference (of 255) between an object's patch and its template."""
STRAY = 24
"""Pixels outside of all objects that may differ visibly (by more than 60) from the background."""


@cache
def _templates() -> tuple[list[tuple[str, str]], np.ndarray]:
    names, patches = [], []
    for name, mask in pictograms().items():
        for color, rgb in COLORS.items():
            names.append((name, color))
            patches.append(np.where(mask[..., None], np.array(rgb), np.array(BACKGROUND)))
    return names, np.stack(patches).reshape(len(names), -1).astype(np.float64)


def match(image: Image.Image) -> tuple[list[tuple[str, str, int, int]], int]:
    """Objects (class, colour, y and x of the cell), best match first, and the number of stray
    pixels."""
    pixels = np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BOX), np.float64)
    names, templates = _templates()
    windows = sliding_window_view(pixels, (CELL, CELL), (0, 1)).transpose(0, 1, 3, 4, 2)
    side = len(windows)
    flat = windows.reshape(side * side, -1)
    squares = (flat**2).sum(1)[:, None] - 2 * flat @ templates.T + (templates**2).sum(1)
    distance = np.sqrt(np.maximum(squares, 0) / flat.shape[1])
    stray = np.abs(pixels - np.array(BACKGROUND)).max(-1) > 60
    found: list[tuple[str, str, int, int]] = []
    for k in np.argsort(distance, axis=None):
        place, which = divmod(int(k), len(names))
        if distance[place, which] > NEAR:
            break
        y, x = divmod(place, side)
        if all(abs(y - v) >= CELL - 2 or abs(x - u) >= CELL - 2 for _, _, v, u in found):
            found.append((*names[which], y, x))
            stray[y : y + CELL, x : x + CELL] = False
    return found, int(stray.sum())


def agrees(spec: Spec, image: Image.Image) -> bool:
    """Whether the picture satisfies ``spec`` for this detector: every object asked for is there
    (when counting, so many and no more), in its colour, and the relation holds."""
    found, stray = match(image)
    if stray > STRAY:
        return False
    for clause in spec.include:
        of_class = [f for f in found if f[0] == clause.name]
        if len(of_class) < clause.count or (spec.exclude and len(of_class) > clause.count):
            return False
        if clause.color and sorted(f[1] for f in of_class) != sorted(
            str(c.color) for c in spec.include if c.name == clause.name for _ in range(c.count)
        ):
            return False
        if clause.position:
            relation, target = clause.position
            others = [f for f in found if f[0] == spec.include[target].name]
            if not all(_related(relation, a, b) for a in of_class for b in others):
                return False
    return True


def _related(relation: str, a: tuple[str, str, int, int], b: tuple[str, str, int, int]) -> bool:
    """GenEval's rule on the pictograms' boxes: centre offset less a tenth of both sizes, against
    half of its length."""
    boxes = []
    for name, _, y, x in (a, b):
        rows, columns = np.nonzero(pictograms()[name])
        boxes.append((y + rows.min(), y + rows.max() + 1, x + columns.min(), x + columns.max() + 1))
    (top, bottom, left, right), (top_b, bottom_b, left_b, right_b) = boxes
    dy, dx = (top + bottom - top_b - bottom_b) / 2, (left + right - left_b - right_b) / 2
    length = float(np.hypot(dx, dy))
    margin_y = 0.1 * (bottom - top + bottom_b - top_b)
    margin_x = 0.1 * (right - left + right_b - left_b)
    signed = {
        "left of": -dx - margin_x,
        "right of": dx - margin_x,
        "above": -dy - margin_y,
        "below": dy - margin_y,
    }
    return signed[relation] > 0.5 * length > 0
