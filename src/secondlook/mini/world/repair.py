"""What is wrong with a picture, in words that point, and the right picture nearest to it.

    the cat at the top left is blue, not red; a green key is missing at the bottom

Each fault names one change and its place. The repaired scene makes all of the changes and no other:
what was right stays where it was. What a sentence says can be read back (`faults_of`), so that its
truth is measured.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from secondlook.mini.world.arrange import arrange
from secondlook.mini.world.edits import place_of
from secondlook.mini.world.language import Spec, phrase
from secondlook.mini.world.reader import (
    LEFTOVER,
    Reading,
    foreground_of,
    judge,
    read,
    scene_of,
    threshold_of,
)
from secondlook.mini.world.scene import (
    CELL,
    COLORS,
    CORNERS,
    OBJECTS,
    OPPOSITE,
    SIZE,
    STEP,
    Scene,
    Thing,
    box,
    relations,
)

MAX_TOLD = 3
"""Faults that a reason names; of more the first ones."""
_COLORS = tuple(COLORS)  # to be indexed


@dataclass(frozen=True)
class Diagnosis:
    """The faults of a picture as sentences, those that point first, and the scene in which they are
    mended. No faults: the picture is right, and ``repaired`` is as it was read."""

    faults: tuple[str, ...]
    repaired: Scene
    lacking: frozenset[str] = frozenset()
    """Objects, "a red cat", of which the picture has fewer than it should."""

    @property
    def reason(self) -> str:
        """At most MAX_TOLD faults."""
        return "; ".join(self.faults[:MAX_TOLD])


@dataclass
class _Slot:
    """An object that is asked for, and what becomes it."""

    clause: int
    name: str
    color: str | None
    source: Thing | None = None
    """An object of the picture, which is it already or is made into it."""
    blob: tuple[int, int] | None = None
    """Where something is that is no object, and it in its stead shall be."""

    def is_like(self, thing: Thing) -> bool:
        return self.name == thing.name and self.color in (None, thing.color)

    @property
    def old_color(self) -> str:
        """For objects of any colour: their own, else the first."""
        return self.source.color if self.source else next(iter(COLORS))


def diagnose(spec: Spec, picture: Reading | Scene | np.ndarray) -> Diagnosis:
    """What fails of a specification in a picture, and the nearest scene that satisfies it."""
    things, leftover = _things_of(picture, threshold_of(spec))
    blobs = _blobs(leftover)
    slots: list[_Slot] = []
    for i, clause in enumerate(spec.include):
        slots += [_Slot(i, clause.name, clause.color) for _ in range(clause.count)]
    free = list(things)  # objects that are no slot's yet
    _take(slots, free, lambda slot, thing: slot.is_like(thing))
    _take(slots, free, lambda slot, thing: slot.name == thing.name)
    unwanted = [thing for thing in free if _violates(spec, thing)]
    _fill(slots, free, blobs, unwanted)
    removed = [thing for thing in unwanted if thing in free]
    kept = [thing for thing in free if thing not in removed]
    asked = _relations_of(spec, slots)
    placed = _arrange(slots, kept, asked)
    faults = []
    for slot, place in zip(slots, placed, strict=False):
        faults.append(_fault_of(slot, place))
    for thing in removed:
        words = phrase(thing.name, 1, thing.color).partition(" ")[2]
        faults.append(f"the {words} at the {_where(thing)} should not be there")
    for corner in blobs:
        faults.append(f"there is something else at the {place_of(*corner)}")
    faults += _misplaced(slots, asked, placed)
    repaired = [
        Thing(*corner, slot.name, slot.color or slot.old_color)
        for slot, corner in zip(slots, placed, strict=False)
    ]
    for thing, (y, x) in zip(kept, placed[len(slots) :], strict=True):
        repaired.append(replace(thing, y=y, x=x))
    told = tuple(fault for fault in faults if fault)
    return Diagnosis(told, Scene.of(repaired), _lacking(spec, things))


def _lacking(spec: Spec, things: list[Thing]) -> frozenset[str]:
    """What ``Diagnosis.lacking`` says."""
    lacking = set()
    for clause in spec.include:
        slot = _Slot(0, clause.name, clause.color)
        if sum(slot.is_like(thing) for thing in things) < clause.count:
            lacking.add(phrase(clause.name, 1, clause.color))
    return frozenset(lacking)


def try_diagnose(spec: Spec, picture: Reading | Scene | np.ndarray) -> Diagnosis | None:
    """``diagnose`` of a wrong picture; None where no repair of it is known, and of a right one."""
    try:
        diagnosis = diagnose(spec, picture)
    except ValueError:
        return None
    is_mended = diagnosis.faults and judge(spec, diagnosis.repaired).correct
    return diagnosis if is_mended else None


def counterfactual(rng: np.random.Generator, spec: Spec, scene: Scene) -> Diagnosis | None:
    """What a scene lacks of another colour or class in one of a prompt's clauses: a reason that
    asks for something else than the prompt. None where there is no such clause, or nothing is
    lacking."""
    include = list(spec.include)
    i = int(rng.integers(len(include)))
    clause = include[i]
    if clause.count != 1 or clause.color is None:
        return None
    if rng.random() < 0.7:
        include[i] = replace(clause, color=_COLORS[rng.integers(len(_COLORS))])
    else:
        include[i] = replace(clause, name=OBJECTS[rng.integers(len(OBJECTS))])
    others = [other.name for other in (*spec.include, *spec.exclude) if other is not clause]
    if include[i] == clause or include[i].name in others:
        return None
    diagnosis = try_diagnose(replace(spec, include=tuple(include)), scene)
    # all that changes must be told, since the prompt says otherwise
    return diagnosis if diagnosis and len(diagnosis.faults) <= MAX_TOLD else None


def _fault_of(slot: _Slot, place: tuple[int, int]) -> str:
    """What is wrong with an object in itself; "" where nothing is."""
    wanted, source = phrase(slot.name, 1, slot.color), slot.source
    if slot.blob is not None:
        return f"what is at the {place_of(*slot.blob)} is no {wanted.partition(' ')[2]}"
    if source is None:
        return f"{wanted} is missing at the {place_of(*place)}"
    if source.name != slot.name:
        return (
            f"there is {phrase(source.name, 1, source.color)} at the {_where(source)}, not {wanted}"
        )
    if not slot.is_like(source):
        return f"the {slot.name} at the {_where(source)} is {source.color}, not {slot.color}"
    return ""


def _misplaced(
    slots: list[_Slot], asked: list[tuple[int, str, int]], placed: list[tuple[int, int]]
) -> list[str]:
    """Of each relation that fails between two objects that are there, which of them goes where."""
    faults = []
    for a, relation, b in asked:
        source_a, source_b = slots[a].source, slots[b].source
        if source_a is None or source_b is None:
            continue
        box_a = box(replace(source_a, name=slots[a].name))
        box_b = box(replace(source_b, name=slots[b].name))
        if relation in relations(box_a, box_b):
            continue
        if placed[a] != (source_a.y, source_a.x):
            mover, other, words, place = slots[a], slots[b], relation, placed[a]
        else:
            mover, other, words, place = slots[b], slots[a], OPPOSITE[relation], placed[b]
        faults.append(
            f"the {mover.name} belongs at the {place_of(*place)}, {words} the {other.name}"
        )
    return faults


def _where(thing: Thing) -> str:
    return place_of(thing.y, thing.x)


def _things_of(
    picture: Reading | Scene | np.ndarray, threshold: float
) -> tuple[list[Thing], np.ndarray]:
    """The objects of a picture above a confidence, on the lattice, in reading order; and (48, 48)
    bool: what is left over."""
    mask = np.zeros((SIZE, SIZE), bool)
    if isinstance(picture, Scene):
        scene = picture
    else:
        reading = picture if isinstance(picture, Reading) else read(picture)
        if not isinstance(picture, Reading):
            mask = _leftover_mask(picture, reading)
        sure = [found for found in reading.objects if found.confidence > threshold]
        scene = scene_of(Reading(tuple(sure)))
    # also a scene may have been read from a picture, where objects stand between the lines
    things: dict[tuple[int, int], Thing] = {}
    for thing in scene.things:
        y, x = (_snap(value) for value in (thing.y, thing.x))
        things.setdefault((y, x), replace(thing, y=y, x=x))
    return [things[corner] for corner in sorted(things)], mask


def _snap(value: int) -> int:
    """The nearest line of the lattice."""
    return int(np.clip(round(value / STEP) * STEP, 0, SIZE - CELL))


def _leftover_mask(picture: np.ndarray, reading: Reading) -> np.ndarray:
    """(48, 48) bool: pixels that are neither background nor part of an object that was found."""
    mask = foreground_of(picture)
    for thing in scene_of(reading).things:
        mask[thing.y : thing.y + CELL, thing.x : thing.x + CELL] = False
    return mask


def _blobs(leftover: np.ndarray) -> list[tuple[int, int]]:
    """Corners of the cells that cover what is left over, the fullest first."""
    mask = leftover.copy()
    corners: list[tuple[int, int]] = []
    while mask.sum() > LEFTOVER:
        covered = [mask[y : y + CELL, x : x + CELL].sum() for y, x in CORNERS]
        y, x = CORNERS[int(np.argmax(covered))]
        mask[y : y + CELL, x : x + CELL] = False
        corners.append((y, x))
    return corners


def _take(slots: list[_Slot], free: list[Thing], fits) -> None:
    """Give every empty slot the first free object that fits."""
    for slot in slots:
        if slot.source is None:
            thing = next((thing for thing in free if fits(slot, thing)), None)
            if thing is not None:
                slot.source = thing
                free.remove(thing)


def _violates(spec: Spec, thing: Thing) -> bool:
    """Whether an object that no slot needs must go: its class is excluded, counted or asked for in
    another colour."""
    for clause in spec.exclude:
        if clause.name == thing.name and clause.color in (None, thing.color):
            return True
    # a relation must hold between all objects of its classes, so that none is too much
    related = {clause.position[1] for clause in spec.include if clause.position}
    for i, clause in enumerate(spec.include):
        if clause.name == thing.name and (clause.position or i in related):
            return True
    return any(c.name == thing.name and c.color not in (None, thing.color) for c in spec.include)


def _fill(
    slots: list[_Slot],
    free: list[Thing],
    blobs: list[tuple[int, int]],
    unwanted: list[Thing],
) -> None:
    """What an object that is missing is made of: another one that is too much, else something that
    is no object, else nothing."""
    for slot in slots:
        if slot.source is not None:
            continue
        stand_ins = [t for t in (*unwanted, *free) if t in free and t.name != slot.name]
        if stand_ins:
            slot.source = stand_ins[0]
            free.remove(stand_ins[0])
        elif blobs:
            slot.blob = blobs.pop(0)


# --------------------------------------------------------------------------------- where things go


def _arrange(
    slots: list[_Slot], kept: list[Thing], asked: list[tuple[int, str, int]]
) -> list[tuple[int, int]]:
    """Corners for all objects, slots first, so that the relations hold and as few as can be leave
    their places."""
    names, corners, wishes = [], [], []
    for slot in slots:
        names.append(slot.name)
        corners.append((slot.source.y, slot.source.x) if slot.source else None)
        wishes.append(slot.blob)
    for thing in kept:
        names.append(thing.name)
        corners.append((thing.y, thing.x))
        wishes.append(None)
    return arrange(tuple(names), corners, wishes, asked)


def _relations_of(spec: Spec, slots: list[_Slot]) -> list[tuple[int, str, int]]:
    """(slot, relation, slot) of each clause with a position."""
    first_slot: dict[int, int] = {}
    for i, slot in enumerate(slots):
        first_slot.setdefault(slot.clause, i)
    asked = []
    for i, clause in enumerate(spec.include):
        if clause.position is not None:
            relation, other = clause.position
            asked.append((first_slot[i], relation, first_slot[other]))
    return asked
