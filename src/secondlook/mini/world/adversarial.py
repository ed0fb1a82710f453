"""Pictures that must fail: a policy rewarded by the reader would find every leniency, so each way
to cheat has a name here."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

from secondlook.mini.world.render import render
from secondlook.mini.world.scene import (
    BACKGROUND,
    CELL,
    COLORS,
    OBJECTS,
    SIZE,
    STEP,
    Scene,
    Thing,
    pictograms,
)


def _thing(rng: np.random.Generator, scene: Scene) -> Thing:
    return scene.things[rng.integers(len(scene.things))]


def noise(rng: np.random.Generator, scene: Scene) -> np.ndarray:
    """Gaussian noise of 80 grey levels on every pixel."""
    noisy = render(scene) + rng.normal(0, 80, (SIZE, SIZE, 3))
    return noisy.clip(0, 255).astype(np.uint8)


def blur(rng: np.random.Generator, scene: Scene, radius: float = 2.0) -> np.ndarray:
    """Gaussian blur."""
    return np.asarray(Image.fromarray(render(scene)).filter(ImageFilter.GaussianBlur(radius)))


def erased(rng: np.random.Generator, scene: Scene) -> np.ndarray:
    """One object is gone."""
    image, thing = render(scene), _thing(rng, scene)
    image[thing.y : thing.y + CELL, thing.x : thing.x + CELL] = BACKGROUND
    return image


def patch_shuffled(rng: np.random.Generator, scene: Scene) -> np.ndarray:
    """The 8-px patches in another order."""
    n = SIZE // STEP  # patches along one side
    grid = render(scene).reshape(n, STEP, n, STEP, 3).swapaxes(1, 2)  # (n, n, 8, 8, 3)
    patches = grid.reshape(n * n, STEP, STEP, 3)
    shuffled_grid = rng.permutation(patches).reshape(n, n, STEP, STEP, 3)
    return shuffled_grid.swapaxes(1, 2).reshape(SIZE, SIZE, 3)


def malformed(rng: np.random.Generator, scene: Scene) -> np.ndarray:
    """One quadrant of an object is another object's (of the same colour)."""
    image, thing = render(scene), _thing(rng, scene)
    while True:
        other_name = OBJECTS[rng.integers(len(OBJECTS))]
        y, x = STEP * rng.integers(2), STEP * rng.integers(2)  # the quadrant's corner in its cell
        own_mask = pictograms()[thing.name][y : y + STEP, x : x + STEP]
        other_mask = pictograms()[other_name][y : y + STEP, x : x + STEP]
        # some quadrants look alike in two objects
        if (own_mask & other_mask).sum() < 0.7 * (own_mask | other_mask).sum():
            break
    top, left = thing.y + y, thing.x + x
    quadrant = np.where(other_mask[..., None], COLORS[thing.color], BACKGROUND)  # (8, 8, 3)
    image[top : top + STEP, left : left + STEP] = quadrant
    return image


def chipped(rng: np.random.Generator, scene: Scene, share: float = 0.2) -> np.ndarray:
    """A fifth of an object's pixels is missing, cut off from one side."""
    image, thing = render(scene), _thing(rng, scene)
    ys, xs = np.nonzero(pictograms()[thing.name])
    order_key = [ys, -ys, xs, -xs][rng.integers(4)]  # from the top, bottom, left or right
    num_cut = int(np.ceil(share * len(ys)))
    cut_pixels = np.argsort(order_key, kind="stable")[:num_cut]
    image[thing.y + ys[cut_pixels], thing.x + xs[cut_pixels]] = BACKGROUND
    return image


def two_coloured(rng: np.random.Generator, scene: Scene) -> np.ndarray:
    """A third of an object has another colour."""
    image, thing = render(scene), _thing(rng, scene)
    other_colors = [color for color in COLORS if color != thing.color]
    ys, xs = np.nonzero(pictograms()[thing.name])
    order_key = [ys, xs][rng.integers(2)]  # from the top or the left
    changed_pixels = np.argsort(order_key, kind="stable")[: len(ys) // 3]
    new_color = COLORS[other_colors[rng.integers(len(other_colors))]]
    image[thing.y + ys[changed_pixels], thing.x + xs[changed_pixels]] = new_color
    return image


SPOILERS: dict[str, Callable[[np.random.Generator, Scene], np.ndarray]] = {
    "noise": noise,
    "blur": blur,
    "erased": erased,
    "patch-shuffled": patch_shuffled,
    "malformed": malformed,
    "chipped": chipped,
    "two-coloured": two_coloured,
}
