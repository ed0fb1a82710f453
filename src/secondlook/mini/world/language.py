"""What is asked for: specifications in GenEval's schema, their wording, and which compositions are
held out of training.

Wording and drawing of the prompts follow GenEval's generator (article + class templates, seed 43,
draws per task, then de-duplicated). A composition is held out when a hash of its canonical key says
so; its parts all occur elsewhere:

- ``single_object``: half of the objects are never asked for alone without a colour (they are with
  one, and beside others);
- ``two_object``: 40 of 120 object pairs never share a picture;
- ``counting``: each object misses one of the counts 2, 3, 4;
- ``colors``: each object misses five colours when it is alone in a picture (it has them in
  company);
- ``position``: 60 ordered (A, relation, B) are true of no training picture, in either wording;
- ``color_attr``: a fifth of the pairings {colour A, colour B} occur in no training picture.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from itertools import combinations

import numpy as np

from secondlook.errors import InputError
from secondlook.io import odd_character
from secondlook.mini.world.scene import (
    COLORS,
    OBJECTS,
    OPPOSITE,
    RELATIONS,
    Scene,
    box,
    plurals,
    relations,
)

SEED = 43
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}
ROWS_PER_TASK = 80


@dataclass(frozen=True)
class Clause:
    """``count`` objects of a class, all of ``color`` where one is named, at ``position`` =
    (relation, index of the clause it is relative to)."""

    name: str
    count: int = 1
    color: str | None = None
    position: tuple[str, int] | None = None


@dataclass(frozen=True)
class Spec:
    """One row of GenEval metadata: every ``include`` clause must hold, no ``exclude`` clause
    may."""

    tag: str
    prompt: str
    include: tuple[Clause, ...]
    exclude: tuple[Clause, ...] = ()

    def metadata(self) -> dict:
        """The row as GenEval's ``evaluation_metadata.jsonl`` writes it."""

        def clause(c: Clause) -> dict:
            row = {
                "class": c.name,
                "count": c.count,
                "color": c.color,
                "position": c.position and list(c.position),
            }
            return {k: v for k, v in row.items() if v is not None}

        row: dict = {"tag": self.tag, "include": [clause(c) for c in self.include]}
        if self.exclude:
            row["exclude"] = [clause(c) for c in self.exclude]
        return row | {"prompt": self.prompt}


def phrase(name: str, count: int = 1, color: str | None = None) -> str:
    """ "a red star", "an anchor", "three cats"."""
    words = [color] if color else []
    words.append(name if count == 1 else plurals()[name])
    article = ("an" if words[0][0] in "aeiou" else "a") if count == 1 else NUMBERS[count]
    return " ".join([article, *words])


def listing(phrases: list[str]) -> str:
    """ "a, b and c"."""
    return phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]


def spec(tag: str, *clauses: Clause) -> Spec:
    """The specification and GenEval's wording of it. A ``position`` clause comes second and is
    worded first."""
    exclude: tuple[Clause, ...] = ()
    if tag == "position":
        b, a = clauses
        assert a.position is not None
        words = f"{phrase(a.name, 1, a.color)} {a.position[0]} {phrase(b.name, 1, b.color)}"
    else:
        words = listing([phrase(c.name, c.count, c.color) for c in clauses])
    if tag == "counting":
        exclude = tuple(Clause(c.name, c.count + 1, c.color) for c in clauses)
    return Spec(tag, f"a photo of {words}", clauses, exclude)


def position_spec(
    a: str, relation: str, b: str, colors: tuple[str | None, str | None] = (None, None)
) -> Spec:
    """ "a photo of A relation B"."""
    return spec("position", Clause(b, 1, colors[1]), Clause(a, 1, colors[0], (relation, 0)))


def parse(prompt: str) -> Spec:
    """The specification that a prompt of this world states: ``parse(s.prompt) == s``. Raises
    InputError for other words."""
    said = prompt.strip().removeprefix("a photo of ")
    for relation in RELATIONS:
        first, found, second = said.partition(f" {relation} ")
        if found:
            a, b = _parse_clause(prompt, first), _parse_clause(prompt, second)
            if a.count == b.count == 1:
                return position_spec(a.name, relation, b.name, (a.color, b.color))
            raise _unreadable(prompt, said)
    clauses = [_parse_clause(prompt, words) for words in said.replace(" and ", ", ").split(", ")]
    tag = "two_object" if len(clauses) > 1 else "single_object"
    if any(c.count > 1 for c in clauses):
        tag = "counting"
    elif any(c.color for c in clauses):
        tag = "color_attr" if len(clauses) > 1 else "colors"
    return spec(tag, *clauses)


@cache
def _clauses() -> dict[str, Clause]:
    """Every wording of one clause."""
    return {
        phrase(o, n, c): Clause(o, n, c) for o in OBJECTS for n in NUMBERS for c in (None, *COLORS)
    }


def _parse_clause(prompt: str, words: str) -> Clause:
    if words not in _clauses():
        raise _unreadable(prompt, words)
    return _clauses()[words]


def _unreadable(prompt: str, words: str) -> InputError:
    odd = odd_character(prompt.strip())
    if odd:
        return InputError(f"prompt: {prompt!r} holds {odd}; write a plain space or nothing there")
    return InputError(
        f"prompt: {prompt!r} cannot be checked because of {words!r}; "
        "write for example 'a photo of a red star and a blue cat' with the world's objects and "
        "colours"
    )


