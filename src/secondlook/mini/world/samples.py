"""What the miniature is taught from: scenes that satisfy a prompt, near misses, descriptions and
questions.

Nothing here shows a held-out composition, neither in a picture nor in words
(`language.scene_held_out`, `spec_held_out`). Objects are named in reading order, the order in which
their codes are drawn: with a random order the first code of a picture must mix "red star" and "blue
cat" without the crossed pairs, which the image head learns last (docs/LOG.md).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from secondlook.mini.world.language import (
    NUMBERS,
    Clause,
    Spec,
    listing,
    phrase,
    plurals,
    position_spec,
    scene_held_out,
    spec,
    spec_held_out,
)
from secondlook.mini.world.reader import judge
from secondlook.mini.world.scene import (
    COLORS,
    CORNERS,
    OBJECTS,
    OPPOSITE,
    RELATIONS,
    Scene,
    Thing,
    box,
    place,
    relations,
)

KINDS = {
    "single": 0.03,
    "colored": 0.12,
    "two": 0.08,
    "counting": 0.11,
    "counting_colored": 0.04,
    "position": 0.17,
    "position_colored": 0.09,
    "color_attr": 0.26,
    "three_colored": 0.10,
}
ALONE = {k: KINDS[k] for k in ("single", "colored")}
"""The kinds whose scenes hold one object."""
_COLORS = tuple(COLORS)
_CHANGES = ("color", "name", "swap colors", "swap places", "drop", "add")
_AIMED = {
    "single_object": ("name",),
    "two_object": ("name", "drop"),
    "counting": ("drop", "add"),
    "colors": ("color",),
    "position": ("swap places", "move"),
    "color_attr": ("swap colors",),
}
"""The changes that attack what a task's prompts ask for."""


def sample_scene(
    rng: np.random.Generator, shares: dict[str, float] = KINDS, objects: int = len(OBJECTS)
) -> tuple[Spec, Scene]:
    """A prompt and a scene that satisfies it, neither held out; ``shares`` are those of the kinds
    of prompts, of the first ``objects`` classes."""
    kinds, weights = list(shares), np.array(list(shares.values()))
    while True:
        pair = _propose(rng, kinds[rng.choice(len(kinds), p=weights / weights.sum())], objects)
        if pair and not spec_held_out(pair[0]) and not scene_held_out(pair[1]):
            return pair


def _propose(rng: np.random.Generator, kind: str, objects: int) -> tuple[Spec, Scene] | None:
    n = {"single": 1, "colored": 1, "three_colored": 3}.get(kind, 2)
    names = [OBJECTS[i] for i in rng.choice(objects, n, replace=False)]
    colors = [_COLORS[i] for i in rng.choice(len(_COLORS), n, replace=kind in ("two", "position"))]
    if kind.startswith("counting"):
        count = int(rng.integers(2, 5))
        scene = Scene.of(Thing(y, x, names[0], colors[0]) for y, x in place(rng, count))
        return spec(
            "counting", Clause(names[0], count, colors[0] if kind.endswith("colored") else None)
        ), scene
    corners = place(rng, n)
    scene = Scene.of(
        Thing(y, x, name, color) for (y, x), name, color in zip(corners, names, colors, strict=True)
    )
    if kind.startswith("position"):
        first, second = scene.things
        held = relations(box(first), box(second)) & {
            "left of",
            "above",
        }  # the first drawn is the left or upper one
        if not held:
            return None
        relation = sorted(held)[rng.integers(len(held))]
        a, b = first, second
        if rng.random() < 0.5:
            a, b, relation = b, a, OPPOSITE[relation]
        named = (a.color, b.color) if kind.endswith("colored") else (None, None)
        return position_spec(a.name, relation, b.name, named), scene
    tag = {"single": "single_object", "colored": "colors", "two": "two_object"}.get(
        kind, "color_attr"
    )
    bare = kind in ("single", "two")
    return spec(tag, *(Clause(t.name, 1, None if bare else t.color) for t in scene.things)), scene


