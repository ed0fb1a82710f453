"""Scenes to pixels: flat pictograms in exact colours on grey, no anti-aliasing."""

from __future__ import annotations

import numpy as np

from secondlook.mini.world.scene import BACKGROUND, CELL, COLORS, SIZE, Scene, pictograms


def render(scene: Scene) -> np.ndarray:
    """The picture of a scene: (48, 48, 3) uint8."""
    image = np.full((SIZE, SIZE, 3), BACKGROUND, np.uint8)
    for thing in scene.things:
        cell = image[thing.y : thing.y + CELL, thing.x : thing.x + CELL]
        cell[pictograms()[thing.name]] = COLORS[thing.color]
    return image