def _rank(key: str) -> float:
    """A fixed pseudo-random number in [0, 1) of a composition's key."""
    return int.from_bytes(sha256(f"{SEED}|{key}".encode()).digest()[:6], "big") / 2**48


def _first(keys, n: int) -> frozenset:
    return frozenset(sorted(keys, key=lambda k: _rank(str(k)))[:n])


@cache
def held_out() -> dict[str, frozenset]:
    """Task -> canonical keys of the compositions that training never shows (``color_attr`` is a
    rule: `pairing_held_out`)."""
    pairs = _first(combinations(OBJECTS, 2), 40)
    allowed = [p for p in combinations(OBJECTS, 2) if p not in pairs]
    ordered = [(a, r, b) for p in allowed for a, b in (p, p[::-1]) for r in ("left of", "above")]
    return {
        "single_object": _first(OBJECTS, len(OBJECTS) // 2),
        "two_object": pairs,
        "counting": frozenset((o, 2 + int(3 * _rank(f"count {o}"))) for o in OBJECTS),
        "colors": frozenset(
            (o, c) for o in OBJECTS for c in _first([f"{o} {c}" for c in COLORS], 5)
        ),
        "position": _first(ordered, 60),
    }


def pairing_held_out(a: tuple[str, str], b: tuple[str, str]) -> bool:
    """Whether two (colour, object) may share no training picture."""
    return _rank(f"pairing {sorted((a, b))}") < 0.2


def scene_held_out(scene: Scene) -> bool:
    """Whether a picture shows any held-out composition."""
    out = held_out()
    if len(scene.things) == 1:
        only = scene.things[0]
        return (only.name, f"{only.name} {only.color}") in out["colors"]
    if any(
        (name, n) in out["counting"] for name, n in Counter(t.name for t in scene.things).items()
    ):
        return True
    for a, b in combinations(scene.things, 2):
        if a.name == b.name:
            continue
        if tuple(sorted((a.name, b.name))) in out["two_object"] or pairing_held_out(
            (a.color, a.name), (b.color, b.name)
        ):
            return True
        for relation in relations(box(a), box(b)):
            if canonical(a.name, relation, b.name) in out["position"]:
                return True
    return False


def canonical(a: str, relation: str, b: str) -> tuple[str, str, str]:
    """One key for "A left of B" and "B right of A"."""
    return (a, relation, b) if relation in ("left of", "above") else (b, OPPOSITE[relation], a)


def spec_held_out(s: Spec) -> bool:
    """Whether a prompt names a held-out composition."""
    out, clauses = held_out(), s.include
    if len(clauses) == 1:
        c = clauses[0]
        if c.count > 1:
            return (c.name, c.count) in out["counting"]
        return (
            (c.name, f"{c.name} {c.color}") in out["colors"]
            if c.color
            else c.name in out["single_object"]
        )
    for a, b in combinations(clauses, 2):
        if a.name != b.name and tuple(sorted((a.name, b.name))) in out["two_object"]:
            return True
        if a.color and b.color and pairing_held_out((a.color, a.name), (b.color, b.name)):
            return True
    return any(
        c.position is not None
        and canonical(c.name, c.position[0], clauses[c.position[1]].name) in out["position"]
        for c in clauses
    )


def check_split(split: str) -> None:
    """Raises InputError for a split that the miniature's benchmarks do not have."""
    if split not in ("held-out", "seen"):
        raise InputError(f"split: {split!r} is unknown; use 'held-out' or 'seen'")


@cache
def benchmark(split: str = "held-out") -> tuple[Spec, ...]:
    """Mini-GenEval: 80 rows a task, drawn with seed 43 among the held-out compositions
    (``split="seen"``: among the others).

    Where a task has fewer than 80 such compositions (single_object 8, counting 16 held out) its
    rows repeat them; intervals are taken over distinct prompts. Raises InputError for another
    split.
    """
    check_split(split)
    rng = np.random.default_rng(SEED)
    colors, rows = list(COLORS), []
    for task in TASKS:
        every: list[Spec] = []
        if task == "single_object":
            every = [spec(task, Clause(o)) for o in OBJECTS]
        elif task == "two_object":
            every = [spec(task, Clause(a), Clause(b)) for a in OBJECTS for b in OBJECTS if a != b]
        elif task == "counting":
            every = [spec(task, Clause(o, n)) for o in OBJECTS for n in (2, 3, 4)]
        elif task == "colors":
            every = [spec(task, Clause(o, 1, c)) for o in OBJECTS for c in colors]
        elif task == "position":
            every = [
                position_spec(a, r, b)
                for a in OBJECTS
                for b in OBJECTS
                if a != b
                for r in RELATIONS
            ]
            # a relation is held out for itself here, not because its two objects never meet
            every = [
                s
                for s in every
                if not spec_held_out(spec("two_object", *(Clause(c.name) for c in s.include)))
            ]
        else:
            while len(every) < 20 * ROWS_PER_TASK:
                (a, b), (c, d) = (
                    rng.choice(OBJECTS, 2, replace=False),
                    rng.choice(colors, 2, replace=False),
                )
                bare = spec("two_object", Clause(str(a)), Clause(str(b)))
                if not spec_held_out(bare):
                    every.append(spec(task, Clause(str(a), 1, str(c)), Clause(str(b), 1, str(d))))
        pool = list(dict.fromkeys(s for s in every if spec_held_out(s) == (split == "held-out")))
        order = rng.permutation(len(pool))
        rows += [pool[order[i % len(pool)]] for i in range(ROWS_PER_TASK)]
    return tuple(rows)
