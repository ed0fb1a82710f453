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
from secondlook.mini.world.language import phrase
from secondlook.mini.world.reader import (
    LEFTOVER,
    THRESHOLD,
    Detection,
    Reading,
    read,
    reading_of,
    scene_of,
)
from secondlook.mini.world.scene import CELL, COLORS, OBJECTS, SIZE, STEP, Scene, Thing, box

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
_PLACE_NAMES = {corner: name for name, corner in PLACES.items()}
NEAR = STEP * 3 // 4
"""Pixels by which an object's middle may be off the middle of what belongs there (classes differ by
up to two)."""


def place_of(y: int, x: int) -> str:
    """The name of the third of the canvas, up and down and across, where the cell with this corner
    lies."""
    middle = (SIZE - CELL) // 2

    def nearest(corner: int) -> int:
        return middle + CELL * int(np.sign(corner - middle))

    return _PLACE_NAMES[nearest(y), nearest(x)]


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
    instruction_text = instruction.strip().removesuffix(".")
    odd_sign = odd_character(instruction_text)
    if odd_sign:
        raise InputError(
            f"instruction: {instruction!r} holds {odd_sign}; write a plain space or nothing there"
        )
    edit_kind, old_thing, new_thing = _change(
        instruction_text, _Words(instruction, _all_named(source))
    )
    things = [thing for thing in source.things if thing != old_thing]
    if new_thing:
        things.append(new_thing)
    target_scene = Scene.of(things)
    if not target_scene.valid() or len(set(target_scene.things)) != len(target_scene.things):
        raise InputError(f"instruction: {instruction!r} puts one object over another")
    if target_scene == source or not things:
        raise InputError(f"instruction: {instruction!r} would leave the picture as it is, or empty")
    return Edit(edit_kind, instruction_text, source, target_scene)


@dataclass(frozen=True)
class _Words:
    """Looks up an instruction's words. Raises InputError, which quotes the instruction."""

    instruction: str
    thing_of_name: dict[str, Thing]

    def thing(self, name: str) -> Thing:
        """The object that "the star" or "the red star" means."""
        if name not in self.thing_of_name:
            raise InputError(
                f"instruction: {self.instruction!r} names {name!r}, which is not one object of the "
                "picture"
            )
        return self.thing_of_name[name]

    def description(self, text: str) -> tuple[str, str]:
        """ "a red star" -> (class, colour)."""
        if text not in _things():
            raise InputError(
                f"instruction: {self.instruction!r} asks for {text!r}; say for example 'a red "
                f"star', with an object of {', '.join(OBJECTS)}, in {', '.join(COLORS)}"
            )
        return _things()[text]

    def corner(self, place_name: str) -> tuple[int, int]:
        """A place's (y, x)."""
        if place_name not in PLACES:
            raise InputError(
                f"instruction: {self.instruction!r} names the place {place_name!r}; known are "
                f"{', '.join(PLACES)}"
            )
        return PLACES[place_name]


def _change(instruction_text: str, lookup: _Words) -> tuple[str, Thing | None, Thing | None]:
    """The kind of an edit, the object that goes and the one that comes (None: there is none)."""
    verb, _, verb_object = instruction_text.partition(" ")
    if verb == "make" and verb_object.rpartition(" ")[2] in COLORS:
        name, _, color = verb_object.rpartition(" ")
        old_thing = lookup.thing(name)
        return "recolour", old_thing, replace(old_thing, color=color)
    if verb == "replace" and " with " in verb_object:
        name, _, description = verb_object.partition(" with ")
        old_thing = lookup.thing(name)
        return (
            "replace",
            old_thing,
            Thing(old_thing.y, old_thing.x, *lookup.description(description)),
        )
    if verb == "add" and " at the " in verb_object:
        description, _, place_name = verb_object.partition(" at the ")
        corner = lookup.corner(place_name)
        return "add", None, Thing(*corner, *lookup.description(description))
    if verb == "remove":
        return "remove", lookup.thing(verb_object), None
    if verb == "move" and " to the " in verb_object:
        name, _, place_name = verb_object.partition(" to the ")
        old_thing = lookup.thing(name)
        y, x = lookup.corner(place_name)
        return "move", old_thing, replace(old_thing, y=y, x=x)
    raise InputError(
        f"instruction: {lookup.instruction!r} cannot be checked; write for example 'make the star "
        "blue', 'replace the star with a red cat', 'add a red cat at the top left', 'remove the "
        "star', 'move the star to the center'"
    )


