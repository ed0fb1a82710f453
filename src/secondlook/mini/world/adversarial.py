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
    image, t = render(scene), _thing(rng, scene)
    image[t.y : t.y + CELL, t.x : t.x + CELL] = BACKGROUND
    return image


def patch_shuffled(rng: np.random.Generator, scene: Scene) -> np.ndarray:
    """The 8-px patches in another order."""
    n = SIZE // STEP
    patches = (
        render(scene).reshape(n, STEP, n, STEP, 3).swapaxes(1, 2).reshape(n * n, STEP, STEP, 3)
    )
    return (
        rng.permutation(patches).reshape(n, n, STEP, STEP, 3).swapaxes(1, 2).reshape(SIZE, SIZE, 3)
    )


def malformed(rng: np.random.Generator, scene: Scene) -> np.ndarray:
    """One quadrant of an object is another object's (of the same colour)."""
    image, t = render(scene), _thing(rng, scene)
    while True:
        other = OBJECTS[rng.integers(len(OBJECTS))]
        y, x = STEP * rng.integers(2), STEP * rng.integers(2)
        own, mask = (pictograms()[name][y : y + STEP, x : x + STEP] for name in (t.name, other))
        if (own & mask).sum() < 0.7 * (
            own | mask
        ).sum():  # some quadrants look alike in two objects
            break
    image[t.y + y : t.y + y + STEP, t.x + x : t.x + x + STEP] = np.where(
        mask[..., None], COLORS[t.color], BACKGROUND
    )
    return image


def chipped(rng: np.random.Generator, scene: Scene, share: float = 0.2) -> np.ndarray:
    """A fifth of an object's pixels is missing, cut off from one side."""
    image, t = render(scene), _thing(rng, scene)
    ys, xs = np.nonzero(pictograms()[t.name])
    key = [ys, -ys, xs, -xs][rng.integers(4)]
    cut = np.argsort(key, kind="stable")[: int(np.ceil(share * len(ys)))]
    image[t.y + ys[cut], t.x + xs[cut]] = BACKGROUND
    return image


def two_coloured(rng: np.random.Generator, scene: Scene) -> np.ndarray:
    """A third of an object has another colour."""
    image, t = render(scene), _thing(rng, scene)
    others = [c for c in COLORS if c != t.color]
    ys, xs = np.nonzero(pictograms()[t.name])
    key = [ys, xs][rng.integers(2)]
    part = np.argsort(key, kind="stable")[: len(ys) // 3]
    image[t.y + ys[part], t.x + xs[part]] = COLORS[others[rng.integers(len(others))]]
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
