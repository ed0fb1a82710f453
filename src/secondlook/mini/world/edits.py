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
from itertools import product

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
    "top left": (0, 0),
    "top": (0, 16),
    "top right": (0, 32),
    "left": (16, 0),
    "center": (16, 16),
    "right": (16, 32),
    "bottom left": (32, 0),
    "bottom": (32, 16),
    "bottom right": (32, 32),
}
"""Name -> the corner (y, x) of the cell there, in pixels."""
NEAR = STEP * 3 // 4
"""Pixels by which an object's middle may be off the middle of what belongs there (classes differ by
up to two)."""
SOURCES = (0.15, 0.35, 0.5)
"""Shares of one, two and three objects in the sources that training has."""
_COLORS = tuple(COLORS)  # to be indexed


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
        for thing in (*self.gone, *self.new):
            mask[thing.y : thing.y + CELL, thing.x : thing.x + CELL] = True
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
    same_name = [other for other in scene.things if other.name == thing.name]
    if not colored:
        return f"the {thing.name}" if len(same_name) == 1 else None
    same_color = [other for other in same_name if other.color == thing.color]
    return f"the {thing.color} {thing.name}" if len(same_color) == 1 else None


def _all_named(scene: Scene) -> dict[str, Thing]:
    """Every name that means one object of a scene."""
    thing_of_name: dict[str, Thing] = {}
    for thing in scene.things:
        for colored in (False, True):
            name = named(thing, scene, colored)
            if name:
                thing_of_name[name] = thing
    return thing_of_name


@cache
def _things() -> dict[str, tuple[str, str]]:
    """ "a red star" -> (class, colour)."""
    return {phrase(name, 1, color): (name, color) for name, color in product(OBJECTS, COLORS)}


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
    thing_of_name = _all_named(source)

    def object_of(name: str) -> Thing:
        if name not in thing_of_name:
            raise InputError(
                f"instruction: {instruction!r} names {name!r}, which is not one object of the "
                "picture"
            )
        return thing_of_name[name]

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
    old: Thing | None = None  # what goes; None where nothing does
    new: Thing | None = None  # what comes
    if verb == "make" and rest.rpartition(" ")[2] in COLORS:
        name, _, color = rest.rpartition(" ")
        kind, named_thing = "recolour", object_of(name)
        old, new = named_thing, replace(named_thing, color=color)
    elif verb == "replace" and " with " in rest:
        name, _, description = rest.partition(" with ")
        kind, named_thing = "replace", object_of(name)
        old, new = named_thing, Thing(named_thing.y, named_thing.x, *described(description))
    elif verb == "add" and " at the " in rest:
        description, _, place_name = rest.partition(" at the ")
        kind, new = "add", Thing(*corner(place_name), *described(description))
    elif verb == "remove":
        kind, old = "remove", object_of(rest)
    elif verb == "move" and " to the " in rest:
        name, _, place_name = rest.partition(" to the ")
        kind, named_thing = "move", object_of(name)
        y, x = corner(place_name)
        old, new = named_thing, replace(named_thing, y=y, x=x)
    else:
        raise InputError(
            f"instruction: {instruction!r} cannot be checked; write for example 'make the star "
            "blue', 'replace the star with a "
            "red cat', 'add a red cat at the top left', 'remove the star', 'move the star to "
            "the center'"
        )
    things = [thing for thing in source.things if thing != old]
    if new:
        things.append(new)
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
    # all are drawn for every kind, so that each proposal takes as many numbers from ``rng``
    color, other_name = _any_color(rng), _any_object(rng)
    place_name = list(PLACES)[rng.integers(len(PLACES))]
    instruction_of_kind = {
        "recolour": f"make {name} {color}",
        "replace": f"replace {name} with {phrase(other_name, 1, color)}",
        "add": f"add {phrase(other_name, 1, color)} at the {place_name}",
        "remove": f"remove {name}",
        "move": f"move {name} to the {place_name}",
    }
    instruction = instruction_of_kind[kind]
    if kind == "add":
        if len(things) > 3:
            return None
    elif name is None or (kind == "replace" and other_name == thing.name):
        return None
    try:
        return parse(instruction, source)
    except InputError:
        return None


def _any_color(rng: np.random.Generator) -> str:
    return _COLORS[rng.integers(len(_COLORS))]


def _any_object(rng: np.random.Generator) -> str:
    return OBJECTS[rng.integers(len(OBJECTS))]


