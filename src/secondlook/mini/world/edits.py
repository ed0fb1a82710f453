"""Edits of the miniature's world: instructions, what they make of a scene, exact masks, and a
reader's verdict on an edit.

Five kinds, as in PIE-Bench's change object, add, delete, color and pose: recolour, replace, add,
remove, move. Places are named absolutely ("at the top left"), so that the edited scene, and the
mask of what may change, is one and known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from PIL import Image

from secondlook.errors import InputError
from secondlook.io import odd_character
from secondlook.mini.world.language import SEED, check_split, phrase, scene_held_out
from secondlook.mini.world.reader import (
    LEFTOVER,
    THRESHOLD,
    Detection,
    Reading,
    read,
    reading_of,
    scene_of,
)
from secondlook.mini.world.scene import CELL, COLORS, OBJECTS, SIZE, STEP, Scene, Thing, box, place

KINDS = {"recolour": 0.2, "replace": 0.2, "add": 0.2, "remove": 0.2, "move": 0.2}
PLACES = {
    f"{row} {column}".strip() or "center": (y, x)
    for y, row in ((0, "top"), (16, ""), (32, "bottom"))
    for x, column in ((0, "left"), (16, ""), (32, "right"))
}
"""Name -> the corner of the cell there."""
NEAR = STEP * 3 // 4
"""Pixels by which an object's middle may be off the middle of what belongs there (classes differ by
up to two)."""
SOURCES = (0.15, 0.35, 0.5)
"""Shares of one, two and three objects in the sources that training has."""
_COLORS = tuple(COLORS)


@dataclass(frozen=True)
class Edit:
    """An instruction for a scene and the scene that follows it."""

    kind: str
    instruction: str
    source: Scene
    target: Scene

    @property
    def gone(self) -> tuple[Thing, ...]:
        """What the target lacks of the source."""
        return tuple(t for t in self.source.things if t not in self.target.things)

    @property
    def new(self) -> tuple[Thing, ...]:
        """What the target has beyond the source."""
        return tuple(t for t in self.target.things if t not in self.source.things)

    @property
    def kept(self) -> tuple[Thing, ...]:
        """What both have."""
        return tuple(t for t in self.source.things if t in self.target.things)

    def mask(self) -> np.ndarray:
        """(48, 48) bool: the cells that may change."""
        mask = np.zeros((SIZE, SIZE), bool)
        for t in (*self.gone, *self.new):
            mask[t.y : t.y + CELL, t.x : t.x + CELL] = True
        return mask


@dataclass(frozen=True)
class EditVerdict:
    """A reader's verdict on an edit: soft scores in [0, 1], each above 0.5 exactly when its part
    holds, and one sentence."""

    following: float
    preserving: float
    followed: bool
    preserved: bool
    reason: str

    @property
    def correct(self) -> bool:
        return self.followed and self.preserved


def named(thing: Thing, scene: Scene, colored: bool) -> str | None:
    """ "the star" or "the red star"; None where that names another object of the scene as well."""
    alike = [
        t for t in scene.things if t.name == thing.name and (not colored or t.color == thing.color)
    ]
    return (
        f"the {thing.color} {thing.name}"
        if colored and len(alike) == 1
        else f"the {thing.name}"
        if len(alike) == 1
        else None
    )


def _all_named(scene: Scene) -> dict[str, Thing]:
    """Every name that means one object of a scene."""
    found = {named(t, scene, colored): t for t in scene.things for colored in (False, True)}
    return {name: thing for name, thing in found.items() if name}


@cache
def _things() -> dict[str, tuple[str, str]]:
    """ "a red star" -> (class, colour)."""
    return {phrase(o, 1, c): (o, c) for o in OBJECTS for c in _COLORS}


def parse(instruction: str, source: Scene) -> Edit:
    """What an instruction of this world makes of a scene. Raises InputError for other words, for an
    object that is not there or there twice, for a place that is taken, and where nothing would
    change."""
    words = instruction.strip().removesuffix(".")
    odd = odd_character(words)
    if odd:
        raise InputError(
            f"instruction: {instruction!r} holds {odd}; write a plain space or nothing there"
        )
    there = _all_named(source)

    def object_of(name: str) -> Thing:
        if name not in there:
            raise InputError(
                f"instruction: {instruction!r} names {name!r}, which is not one object of the "
                "picture"
            )
        return there[name]

    def described(text: str) -> tuple[str, str]:
        if text not in _things():
            raise InputError(
                f"instruction: {instruction!r} asks for {text!r}; say for example 'a red star'"
            )
        return _things()[text]

    def corner(text: str) -> tuple[int, int]:
        if text not in PLACES:
            raise InputError(
                f"instruction: {instruction!r} names the place {text!r}; known are "
                f"{', '.join(PLACES)}"
            )
        return PLACES[text]

    verb, _, rest = words.partition(" ")
    things, kind, new = list(source.things), "", None
    if verb == "make" and rest.rpartition(" ")[2] in COLORS:
        name, _, color = rest.rpartition(" ")
        kind, old = "recolour", object_of(name)
        new = replace(old, color=color)
    elif verb == "replace" and " with " in rest:
        name, _, other = rest.partition(" with ")
        kind, old = "replace", object_of(name)
        new = Thing(old.y, old.x, *described(other))
    elif verb == "add" and " at the " in rest:
        other, _, where = rest.partition(" at the ")
        kind, old = "add", None
        new = Thing(*corner(where), *described(other))
    elif verb == "remove":
        kind, old = "remove", object_of(rest)
    elif verb == "move" and " to the " in rest:
        name, _, where = rest.partition(" to the ")
        kind, old = "move", object_of(name)
        y, x = corner(where)
        new = replace(old, y=y, x=x)
    else:
        raise InputError(
            f"instruction: {instruction!r} cannot be checked; write for example 'make the star "
            "blue', 'replace the star with a "
            "red cat', 'add a red cat at the top left', 'remove the star', 'move the star to "
            "the center'"
        )
    things = [t for t in things if t != old] + ([new] if new else [])
    target = Scene.of(things)
    if not target.valid() or len(set(target.things)) != len(target.things):
        raise InputError(f"instruction: {instruction!r} puts one object over another")
    if target == source or not things:
        raise InputError(f"instruction: {instruction!r} would leave the picture as it is, or empty")
    return Edit(kind, words, source, target)


def propose(rng: np.random.Generator, kind: str, source: Scene) -> Edit | None:
    """An edit of a scene, or None where a random choice cannot be carried out."""
    things = source.things
    thing = things[rng.integers(len(things))]
    name = named(thing, source, colored=bool(rng.random() < 0.5)) or named(
        thing, source, colored=True
    )
    color, other = _COLORS[rng.integers(len(_COLORS))], OBJECTS[rng.integers(len(OBJECTS))]
    where = list(PLACES)[rng.integers(len(PLACES))]
    instruction = {
        "recolour": f"make {name} {color}",
        "replace": f"replace {name} with {phrase(other, 1, color)}",
        "add": f"add {phrase(other, 1, color)} at the {where}",
        "remove": f"remove {name}",
        "move": f"move {name} to the {where}",
    }[kind]
    if kind == "add":
        if len(things) > 3:
            return None
    elif name is None or (kind == "replace" and other == thing.name):
        return None
    try:
        return parse(instruction, source)
    except InputError:
        return None


def _scattered(rng: np.random.Generator, n: int) -> Scene:
    """``n`` different objects anywhere, in any colours."""
    names = [OBJECTS[i] for i in rng.choice(len(OBJECTS), size=n, replace=False)]
    corners = place(rng, n)
    return Scene.of(
        Thing(y, x, name, _COLORS[rng.integers(10)])
        for (y, x), name in zip(corners, names, strict=True)
    )


def edit_lesson(rng: np.random.Generator, shares: dict[str, float] = KINDS) -> Edit:
    """An edit to learn from: neither its source nor its target shows a held-out composition.

    How many objects the source has is drawn first: few scenes of three show nothing that is held
    out, and what has to be learned is which of them is meant.
    """
    kinds, weights = list(shares), np.array(list(shares.values()))
    while True:
        kind = kinds[rng.choice(len(kinds), p=weights / weights.sum())]
        n = 1 + int(rng.choice(len(SOURCES), p=SOURCES))
        if kind == "remove" and n == 1:  # nothing would be left
            continue
        for _ in range(1000):
            scene = _scattered(rng, n)
            if scene_held_out(scene):
                continue
            found = propose(rng, kind, scene)
            if found and not scene_held_out(found.target):
                return found


def benchmark(rows_per_kind: int = 80, split: str = "held-out") -> tuple[Edit, ...]:
    """Mini-PIE: ``rows_per_kind`` edits of each kind, drawn with seed 43, whose targets are
    held-out compositions (``split`` "seen": of those that training has). Raises InputError for
    another split."""
    check_split(split)
    rng, rows = np.random.default_rng(SEED), list[Edit]()
    for kind in KINDS:
        found: dict[tuple[str, Scene], Edit] = {}
        while len(found) < rows_per_kind:
            e = propose(rng, kind, _scattered(rng, int(rng.integers(1, 4))))
            if (
                e
                and scene_held_out(e.target) == (split == "held-out")
                and (split == "held-out" or not scene_held_out(e.source))
            ):
                found.setdefault((e.instruction, e.source), e)
        rows += found.values()
    return tuple(rows)


def wrong_edit(rng: np.random.Generator, edit: Edit) -> Scene:
    """A scene that an edit may be mistaken for: not followed (nothing or the wrong thing done), or
    with something else changed. Never held out; about as many of either."""
    while True:
        scene = _unfollowed(rng, edit) if rng.random() < 0.5 else _spoilt(rng, edit)
        if (
            scene
            and scene.things
            and scene.valid()
            and not scene_held_out(scene)
            and not judge(edit, scene).correct
        ):
            return scene
        if rng.random() < 0.02:
            return edit.source


def _unfollowed(rng: np.random.Generator, edit: Edit) -> Scene | None:
    """Nothing was done, or it was done with another object, colour, class or place."""
    if rng.random() < 0.25:
        return edit.source
    if rng.random() < 0.4:
        other = propose(rng, edit.kind, edit.source)
        return other.target if other else None
    things = list(edit.target.things)
    if not edit.new:
        return None
    t = edit.new[0]
    things.remove(t)
    y, x = list(PLACES.values())[rng.integers(len(PLACES))]
    changed = {
        "recolour": replace(t, color=_COLORS[rng.integers(10)]),
        "replace": replace(t, color=_COLORS[rng.integers(10)])
        if rng.random() < 0.5
        else replace(t, name=OBJECTS[rng.integers(len(OBJECTS))]),
        "add": (
            replace(t, color=_COLORS[rng.integers(10)]),
            replace(t, name=OBJECTS[rng.integers(len(OBJECTS))]),
            replace(t, y=y, x=x),
        )[rng.integers(3)],
        "move": replace(t, y=y, x=x),
    }[edit.kind]
    return Scene.of([*things, changed])


def _spoilt(rng: np.random.Generator, edit: Edit) -> Scene | None:
    """Followed, with another object changed, gone or added."""
    things = list(edit.target.things)
    y, x = 8 * rng.integers(5, size=2)
    if not edit.kept or rng.random() < 0.2:
        if len(things) > 3:
            return None
        return Scene.of(
            [
                *things,
                Thing(
                    int(y), int(x), OBJECTS[rng.integers(len(OBJECTS))], _COLORS[rng.integers(10)]
                ),
            ]
        )
    t = edit.kept[rng.integers(len(edit.kept))]
    things.remove(t)
    match rng.integers(4):
        case 0:
            things.append(replace(t, color=_COLORS[rng.integers(10)]))
        case 1:
            things.append(replace(t, name=OBJECTS[rng.integers(len(OBJECTS))]))
        case 2:
            things.append(replace(t, y=int(y), x=int(x)))
    return Scene.of(things)


def _at(objects: Sequence[Detection], thing: Thing) -> Detection | None:
    """The object found at a thing's place."""
    x1, y1, x2, y2 = box(thing)

    def off(d: Detection) -> float:
        return max(abs(d.box[0] + d.box[2] - x1 - x2), abs(d.box[1] + d.box[3] - y1 - y2)) / 2

    near = [d for d in objects if off(d) <= NEAR and d.confidence > THRESHOLD]
    return min(near, key=off) if near else None