def near_miss(rng: np.random.Generator, s: Spec, scene: Scene, aimed: float = 0.0) -> Scene:
    """A scene that fails ``s`` by one change of ``scene``: another colour or class, swapped colours
    or places, one object more or less. A share ``aimed`` of the changes attacks what the prompt
    asks for (a relation, a count, who has which colour). Not held out."""
    own = rng.random() < aimed
    while True:
        other = Scene.of(_changed(rng, list(scene.things), _AIMED[s.tag] if own else _CHANGES))
        if other.valid() and not scene_held_out(other) and not judge(s, other).correct:
            return other
        if rng.random() < 0.05:
            wrong = sample_scene(rng)[1]
            if not judge(s, wrong).correct:
                return wrong


def _changed(
    rng: np.random.Generator, things: list[Thing], changes: tuple[str, ...]
) -> list[Thing]:
    """``things`` after one of ``changes``, or as they were where it cannot be made."""
    i, j = (int(k) for k in rng.integers(len(things), size=2))
    a, b = things[i], things[j]
    y, x = CORNERS[rng.integers(len(CORNERS))]
    match changes[rng.integers(len(changes))]:
        case "color":
            things[i] = replace(a, color=_COLORS[rng.integers(10)])
        case "name":
            things[i] = replace(a, name=OBJECTS[rng.integers(len(OBJECTS))])
        case "drop" if len(things) > 1:
            things.pop(i)
        case "add" if len(things) < 4:
            things.append(Thing(y, x, a.name, a.color))
        case "move":
            things[i] = replace(a, y=y, x=x)
        case "swap colors":
            things[i], things[j] = replace(a, color=b.color), replace(b, color=a.color)
        case "swap places":
            things[i], things[j] = replace(a, y=b.y, x=b.x), replace(b, y=a.y, x=a.x)
    return things


def caption(scene: Scene) -> str:
    """ "a red star, a blue cat and an orange anchor", in reading order."""
    return listing([phrase(t.name, 1, t.color) for t in scene.things])


def question(rng: np.random.Generator, scene: Scene, there: float = 0.7) -> tuple[str, str]:
    """A question about a picture and its answer (one word). A share ``there`` asks "is there …?",
    yes and no equally likely; the rest ask for a colour, a count or whether a relation holds."""
    things = scene.things
    t = things[rng.integers(len(things))]
    alone = sum(o.name == t.name for o in things) == 1
    if rng.random() < there:
        colored = rng.random() < 0.65
        if rng.random() < 0.5:
            return f"is there {phrase(t.name, 1, t.color if colored else None)}?", "Yes"
        while True:
            if not colored:
                name, color = OBJECTS[rng.integers(len(OBJECTS))], None
            elif rng.random() < 0.6:  # a class that is there, in another object's colour or in any
                name = t.name
                color = (
                    things[rng.integers(len(things))].color
                    if rng.random() < 0.5
                    else _COLORS[rng.integers(10)]
                )
            else:
                name, color = OBJECTS[rng.integers(len(OBJECTS))], t.color
            if not any(o.name == name and color in (None, o.color) for o in things):
                return f"is there {phrase(name, 1, color)}?", "No"
    kind = rng.integers(3)
    if kind == 0 and alone:
        return f"what color is the {t.name}?", t.color
    if kind == 1:
        return f"how many {plurals()[t.name]} are there?", NUMBERS[
            sum(o.name == t.name for o in things)
        ]
    others = [o for o in things if o.name != t.name and sum(p.name == o.name for p in things) == 1]
    if kind == 2 and alone and others:
        o = others[rng.integers(len(others))]
        held = relations(box(t), box(o))
        relation = RELATIONS[rng.integers(4)] if rng.random() < 0.5 or not held else sorted(held)[0]
        return f"is the {t.name} {relation} the {o.name}?", "Yes" if relation in held else "No"
    return question(rng, scene, there)


DESCRIBE = "what is in the picture?"
