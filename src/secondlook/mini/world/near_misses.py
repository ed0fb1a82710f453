"""Scenes that fail a prompt in one respect alone: who stands where, or how many there are.

A judge learns each comparison by itself (docs/LOG.md), from pairs of pictures that differ in
nothing else.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from secondlook.mini.world.compound import TAG, held_clauses
from secondlook.mini.world.language import Spec, scene_held_out
from secondlook.mini.world.reader import judge
from secondlook.mini.world.samples import CORNERS, most_things
from secondlook.mini.world.scene import OBJECTS, Scene, Thing

TRIES = 30


def misplaced(rng: np.random.Generator, spec: Spec, scene: Scene) -> Scene | None:
    """A scene with the same objects, of which two have swapped places or one stands elsewhere, so
    that relations fail. None where the prompt has none, or no change was found that may be
    shown."""
    if len(scene.things) < 2 or not any(clause.position for clause in spec.include):
        return None
    for _ in range(TRIES):
        things = list(scene.things)
        i, j = rng.choice(len(things), 2, replace=False)
        a, b = things[i], things[j]
        if rng.random() < 0.5:
            things[i], things[j] = replace(a, y=b.y, x=b.x), replace(b, y=a.y, x=a.x)
        else:
            things[i] = _at_a_corner(rng, a)
        if wrong := _shown(spec, things):
            return wrong
    return None


def miscounted(rng: np.random.Generator, spec: Spec, scene: Scene) -> Scene | None:
    """A scene with one too few or too many of a class that the prompt counts, or with one that must
    be absent, while every other clause holds. None where the prompt does neither, or no change was
    found that may be shown."""
    counted = [clause.name for clause in spec.include if clause.count > 1]
    included = {clause.name for clause in spec.include}
    # that a class may not be there once more is an exclusion too
    absent = [clause.name for clause in spec.exclude if clause.name not in included]
    names = counted + absent
    if not names:
        return None
    for _ in range(TRIES):
        things = list(scene.things)
        name = names[rng.integers(len(names))]
        of_class = [i for i, thing in enumerate(things) if thing.name == name]
        if not of_class:
            other = things[rng.integers(len(things))]
            things.append(_at_a_corner(rng, replace(other, name=name)))
        elif rng.random() < 0.4:
            things.pop(of_class[rng.integers(len(of_class))])
        elif rng.random() < 0.7:
            things.append(_at_a_corner(rng, things[of_class[0]]))
        else:  # one of them is something else
            other_name = OBJECTS[rng.integers(len(OBJECTS))]
            i = of_class[rng.integers(len(of_class))]
            things[i] = replace(things[i], name=other_name)
        wrong = _shown(spec, things) if len(things) <= most_things(spec) else None
        if wrong and (spec.tag != TAG or held_clauses(spec, wrong).count(False) == 1):
            return wrong
    return None


def _at_a_corner(rng: np.random.Generator, thing: Thing) -> Thing:
    y, x = CORNERS[rng.integers(len(CORNERS))]
    return replace(thing, y=y, x=x)


def _shown(spec: Spec, things: list[Thing]) -> Scene | None:
    """The scene, where it fails the prompt and may be shown."""
    scene = Scene.of(things)
    if not things or not scene.valid() or scene_held_out(scene) or judge(spec, scene).correct:
        return None
    return scene
