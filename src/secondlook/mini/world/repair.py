"""What is wrong with a picture, in words that point, and the right picture nearest to it.

    the cat at the top left is blue, not red; a green key is missing at the bottom

Each fault names one change and its place. The repaired scene makes all of the changes and no other:
what was right stays where it was. What a sentence says can be read back (`faults_of`), so that its
truth is measured.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations, permutations

import numpy as np
from scipy.optimize import linear_sum_assignment

from secondlook.mini.world.edits import place_of
from secondlook.mini.world.language import Spec, phrase
from secondlook.mini.world.reader import (
    LEFTOVER,
    Reading,
    foreground_of,
    judge,
    names_a_failure,
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
    layouts,
    relations,
)

MAX_TOLD = 3
"""Faults that a reason names; of more the first ones."""
_COLORS = tuple(COLORS)  # to be indexed
_CORNER_INDEX = {corner: i for i, corner in enumerate(CORNERS)}


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
    return _place(tuple(names), corners, wishes, asked)


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


@cache
def _relations_at(a: str, b: str, corner_a: int, corner_b: int) -> frozenset[str]:
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
    related = {i for a, _, b in asked for i in (a, b)}
    # those in a relation are tried everywhere, the others get what is left at the least cost
    tried = [i for i in open_slots if i in related]
    others = [i for i in open_slots if i not in related]
    wishes = {}
    for i in open_slots:
        old = indices[i]
        wishes[i] = near[i] if old is None else CORNERS[old]
    for layout in all_layouts[fits].tolist():
        rest = [corner for corner in layout if corner not in set(fixed.values())]
        if len(rest) != len(open_slots):
            continue
        for choice in permutations(rest, len(tried)):
            corner_of = fixed | dict(zip(tried, choice, strict=True))
            if not _all_hold(names, corner_of, asked):
                continue
            cost = sum(_distance(wishes[i], corner_of[i]) for i in tried)
            if best is not None and cost >= best[0]:
                continue
            left = [corner for corner in rest if corner not in choice]
            costs = np.array([[_distance(wishes[i], corner) for corner in left] for i in others])
            rows, columns = linear_sum_assignment(costs.reshape(len(others), len(left)))
            for row, column in zip(rows, columns, strict=True):
                corner_of[others[row]] = left[column]
                cost += costs[row, column]
            if best is None or cost < best[0]:
                best = (cost, [corner_of[i] for i in range(len(names))])
            if best[0] == 0:
                return best
    return best


def _distance(wish: tuple[int, int] | None, corner: int) -> float:
    """Pixels, up or down and across, between where an object should be and a corner."""
    if wish is None:
        return 0.0
    y, x = CORNERS[corner]
    return float(abs(y - wish[0]) + abs(x - wish[1]))


def _all_hold(
    names: tuple[str, ...], corner_of: dict[int, int], asked: Iterable[tuple[int, str, int]]
) -> bool:
    for a, relation, b in asked:
        if relation not in _relations_at(names[a], names[b], corner_of[a], corner_of[b]):
            return False
    return True


# ------------------------------------------------------------------------------------------ words


def faults_of(reason: str) -> list[str]:
    """The faults that a reason names, as they are written."""
    text = re.sub(r"^(yes|no)\b[,.]?\s*", "", reason.strip(), flags=re.IGNORECASE).rstrip(".")
    return [fault.strip() for fault in text.split(";") if fault.strip()]


def truth_of(reason: str, diagnosis: Diagnosis) -> float | None:
    """Share of the faults a reason names that are true; None where it names none."""
    named = Counter(_without_suggestion(fault) for fault in faults_of(reason))
    if not named:
        return None
    true_faults = Counter(_without_suggestion(fault) for fault in diagnosis.faults)
    for lacking in diagnosis.lacking:
        # also where another object is in its stead, which may be told as well
        true_faults[f"{lacking} is missing"] = max(1, true_faults[f"{lacking} is missing"])
    return (named & true_faults).total() / named.total()  # a fault told twice is true once


def _without_suggestion(fault: str) -> str:
    """A fault without the place that is free for what is missing, or to which a thing may move:
    another place would do as well."""
    missing, _, _ = fault.partition(" is missing at the ")
    if missing != fault:
        return f"{missing} is missing"
    return re.sub(r" belongs at the [a-z ]+, ", " belongs ", fault)


def verdict(spec: Spec, picture: Reading | Scene | np.ndarray) -> str:
    """ "Yes, there is …." or "No, the cat at the top is blue, not red." """
    judged = judge(spec, picture)
    if judged.correct:
        return f"Yes, {judged.reason}."
    return f"No, {faults_in(spec, picture) or judged.reason}."


def faults_in(spec: Spec, picture: Reading | Scene | np.ndarray) -> str:
    """The reason of a wrong picture; "" where no arrangement of its objects would satisfy what is
    asked."""
    diagnosis = try_diagnose(spec, picture)
    return diagnosis.reason if diagnosis else ""


def truth(spec: Spec, picture: np.ndarray, reason: str) -> float | None:
    """Share of what a reason says of a wrong picture that is true, in these words or in those of
    ``judge``'s reasons, which name one failure and no place; None where it says nothing."""
    if not faults_of(reason):
        return None
    has_judges_words = ";" not in reason and " at the " not in reason
    if has_judges_words and names_a_failure(spec, picture, reason):
        return 1.0
    try:
        diagnosis = diagnose(spec, picture)
    except ValueError:
        return 0.0
    return truth_of(reason, diagnosis)


def holds_true(spec: Spec, picture: np.ndarray, reason: str) -> bool:
    """Whether all that a reason says of a wrong picture is true."""
    return truth(spec, picture, reason) == 1
