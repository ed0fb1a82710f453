"""What is wrong with a picture, in words that point, and the right picture nearest to it.

    the cat at the top left is blue, not red; there is no key

Each fault names one change, and where it can, the place. The repaired scene makes all of the
changes and no other: what was right stays where it was. What a sentence says can be read back
(`faults_of`), so that its truth is measured.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations, permutations

import numpy as np

from secondlook.mini.world.language import NUMBERS, Clause, Spec, phrase, plurals
from secondlook.mini.world.reader import LEFTOVER, THRESHOLD, Reading, judge, read, scene_of
from secondlook.mini.world.scene import (
    CELL,
    CORNERS,
    SIZE,
    STEP,
    Scene,
    Thing,
    box,
    layouts,
    relations,
)

MAX_TOLD = 3
"""Faults that a reason names; of more the first ones."""
_CORNER_INDEX = {corner: i for i, corner in enumerate(CORNERS)}


def place_of(y: int, x: int) -> str:
    """ "top left", "center" …: where the cell with this corner lies on the canvas."""
    rows = ("top", "", "bottom")
    cols = ("left", "", "right")
    middle = (SIZE - CELL) // 2

    def third(corner: int) -> int:
        return int(np.sign(corner - middle)) + 1

    words = f"{rows[third(y)]} {cols[third(x)]}".strip()
    return words or "center"


@dataclass(frozen=True)
class Diagnosis:
    """The faults of a picture as sentences, those that point first, and the scene in which they are
    mended. No faults: the picture is right, and ``repaired`` is as it was read."""

    faults: tuple[str, ...]
    repaired: Scene

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
    """An object of the picture that stays in its place, as it is or changed."""
    near: tuple[int, int] | None = None
    """Where something is that is no object: the new one belongs there."""

    @property
    def made(self) -> Thing:
        """The object in its old place; only for slots with a source."""
        assert self.source is not None
        return replace(self.source, name=self.name, color=self.color or self.source.color)


def diagnose(spec: Spec, picture: Reading | Scene | np.ndarray) -> Diagnosis:
    """What fails of a specification in a picture, and the nearest scene that satisfies it."""
    things, leftover = _things_of(picture)
    slots: list[_Slot] = []
    for i, clause in enumerate(spec.include):
        slots += [_Slot(i, clause.name, clause.color) for _ in range(clause.count)]
    free = list(things)  # objects that are no slot's yet
    faults: list[str] = []
    _take(
        slots,
        free,
        lambda slot, thing: slot.name == thing.name and slot.color in (None, thing.color),
    )
    _take(slots, free, lambda slot, thing: slot.name == thing.name)
    for slot in slots:
        if slot.source is not None and slot.source != slot.made:
            faults.append(
                f"the {slot.name} at the {_where(slot.source)} is {slot.source.color}, not {slot.color}"
            )
    blobs = _blobs(leftover)
    unwanted = [thing for thing in free if _violates(spec, thing)]
    for slot in slots:
        if slot.source is None:
            faults.append(_missing(spec, slot, slots, blobs, unwanted, free))
    for thing in unwanted:
        if thing in free:
            free.remove(thing)
            words = phrase(thing.name, 1, thing.color).partition(" ")[2]
            faults.append(f"the {words} at the {_where(thing)} should not be there")
    for corner in blobs:
        faults.append(f"there is something else at the {place_of(*corner)}")
    repaired, moved = _arrange(spec, slots, free)
    faults += moved
    return Diagnosis(tuple(faults), repaired)


def _where(thing: Thing) -> str:
    return place_of(thing.y, thing.x)


def _things_of(picture: Reading | Scene | np.ndarray) -> tuple[list[Thing], np.ndarray]:
    """The objects of a picture on the lattice, in reading order, and (48, 48) bool: what is left
    over."""
    if isinstance(picture, Scene):
        return list(picture.things), np.zeros((SIZE, SIZE), bool)
    if isinstance(picture, Reading):
        reading, mask = picture, np.zeros((SIZE, SIZE), bool)
    else:
        reading = read(picture)
        mask = _leftover_mask(picture, reading)
    sure = [found for found in reading.objects if found.confidence > THRESHOLD]
    things: dict[tuple[int, int], Thing] = {}
    for thing in scene_of(Reading(tuple(sure))).things:
        y, x = (_snap(value) for value in (thing.y, thing.x))
        things.setdefault((y, x), replace(thing, y=y, x=x))
    return [things[corner] for corner in sorted(things)], mask


def _snap(value: int) -> int:
    """The nearest line of the lattice."""
    return int(np.clip(round(value / STEP) * STEP, 0, SIZE - CELL))


def _leftover_mask(picture: np.ndarray, reading: Reading) -> np.ndarray:
    """(48, 48) bool: pixels that are neither background nor part of an object that was found."""
    from secondlook.mini.world.reader import to_canvas
    from secondlook.mini.world.scene import BACKGROUND

    pixels = to_canvas(picture).astype(np.float32)
    mask = np.linalg.norm(pixels - np.array(BACKGROUND, np.float32), axis=-1) > 60
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
    return any(c.name == thing.name and c.color not in (None, thing.color) for c in spec.include)


def _missing(
    spec: Spec,
    slot: _Slot,
    slots: list[_Slot],
    blobs: list[tuple[int, int]],
    unwanted: list[Thing],
    free: list[Thing],
) -> str:
    """Says that an object is missing, and takes the place of what is there in its stead."""
    wanted = phrase(slot.name, 1, slot.color).partition(" ")[2]
    stand_in = next((t for t in (*unwanted, *free) if t in free and t.name != slot.name), None)
    if stand_in is not None:
        free.remove(stand_in)
        slot.source = stand_in
        words = phrase(stand_in.name, 1, stand_in.color)
        return f"there is {words} at the {_where(stand_in)}, not {phrase(slot.name, 1, slot.color)}"
    if blobs:
        slot.near = blobs.pop(0)
        return f"what is at the {place_of(*slot.near)} is no {wanted}"
    clause = spec.include[slot.clause]
    there = sum(s.clause == slot.clause and s.source is not None for s in slots)
    if clause.count > 1 and there:
        verb, noun = ("is", clause.name) if there == 1 else ("are", plurals()[clause.name])
        return f"there {verb} {NUMBERS[there]} {noun}, not {NUMBERS[clause.count]}"
    return f"there is no {wanted}"


# --------------------------------------------------------------------------------- where things go


def _arrange(spec: Spec, slots: list[_Slot], free: list[Thing]) -> tuple[Scene, list[str]]:
    """Places for all objects so that the relations hold and as few as can be leave theirs. Also
    says which relations failed between objects that were there."""
    faults = []
    asked = _relations_of(spec, slots)
    for a, relation, b in asked:
        sources = slots[a].source, slots[b].source
        if None not in sources and relation not in relations(
            box(slots[a].made), box(slots[b].made)
        ):
            faults.append(f"the {slots[a].name} is not {relation} the {slots[b].name}")
    corners: list[tuple[int, int] | None] = []
    for slot in slots:
        corners.append((slot.source.y, slot.source.x) if slot.source else None)
    names = [slot.name for slot in slots]
    for thing in free:
        corners.append((thing.y, thing.x))
        names.append(thing.name)
    near = [slot.near for slot in slots] + [None] * len(free)
    placed = _place(tuple(names), corners, near, asked)
    things = []
    for slot, (y, x) in zip(slots, placed, strict=False):
        color = slot.color or (slot.source.color if slot.source else "red")
        things.append(Thing(y, x, slot.name, color))
    for thing, (y, x) in zip(free, placed[len(slots) :], strict=True):
        things.append(replace(thing, y=y, x=x))
    return Scene.of(things), faults


def _relations_of(spec: Spec, slots: list[_Slot]) -> list[tuple[int, str, int]]:
    """(slot, relation, slot) of each clause with a position."""
    first_slot = {}
    for i, slot in enumerate(slots):
        first_slot.setdefault(slot.clause, i)
    asked = []
    for i, clause in enumerate(spec.include):
        if clause.position is not None:
            relation, other = clause.position
            asked.append((first_slot[i], relation, first_slot[other]))
    return asked


@cache
def _relation_holds(a: str, b: str, corner_a: int, corner_b: int) -> frozenset[str]:
    box_a, box_b = box(Thing(*CORNERS[corner_a], a, "")), box(Thing(*CORNERS[corner_b], b, ""))
    return frozenset(relations(box_a, box_b))


def _place(
    names: tuple[str, ...],
    corners: list[tuple[int, int] | None],
    near: list[tuple[int, int] | None],
    asked: list[tuple[int, str, int]],
) -> list[tuple[int, int]]:
    """A corner for every object: as few as possible leave ``corners``, and those without one come
    near theirs of ``near``. Raises ValueError where no arrangement satisfies the relations."""
    indices = [None if corner is None else _CORNER_INDEX[corner] for corner in corners]
    movable = [i for i, index in enumerate(indices) if index is not None]
    # objects of a relation are moved before others
    related = {i for a, _, b in asked for i in (a, b)}
    movable.sort(key=lambda i: i not in related)
    for num_moved in range(len(movable) + 1):
        best: tuple[float, list[int]] | None = None
        for moved in combinations(movable, num_moved):
            found = _assign(names, indices, near, asked, set(moved))
            if found is not None and (best is None or found[0] < best[0]):
                best = found
        if best is not None:
            return [CORNERS[i] for i in best[1]]
    raise ValueError(f"no arrangement of {', '.join(names)} satisfies what is asked")


def _assign(
    names: tuple[str, ...],
    indices: list[int | None],
    near: list[tuple[int, int] | None],
    asked: list[tuple[int, str, int]],
    moved: set[int],
) -> tuple[float, list[int]] | None:
    """The cheapest layout in which all but the ``moved`` keep their corners: (distance of the new
    and moved ones from where they should be, a corner's index for each)."""
    fixed = {i: index for i, index in enumerate(indices) if index is not None and i not in moved}
    open_slots = [i for i in range(len(names)) if i not in fixed]
    all_layouts = layouts(len(names))
    # (layouts,) those that have all of the fixed corners
    fits = np.ones(len(all_layouts), bool)
    for index in fixed.values():
        fits &= (all_layouts == index).any(-1)
    best: tuple[float, list[int]] | None = None
    for layout in all_layouts[fits].tolist():
        rest = [corner for corner in layout if corner not in set(fixed.values())]
        if len(rest) != len(open_slots):
            continue
        for choice in permutations(rest):
            corner_of = fixed | dict(zip(open_slots, choice, strict=True))
            if not _all_hold(names, corner_of, asked):
                continue
            cost = 0.0
            for i in open_slots:
                wish = near[i] or (CORNERS[index] if (index := indices[i]) is not None else None)
                if wish is not None:
                    y, x = CORNERS[corner_of[i]]
                    cost += abs(y - wish[0]) + abs(x - wish[1])
            if best is None or cost < best[0]:
                best = (cost, [corner_of[i] for i in range(len(names))])
    return best


def _all_hold(
    names: tuple[str, ...], corner_of: dict[int, int], asked: Iterable[tuple[int, str, int]]
) -> bool:
    for a, relation, b in asked:
        if relation not in _relation_holds(names[a], names[b], corner_of[a], corner_of[b]):
            return False
    return True


# ------------------------------------------------------------------------------------------ words


def faults_of(reason: str) -> list[str]:
    """The faults that a reason names, as they are written."""
    text = re.sub(r"^(yes|no),?\s+", "", reason.strip(), flags=re.IGNORECASE).rstrip(".")
    return [fault.strip() for fault in text.split(";") if fault.strip()]


def truth_of(reason: str, diagnosis: Diagnosis) -> float | None:
    """Share of the faults a reason names that are true; None where it names none."""
    named = faults_of(reason)
    if not named:
        return None
    return sum(fault in diagnosis.faults for fault in named) / len(named)


def verdict(spec: Spec, picture: Reading | Scene | np.ndarray) -> str:
    """ "Yes, there is …." or "No, the cat at the top is blue, not red." """
    judged = judge(spec, picture)
    if judged.correct:
        return f"Yes, {judged.reason}."
    return f"No, {diagnose(spec, picture).reason or judged.reason}."