def edit_of(instruction: str, source: Image.Image | np.ndarray) -> Edit:
    """An instruction for a picture. Raises InputError also for a picture that is not of this
    world."""
    reading = read(source)
    if not reading.objects or reading.leftover > LEFTOVER:
        raise InputError(
            "source: it is not a picture of the miniature's world; its objects cannot be read"
        )
    return parse(instruction, scene_of(reading))


def _at(objects: Sequence[Detection], thing: Thing) -> Detection | None:
    """The object found at a thing's place."""
    x1, y1, x2, y2 = box(thing)

    def offset(detection: Detection) -> float:
        """Pixels between the two middles, along the axis on which they are farther apart."""
        left, top, right, bottom = detection.box
        return max(abs(left + right - x1 - x2), abs(top + bottom - y1 - y2)) / 2

    near_detections = []
    for detection in objects:
        if offset(detection) <= NEAR and detection.confidence > THRESHOLD:
            near_detections.append(detection)
    return min(near_detections, key=offset) if near_detections else None


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
    used_detections: list[Detection] = []  # detections that are one of the target's objects
    failures: list[str] = []
    following_atoms = _following_atoms(edit, picture, used_detections, failures)
    followed = not failures
    preserving_atoms = _preserving_atoms(edit, picture, used_detections, failures)
    preserved = all(preserving_atoms)
    return EditVerdict(
        following=0.45 * float(np.mean(following_atoms)) + 0.55 * followed,
        preserving=0.45 * float(np.mean(preserving_atoms)) + 0.55 * preserved,
        followed=followed,
        preserved=preserved,
        reason=failures[0] if failures else _done(edit),
    )


def _following_atoms(
    edit: Edit, reading: Reading, used_detections: list[Detection], failures: list[str]
) -> list[float]:
    """Of each new object its class and its colour (times the confidence), of each that was to go
    whether it is gone. Appends to ``used_detections`` and ``failures``."""
    atoms: list[float] = []
    for thing in edit.new:
        found_object = _at(reading.objects, thing)
        if found_object:
            used_detections.append(found_object)
            atoms.append(float(found_object.name == thing.name) * found_object.confidence)
            atoms.append(float(found_object.color == thing.color) * found_object.confidence)
        else:
            atoms += [0.0, 0.0]
        if not _is(found_object, thing):
            failures.append(f"there is no {thing.color} {thing.name}{_where(edit, thing)}")
    for thing in edit.gone:
        found_object = _at(reading.objects, thing)
        still_there = found_object not in used_detections and _is(found_object, thing)
        atoms.append(float(not still_there))
        if still_there:
            failures.append(f"the {thing.color} {thing.name} is still there")
    return atoms


def _preserving_atoms(
    edit: Edit, reading: Reading, used_detections: list[Detection], failures: list[str]
) -> list[float]:
    """Of each kept object its confidence, 0 where it is not as it was, and last whether the picture
    holds nothing else. Appends to ``used_detections`` and ``failures``."""
    atoms: list[float] = []
    for thing in edit.kept:
        detection = _at(reading.objects, thing)
        if detection:
            used_detections.append(detection)
        if detection and _is(detection, thing):
            atoms.append(detection.confidence)
        else:
            atoms.append(0.0)
            failures.append(f"the {thing.color} {thing.name} is not as it was")
    unexpected_objects = []
    for detection in reading.objects:
        if detection not in used_detections and not _was(detection, edit.gone):
            unexpected_objects.append(detection)
    atoms.append(float(not unexpected_objects and reading.leftover <= LEFTOVER))
    for detection in unexpected_objects:
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
    return f" at the {place_of(thing.y, thing.x)}"


def _done(edit: Edit) -> str:
    """ "there is a blue star and the rest is as it was"."""
    if not edit.new:
        return f"there is no {edit.gone[0].color} {edit.gone[0].name} and the rest is as it was"
    new_thing = edit.new[0]
    there_is = f"there is {phrase(new_thing.name, 1, new_thing.color)}{_where(edit, new_thing)}"
    return f"{there_is} and the rest is as it was"