def judge(edit: Edit, picture: Reading | Scene | Image.Image | np.ndarray) -> EditVerdict:
    """Whether an edit was followed (what was asked for is there, and what was to go is gone) and
    the rest preserved (every other object as it was, nothing else there).

    Each score is 0.45 times the mean over its atoms plus 0.55 where the part holds, as
    ``read.judge``'s.
    """
    if isinstance(picture, Scene):
        picture = reading_of(picture)
    elif not isinstance(picture, Reading):
        picture = read(picture)
    used: list[Detection] = []
    following: list[float] = []
    why: list[str] = []
    for t in edit.new:
        found = _at(picture.objects, t)
        fits = [
            float(found is not None and found.name == t.name),
            float(found is not None and found.color == t.color),
        ]
        following += [f * found.confidence if found else 0.0 for f in fits]
        if sum(fits) < 2:
            why.append(
                f"there is no {t.color} {t.name}"
                + (f" at the {_place(t)}" if edit.kind in ("add", "move") else "")
            )
        if found:
            used.append(found)
    for t in edit.gone:
        found = _at(picture.objects, t)
        still = (
            found is not None
            and found not in used
            and (found.name, found.color) == (t.name, t.color)
        )
        following.append(float(not still))
        if still:
            why.append(f"the {t.color} {t.name} is still there")
    followed = not why
    preserving: list[float] = []
    for t in edit.kept:
        found = _at(picture.objects, t)
        as_it_was = found is not None and (found.name, found.color) == (t.name, t.color)
        preserving.append(found.confidence if found and as_it_was else 0.0)
        if found:
            used.append(found)
        if not as_it_was:
            why.append(f"the {t.color} {t.name} is not as it was")
    beyond = [d for d in picture.objects if d not in used and not _was(d, edit.gone)]
    preserving.append(float(not beyond and picture.leftover <= LEFTOVER))
    why += [f"there is also {phrase(d.name, 1, d.color)}" for d in beyond]
    if picture.leftover > LEFTOVER:
        why.append("there is something else in the picture")
    preserved = all(preserving)
    f, p = (
        0.45 * float(np.mean(atoms)) + 0.55 * ok
        for atoms, ok in ((following, followed), (preserving, preserved))
    )
    return EditVerdict(f, p, followed, preserved, why[0] if why else _done(edit))


def _was(d: Detection, gone: tuple[Thing, ...]) -> bool:
    """What should have gone is counted where the instruction is."""
    return any(_at([d], t) is not None and (d.name, d.color) == (t.name, t.color) for t in gone)


def _place(t: Thing) -> str:
    return next(name for name, corner in PLACES.items() if corner == (t.y, t.x))


def _done(edit: Edit) -> str:
    """ "there is a blue star and the rest is as it was"."""
    if not edit.new:
        return f"there is no {edit.gone[0].color} {edit.gone[0].name} and the rest is as it was"
    t = edit.new[0]
    where = f" at the {_place(t)}" if edit.kind in ("add", "move") else ""
    return f"there is {phrase(t.name, 1, t.color)}{where} and the rest is as it was"


def edit_of(instruction: str, source: Image.Image | np.ndarray) -> Edit:
    """An instruction for a picture. Raises InputError also for a picture that is not of this
    world."""
    reading = read(source)
    if not reading.objects or reading.leftover > LEFTOVER:
        raise InputError(
            "source: it is not a picture of the miniature's world; its objects cannot be read"
        )
    return parse(instruction, scene_of(reading))