def _scattered(rng: np.random.Generator, n: int) -> Scene:
    """``n`` different objects anywhere, in any colours."""
    names = [OBJECTS[i] for i in rng.choice(len(OBJECTS), size=n, replace=False)]
    things = []
    for (y, x), name in zip(place(rng, n), names, strict=True):
        things.append(Thing(y, x, name, _any_color(rng)))
    return Scene.of(things)


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
            edit = propose(rng, kind, scene)
            if edit and not scene_held_out(edit.target):
                return edit


def benchmark(rows_per_kind: int = 80, split: str = "held-out") -> tuple[Edit, ...]:
    """Mini-PIE: ``rows_per_kind`` edits of each kind, drawn with seed 43, whose targets are
    held-out compositions (``split`` "seen": of those that training has). Raises InputError for
    another split."""
    check_split(split)
    rng = np.random.default_rng(SEED)
    benchmark_rows: list[Edit] = []
    for kind in KINDS:
        distinct_edits: dict[tuple[str, Scene], Edit] = {}
        while len(distinct_edits) < rows_per_kind:
            edit = propose(rng, kind, _scattered(rng, int(rng.integers(1, 4))))
            if edit is None:
                continue
            if split == "held-out":
                belongs = scene_held_out(edit.target)  # its source may be held out or not
            else:
                belongs = not scene_held_out(edit.target) and not scene_held_out(edit.source)
            if belongs:
                distinct_edits.setdefault((edit.instruction, edit.source), edit)
        benchmark_rows += distinct_edits.values()
    return tuple(benchmark_rows)


def wrong_edit(rng: np.random.Generator, edit: Edit) -> Scene:
    """A scene that an edit may be mistaken for: not followed (nothing or the wrong thing done), or
    with something else changed. Never held out; about as many of either."""
    while True:
        scene = _unfollowed(rng, edit) if rng.random() < 0.5 else _spoilt(rng, edit)
        usable = scene and scene.things and scene.valid() and not scene_held_out(scene)
        if scene and usable and not judge(edit, scene).correct:
            return scene
        if rng.random() < 0.02:  # for edits of which hardly any mistake is possible
            return edit.source


def _unfollowed(rng: np.random.Generator, edit: Edit) -> Scene | None:
    """Nothing was done, or it was done with another object, colour, class or place."""
    if rng.random() < 0.25:
        return edit.source
    if rng.random() < 0.4:
        other_edit = propose(rng, edit.kind, edit.source)
        return other_edit.target if other_edit else None
    things = list(edit.target.things)
    if not edit.new:
        return None
    thing = edit.new[0]
    things.remove(thing)
    y, x = list(PLACES.values())[rng.integers(len(PLACES))]
    moved = replace(thing, y=y, x=x)
    # the mistakes of all kinds are drawn, in this order, whichever kind the edit is
    recoloured = replace(thing, color=_any_color(rng))
    if rng.random() < 0.5:
        wrongly_replaced = replace(thing, color=_any_color(rng))
    else:
        wrongly_replaced = replace(thing, name=_any_object(rng))
    wrongly_added = (
        replace(thing, color=_any_color(rng)),
        replace(thing, name=_any_object(rng)),
        moved,
    )
    mistake_of_kind = {
        "recolour": recoloured,
        "replace": wrongly_replaced,
        "add": wrongly_added[rng.integers(3)],
        "move": moved,
    }
    return Scene.of([*things, mistake_of_kind[edit.kind]])


def _spoilt(rng: np.random.Generator, edit: Edit) -> Scene | None:
    """Followed, with another object changed, gone or added."""
    things = list(edit.target.things)
    y, x = (STEP * rng.integers(5, size=2)).tolist()  # a corner of the lattice
    if not edit.kept or rng.random() < 0.2:
        if len(things) > 3:
            return None
        intruder = Thing(y, x, _any_object(rng), _any_color(rng))
        return Scene.of([*things, intruder])
    thing = edit.kept[rng.integers(len(edit.kept))]
    things.remove(thing)
    match rng.integers(4):
        case 0:
            things.append(replace(thing, color=_any_color(rng)))
        case 1:
            things.append(replace(thing, name=_any_object(rng)))
        case 2:
            things.append(replace(thing, y=y, x=x))
        # 3: it is gone
    return Scene.of(things)


