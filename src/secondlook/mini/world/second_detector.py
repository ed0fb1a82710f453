"""A second detector, written apart from `world.read`, that rewards nobody: to check that the first
was not fooled.

Template matching on raw pixels: every object in every colour, as a 16-px RGB patch with its
background, is laid on every position; a place is an object where the root mean square difference is
small. No palette, no masks, no IoU, no confidences; nothing of `world.read` is used.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from itertools import product

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
    """(class, colour) of every template, and the templates (160, 768) as rows of RGB values."""
    names, patches = [], []
    for name, mask in pictograms().items():
        for color, rgb in COLORS.items():
            names.append((name, color))
            patches.append(np.where(mask[..., None], np.array(rgb), np.array(BACKGROUND)))  # HWC
    return names, np.stack(patches).reshape(len(names), -1).astype(np.float64)


def match(image: Image.Image) -> tuple[list[tuple[str, str, int, int]], int]:
    """Objects (class, colour, y and x of the cell), best match first, and the number of stray
    pixels."""
    pixels = np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BOX), np.float64)
    names, templates = _templates()
    # (33, 33, 16, 16, 3): the window at every place
    windows = sliding_window_view(pixels, (CELL, CELL), (0, 1)).transpose(0, 1, 3, 4, 2)
    num_places = len(windows)  # along one side
    flat = windows.reshape(num_places * num_places, -1)  # (1089, 768)
    # |window - template|² of every pair, multiplied out
    squared_distances = (flat**2).sum(1)[:, None] - 2 * flat @ templates.T + (templates**2).sum(1)
    distances = np.sqrt(np.maximum(squared_distances, 0) / flat.shape[1])  # (1089, 160)
    stray_mask = np.abs(pixels - np.array(BACKGROUND)).max(-1) > 60  # (48, 48)
    matches: list[tuple[str, str, int, int]] = []
    for flat_index in np.argsort(distances, axis=None):
        place_index, template_index = divmod(int(flat_index), len(names))
        if distances[place_index, template_index] > NEAR:
            break
        y, x = divmod(place_index, num_places)
        if not _overlaps(y, x, matches):
            matches.append((*names[template_index], y, x))
            stray_mask[y : y + CELL, x : x + CELL] = False
    return matches, int(stray_mask.sum())


def _overlaps(y: int, x: int, matches: list[tuple[str, str, int, int]]) -> bool:
    """Whether a cell at (y, x) shares more than its margin with one that was matched better."""
    for _, _, y_other, x_other in matches:
        if abs(y - y_other) < CELL - 2 and abs(x - x_other) < CELL - 2:
            return True
    return False


def agrees(spec: Spec, image: Image.Image) -> bool:
    """Whether the picture satisfies ``spec`` for this detector: every object asked for is there, in
    its colour, the relations hold, and what is excluded (more than are counted, a class that must
    be absent) is not there."""
    matches, num_stray = match(image)
    if num_stray > STRAY:
        return False
    for clause in spec.exclude:
        num_excluded = 0
        for name, color, _, _ in matches:
            num_excluded += name == clause.name and clause.color in (None, color)
        if num_excluded >= clause.count:
            return False
    for clause in spec.include:
        of_class = [
            matched_object for matched_object in matches if matched_object[0] == clause.name
        ]
        if len(of_class) < clause.count:
            return False
        if clause.color:
            wanted_colors: list[str] = []  # of all clauses of this class, one an object
            for same_class in spec.include:
                if same_class.name == clause.name:
                    wanted_colors += [str(same_class.color)] * same_class.count
            colors = [color for _, color, _, _ in of_class]
            # all that are asked for, and none in a colour that is not
            if Counter(wanted_colors) - Counter(colors) or set(colors) - set(wanted_colors):
                return False
        if clause.position:
            relation, other_index = clause.position
            other_name = spec.include[other_index].name
            other_objects = [
                matched_object for matched_object in matches if matched_object[0] == other_name
            ]
            if not all(_related(relation, a, b) for a, b in product(of_class, other_objects)):
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
    length = float(np.hypot(dx, dy))  # of the offset between the centres, in pixels
    margin_y = 0.1 * (bottom - top + bottom_b - top_b)
    margin_x = 0.1 * (right - left + right_b - left_b)
    offset_of_relation = {
        "left of": -dx - margin_x,
        "right of": dx - margin_x,
        "above": -dy - margin_y,
        "below": dy - margin_y,
    }
    return offset_of_relation[relation] > 0.5 * length > 0
