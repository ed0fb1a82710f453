"""Compound prompts: three to seven clauses about up to eight objects, in the manner of GenEval++.

    a photo of two red stars, a blue cat left of a green key and no horse

A clause is a coloured object, a count of them (exact), a relation between two objects, or an
absence. A class occurs in one clause only. Four tasks: ``objects``, ``counts``, ``relations`` and
``mixed``, which has all.

Training shows no composition that is held out (`language.scene_held_out`), so the classes of a
training scene are pairwise allowed to meet, at most five of them. A benchmark prompt is one step
away from them: it names exactly one held-out pair of classes, pairing of colours, count or
relation. (Of five classes drawn at random four pairs are held out, which is another world.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations, product

import numpy as np

from secondlook.mini.world import language
from secondlook.mini.world.language import (
    SEED,
    Clause,
    Spec,
    canonical,
    check_split,
    held_out,
    listing,
    pairing_held_out,
    phrase,
    scene_held_out,
)
from secondlook.mini.world.reader import Reading, holds
from secondlook.mini.world.scene import (
    COLORS,
    CORNERS,
    OBJECTS,
    OPPOSITE,
    RELATIONS,
    Scene,
    Thing,
    box,
    layouts,
    relations,
)

TAG = "compound"
TASKS = ("objects", "counts", "relations", "mixed")
MAX_THINGS = 8
MIN_CLAUSES, MAX_CLAUSES = 3, 7
_COLORS = tuple(COLORS)
MIN_CLASSES, MAX_CLASSES = 3, 5
"""Six classes of which all may meet are rare (three sets of 8,008)."""


@dataclass(frozen=True)
class Compound:
    """A prompt with what it asks for: every clause can be checked by itself."""

    task: str
    spec: Spec

    @property
    def num_clauses(self) -> int:
        return len(clauses(self.spec))


def compound_spec(include: tuple[Clause, ...], absent: tuple[str, ...] = ()) -> Spec:
    """The specification and its wording. A clause with a ``position`` stands right behind the one
    that it is relative to, and the two are worded together. Counts of two and more are exact."""
    wordings: list[str] = []
    for i, clause in enumerate(include):
        wording = phrase(clause.name, clause.count, clause.color)
        if clause.position is not None:
            relation, other_index = clause.position
            assert other_index == i - 1, "a relation is to the clause before"
            wording = f"{wording} {relation} {wordings.pop()}"
        wordings.append(wording)
    wordings += [f"no {name}" for name in absent]
    exclude = [Clause(c.name, c.count + 1, c.color) for c in include if c.count > 1]
    exclude += [Clause(name) for name in absent]
    return Spec(TAG, f"a photo of {listing(wordings)}", include, tuple(exclude))


def clauses(spec: Spec) -> list[Spec]:
    """Each clause as a specification of its own: objects with their count and colour, relations,
    absences."""
    single_clauses = []
    for clause in spec.include:
        alone = Clause(clause.name, clause.count, clause.color)
        limits = tuple(c for c in spec.exclude if c.name == clause.name)
        single_clauses.append(Spec(spec.tag, spec.prompt, (alone,), limits))
    for clause in spec.include:
        if clause.position is not None:
            relation, other_index = clause.position
            other = spec.include[other_index]
            pair = (Clause(other.name), Clause(clause.name, 1, None, (relation, 0)))
            single_clauses.append(Spec(spec.tag, spec.prompt, pair))
    named = {clause.name for clause in spec.include}
    for clause in spec.exclude:
        if clause.name not in named:
            single_clauses.append(Spec(spec.tag, spec.prompt, (), (clause,)))
    return single_clauses


def parts_of(prompt: str) -> list[str]:
    """The wordings that a prompt lists: objects, relations, and last what must be absent."""
    return prompt.strip().removeprefix("a photo of ").replace(" and ", ", ").split(", ")


def parse(prompt: str) -> Spec:
    """The specification that any prompt of the world states, compound or not. Three coloured
    objects alone are ``language``'s three_colored kind, which asks for the same. Raises InputError
    for other words."""
    parts = parts_of(prompt)
    has_relation = any(f" {relation} " in part for part in parts for relation in RELATIONS)
    has_absence = any(part.startswith("no ") for part in parts)
    if len(parts) < 3 and not has_absence and not (has_relation and len(parts) > 1):
        return language.parse(prompt)
    include: list[Clause] = []
    absent: list[str] = []
    for part in parts:
        if part.startswith("no ") and part[3:] in OBJECTS:
            absent.append(part[3:])
            continue
        a_words, relation, b_words = _split_relation(part)
        if relation:
            a, b = (language.parse_clause(prompt, words) for words in (a_words, b_words))
            if not a.count == b.count == 1:
                raise language.unreadable(prompt, part)
            include += [b, replace(a, position=(relation, len(include)))]
        else:
            include.append(language.parse_clause(prompt, a_words))
    named = [clause.name for clause in include] + absent
    twice = next((name for name in named if named.count(name) > 1), "")
    if twice or not include:  # a class in two clauses; nothing but absences
        raise language.unreadable(prompt, twice or parts[0])
    is_list = not has_relation and not has_absence
    if is_list and len(include) == 3 and all(clause.count == 1 for clause in include):
        return language.parse(prompt)
    return compound_spec(tuple(include), tuple(absent))


def _split_relation(part: str) -> tuple[str, str, str]:
    """ "a red cat left of a blue key" to its three parts; the last two are "" where there is no
    relation."""
    for relation in RELATIONS:
        a_words, separator, b_words = part.partition(f" {relation} ")
        if separator:
            return a_words, relation, b_words
    return part, "", ""


def held_clauses(spec: Spec, picture: Reading | Scene) -> list[bool]:
    """Of each clause whether it holds in a picture."""
    return [holds(clause, picture) for clause in clauses(spec)]


# --------------------------------------------------------------------------- drawn at random


@dataclass(frozen=True)
class Plan:
    """What a scene is to hold: of each class how many objects."""

    names: tuple[str, ...]
    counts: tuple[int, ...]

    @property
    def of_things(self) -> list[str]:
        """The class of each object."""
        return [name for name, n in zip(self.names, self.counts, strict=True) for _ in range(n)]


@cache
def _meeting_classes() -> dict[int, list[tuple[str, ...]]]:
    """Size -> the sets of classes of which every two may share a training picture."""
    held_out_pairs = held_out()["two_object"]
    sets_of_size = {}
    for size in range(2, MAX_CLASSES + 1):
        allowed = []
        for names in combinations(OBJECTS, size):
            if held_out_pairs.isdisjoint(combinations(sorted(names), 2)):
                allowed.append(names)
        sets_of_size[size] = allowed
    return sets_of_size


@cache
def _held_out_layouts() -> np.ndarray:
    """(classes, classes, corners, corners) bool: whether an object of the first class at the first
    corner and one of the second at the second are in a relation that is held out."""
    held_out_relations = held_out()["position"]
    table = np.zeros((len(OBJECTS), len(OBJECTS), len(CORNERS), len(CORNERS)), bool)
    pairs = {(a, b) for a, _, b in held_out_relations}
    for a, b in pairs | {(b, a) for a, b in pairs}:
        for (i, corner_a), (j, corner_b) in product(enumerate(CORNERS), repeat=2):
            box_a, box_b = box(Thing(*corner_a, a, "")), box(Thing(*corner_b, b, ""))
            for relation in relations(box_a, box_b):
                if canonical(a, relation, b) in held_out_relations:
                    table[OBJECTS.index(a), OBJECTS.index(b), i, j] = True
    return table


def _draw_plan(rng: np.random.Generator, task: str, seen: bool, num_classes: int = 0) -> Plan:
    """How many classes (0: any number) and objects of each; ``seen``: classes that may meet in
    training."""
    num_classes = num_classes or int(rng.integers(MIN_CLASSES, MAX_CLASSES + 1))
    if seen:
        allowed = _meeting_classes()[num_classes]
        names = [*allowed[rng.integers(len(allowed))]]
    else:
        names = [OBJECTS[i] for i in rng.choice(len(OBJECTS), num_classes, replace=False)]
    rng.shuffle(names)
    counts = [1] * num_classes
    if task in ("counts", "mixed"):
        num_counted = 1 if task == "mixed" else int(rng.integers(1, num_classes + 1))
        for i in range(num_counted):
            room = MAX_THINGS - sum(counts)
            counts[i] += int(rng.integers(1, 4)) if room >= 3 else int(rng.integers(0, room + 1))
    return Plan(tuple(names), tuple(counts))


def _draw_colors(rng: np.random.Generator, names: tuple[str, ...], seen: bool) -> list[str] | None:
    """A colour for each class, of which no two objects are a held-out pairing where ``seen``."""
    for _ in range(50):
        colors = [_COLORS[i] for i in rng.integers(len(_COLORS), size=len(names))]
        colored = list(zip(colors, names, strict=True))
        if not seen or not any(pairing_held_out(a, b) for a, b in combinations(colored, 2)):
            return colors
    return None


def _draw_corners(rng: np.random.Generator, plan: Plan, seen: bool) -> np.ndarray | None:
    """(things,) indices into CORNERS; none of the relations held out where ``seen``. None where 512
    random layouts all show one."""
    classes = np.array([OBJECTS.index(name) for name in plan.of_things])
    all_layouts = layouts(len(classes))
    picks = rng.integers(len(all_layouts), size=512)
    proposals = rng.permuted(all_layouts[picks], axis=1)  # (512, things): who is where
    if not seen:
        return proposals[0]
    shows_held_out = np.zeros(len(proposals), bool)
    for i, j in combinations(range(len(classes)), 2):
        pair_table = _held_out_layouts()[classes[i], classes[j]]  # (corners, corners)
        shows_held_out |= pair_table[proposals[:, i], proposals[:, j]]
    if shows_held_out.all():
        return None
    return proposals[np.argmin(shows_held_out)]


def sample_compound(
    rng: np.random.Generator, task: str | None = None, seen: bool = True, num_classes: int = 0
) -> tuple[Compound, Scene]:
    """A prompt of a task (None: any) and a scene that satisfies it, of so many classes (0: any
    number). ``seen``: as training has them; otherwise the prompt names one held-out composition."""
    while True:
        drawn_task = task or TASKS[rng.integers(len(TASKS))]
        plan = _draw_plan(rng, drawn_task, seen, num_classes)
        colors = _draw_colors(rng, plan.names, seen)
        corners = _draw_corners(rng, plan, seen)
        if colors is None or corners is None:
            continue
        color_of_name = dict(zip(plan.names, colors, strict=True))
        things = []
        for name, corner in zip(plan.of_things, corners, strict=True):
            y, x = CORNERS[corner]
            things.append(Thing(y, x, name, color_of_name[name]))
        scene = Scene.of(things)
        spec = _describe(rng, drawn_task, scene)
        if spec is None or not MIN_CLAUSES <= len(clauses(spec)) <= MAX_CLAUSES:
            continue
        if scene_held_out(scene) if seen else num_held_out(spec) != 1:
            continue
        return Compound(drawn_task, spec), scene


def things_of_name(scene: Scene) -> dict[str, list[Thing]]:
    """A scene's objects by class, in reading order of each class's first one."""
    things: dict[str, list[Thing]] = {}
    for thing in scene.things:
        things.setdefault(thing.name, []).append(thing)
    return things


def _describe(rng: np.random.Generator, task: str, scene: Scene) -> Spec | None:
    """A prompt that holds in a scene, its clauses in reading order; None where the task's kinds of
    clauses do not fit."""
    groups = things_of_name(scene)
    single_names = [name for name, things in groups.items() if len(things) == 1]
    pairs: dict[str, tuple[str, str]] = {}  # name -> (relation, the name it is relative to)
    if task in ("relations", "mixed"):
        num_relations = 1 if task == "mixed" else int(rng.integers(1, len(single_names) // 2 + 1))
        for _ in range(num_relations):
            pair = _draw_relation(rng, groups, single_names)
            if pair is None:
                return None
            name, relation, other_name = pair
            pairs[name] = (relation, other_name)
            single_names = [n for n in single_names if n not in (name, other_name)]
    num_absent = int(rng.random() < (0.6 if task == "mixed" else 0.15))
    others = [name for name in OBJECTS if name not in groups]
    absent = tuple(others[i] for i in rng.choice(len(others), num_absent, replace=False))
    include: list[Clause] = []
    worded: set[str] = set()
    partner = {other: name for name, (_, other) in pairs.items()}
    for name in groups:
        if name in worded:
            continue
        name = partner.get(name, name)
        if name in pairs:
            relation, other_name = pairs[name]
            include.append(Clause(other_name, 1, groups[other_name][0].color))
            position = (relation, len(include) - 1)
            include.append(Clause(name, 1, groups[name][0].color, position))
            worded |= {name, other_name}
        else:
            include.append(Clause(name, len(groups[name]), groups[name][0].color))
    return compound_spec(tuple(include), absent)


def _draw_relation(
    rng: np.random.Generator, groups: dict[str, list[Thing]], names: list[str]
) -> tuple[str, str, str] | None:
    """(name, relation, name) of two single objects between which it holds, in either wording."""
    if len(names) < 2:
        return None
    first, second = (names[i] for i in sorted(rng.choice(len(names), 2, replace=False)))
    holding = relations(box(groups[first][0]), box(groups[second][0]))
    if not holding:
        return None
    relation = sorted(holding)[rng.integers(len(holding))]
    if rng.random() < 0.5:
        return second, OPPOSITE[relation], first
    return first, relation, second


def num_held_out(spec: Spec) -> int:
    """How many compositions a prompt names that training never shows: pairs of classes, pairings of
    colours, counts and relations."""
    keys = held_out()
    held_out_names: list[bool] = []
    for a, b in combinations(spec.include, 2):
        held_out_names.append(tuple(sorted((a.name, b.name))) in keys["two_object"])
        if a.color and b.color:
            held_out_names.append(pairing_held_out((a.color, a.name), (b.color, b.name)))
    for clause in spec.include:
        held_out_names.append(clause.count > 1 and (clause.name, clause.count) in keys["counting"])
        if clause.position is not None:
            relation, other = clause.position
            layout = canonical(clause.name, relation, spec.include[other].name)
            held_out_names.append(layout in keys["position"])
    return sum(held_out_names)


@cache
def benchmark_plus(split: str = "held-out", rows_per_task: int = 60) -> tuple[Compound, ...]:
    """Mini-GenEval-plus: distinct prompts a task, as many of three, of four and of five classes,
    drawn with seed 43. Raises InputError for another split than "held-out" and "seen"."""
    check_split(split)
    rng = np.random.default_rng([SEED, 18])
    rows: list[Compound] = []
    for task in TASKS:
        of_task: dict[str, Compound] = {}
        while len(of_task) < rows_per_task:
            num_classes = MIN_CLASSES + len(of_task) % (MAX_CLASSES - MIN_CLASSES + 1)
            compound, _ = sample_compound(rng, task, split == "seen", num_classes)
            of_task.setdefault(compound.spec.prompt, compound)
        rows += of_task.values()
    return tuple(rows)