def _at(objects: Sequence[Detection], thing: Thing) -> Detection | None:
    """The object found at a thing's place."""
    x1, y1, x2, y2 = box(thing)

    def offset(detection: Detection) -> float:
        """Pixels between the two middles, along the axis on which they are farther apart."""
        left, top, right, bottom = detection.box
        return max(abs(left + right - x1 - x2), abs(top + bottom - y1 - y2)) / 2

    near = []
    for detection in objects:
        if offset(detection) <= NEAR and detection.confidence > THRESHOLD:
            near.append(detection)
    return min(near, key=offset) if near else None


def _is(detection: Detection | None, thing: Thing) -> bool:
    """Whether a detection has the thing's class and colour."""
    if detection is None:
        return False
    return (detection.name, detection.color) == (thing.name, thing.color)


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
    used: list[Detection] = []  # detections that are one of the target's objects
    failures: list[str] = []
    following_atoms = _following_atoms(edit, picture, used, failures)
    followed = not failures
    preserving_atoms = _preserving_atoms(edit, picture, used, failures)
    preserved = all(preserving_atoms)
    return EditVerdict(
        following=0.45 * float(np.mean(following_atoms)) + 0.55 * followed,
        preserving=0.45 * float(np.mean(preserving_atoms)) + 0.55 * preserved,
        followed=followed,
        preserved=preserved,
        reason=failures[0] if failures else _done(edit),
    )


def _following_atoms(
    edit: Edit, reading: Reading, used: list[Detection], failures: list[str]
) -> list[float]:
    """Of each new object its class and its colour (times the confidence), of each that was to go
    whether it is gone. Appends to ``used`` and ``failures``."""
    atoms: list[float] = []
    for thing in edit.new:
        detection = _at(reading.objects, thing)
        if detection:
            used.append(detection)
            atoms.append(float(detection.name == thing.name) * detection.confidence)
            atoms.append(float(detection.color == thing.color) * detection.confidence)
        else:
            atoms += [0.0, 0.0]
        if not _is(detection, thing):
            failures.append(f"there is no {thing.color} {thing.name}{_where(edit, thing)}")
    for thing in edit.gone:
        detection = _at(reading.objects, thing)
        still_there = detection not in used and _is(detection, thing)
        atoms.append(float(not still_there))
        if still_there:
            failures.append(f"the {thing.color} {thing.name} is still there")
    return atoms


def _preserving_atoms(
    edit: Edit, reading: Reading, used: list[Detection], failures: list[str]
) -> list[float]:
    """Of each kept object its confidence, 0 where it is not as it was, and last whether the picture
    holds nothing else. Appends to ``used`` and ``failures``."""
    atoms: list[float] = []
    for thing in edit.kept:
        detection = _at(reading.objects, thing)
        if detection:
            used.append(detection)
        if detection and _is(detection, thing):
            atoms.append(detection.confidence)
        else:
            atoms.append(0.0)
            failures.append(f"the {thing.color} {thing.name} is not as it was")
    beyond = []
    for detection in reading.objects:
        if detection not in used and not _was(detection, edit.gone):
            beyond.append(detection)
    atoms.append(float(not beyond and reading.leftover <= LEFTOVER))
    for detection in beyond:
        failures.append(f"there is also {phrase(detection.name, 1, detection.color)}")
    if reading.leftover > LEFTOVER:
        failures.append("there is something else in the picture")
    return atoms


def _was(detection: Detection, gone: tuple[Thing, ...]) -> bool:
    """Whether a detection is one of the objects that should have gone: that is counted in
    ``following`` already."""
    return any(_is(_at([detection], thing), thing) for thing in gone)


def _where(edit: Edit, thing: Thing) -> str:
    """ " at the top left" for edits that name a place, else ""."""
    if edit.kind not in ("add", "move"):
        return ""
    place_name = next(name for name, corner in PLACES.items() if corner == (thing.y, thing.x))
    return f" at the {place_name}"


def _done(edit: Edit) -> str:
    """ "there is a blue star and the rest is as it was"."""
    if not edit.new:
        return f"there is no {edit.gone[0].color} {edit.gone[0].name} and the rest is as it was"
    thing = edit.new[0]
    there_is = f"there is {phrase(thing.name, 1, thing.color)}{_where(edit, thing)}"
    return f"{there_is} and the rest is as it was"


def edit_of(instruction: str, source: Image.Image | np.ndarray) -> Edit:
    """An instruction for a picture. Raises InputError also for a picture that is not of this
    world."""
    reading = read(source)
    if not reading.objects or reading.leftover > LEFTOVER:
        raise InputError(
            "source: it is not a picture of the miniature's world; its objects cannot be read"
        )
    return parse(instruction, scene_of(reading))
